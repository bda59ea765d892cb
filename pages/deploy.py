"""A run as files for other engines: exported, checked against torch, timed, and explained."""

from ui import deploy

deploy.draw()

"""Runs side by side: what every one costs and is good for, and what two of them do differently; sweeps start here."""

from ui import compare

compare.draw()

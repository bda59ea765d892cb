"""Train a pruned run to win accuracy back: how, live curves, and what was gained."""

from ui import finetune

finetune.draw()

"""How sensitive every block is, and pruning to what a model may cost or lose."""

from ui import budget

budget.draw()

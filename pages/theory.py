"""What the paper proves, tried out: on networks made for it, on a model's own blocks, on digits."""

from ui import theory

theory.draw()

"""Jobs under way and finished runs on disk; each opens in Explore."""

from ui import run_list

run_list.draw()

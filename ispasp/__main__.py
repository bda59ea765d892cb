"""``python -m ispasp``: see ``ispasp.cli``."""

import sys

from ispasp.cli import main

if __name__ == "__main__":
    sys.exit(main())

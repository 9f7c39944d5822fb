"""`python -m heatmap COMMAND ...`, the same as `heatmap COMMAND ...`."""

import sys

from heatmap.cli import main

if __name__ == "__main__":
    sys.exit(main())

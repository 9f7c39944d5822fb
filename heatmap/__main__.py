"""`python -m heatmap COMMAND ...`, the same as tools/COMMAND.py."""

import sys

from heatmap.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

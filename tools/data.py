"""Makes data to train on, converts what others made, and shows what training sees of it."""

import sys

from heatmap.cli.data import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

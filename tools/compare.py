"""Compare runs: settings, learning curves, and errors image by image."""

import sys

from heatmap.cli.compare import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

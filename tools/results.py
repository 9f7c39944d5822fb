"""A table of runs, best first and those without a score last."""

import sys

from heatmap.cli.results import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

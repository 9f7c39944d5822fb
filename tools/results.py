"""Print a table of finished runs."""

import sys

from heatmap.cli.results import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

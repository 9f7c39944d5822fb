"""Draw, convert, check, describe, split, audit and correct data sets."""

import sys

from heatmap.cli.data import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Draw a synthetic contest, train on it, evaluate and submit."""

import sys

from heatmap.cli.quickstart import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

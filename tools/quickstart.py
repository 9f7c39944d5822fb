"""The whole road on a synthetic contest: draw, train, evaluate, submit, look."""

import sys

from heatmap.cli.quickstart import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

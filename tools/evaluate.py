"""Score a run, an ensemble or a submission."""

import sys

from heatmap.cli.evaluate import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

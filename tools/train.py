"""Train an experiment, or resume a stopped run."""

import sys

from heatmap.cli.train import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

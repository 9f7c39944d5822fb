"""Train an experiment, or go on with a run that was stopped; `--help` shows how."""

import sys

from heatmap.cli.train import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

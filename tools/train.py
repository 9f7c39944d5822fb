"""Train an experiment: train.py experiments/unet.py --data.root DIR --out RUN [--field value ...]."""

import sys

from heatmap.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Predict landmarks of images, videos and cameras."""

import sys

from heatmap.cli.predict import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Look at what a run does: on images, videos, a camera, or a contest's images."""

import sys

from heatmap.cli.predict import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

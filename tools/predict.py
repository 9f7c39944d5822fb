"""Look at what a run does: on photographs, videos, a camera, or a contest's pictures."""

import sys

from heatmap.cli.predict import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

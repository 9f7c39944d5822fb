"""Hold runs against each other: what differs, how they learned, which is better and how surely."""

import sys

from heatmap.cli.compare import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

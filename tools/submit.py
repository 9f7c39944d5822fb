"""Write the submission of a run or an ensemble."""

import sys

from heatmap.cli.submit import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

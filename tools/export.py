"""Hand a run on: one file with network and decoder, for ONNX Runtime or for torch."""

import sys

from heatmap.cli.export import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

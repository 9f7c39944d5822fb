"""Export a run to ONNX or torch.export."""

import sys

from heatmap.cli.export import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

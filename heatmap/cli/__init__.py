"""The command line: a module a command, each with `main(arguments) -> exit code`."""

import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "quickstart": "draw a contest of 971 landmarks, train on it, score, submit",
    "train": "train an experiment, or resume a run",
    "evaluate": "score a run, an ensemble or a submission",
    "submit": "write the submission of a run or an ensemble",
    "predict": "landmarks of images, videos and cameras",
    "compare": "which of several runs is better, and how surely",
    "results": "a table of finished runs",
    "export": "write a run as an ONNX or torch.export file",
    "data": "draw, convert, check, describe, split and audit data sets",
}


def main(arguments: Sequence[str]) -> int:
    """Runs a command; returns the exit code: 0, 1 for a failure, 2 for wrong usage."""
    if arguments and arguments[0] in COMMANDS:
        command = importlib.import_module(f"{__name__}.{arguments[0]}")
        return int(command.main(arguments[1:]))
    is_asked = bool(arguments) and arguments[0] in ("-h", "--help")
    lines = [f"  {name:<12}{what}" for name, what in COMMANDS.items()]
    usage = "\n".join(["usage: heatmap COMMAND ...", "", *lines, ""])
    (sys.stdout if is_asked else sys.stderr).write(usage)
    return 0 if is_asked else 2

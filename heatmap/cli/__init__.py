"""The command line: one module per command, each with `main(arguments) -> exit code`."""

import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "quickstart": "draw a synthetic contest, train on it, evaluate, submit",
    "train": "train an experiment, or resume a run",
    "evaluate": "score a run, an ensemble or a submission",
    "submit": "write the submission of a run or an ensemble",
    "predict": "predict landmarks of images, videos and cameras",
    "compare": "compare runs image by image, with confidence intervals",
    "results": "print a table of runs",
    "export": "export a run to ONNX or torch.export",
    "data": "draw, convert, check, describe, split, audit and correct data sets",
    "completion": "print the completion script of bash, zsh or fish",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code: 0, 1 for a failure, 2 for wrong usage.

    Args:
        arguments: the command and its arguments; by default those of the process.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in COMMANDS:
        try:
            command = importlib.import_module(f"{__name__}.{arguments[0]}")
            return int(command.main(arguments[1:]))
        except KeyboardInterrupt:  # while modules or an experiment file load
            sys.stderr.write("stopped\n")
            return 1
    lines = [f"  {name:<12}{description}" for name, description in COMMANDS.items()]
    usage = "\n".join(["usage: heatmap COMMAND ...  (COMMAND --help explains it)", "", *lines, ""])
    if arguments and arguments[0] in ("-h", "--help"):
        sys.stdout.write(usage)
        return 0
    from heatmap.cli.running import unknown_command  # late, so that the usage appears at once

    return unknown_command(arguments, COMMANDS, usage)

"""Print the completion script of a shell."""

import contextlib
import io
import re
from collections.abc import Sequence
from importlib import import_module

import tyro

from heatmap import cli
from heatmap.cli import data, train
from heatmap.cli.convert import convert
from heatmap.cli.running import experiment_file, load_experiment, run_command
from heatmap.errors import UsageError

SHELLS = ("bash", "zsh", "fish")


def completion_script(shell: str) -> str:
    """Returns the script that completes the commands and options of `heatmap` in a shell."""
    experiment = load_experiment(experiment_file("unet"))
    commands, data_commands = tyro.extras.SubcommandApp(), tyro.extras.SubcommandApp()
    for name in [name for name in cli.COMMANDS if name not in ("train", "data")]:
        commands.command(name=name)(getattr(import_module(f"heatmap.cli.{name}"), name))
    commands.command(name="train")(train.command_of(experiment))
    for name, command in data.COMMANDS.items():
        data_commands.command(name=name)(command)
    data_commands.command(name="show")(data.show_command(experiment))
    data_commands.command(convert, name="convert")
    commands.command(data_commands, name="data")
    output = io.StringIO()
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(output):
        commands.cli(
            prog="heatmap", args=["--tyro-print-completion", shell],
            config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagCreatePairsOff),
        )  # fmt: skip
    # in bash, the lines of a wrapped description would be offered as words
    one_line = re.compile("^COMPLETION_SPEC = .*", re.MULTILINE)
    script = one_line.sub(lambda match: match[0].replace(r"\n", " "), output.getvalue())
    # and files would not be offered as positional arguments
    matches = 'COMPREPLY=("${matches[@]}")'
    script = script.replace(matches, f'COMPREPLY=(); [[ -n "$completions" ]] && {matches}')
    return script.replace("complete -F", "complete -o default -F")


def main(arguments: Sequence[str]) -> int:
    def print_script() -> None:
        if len(arguments) != 1 or arguments[0] not in SHELLS:
            raise UsageError(f"{cli.COMPLETION} needs the shell's name: {', '.join(SHELLS)}")
        print(completion_script(arguments[0]))

    return run_command(print_script)

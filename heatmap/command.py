"""The one place that knows the command line of experiments (tyro).

train.py EXPERIMENT.py --out RUN [--field value ...] [--dry-run]
train.py --resume RUN
"""

import importlib.util
import json
import logging
import os
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from heatmap import config
from heatmap.config import Experiment
from heatmap.files import read_json

if TYPE_CHECKING:
    from heatmap.checkpoint import Checkpoint
    from heatmap.run import Run

logger = logging.getLogger("heatmap")


def _augmentations(texts: list[str]) -> frozenset[str]:
    """ "mirror,scale" as a set."""
    names = frozenset(texts[0].split(","))
    if not names <= {"mirror", "scale"}:
        raise ValueError(f"expected mirror, scale or mirror,scale, not {texts[0]!r}")
    return names


TestTimeAugmentation = Annotated[
    frozenset[str],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="mirror,scale",
        instance_from_str=_augmentations,
        is_instance=lambda value: isinstance(value, frozenset),
        str_from_instance=lambda names: [",".join(sorted(names)) or "none"],
    ),
]

USAGE = """\
usage: train.py EXPERIMENT.py --out RUN [--data.root DIR] [--field value ...] [--dry-run]
       train.py EXPERIMENT.py --help      every field with its default
       train.py --resume RUN              go on with a run that was stopped
"""


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns the exit code: 0, 1 for a failure, 2 for wrong usage."""
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(USAGE)
        return 0 if arguments else 2
    if arguments[0] == "--resume":
        if len(arguments) != 2:
            sys.stderr.write(
                "--resume takes a run folder and nothing else: a run keeps its config\n"
            )
            return 2
        return failing_politely(lambda: _resume(Path(arguments[1])))
    return with_experiment("train.py", arguments, _training, USAGE)


def with_experiment(
    program: str,
    arguments: Sequence[str],
    command_for: Callable[[Experiment], Callable[..., int]],
    usage: str,
) -> int:
    """Runs a command on the experiment of a file, whose fields the command line overrides.

    Args:
        arguments: the experiment file, then the options.
        command_for: gives the command, whose first parameter is the experiment and whose others
            become options; the command returns the exit code.
    """
    if not arguments or arguments[0].startswith("-"):
        found = repr(arguments[0]) if arguments else "nothing"
        sys.stderr.write(f"the first argument is an experiment file, not {found}\n{usage}")
        return 2
    try:
        experiment = load_experiment(Path(arguments[0]))
    except ValueError as error:
        _say(str(error))
        return 2
    module = sys.modules[_module_name(Path(arguments[0]))]
    try:
        return tyro.cli(
            command_for(experiment),
            args=list(arguments[1:]),
            prog=f"{program} {arguments[0]}",
            console_outputs=is_first(),
            description=(module.__doc__ or "").partition("\n")[0],
            config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagCreatePairsOff),
        )
    except ValueError as error:  # from Experiment itself; tyro reports those of its parts
        _say(str(error))
        return 2


def _training(experiment: Experiment) -> Callable[..., int]:
    # every run of a sweep needs a folder of its own, and its command is the same for all
    wandb_id = os.environ.get("WANDB_RUN_ID")
    folder = Path("runs") / (f"{experiment.name}-{wandb_id}" if wandb_id else experiment.name)

    def command(
        experiment: Annotated[Experiment, tyro.conf.arg(name="")] = experiment,
        *,
        out: Path = folder,
        dry_run: bool = False,
    ) -> int:
        """Train an experiment.

        Args:
            out: the run folder; it must not hold a run yet. For a run that an agent of Weights &
                Biases starts, the default ends with the run's id.
            dry_run: show the config, the sizes and the memory it would need, and train nothing.
        """
        action = _dry_run if dry_run else _train
        return failing_politely(lambda: action(experiment, out))

    return command


def load_experiment(path: Path) -> Experiment:
    """The `EXPERIMENT` that a Python file defines; it may import its siblings by their folder.

    Raises:
        ValueError: no such file, or no EXPERIMENT in it.
    """
    if path.suffix != ".py" or not path.is_file():
        raise ValueError(f"{path}: there is no such experiment file")
    sys.path.insert(0, str(path.resolve().parent.parent))
    spec = importlib.util.spec_from_file_location(_module_name(path), path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a person's own file may do wrong
        raise ValueError(f"{path}: {type(error).__name__}: {error}") from error
    experiment = getattr(module, "EXPERIMENT", None)
    if not isinstance(experiment, Experiment):
        raise ValueError(f"{path}: defines no EXPERIMENT = Experiment(...)")
    return experiment


class WrongUsage(ValueError):
    """Options that cannot be, by themselves or together; the exit code is 2."""


def failing_politely(action: Callable[[], None]) -> int:
    """Runs the action of a tool; a failure becomes one message and exit code 1, or 2.

    Of the processes that torchrun started the first tells what it does, and the first that fails
    tells why. That one ends at once, without a word to those that wait for it; torchrun ends them.
    """
    # before torch is imported: its threads wait asleep, else a busy machine slows them 50 times
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    logger.setLevel(logging.INFO if is_first() else logging.ERROR)
    try:
        action()
        if "RANK" in os.environ:
            from heatmap import distributed

            distributed.stop()
    except (ValueError, OSError) as error:
        _say(_in_words(error))
        return 2 if isinstance(error, WrongUsage) else 1
    except (MemoryError, RuntimeError) as error:
        from heatmap.machine import is_out_of_memory

        if is_out_of_memory(error):
            _say(f"there is too little memory ({_first_line(error)}): make something smaller")
        elif _speaks():
            raise
        return 1
    except KeyboardInterrupt:
        if is_first():
            sys.stderr.write("stopped\n")
        return 1
    return 0


def is_first() -> bool:
    """Whether this process is the only one, or the first of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def _say(problem: str) -> None:
    if _speaks():
        rank = os.environ.get("RANK")
        where = f" in process {rank} on {socket.gethostname()}" if rank else ""
        sys.stderr.write(f"error{where}: {problem}\n")


def _speaks() -> bool:
    """Whether this process, which fails, is to say so."""
    if "RANK" not in os.environ:
        return True
    from heatmap import distributed

    return distributed.fails_first()


def _in_words(error: ValueError | OSError) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename2 or error.filename}: {error.strerror}"
    return str(error)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _module_name(path: Path) -> str:
    return f"{path.resolve().parent.name}.{path.stem}"


def _train(experiment: Experiment, out: Path) -> None:
    held = any((out / name).exists() for name in ("config.json", "last.pt"))
    if held and is_first():  # it may be this run's already, for the others
        raise ValueError(
            f"{out} already holds a run; go on with --resume {out}, choose another --out, or "
            "delete it"
        )
    _run(experiment, out)


def _resume(folder: Path) -> None:
    from heatmap import checkpoint

    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: there is no run here (no config.json)")
    if (folder / "summary.json").is_file():
        logger.info(f"{folder}: this run has finished")
    elif (folder / "last.pt").is_file():
        saved = checkpoint.load(folder / "last.pt")
        _run(config.from_dict(Experiment, saved.config), folder, saved)
    else:  # it was stopped before its first checkpoint
        _run(config.from_dict(Experiment, read_json(folder / "config.json")), folder)


def _run(experiment: Experiment, folder: Path, saved: "Checkpoint | None" = None) -> None:
    from heatmap import train
    from heatmap.run import prepare

    run = prepare(experiment, saved)
    if is_first():
        logger.info(f"{_sizes(run)}\nrun folder    {folder}")
    try:
        summary = train.train(run, folder)
    except KeyboardInterrupt:
        if is_first():
            logger.info(f"python tools/train.py --resume {folder} goes on where it was")
        raise
    logger.info(f"{_outcome(summary)}; {summary['minutes']:.1f} minutes")


def _outcome(summary: dict[str, Any]) -> str:
    if summary["best_mse"] is None:
        return f"trained on all rows, without a score, for {summary['epochs']} epochs"
    return (
        f"best validation MSE {summary['best_mse']:.3f} px² in epoch {summary['best_epoch']} of "
        f"{summary['epochs']}; the mean shape's is {summary['mean_shape_mse']:.3f}"
    )


def _dry_run(experiment: Experiment, out: Path) -> None:
    from heatmap.run import prepare

    del out
    logger.info(json.dumps(config.to_dict(experiment), indent=2))
    bare = replace(experiment.model, weights="none")  # sizes need no weights
    logger.info(_sizes(prepare(replace(experiment, model=bare))))


def _sizes(run: "Run") -> str:
    """What a run is made of and the memory it needs, as lines that line up."""
    from heatmap import plan

    experiment, parameters = run.experiment, sum(p.numel() for p in run.network.parameters())
    excluded = f", {len(run.excluded_rows)} excluded" if experiment.data.exclude else ""
    parts = experiment.train.accumulate  # of a batch that is no larger than the rows
    batch = max(parts, min(experiment.train.batch, len(run.training_rows)) // parts * parts)
    planned = replace(experiment, train=replace(experiment.train, batch=batch))
    lines = [
        f"data          {len(run.training_rows)} training and {len(run.validation_rows)} "
        f"validation pictures{excluded}, {run.table.num_landmarks} landmarks",
        f"split         {run.split_rule}",
        f"network       {type(experiment.model).__name__} on {experiment.model.encoder}, "
        f"{parameters / 1e6:.2f} M parameters, {run.device}",
        f"steps         {run.batches_per_epoch} an epoch, at most {run.total_steps}",
    ]
    if isinstance(experiment.model, config.HeatmapModel):
        lines += _map_sizes(experiment, experiment.model, run.table.num_landmarks)
    return "\n".join([*lines, plan.table(planned, run.table.num_landmarks, run.device)])


def _map_sizes(experiment: Experiment, model: config.HeatmapModel, num_landmarks: int) -> list[str]:
    height, width = experiment.crop.height // model.stride, experiment.crop.width // model.stride
    lines = [f"heatmaps      {num_landmarks} of {height} x {width}, sigma {model.sigma}"]
    needed = min(num_landmarks, round(0.25 * height * width / model.sigma**2))
    if model.width < needed:
        lines.append(
            f"capped        {model.width} channels cannot show {num_landmarks} such maps sharply; "
            f"use about {needed} (--model.width), a larger --model.stride or --model.sigma"
        )
    return lines

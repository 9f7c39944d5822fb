"""The model card of a run, for those who are handed its model: data, recipe, scores, limits.

It says only what the run's own files say.

Source: Mitchell et al. 2019, Model Cards for Model Reporting, https://arxiv.org/abs/1810.03993
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import heatmap
from heatmap import config, schemes
from heatmap.config import Augment, Crop, Experiment, HeatmapModel
from heatmap.runs import checkpoint
from heatmap.runs.checkpoint import Checkpoint
from heatmap.runs.ledger import read_metrics
from heatmap.runtime.columns import lined_up
from heatmap.runtime.files import read_json, write_atomically

NAME = "MODEL.md"

CROPS = {
    "cover": "the middle of the picture; its long ends are cut off",
    "contain": "the whole picture, with black beside it",
    "box": "a box round the face, which must be given",
}


def write(folder: Path, evaluation: str | None = None) -> None:
    """Writes MODEL.md into the folder of a finished run.

    Args:
        evaluation: the scores of the best weights on the validation rows, by group and size, as
            lines that line up.

    Raises:
        ValueError: a file of the run is missing or damaged.
    """
    saved = checkpoint.load(folder / "best.pt")
    experiment = config.from_dict(Experiment, saved.config)
    summary = read_json(folder / "summary.json")
    model = experiment.model
    sections = [
        f"# {experiment.name}: {saved.num_landmarks} facial landmarks",
        f"`best.pt` is a network ({type(model).__name__} on {model.encoder}) for crops of a face, "
        f"{experiment.crop.height} x {experiment.crop.width} pixels. It gives "
        f"{saved.num_landmarks} points in the photograph's own pixels.",
        "## Data",
        _table(_data(folder, saved, experiment)),
        "## Recipe",
        "`config.json` has every setting.",
        _table(_recipe(folder, saved, experiment, summary)),
        "## Scores",
        *_scores(folder, saved, summary, evaluation),
        "## Limits",
        "\n".join(f"- {limit}" for limit in _limits(folder, saved, experiment)),
        "## Use",
        "`RUN` is this folder, `DIR` a folder of the contest's layout.",
        "```bash\n"
        "python tools/predict.py RUN --data DIR --out sheet.jpg\n"
        "python tools/evaluate.py RUN\n"
        "python tools/submit.py RUN --data DIR --out submission.csv\n"
        "python tools/export.py RUN model.onnx\n"
        "```",
    ]
    with write_atomically(folder / NAME) as temporary:
        temporary.write_text("\n\n".join(sections) + "\n", encoding="utf-8")


Rows = list[tuple[str, str]]


def _data(folder: Path, saved: Checkpoint, experiment: Experiment) -> Rows:
    groups = schemes.groups(saved.num_landmarks, saved.landmark_scheme)
    rows = [
        ("folder", experiment.data.root.resolve().name),
        ("pictures trained on", f"{len(saved.training_rows)}"),
        ("pictures validated on", f"{len(saved.validation_rows)}"),
        ("split", read_json(folder / "split.json")["rule"]),
        ("landmarks", f"{saved.num_landmarks}"),
    ]
    if len(groups) > 1:
        rows += [("landmark groups", ", ".join(f"{n} {len(g)}" for n, g in groups.items()))]
    return rows


def _recipe(
    folder: Path, saved: Checkpoint, experiment: Experiment, summary: dict[str, Any]
) -> Rows:
    model, train = experiment.model, experiment.train
    optimizer = experiment.optimizer
    machine = read_json(folder / "machine.json")
    start = "random start weights" if model.weights == "none" else f"start weights {model.weights}"
    if train.start is not None:
        start = f"started from {train.start}"
    schedules = ", then ".join(stage.schedule.kind for stage in experiment.all_stages)
    losses: list[str] = [model.loss]
    if isinstance(model, HeatmapModel):
        losses = [kind for kind in (model.loss, model.coordinate_loss) if kind != "none"]
        losses += ["divergence"] if model.divergence else []
    rows = [
        ("experiment", experiment.name),
        ("network", f"{type(model).__name__} on {model.encoder}, {start}"),
        ("parameters", f"{_num_parameters(saved) / 1e6:.2f} M"),
        ("crop", _crop(experiment.crop)),
        ("loss", " + ".join(losses)),
        ("augmentation", ", ".join(_changes(experiment.augment)) or "none"),
        ("optimizer", f"{optimizer.kind}, {schedules}, rate {optimizer.lr:g}, batch {train.batch}"),
        ("running mean", f"of the weights, decay {train.ema}" if train.ema else "none"),
        ("epochs", f"{summary['epochs']} ({summary['steps']} steps)"),
        ("minutes", f"{summary['minutes']:.1f}"),
        ("hardware", f"{machine['processor']}, {machine['cpu_cores']} CPU cores"),
        ("program", f"heatmap {heatmap.__version__}, commit {machine['commit'] or 'unknown'}"),
        ("torch", machine["torch"]),
        ("date", machine["date"]),
    ]
    if isinstance(model, HeatmapModel):
        rows[3:3] = [
            (
                "heatmaps",
                f"stride {model.stride}, width {model.width}, sigma {model.sigma}, read by the "
                f"{model.decoder} decoder",
            )
        ]
    return rows


def _crop(crop: Crop) -> str:
    """All that tells which part of a photograph the network sees."""
    told = f"{crop.height} x {crop.width} pixels, {crop.rule}: {CROPS[crop.rule]}"
    if crop.rule == "box":
        told += f", and is enlarged by the factor {crop.box_scale:g}"
    if crop.trim_border:
        told += (
            f"; trim_border {crop.trim_border}: before that, rows and columns at the sides are cut "
            f"off that nowhere are brighter than {crop.trim_border} of 255"
        )
    return told


def _scores(
    folder: Path, saved: Checkpoint, summary: dict[str, Any], evaluation: str | None
) -> list[str]:
    if summary["best_mse"] is None:
        return ["None: all rows were trained on."]
    best = [row for row in read_metrics(folder) if row["epoch"] == summary["best_epoch"]]
    nobody = np.empty((0, saved.num_landmarks, 2))
    rows = [
        ("contest MSE", f"{summary['best_mse']:.3f} px²"),
        ("of the mean shape", f"{summary['mean_shape_mse']:.3f} px²"),
    ]
    if best and "val/nme_percent" in best[-1]:
        name, _ = schemes.normaliser(nobody)
        rows += [(f"NME ({name})", f"{best[-1]['val/nme_percent']:.3f} %")]
    parts = [
        f"On the {len(saved.validation_rows)} validation pictures, by the weights of epoch "
        f"{summary['best_epoch']} of {summary['epochs']}:",
        _table(rows),
    ]
    if evaluation is None:
        parts += ["`tools/evaluate.py` adds the scores by landmark group and picture size."]
    else:
        parts += ["As `tools/evaluate.py` scored them:", f"```\n{evaluation}\n```"]
    return parts


def _limits(folder: Path, saved: Checkpoint, experiment: Experiment) -> list[str]:
    data = experiment.data
    limits = [
        f"It finds no face: it gives {saved.num_landmarks} points for any crop, also one without a "
        "face, and expects the crop of the recipe.",
        f"It knows {len(saved.training_rows)} pictures of {data.root.resolve().name}; the scores "
        "above say nothing of other kinds of pictures.",
        f"In training, crops were {_moved(experiment.augment)}; faces beyond that and beyond what "
        "the pictures show were not trained on.",
        "Scores by age, sex or skin colour are not known: the table of landmarks has no such "
        "labels.",
    ]
    if isinstance(experiment.model, HeatmapModel):
        limits += [
            "The confidence is the height of a heatmap's peak, which is no probability and no "
            "error in pixels."
        ]
    else:
        limits += ["It does not say how sure it is of a point."]
    if not data.all_rows_train:
        limits += [
            "The weights are those with the best validation score, which is therefore a little too "
            "good."
        ]
        rule = read_json(folder / "split.json")["rule"]
        if rule.startswith(("by order", "at random", "by hash")):
            limits += [
                "The split does not go by person: a person may be on both sides, and the score "
                "better than it is for people that the network has not seen."
            ]
    return limits


def _moved(augment: Augment) -> str:
    """How crops were turned, scaled and shifted."""
    moves = [f"turned by up to {augment.rotate_deg:g}°"] if augment.rotate_deg else []
    moves += [f"scaled by up to {100 * augment.scale:g} %"] if augment.scale else []
    moves += [f"shifted by up to {100 * augment.shift:g} %"] if augment.shift else []
    if not moves:
        return "neither turned nor scaled nor shifted"
    *others, last = moves
    return f"{', '.join(others)} and {last}" if others else last


def _changes(augment: Augment) -> list[str]:
    """The random changes that are on, with their strengths."""
    return [
        f"{name} {value:g}" for name, value in vars(augment).items()
        if isinstance(value, int | float) and value
    ]  # fmt: skip


def _num_parameters(saved: Checkpoint) -> int:
    """What the optimizer moves: all that a network keeps but statistics."""
    return sum(
        values.numel()
        for name, values in saved.network.items()
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))
    )


def _table(rows: Sequence[tuple[str, str]]) -> str:
    """A Markdown table whose columns line up in the file, too."""
    head, *body = lined_up([("", ""), *rows], left=2)
    rule = ["-" * len(cell) for cell in head]
    return "\n".join(f"| {name} | {value} |" for name, value in [head, rule, *body])

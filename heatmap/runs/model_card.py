"""MODEL.md, the model card of a run: data, recipe, scores and limits.

Source: Mitchell et al. 2019, Model Cards for Model Reporting, https://arxiv.org/abs/1810.03993
"""

from collections.abc import Mapping
from pathlib import Path

from heatmap.config import Experiment, Part, from_dict
from heatmap.runs import checkpoint
from heatmap.runs.folder import Machine, RunFolder, Split, Summary
from heatmap.runtime.files import read_json, write_text

NOT_TRAINED = "running_mean", "running_var", "num_batches_tracked"
LIMITS = """\
- The network does not detect faces: it expects the crop above and predicts points for any image.
- The scores hold for images like the training data, in poses that augmentation covers.
- Weights selected by their validation score have a slightly optimistic score.
- The confidence is the height of a heatmap's peak, neither a probability nor an error.
- Scores by age, sex or skin colour are unknown, since tables of landmarks lack them.
"""


def write(folder: Path, evaluation: str | None = None) -> None:
    """Writes MODEL.md into the folder of a finished run.

    Args:
        evaluation: formatted scores of the best weights on the validation rows.

    Raises:
        UserError: a file of the run is missing or damaged.
    """
    files = RunFolder(folder)
    saved = checkpoint.load(files.best)
    experiment = from_dict(Experiment, saved.config)
    split, machine = read_json(files.split, Split), read_json(files.machine, Machine)
    summary = read_json(files.summary, Summary)
    same_person = {"person": "no", None: "unknown"}  # version 0.1.0 stored no kind
    data = {
        "folder": experiment.data.root.resolve().name,
        "training images": len(saved.training_rows),
        "validation images": len(saved.validation_rows),
        "split": split["rule"],
        "same person on both sides": same_person.get(split.get("kind"), "possible"),
        "offset of the labels": describe_offset(*saved.label_offset),
    }
    sizes = [w.numel() for name, w in saved.network.items() if not name.endswith(NOT_TRAINED)]
    prior = saved.shape_prior
    parts = "crop", "augment", "model", "optimizer", "train"
    recipe = {
        "network": f"{type(experiment.model).__name__}, {sum(sizes) / 1e6:.2f} M parameters",
        "start weights": experiment.start_weights,
        **{name: _settings(getattr(experiment, name)) for name in parts},
        "shape prior": f"{prior.basis.shape[1]} components" if prior else "none",
        "schedule": ", then ".join(_settings(stage.schedule) for stage in experiment.all_stages),
    }
    scores = {"contest MSE": "none, since all rows are training rows"}
    if summary["best_mse"] is not None:
        scores = {
            "contest MSE": f"{summary['best_mse']:.3f} px² in epoch {summary['best_epoch']}",
            "contest MSE of the mean shape": f"{summary['mean_shape_mse']:.3f} px²",
        }
    scores["epochs"] = f"{summary['epochs']} ({summary['steps']} steps)"
    scores["minutes"] = f"{summary['minutes']:.1f} on {machine['processor']}"
    scores["date"] = f"{machine['date']}, commit {machine['commit'] or 'unknown'}"
    details = f"```\n{evaluation}\n```" if evaluation else "For details run `heatmap evaluate`."
    sections = [
        f"# {experiment.name}: {saved.num_landmarks} facial landmarks",
        f"## Data\n\n{_table(data)}",
        f"## Recipe\n\nSettings that are 0 or none are left out.\n\n{_table(recipe)}",
        f"## Training and validation\n\n{_table(scores)}\n\n{details}",
        f"## Limits\n\n{LIMITS}",
    ]
    write_text(files.model_card, "\n\n".join(sections))


def describe_offset(x: float, y: float) -> str:
    """Returns an offset (x, y) in pixels in words."""
    sides = (x, "right", "left"), (y, "down", "up")
    parts = [f"{abs(v):.2f} px {more if v > 0 else less}" for v, more, less in sides if v]
    return " and ".join(parts) or "not known"


def _settings(part: Part) -> str:
    shown = {name: value for name, value in vars(part).items() if value not in (None, 0, "none")}
    return ", ".join(f"{name} {value}" for name, value in shown.items()) or "none"


def _table(rows: Mapping[str, object]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {rows[name]} |" for name in rows)])

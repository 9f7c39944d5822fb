"""MODEL.md, the model card of a run: data, recipe, scores and limits, as the run's files say them.

Source: Mitchell et al. 2019, Model Cards for Model Reporting, https://arxiv.org/abs/1810.03993
"""

from collections.abc import Mapping
from pathlib import Path

from heatmap.config import Experiment, HeatmapModel, from_dict
from heatmap.runs import checkpoint
from heatmap.runs.checkpoint import Checkpoint
from heatmap.runs.folder import RunFolder
from heatmap.runtime.columns import lined_up
from heatmap.runtime.files import read_json, write_atomically

STATISTICS = "running_mean", "running_var", "num_batches_tracked"  # kept, but not trained
LIMITS_AND_USE = """\
- The network finds no face. It expects the crop above, and gives points for any image.
- The scores hold for images like those of the data, in poses that the augmentation reaches.
- Weights that were chosen by their validation score have a score that is a little too good.
- The confidence is the height of a heatmap's peak, neither a probability nor an error.
- Scores by age, sex or skin colour are unknown: tables of landmarks do not name them.

## Use

```bash
python tools/predict.py RUN --data DIR --out sheet.jpg
python tools/evaluate.py RUN
python tools/submit.py RUN --data DIR --out submission.csv
python tools/export.py RUN model.onnx
```
"""


def write(folder: Path, evaluation: str | None = None) -> None:
    """Writes MODEL.md into the folder of a finished run.

    Args:
        evaluation: the scores of the best weights on the validation rows, as text.

    Raises:
        UserError: a file of the run is missing or damaged.
    """
    files = RunFolder(folder)
    saved = checkpoint.load(files.best)
    experiment = from_dict(Experiment, saved.config)
    details = f"```\n{evaluation}\n```" if evaluation else "`tools/evaluate.py` adds the details."
    sections = [
        f"# {experiment.name}: {saved.num_landmarks} facial landmarks",
        f"## Data\n\n{_table(_data(files, saved, experiment))}",
        f"## Recipe\n\n`config.json` has every setting.\n\n{_table(_recipe(saved, experiment))}",
        f"## Training and validation\n\n{_table(_scores(files))}\n\n{details}",
        f"## Limits\n\n{LIMITS_AND_USE}",
    ]
    with write_atomically(files.model_card) as temporary:
        temporary.write_text("\n\n".join(sections), encoding="utf-8")


def _data(files: RunFolder, saved: Checkpoint, experiment: Experiment) -> dict[str, object]:
    split = read_json(files.split)
    kind = split.get("kind", "unknown")  # as in runs of version 0.1.0
    return {
        "folder": experiment.data.root.resolve().name,
        "images trained on": len(saved.training_rows),
        "images validated on": len(saved.validation_rows),
        "split": split["rule"],
        "a person on both sides": {"person": "no", "unknown": "unknown"}.get(kind, "possible"),
    }


def _recipe(saved: Checkpoint, experiment: Experiment) -> dict[str, object]:
    model, train = experiment.model, experiment.train
    losses: list[str] = [model.loss]
    maps = "none"
    if isinstance(model, HeatmapModel):
        losses = [loss for loss in (model.loss, model.coordinate_loss) if loss != "none"]
        losses += ["divergence"] if model.divergence else []
        maps = f"stride {model.stride}, width {model.width}, sigma {model.sigma}, {model.decoder}"
    sizes = [w.numel() for name, w in saved.network.items() if not name.endswith(STATISTICS)]
    changes = [
        f"{name} {value:g}" for name, value in vars(experiment.augment).items()
        if isinstance(value, int | float) and value
    ]  # fmt: skip
    return {
        "network": f"{type(model).__name__} on {model.encoder}",
        "parameters": f"{sum(sizes) / 1e6:.2f} M",
        "start weights": train.start or model.weights,
        "crop": ", ".join(f"{name} {value}" for name, value in vars(experiment.crop).items()),
        "heatmaps": maps,
        "loss": " + ".join(losses),
        "augmentation": ", ".join(changes) or "none",
        "optimizer": f"{experiment.optimizer.kind}, rate {experiment.optimizer.lr:g}",
        "schedule": ", then ".join(stage.schedule.kind for stage in experiment.all_stages),
        "batch": train.batch,
        "running mean of weights": train.ema or "none",
    }


def _scores(files: RunFolder) -> dict[str, object]:
    summary, machine = read_json(files.summary), read_json(files.machine)
    trained: dict[str, object] = {
        "epochs": f"{summary['epochs']} ({summary['steps']} steps)",
        "minutes": f"{summary['minutes']:.1f} on {machine['processor']}",
        "date": f"{machine['date']}, commit {machine['commit'] or 'unknown'}",
    }
    if summary["best_mse"] is None:
        return {"contest MSE": "none, since all rows were trained on"} | trained
    return {
        "contest MSE": f"{summary['best_mse']:.3f} px²",
        "of the mean shape": f"{summary['mean_shape_mse']:.3f} px²",
        "best epoch": summary["best_epoch"],
    } | trained


def _table(rows: Mapping[str, object]) -> str:
    """A Markdown table whose columns line up in the file, too."""
    cells = [(name, str(value)) for name, value in rows.items()]
    head, *body = lined_up([("", ""), *cells], left=2)
    rule = ["-" * len(cell) for cell in head]
    return "\n".join(f"| {name} | {value} |" for name, value in [head, rule, *body])

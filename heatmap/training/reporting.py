"""Reports an epoch: its ledger row, images, per_image.csv and a log line."""

import logging
import math
from typing import Any

import numpy as np
import torch

from heatmap import codec, maps
from heatmap.config import Model
from heatmap.data import augment
from heatmap.data.samples import collate, evenly_spaced
from heatmap.evaluation.sheets import prediction_sheet
from heatmap.networks import HeatmapNetwork, Network
from heatmap.runs import checkpoint
from heatmap.runs.folder import RunFolder
from heatmap.runs.ledger import Ledger
from heatmap.runs.per_image import read_per_image, write_per_image
from heatmap.runtime.files import finite
from heatmap.runtime.machine import loader_processes
from heatmap.training.prepare import Run

logger = logging.getLogger("heatmap")

BLACK_PEAK = 0.05  # mean peak height below which the heatmaps have collapsed
LONG_WAIT = 0.25  # warn if an epoch waits for images for a larger fraction of its time
WORSE_EPOCHS = 2  # without a better validation score, before labels are suspected
TWO_PEAKS = 0.1  # fraction of heatmaps with two peaks from which labels contradict each other
NUM_LOOKED_AT = 64  # validation images whose heatmaps' peaks are counted
NUM_SHOWN = 8  # validation images on the sheet of an epoch
NUM_WORST = NUM_OTHERS = 16  # images in the table of predictions


def ledger_row(run: Run, loss: float, scores: dict[str, Any]) -> dict[str, Any]:
    """Returns the epoch's row of metrics.jsonl, without values that were not measured."""
    groups = scores.get("groups", {})
    group_scores = {f"val/mse/{name.replace(' ', '_')}": mse for name, mse in groups.items()}
    row = {
        "epoch": run.progress.epoch + 1,
        "train/loss": loss,
        "val/mse": scores.get("mse"),
        **(group_scores if len(groups) > 1 else {}),
        "val/nme_percent": scores.get("nme_percent"),
        "val/peak": scores.get("mean_peak"),
        "lr": max(group["lr"] for group in run.optimizer.param_groups),
        "sigma": run.progress.sigma,
        "label_offset_x": run.progress.label_offset[0] if run.measures_label_offset else None,
    }
    return {name: value for name, value in row.items() if value is not None}


def report_epoch(
    run: Run, files: RunFolder, ledger: Ledger, row: dict[str, Any],
    columns: dict[str, np.ndarray], seconds: dict[str, float],
) -> None:  # fmt: skip
    """Writes and logs the results of an epoch.

    Args:
        row: from `ledger_row`, with the epoch's "time/seconds".
        columns: of per_image.csv if the epoch is the best so far, else empty.
        seconds: per part of the epoch.
    """
    progress, every = run.progress, run.experiment.wandb.images_every
    shares = {part: value / row["time/seconds"] for part, value in seconds.items()}
    row = row | {f"time/{part}": share for part, share in shares.items()}
    _warn_if_black(run.experiment.model, row)
    warn_if_labels_contradict(run)
    if progress.epoch <= 2:
        _warn_if_waiting(run.experiment.data.workers, seconds.get("data", 0.0), row)
    if "val/mse" in row and (progress.finished or (progress.epoch - 1) % every == 0):
        rows = evenly_spaced(run.data.validation_rows, NUM_SHOWN).tolist()
        ledger.image("validation", progress.step, _sheet(run, run.scored_network, rows))
    if columns:
        names = [run.data.table.names[row] for row in run.data.validation_rows]
        write_per_image(files.per_image, names, columns)
    # a run resumed into another folder may lack both
    if progress.finished and files.per_image.is_file() and files.best.is_file():
        _write_predictions(run, files, ledger)
    ledger.log(progress.step, row)
    _log_epoch(run, row, shares)


def _sheet(run: Run, network: Network, rows: list[int]) -> np.ndarray:
    """The images of these rows with predicted and labelled landmarks."""
    data = run.data
    paths, labels = [data.validation.paths[row] for row in rows], data.table.points_image[rows]
    return prediction_sheet(network, run.experiment, paths, labels, data.scheme)


def _write_predictions(run: Run, files: RunFolder, ledger: Ledger) -> None:
    """Writes the best network's predictions on the worst images and some others, worst first."""
    network, progress = checkpoint.load_trained(files.path).network.to(run.device), run.progress
    _, columns = read_per_image(files.per_image)
    num_labelled = int(np.isfinite(columns["mse"]).sum())
    worst_first = np.argsort(-columns["mse"])[:num_labelled]  # NaN is last
    indices = [*worst_first[:NUM_WORST], *evenly_spaced(worst_first[NUM_WORST:], NUM_OTHERS)]
    numbers = {name: values for name, values in columns.items() if name not in ("width", "height")}

    def entry(index: int) -> tuple[np.ndarray, str, list[float | None]]:
        row = int(run.data.validation_rows[index])
        values = finite([float(column[index]) for column in numbers.values()])
        return _sheet(run, network, [row]), run.data.table.names[row], values

    ledger.predictions(progress.step, list(numbers), map(entry, indices))


def _warn_if_black(model: Model, row: dict[str, Any]) -> None:
    # with loss "none" only the softmax is trained, so the peak's height is arbitrary
    if model.loss != "none" and row.get("val/peak", 1.0) < BLACK_PEAK:
        logger.warning(
            f"the heatmaps are nearly black (mean peak {row['val/peak']:.3f} instead of 1). "
            "Usual causes: a learning rate too high or too low, model.weight_map 0, model.sigma "
            "below 1, or labels that belong to other images"
        )


def warn_if_labels_contradict(run: Run) -> None:
    """Warns if validation worsens, the training loss falls and many heatmaps have two peaks.

    A network that is still worse than the mean shape says nothing about labels.
    """
    progress, network = run.progress, run.scored_network
    is_worse = bool(progress.scores) and progress.epoch - progress.best_epoch == WORSE_EPOCHS
    has_learned = progress.best_mse < progress.mean_shape_mse
    if not (is_worse and has_learned and isinstance(network, HeatmapNetwork)):
        return
    if progress.losses[-1] < progress.losses[-1 - WORSE_EPOCHS]:
        fraction = fraction_with_two_peaks(run, network)
        if fraction > TWO_PEAKS:
            logger.warning(
                f"validation has worsened for {WORSE_EPOCHS} epochs while the training loss fell, "
                f"and {100 * fraction:.0f} % of the heatmaps have two peaks: labels of similar "
                "images may contradict each other. heatmap data audit lists the doubtful ones"
            )


@torch.no_grad()
def fraction_with_two_peaks(run: Run, network: HeatmapNetwork) -> float:
    """Returns the fraction of validation heatmaps whose second peak is half as high as the first.

    Peaks below `BLACK_PEAK` do not count. Looks at `NUM_LOOKED_AT` evenly spaced images.
    """
    rows, num_double, total = evenly_spaced(run.data.validation_rows, NUM_LOOKED_AT), 0, 0
    was_training = network.training
    network.eval()
    for row in rows.tolist():
        sample = collate([run.data.validation[row]])
        images = augment.plain(*(tensor.to(run.device) for tensor in sample[:3])).images
        heatmaps = maps.whole(network(images))
        peak, second = heatmaps.amax((2, 3)), codec.second_peak(heatmaps, network.sigma)
        num_double += int(((second > peak / 2) & (peak > BLACK_PEAK)).sum())
        total += peak.numel()
    network.train(was_training)
    return num_double / total


def _warn_if_waiting(workers: int | None, waited: float, row: dict[str, Any]) -> None:
    share = waited / row["time/seconds"]
    if share > LONG_WAIT and waited > 10:
        logger.warning(
            f"training waited for images for {100 * share:.0f} % of the epoch; its loader has "
            f"{loader_processes(workers)} processes. If cores are free, raise data.workers"
        )


def _log_epoch(run: Run, row: dict[str, Any], shares: dict[str, float]) -> None:
    scores = ""
    if "val/mse" in row:
        nme = row.get("val/nme_percent", math.nan)
        best = f"(best {run.progress.best_mse:.3f})  NME {nme:.2f} %"
        scores = f"  val MSE {row['val/mse']:8.3f} px²  {best}"
    notable = {part.replace("_", " "): share for part, share in shares.items() if share >= 0.005}
    times = ", ".join(f"{part} {100 * share:.0f} %" for part, share in notable.items())
    logger.info(
        f"epoch {row['epoch']:3d}  loss {row['train/loss']:.4g}{scores}"
        f"  lr {row['lr']:.2g}  {row['time/seconds']:.0f} s: {times}"
    )

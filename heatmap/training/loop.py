"""The training loop, the same for both roads.

Learning rate, order, augmentation and dropout are functions of (seed, epoch, row, step), so a run
that was killed and resumed ends with the same bits as one that was not.
"""

import logging
import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from heatmap.config import HeatmapModel, Model, Rates, to_dict
from heatmap.data import augment
from heatmap.data.samples import Loader, Sample, evenly_spaced, shuffled_batches
from heatmap.evaluation import metrics
from heatmap.evaluation.sheets import prediction_sheet
from heatmap.inference.predict import View, autocast
from heatmap.maps import Maps
from heatmap.networks import HeatmapNetwork, Network
from heatmap.runs import checkpoint, model_card
from heatmap.runs.ledger import Record
from heatmap.runs.per_image import read_per_image, write_per_image
from heatmap.runtime import distributed, machine
from heatmap.runtime.files import finite, write_json
from heatmap.runtime.stopwatch import Stopwatch
from heatmap.training import plan
from heatmap.training.prepare import Run, save, seed_of
from heatmap.training.schedule import adapted_sigma, learning_rate, stage_at, used_of_stage

logger = logging.getLogger("heatmap")

BLACK_PEAK = 0.05  # mean peak height under which maps count as collapsed
NUM_PICTURES = 8
NUM_WORST = NUM_OTHERS = 16  # pictures of the table of predictions


def train(run: Run, folder: Path) -> dict[str, Any]:
    """Trains to the end of the budget; returns the run's summary, which the folder holds too.

    The finished folder holds a model card as well.

    Raises:
        ValueError: a picture cannot be read, or loss or gradient is not finite; the pictures are
            named and the last checkpoint stays.
    """
    if distributed.rank() > 0:
        return _epochs(run, folder, None)
    folder.mkdir(parents=True, exist_ok=True)
    for torn in folder.glob(".*.pt"):  # what a kill left of a checkpoint in the making
        torn.unlink()
    write_json(folder / "config.json", to_dict(run.experiment))
    split: dict[str, Any] = {
        "kind": run.split_kind,
        "rule": run.split_rule,
        "table": run.table_hash,
    }
    for part, rows in (("validation", run.validation_rows), ("excluded", run.excluded_rows)):
        split[part] = [run.table.names[row] for row in rows]
    for name, values in (
        ("split.json", split),
        ("machine.json", machine.describe(run.device)),
    ):
        if not (folder / name).exists():  # a resumed run keeps those of its start
            write_json(folder / name, values)
    with Record(
        folder,
        run.experiment,
        tags=_tags(run),
        wandb_id=run.wandb_id,
        after_step=run.progress.step if run.wandb_id else -1,
    ) as record:
        summary = _epochs(run, folder, record)
        record.finish(summary)
    if (folder / "best.pt").is_file():  # not where a run was resumed into another folder
        model_card.write(folder)
    return summary


def _tags(run: Run) -> list[str]:
    """What runs are looked for by, beside their groups: network, encoder, landmarks and data."""
    model, root = run.experiment.model, run.experiment.data.root.resolve()
    tags = type(model).__name__, model.encoder, f"{run.table.num_landmarks} landmarks", root.name
    return [tag[:64] for tag in tags]  # W&B takes no longer ones


def _epochs(run: Run, folder: Path, record: Record | None) -> dict[str, Any]:
    progress, settings = run.progress, run.experiment.train
    validates = not run.experiment.data.all_rows_train
    begin = time.monotonic() - progress.seconds
    _freeze(run.optimizer, run.experiment.all_stages[progress.stage].rates)
    model = _distributed(run.network)
    loader = Loader(run.training, run.experiment.data.workers, run.device)
    if record:
        save(run, folder / "last.pt", record.wandb_id)
    while not progress.finished:
        if progress.batch == 0:
            stage = distributed.from_first(stage_at(run.experiment, _used(run, begin)))
            if stage != progress.stage:
                _enter(run, stage, folder)
                model = _distributed(run.network)
            _adapt_sigma(run)
        watch, epoch_begin = Stopwatch(run.device), time.monotonic()
        _one_epoch(run, model, loader, folder, record, watch, begin)

        _settle(run)
        scores: dict[str, Any] = {}
        pictures: dict[str, np.ndarray] = {}
        if validates:
            validation_begin = time.monotonic()
            scores, pictures = _validated(run, watch)
            progress.validation_seconds = time.monotonic() - validation_begin
            progress.mean_shape_mse = scores["mean_shape_mse"]
            progress.scores.append(scores["mse"])
        if better := not validates or scores["mse"] < progress.best_mse:
            progress.best_mse = scores.get("mse", math.inf)
            progress.best_epoch = progress.epoch + 1
        row = {
            "epoch": progress.epoch + 1,
            "train/loss": progress.loss_sum / max(progress.batch, 1),
            "val/mse": scores.get("mse"),
            **_group_scores(scores),
            "val/nme_percent": scores.get("nme_percent"),
            "val/peak": scores.get("mean_peak"),
            "lr": max(group["lr"] for group in run.optimizer.param_groups),
            "sigma": progress.sigma,
        }
        progress.losses.append(row["train/loss"])
        progress.epoch, progress.batch, progress.loss_sum = progress.epoch + 1, 0, 0.0
        progress.seconds = time.monotonic() - begin
        patience = settings.patience or math.inf
        progress.finished = distributed.from_first(
            _used(run, begin) >= 1 or progress.epoch - progress.best_epoch >= patience
        )
        if record:
            row = {name: value for name, value in row.items() if value is not None}
            row |= _time_shares(watch, time.monotonic() - epoch_begin)
            _alarm_if_black(run.experiment.model, row)
            every = run.experiment.wandb.pictures_every
            if validates and (progress.finished or (progress.epoch - 1) % every == 0):
                record.picture("validation", progress.step, _validation_sheet(run))
            if better and validates:
                scored = [run.table.names[row] for row in run.validation_rows]
                write_per_image(folder / "per_image.csv", scored, pictures)
            if progress.finished and (folder / "per_image.csv").is_file():
                _keep_predictions(run, folder, record)
            record.log(progress.step, row)
            _tell(run, row)
            if better:
                save(run, folder / "best.pt", record.wandb_id)
            if settings.keep_every and progress.epoch % settings.keep_every == 0:
                save(run, folder / f"epoch-{progress.epoch}.pt", record.wandb_id)
            save(run, folder / "last.pt", record.wandb_id)
    summary = {
        "best_mse": progress.best_mse,
        "best_epoch": progress.best_epoch,
        "mean_shape_mse": progress.mean_shape_mse,
        "epochs": progress.epoch,
        "steps": progress.step,
        "minutes": progress.seconds / 60,
    }
    return finite(summary)


def _distributed(network: Network) -> nn.Module:
    return DistributedDataParallel(network) if distributed.world() > 1 else network


def _enter(run: Run, number: int, folder: Path) -> None:
    """Begins a stage: its start weights, what it freezes, and an optimizer without a past."""
    progress, stage = run.progress, run.experiment.all_stages[number]
    progress.stage, progress.scores = number, []
    progress.stage_epoch, progress.stage_step = progress.epoch, progress.step
    if stage.start == "best" and distributed.rank() == 0:
        run.network.load_state_dict(checkpoint.load(folder / "best.pt").scored)
    distributed.same_everywhere([*run.network.parameters(), *run.network.buffers()])
    if stage.start == "best" and run.averaged:
        run.averaged.module.load_state_dict(run.network.state_dict())
    _freeze(run.optimizer, stage.rates)
    run.optimizer.state.clear()
    if distributed.rank() == 0:
        frozen = [part for part, rate in vars(stage.rates).items() if rate == 0]
        logger.info(
            f"stage {number + 1} of {len(run.experiment.all_stages)}, from the {stage.start} "
            f"weights; frozen: {', '.join(frozen) or 'nothing'}"
        )


def _adapt_sigma(run: Run) -> None:
    """The targets' sigma for the next epoch, where it is not the same for all."""
    progress, model = run.progress, run.experiment.model
    if isinstance(model, HeatmapModel) and model.sigma_start is not None:
        assert progress.sigma is not None
        progress.sigma = adapted_sigma(
            progress.sigma, progress.losses, model.sigma, model.sigma_start
        )
        for network in (run.network, run.scored):
            assert isinstance(network, HeatmapNetwork)
            network.sigma = progress.sigma


def _freeze(optimizer: torch.optim.Optimizer, rates: Rates) -> None:
    """Makes the parts with a rate trainable, and the others not."""
    for group in optimizer.param_groups:
        for weight in group["params"]:
            weight.requires_grad_(getattr(rates, group["part"]) > 0)


def _one_epoch(
    run: Run,
    model: nn.Module,
    loader: Loader[Sample],
    folder: Path,
    record: Record | None,
    watch: Stopwatch,
    begin: float,
) -> None:
    """Training until the epoch or the budget is over, from the batch where `progress` stands."""
    progress, settings, seed = run.progress, run.experiment.train, run.experiment.seed
    multiplier = run.experiment.data.multiplier
    batches = [
        batch
        for passed in range(progress.epoch * multiplier, (progress.epoch + 1) * multiplier)
        for batch in shuffled_batches(
            run.training_rows, settings.batch, seed, passed, distributed.rank(), distributed.world()
        )
    ]
    loading = loader.load(batches[progress.batch :])
    bar = tqdm(
        total=len(batches), initial=progress.batch, desc=f"epoch {progress.epoch + 1}",
        unit="batch", leave=False, disable=None if distributed.rank() == 0 else True,
    )  # fmt: skip
    last_checkpoint = time.monotonic()
    model.train()
    with bar:
        for sample in watch.waiting("data", loading):
            with plan.saying_what_helps(run.experiment, run.table.num_landmarks, run.device):
                loss = step(run, model, sample, watch, begin)
            progress.loss_sum += loss
            progress.batch += 1
            progress.step += 1
            bar.update()
            bar.set_postfix(loss=f"{progress.loss_sum / progress.batch:.4g}", refresh=False)
            progress.seconds = time.monotonic() - begin
            if _used(run, begin) >= 1:
                break
            minutes = (time.monotonic() - last_checkpoint) / 60
            if record and progress.batch < len(batches) and minutes >= settings.checkpoint_minutes:
                save(run, folder / "last.pt", record.wandb_id)
                last_checkpoint = time.monotonic()


def step(run: Run, model: nn.Module, sample: Sample, watch: Stopwatch, begin: float) -> float:
    """One batch: augment, forward, loss, backward, update. Returns the loss of all processes.

    model: the run's network, or what distributes it. begin: when training began, monotonic seconds.
    """
    experiment, progress = run.experiment, run.progress
    stage = experiment.all_stages[progress.stage]
    rate = (stage.lr or experiment.optimizer.lr) * learning_rate(
        stage.schedule,
        used_of_stage(experiment, progress.stage, _used(run, begin)),
        epoch=progress.epoch - progress.stage_epoch,
        step=progress.step - progress.stage_step,
        scores=progress.scores,
    )
    for group in run.optimizer.param_groups:
        group["lr"] = rate * getattr(stage.rates, group["part"])
    torch.manual_seed(seed_of(experiment.seed, 1 + progress.step, distributed.rank()))
    with watch("augment"):
        batch = run.augmented(sample, run.passed, run.device)
        if experiment.train.pixel_weights:
            scale = batch.frame.pixel_area().to(batch.weights)
            if experiment.model.loss in ("mae", "smooth_l1", "wing"):
                scale = scale.sqrt()  # these grow with a distance, not with its square
            batch = replace(batch, weights=batch.weights * scale[:, None])
    run.optimizer.zero_grad()
    total = torch.zeros((), dtype=torch.float64, device=run.device)
    for part, is_last in _parts(batch, experiment.train.accumulate):
        distributed_model = model if isinstance(model, DistributedDataParallel) else None
        with distributed_model.no_sync() if distributed_model and not is_last else nullcontext():
            with watch("network"), autocast(run.device, experiment.train.precision):
                output = model(part.images)
            with watch("loss"):
                loss = run.network.loss(output, part.points_crop, part.weights)
                loss = loss * (len(part.images) / len(batch.images))
            with watch("network"):
                loss.backward()
        total += loss.detach()
    with watch("network"):
        norm = nn.utils.clip_grad_norm_(
            run.network.parameters(), experiment.optimizer.clip_norm or math.inf
        )
        value, gradient = distributed.mean(torch.stack([total, norm.double()])).tolist()
        if not (math.isfinite(value) and math.isfinite(gradient)):
            raise ValueError(_not_finite(run, sample, batch, value, gradient))
        run.optimizer.step()
        if run.averaged:
            run.averaged.update_parameters(run.network)
    return value


def _parts(batch: augment.Batch, count: int) -> Iterator[tuple[augment.Batch, bool]]:
    """The batch in that many parts, and whether it is the last."""
    parts = [tensor.chunk(count) for tensor in (batch.images, batch.points_crop, batch.weights)]
    for i, (images, points_crop, weights) in enumerate(zip(*parts, strict=True)):
        part = replace(batch, images=images, points_crop=points_crop, weights=weights)
        yield part, i + 1 == len(parts[0])


def _used(run: Run, begin: float) -> float:
    """The part of the budget that is used up: of the steps, or of the minutes if that is more."""
    used = run.progress.step / run.total_steps
    minutes = run.experiment.train.max_minutes
    if minutes:
        training = max(60 * minutes - run.progress.validation_seconds, 1e-9)
        used = max(used, distributed.from_first((time.monotonic() - begin) / training))
    return used


def _settle(run: Run) -> None:
    """Makes the processes' networks the same after an epoch, and stops where training diverged."""
    distributed.same_everywhere(run.network.buffers())
    distributed.same_everywhere(run.scored.buffers())
    weights = torch.stack([p.detach().abs().max() for p in run.network.parameters()])
    if not torch.isfinite(weights).all():
        raise ValueError(
            f"the network's weights are no longer finite after step {run.progress.step}: training "
            "diverged; lower optimizer.lr or set optimizer.clip_norm"
        )


def _validated(run: Run, watch: Stopwatch) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The scores, and the columns of per_image.csv in the first process."""
    precision = run.experiment.train.precision
    errors = metrics.measure(
        [View(run.scored, run.validation, precision, scheme=run.scheme)], run.validation_rows,
        run.mean_shape, batch=run.experiment.train.batch, workers=run.experiment.data.workers,
        device=run.device, watch=watch,
    )  # fmt: skip
    scores = distributed.from_first(metrics.summary(errors) if errors else {})
    return scores, errors.columns() if errors else {}


def _group_scores(scores: dict[str, Any]) -> dict[str, float | None]:
    """val/mse/left_brow and so on, where the landmarks have more than one group."""
    groups = scores.get("groups", {})
    if len(groups) < 2:
        return {}
    return {f"val/mse/{name.replace(' ', '_')}": mse for name, mse in groups.items()}


def _validation_sheet(run: Run) -> np.ndarray:
    rows = evenly_spaced(run.validation_rows, NUM_PICTURES).tolist()
    paths, labels = [run.validation.paths[row] for row in rows], run.table.points_image[rows]
    return prediction_sheet(run.scored, run.experiment, paths, run.device, labels, run.scheme)


def _keep_predictions(run: Run, folder: Path, record: Record) -> None:
    """What the best network sees in the worst pictures and in some others, from bad to good."""
    network = run.scored
    if run.progress.best_epoch < run.progress.epoch:
        network = checkpoint.load_trained(folder).network.to(run.device)
    _, columns = read_per_image(folder / "per_image.csv")
    labelled = int(np.isfinite(columns["mse"]).sum())
    worst_first = np.argsort(-columns["mse"])[:labelled]  # NaN is last
    chosen = [*worst_first[:NUM_WORST], *evenly_spaced(worst_first[NUM_WORST:], NUM_OTHERS)]
    numbers = {name: values for name, values in columns.items() if name not in ("width", "height")}

    def shown(index: int) -> tuple[np.ndarray, str, list[float | None]]:
        row = int(run.validation_rows[index])
        path, labels = run.validation.paths[row], run.table.points_image[[row]]
        sheet = prediction_sheet(network, run.experiment, [path], run.device, labels, run.scheme)
        return sheet, run.table.names[row], finite([float(v[index]) for v in numbers.values()])

    record.predictions(run.progress.step, list(numbers), map(shown, chosen))


@torch.no_grad()
def _not_finite(
    run: Run, sample: Sample, batch: augment.Batch, loss: float, gradient: float
) -> str:
    """Why the run stops, with the pictures whose own loss is not finite, or all of the batch."""
    names = [run.table.names[row] for row in sample.row.tolist()]
    losses = []
    for part, _ in _parts(batch, run.experiment.train.accumulate):
        output = run.network(part.images)
        for i in range(len(part.images)):
            one = slice(i, i + 1)
            mine = (
                output._replace(features=output.features[one])
                if isinstance(output, Maps)
                else output[one]
            )
            losses.append(float(run.network.loss(mine, part.points_crop[one], part.weights[one])))
    found = distributed.gather(
        [name for name, loss in zip(names, losses, strict=True) if not math.isfinite(loss)]
    )
    offending = [name for part in found for name in part]
    return (
        f"step {run.progress.step + 1} (epoch {run.progress.epoch + 1}): the loss is {loss} and "
        f"the gradient's norm {gradient}. Pictures: {', '.join(offending or names)}. If their "
        "labels are right, lower optimizer.lr or set optimizer.clip_norm; last.pt holds the last "
        "good state."
    )


def _alarm_if_black(model: Model, row: dict[str, Any]) -> None:
    # a softmax alone asks for no height
    if model.loss != "none" and row.get("val/peak", 1.0) < BLACK_PEAK:
        logger.warning(
            f"the heatmaps are nearly black: their mean peak is {row['val/peak']:.3f}, targets "
            "have 1. Likely causes: a learning rate that is too high or too low, model.weight_map "
            "0, a model.sigma below 1, or labels that do not belong to their pictures."
        )


def _time_shares(watch: Stopwatch, seconds: float) -> dict[str, float]:
    shares = {f"time/{name}": part / seconds for name, part in watch.seconds().items()}
    return {"time/seconds": seconds, **shares}


def _tell(run: Run, row: dict[str, Any]) -> None:
    shares = ", ".join(
        f"{name.removeprefix('time/')} {100 * share:.0f} %"
        for name, share in row.items()
        if name.startswith("time/") and name != "time/seconds"
    )
    scores = ""
    if "val/mse" in row:
        scores = (
            f"  val MSE {row['val/mse']:8.3f} px²  (best {run.progress.best_mse:.3f})"
            f"  NME {row.get('val/nme_percent', math.nan):.2f} %"
        )
    logger.info(
        f"epoch {row['epoch']:3d}  loss {row['train/loss']:.4g}{scores}"
        f"  lr {row['lr']:.1e}  {row['time/seconds']:.0f} s: {shares}"
    )

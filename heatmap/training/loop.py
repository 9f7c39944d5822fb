"""The training loop, the same for both roads.

Learning rate, order, augmentation and dropout are functions of (seed, epoch, row, step), so a run
that was killed and resumed ends with the same bits as one that was not.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from heatmap.config import HeatmapModel, Model, to_dict
from heatmap.data import augment
from heatmap.data.samples import Loader, Sample, evenly_spaced, load, shuffled_batches
from heatmap.errors import UserError
from heatmap.evaluation import metrics
from heatmap.evaluation.sheets import prediction_sheet
from heatmap.inference.predict import Execution, View, autocast
from heatmap.maps import Maps
from heatmap.networks import HeatmapNetwork, Network
from heatmap.runs import checkpoint, model_card
from heatmap.runs.folder import RunFolder
from heatmap.runs.ledger import Ledger
from heatmap.runs.per_image import read_per_image, write_per_image
from heatmap.runtime import distributed, machine
from heatmap.runtime.files import finite, write_json
from heatmap.runtime.stopwatch import Stopwatch
from heatmap.training import schedule
from heatmap.training.optimizer import freeze
from heatmap.training.prepare import Run, save

logger = logging.getLogger("heatmap")

BLACK_PEAK = 0.05  # mean peak height under which maps count as collapsed
NUM_SHOWN = 8
NUM_WORST = NUM_OTHERS = 16  # images of the table of predictions


def train(run: Run, folder: Path) -> dict[str, Any]:
    """Trains to the end of the budget; returns the run's summary, which the folder holds too.

    Raises:
        UserError: an image cannot be read, memory runs out, or loss or gradient is not finite; the
            images are named and the last checkpoint stays.
    """
    files = RunFolder(folder)
    if distributed.rank() > 0:
        return _epochs(run, files, None)
    folder.mkdir(parents=True, exist_ok=True)
    for torn in folder.glob(".*.pt"):  # what a kill left of a checkpoint in the making
        torn.unlink()
    write_json(files.config, to_dict(run.experiment))
    if not files.split.exists():  # a resumed run keeps those of its start
        names, split = run.table.names, {"kind": run.split_kind, "rule": run.split_rule}
        validation = [names[row] for row in run.validation_rows]
        excluded = [names[row] for row in run.excluded_rows]
        sides = {"table": run.table_hash, "validation": validation, "excluded": excluded}
        write_json(files.split, split | sides)
    if not files.machine.exists():
        write_json(files.machine, machine.describe(run.device))
    after, tags = run.progress.step if run.wandb_id else -1, _tags(run)
    with Ledger(
        folder, run.experiment, tags=tags, wandb_id=run.wandb_id, after_step=after
    ) as record:
        summary = _epochs(run, files, record)
        record.finish(summary)
    if files.best.is_file():  # not where a run was resumed into another folder
        model_card.write(folder)
    return summary


def _tags(run: Run) -> list[str]:
    """What runs are looked for by, beside their groups: network, encoder, landmarks and data."""
    model, root = run.experiment.model, run.experiment.data.root.resolve()
    tags = type(model).__name__, model.encoder, f"{run.table.num_landmarks} landmarks", root.name
    return [tag[:64] for tag in tags]  # W&B takes no longer ones


def _epochs(run: Run, files: RunFolder, record: Ledger | None) -> dict[str, Any]:
    """The epochs of a run; only the first process has a record, and writes."""
    progress = run.progress
    begin = time.monotonic() - progress.seconds
    freeze(run.optimizer, run.experiment.all_stages[progress.stage].rates)
    model = _distributed(run.network)
    loader = Loader(run.training, run.experiment.data.workers, run.device)

    def save_last() -> None:
        if record:
            save(run, files.last, record.wandb_id)

    save_last()
    while not progress.finished:
        if progress.batch == 0:
            stage = schedule.stage_at(run.experiment, _used(run, begin))
            stage = distributed.from_first(stage)
            if stage != progress.stage:
                _enter(run, stage, files)
                model = _distributed(run.network)
            _adapt_sigma(run)
        watch, epoch_begin = Stopwatch(run.device), time.monotonic()
        _one_epoch(run, model, loader, watch, begin, save_last)
        _settle(run)
        scores, columns = _validated(run, watch)
        row, is_best = _counted(run, scores, begin)
        if record:
            row["time/seconds"] = seconds = time.monotonic() - epoch_begin
            shares = {name: part / seconds for name, part in watch.seconds().items()}
            row |= {f"time/{name}": share for name, share in shares.items()}
            _keep(run, files, record, row, columns if is_best else {})
            _tell(run, row, shares)
            if is_best:
                save(run, files.best)
            every = run.experiment.train.keep_every
            if every and progress.epoch % every == 0:
                save(run, files.checkpoint_of_epoch(progress.epoch))
        save_last()
    scores = {
        name: getattr(progress, name) for name in ("best_mse", "best_epoch", "mean_shape_mse")
    }
    budget = {"epochs": progress.epoch, "steps": progress.step, "minutes": progress.seconds / 60}
    return finite(scores | budget)


def _distributed(network: Network) -> nn.Module:
    return DistributedDataParallel(network) if distributed.world() > 1 else network


def _used(run: Run, begin: float) -> float:
    """The part of the budget that is used up: of the steps, or of the minutes if that is more."""
    used = run.progress.step / run.total_steps
    minutes = run.experiment.train.max_minutes
    if minutes:
        training = max(60 * minutes - run.progress.validation_seconds, 1e-9)
        used = max(used, distributed.from_first((time.monotonic() - begin) / training))
    return used


def _enter(run: Run, number: int, files: RunFolder) -> None:
    """Begins a stage: its start weights, what it freezes, and an optimizer without a past."""
    progress, stage = run.progress, run.experiment.all_stages[number]
    progress.stage, progress.scores = number, []
    progress.stage_epoch, progress.stage_step = progress.epoch, progress.step
    if stage.start == "best" and distributed.rank() == 0:
        run.network.load_state_dict(checkpoint.load(files.best).network)
    distributed.same_everywhere([*run.network.parameters(), *run.network.buffers()])
    if stage.start == "best" and run.averaged:
        run.averaged.module.load_state_dict(run.network.state_dict())
    freeze(run.optimizer, stage.rates)
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
        limits = model.sigma, model.sigma_start
        progress.sigma = schedule.adapted_sigma(progress.sigma, progress.losses, *limits)
        for network in (run.network, run.scored):
            assert isinstance(network, HeatmapNetwork)
            network.sigma = progress.sigma


def _one_epoch(
    run: Run, model: nn.Module, loader: Loader[Sample], watch: Stopwatch, begin: float,
    save_last: Callable[[], None],
) -> None:  # fmt: skip
    """Training until the epoch or the budget is over, from the batch where `progress` stands."""
    progress, settings = run.progress, run.experiment.train
    multiplier = run.experiment.data.multiplier
    passes = range(progress.epoch * multiplier, (progress.epoch + 1) * multiplier)
    batches = [batch for passed in passes for batch in _batches(run, passed)]
    last_checkpoint = time.monotonic()
    model.train()
    with tqdm(
        total=len(batches), initial=progress.batch, desc=f"epoch {progress.epoch + 1}",
        unit="batch", leave=False, disable=None if distributed.rank() == 0 else True,
    ) as bar:  # fmt: skip
        for sample in watch.waiting("data", loader.load(batches[progress.batch :])):
            progress.loss_sum += step(run, model, sample, watch, begin)
            progress.batch += 1
            progress.step += 1
            bar.update()
            bar.set_postfix(loss=f"{progress.loss_sum / progress.batch:.4g}", refresh=False)
            progress.seconds = time.monotonic() - begin
            if _used(run, begin) >= 1:
                break
            minutes = (time.monotonic() - last_checkpoint) / 60
            if progress.batch < len(batches) and minutes >= settings.checkpoint_minutes:
                save_last()
                last_checkpoint = time.monotonic()


def _batches(run: Run, passed: int) -> list[list[int]]:
    """This process's part of the batches of one pass over the training rows."""
    return shuffled_batches(
        run.training_rows, run.experiment.train.batch, run.experiment.seed, passed,
        distributed.rank(), distributed.world(),
    )  # fmt: skip


def step(run: Run, model: nn.Module, sample: Sample, watch: Stopwatch, begin: float) -> float:
    """One batch: augment, forward, loss, backward, update. Returns the loss of all processes.

    model: the run's network, or what distributes it. begin: when training began, monotonic seconds.
    """
    experiment = run.experiment
    _set_rates(run, begin)
    seed = schedule.seed_of(experiment.seed, 1 + run.progress.step, distributed.rank())
    torch.manual_seed(seed)
    with _saying_what_saves_memory(run):
        with watch("augment"):
            batch = run.augmented(sample, run.passed, run.device)
        run.optimizer.zero_grad()
        total = torch.zeros((), dtype=torch.float64, device=run.device)
        parts = _parts(run, batch)
        for number, (images, *truth) in enumerate(parts, start=1):
            # processes average their gradients once a step, with the last part of the batch
            waits: AbstractContextManager[None] = nullcontext()
            if number < len(parts) and isinstance(model, DistributedDataParallel):
                waits = model.no_sync()
            with waits:
                with watch("network"), autocast(run.device, experiment.train.precision):
                    output = model(images)
                with watch("loss"):
                    loss = run.network.loss(output, *truth)
                    loss = loss * (len(images) / len(batch.images))
                with watch("network"):
                    loss.backward()
            total += loss.detach()
        with watch("network"):
            longest = experiment.optimizer.clip_norm or math.inf
            norm = nn.utils.clip_grad_norm_(run.network.parameters(), longest)
            value, gradient = distributed.mean(torch.stack([total, norm.double()])).tolist()
            if not (math.isfinite(value) and math.isfinite(gradient)):
                raise UserError(_not_finite(run, sample, batch, value, gradient))
            run.optimizer.step()
            if run.averaged:
                run.averaged.update_parameters(run.network)
    return value


def _set_rates(run: Run, begin: float) -> None:
    """The learning rates of the network's parts for the next step."""
    experiment, progress = run.experiment, run.progress
    stage = experiment.all_stages[progress.stage]
    rate = (stage.lr or experiment.optimizer.lr) * schedule.learning_rate(
        stage.schedule,
        schedule.used_of_stage(experiment, progress.stage, _used(run, begin)),
        epoch=progress.epoch - progress.stage_epoch,
        step=progress.step - progress.stage_step,
        scores=progress.scores,
    )
    for group in run.optimizer.param_groups:
        group["lr"] = rate * getattr(stage.rates, group["part"])


def _parts(run: Run, batch: augment.Batch) -> list[tuple[Tensor, ...]]:
    """Of every part of a batch the images, and what `Network.loss` takes beside its output."""
    settings = run.experiment.train
    tensors = [batch.images, batch.points_crop, batch.weights]
    if settings.pixel_weights:
        tensors.append(batch.frame.pixel_area())
    return list(zip(*(tensor.chunk(settings.accumulate) for tensor in tensors), strict=True))


@contextmanager
def _saying_what_saves_memory(run: Run) -> Iterator[None]:
    """Turns running out of memory into a UserError that names the options to change."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not machine.is_out_of_memory(error):
            raise
        is_heatmap, reason = isinstance(run.network, HeatmapNetwork), machine.first_line(error)
        others = ", a smaller --model.width or a coarser --model.stride" if is_heatmap else ""
        raise UserError(
            f"{run.device} has too little memory for a training step ({reason}): use "
            f"--train.accumulate (the same batch in parts), a smaller --train.batch{others}"
        ) from None


def trial(run: Run) -> list[float]:
    """Seconds of two steps on a batch of the data; the first compiles too. Nothing is written.

    Raises:
        UserError: as `train`.
    """
    freeze(run.optimizer, run.experiment.all_stages[0].rates)
    model = _distributed(run.network).train()
    (sample,) = load(run.training, _batches(run, 0)[:1], 0, run.device)
    times = [time.monotonic()]
    for _ in range(2):
        step(run, model, sample, Stopwatch(run.device), times[0])  # which waits for the loss
        times.append(time.monotonic())
    return list(np.diff(times))


@torch.no_grad()
def _not_finite(
    run: Run, sample: Sample, batch: augment.Batch, loss: float, gradient: float
) -> str:
    """Why the run stops, with the images whose own loss is not finite, or all of the batch."""
    names, losses = [run.table.names[row] for row in sample.row.tolist()], list[float]()
    for images, *truth in _parts(run, batch):
        output = run.network(images)
        for i in range(len(images)):
            one = slice(i, i + 1)
            is_maps = isinstance(output, Maps)
            alone = output._replace(features=output.features[one]) if is_maps else output[one]
            losses.append(float(run.network.loss(alone, *(tensor[one] for tensor in truth))))
    mine = [name for name, loss in zip(names, losses, strict=True) if not math.isfinite(loss)]
    offending = [name for theirs in distributed.gather(mine) for name in theirs]
    return (
        f"step {run.progress.step + 1} (epoch {run.progress.epoch + 1}): the loss is {loss} and "
        f"the gradient's norm {gradient}. Images: {', '.join(offending or names)}. With right "
        "labels, lower optimizer.lr or set optimizer.clip_norm; last.pt holds the last good state."
    )


def _settle(run: Run) -> None:
    """Makes the processes' networks the same after an epoch, and stops where training diverged."""
    distributed.same_everywhere(run.network.buffers())
    distributed.same_everywhere(run.scored.buffers())
    weights = torch.stack([p.detach().abs().max() for p in run.network.parameters()])
    if not torch.isfinite(weights).all():
        raise UserError(
            f"the network's weights are no longer finite after step {run.progress.step}: training "
            "diverged; lower optimizer.lr or set optimizer.clip_norm"
        )


def _validated(run: Run, watch: Stopwatch) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The scores, and in the first process the columns of per_image.csv; empty without rows."""
    if run.experiment.data.all_rows_train:
        return {}, {}
    begin, settings = time.monotonic(), run.experiment.train
    errors = metrics.measure_errors(
        [View(run.scored, run.validation, settings.precision, scheme=run.scheme)],
        run.validation_rows, run.mean_shape,
        Execution(run.device, settings.batch, run.experiment.data.workers), watch=watch,
    )  # fmt: skip
    scores = distributed.from_first(metrics.summary(errors) if errors else {})
    columns = errors.columns() if errors else {}
    run.progress.validation_seconds = time.monotonic() - begin
    return scores, columns


def _counted(run: Run, scores: dict[str, Any], begin: float) -> tuple[dict[str, Any], bool]:
    """Counts the epoch in `progress`; returns its row of the ledger and whether it is the best."""
    progress, mse = run.progress, scores.get("mse")
    if mse is not None:
        progress.mean_shape_mse = scores["mean_shape_mse"]
        progress.scores.append(mse)
    is_best = mse is None or mse < progress.best_mse
    if is_best:
        progress.best_mse = math.inf if mse is None else mse
        progress.best_epoch = progress.epoch + 1
    groups = scores.get("groups", {})
    group_scores = {f"val/mse/{name.replace(' ', '_')}": value for name, value in groups.items()}
    row = {
        "epoch": progress.epoch + 1,
        "train/loss": progress.loss_sum / max(progress.batch, 1),
        "val/mse": mse,
        **(group_scores if len(groups) > 1 else {}),
        "val/nme_percent": scores.get("nme_percent"),
        "val/peak": scores.get("mean_peak"),
        "lr": max(group["lr"] for group in run.optimizer.param_groups),
        "sigma": progress.sigma,
    }
    progress.losses.append(row["train/loss"])
    progress.epoch, progress.batch, progress.loss_sum = progress.epoch + 1, 0, 0.0
    progress.seconds = time.monotonic() - begin
    patience = run.experiment.train.patience or math.inf
    progress.finished = distributed.from_first(
        _used(run, begin) >= 1 or progress.epoch - progress.best_epoch >= patience
    )
    return {name: value for name, value in row.items() if value is not None}, is_best


def _keep(
    run: Run, files: RunFolder, record: Ledger, row: dict[str, Any], columns: dict[str, np.ndarray]
) -> None:
    """Writes and tells what the epoch came to, but for its checkpoints.

    columns: of per_image.csv where the epoch is the best one so far, else empty.
    """
    progress, every = run.progress, run.experiment.wandb.images_every
    _alarm_if_black(run.experiment.model, row)
    if "val/mse" in row and (progress.finished or (progress.epoch - 1) % every == 0):
        rows = evenly_spaced(run.validation_rows, NUM_SHOWN).tolist()
        record.image("validation", progress.step, _sheet(run, run.scored, rows))
    if columns:
        names = [run.table.names[row] for row in run.validation_rows]
        write_per_image(files.per_image, names, columns)
    if progress.finished and files.per_image.is_file():
        _keep_predictions(run, files, record)
    record.log(progress.step, row)


def _sheet(run: Run, network: Network, rows: list[int]) -> np.ndarray:
    """The images of these rows with the network's landmarks and the labels."""
    paths, labels = [run.validation.paths[row] for row in rows], run.table.points_image[rows]
    return prediction_sheet(network, run.experiment, paths, run.device, labels, run.scheme)


def _keep_predictions(run: Run, files: RunFolder, record: Ledger) -> None:
    """What the best network sees in the worst images and in some others, from bad to good."""
    network, progress = run.scored, run.progress
    if progress.best_epoch < progress.epoch:
        network = checkpoint.load_trained(files.path).network.to(run.device)
    _, columns = read_per_image(files.per_image)
    labelled = int(np.isfinite(columns["mse"]).sum())
    worst_first = np.argsort(-columns["mse"])[:labelled]  # NaN is last
    chosen = [*worst_first[:NUM_WORST], *evenly_spaced(worst_first[NUM_WORST:], NUM_OTHERS)]
    numbers = {name: values for name, values in columns.items() if name not in ("width", "height")}

    def shown(index: int) -> tuple[np.ndarray, str, list[float | None]]:
        row = int(run.validation_rows[index])
        values = finite([float(v[index]) for v in numbers.values()])
        return _sheet(run, network, [row]), run.table.names[row], values

    record.predictions(progress.step, list(numbers), map(shown, chosen))


def _alarm_if_black(model: Model, row: dict[str, Any]) -> None:
    # a softmax alone asks for no height
    if model.loss != "none" and row.get("val/peak", 1.0) < BLACK_PEAK:
        logger.warning(
            f"the heatmaps are nearly black (mean peak {row['val/peak']:.3f}, targets have 1): a "
            "learning rate too high or too low, model.weight_map 0, model.sigma below 1, or labels "
            "of other images"
        )


def _tell(run: Run, row: dict[str, Any], shares: dict[str, float]) -> None:
    scores = ""
    if "val/mse" in row:
        nme = row.get("val/nme_percent", math.nan)
        best = f"(best {run.progress.best_mse:.3f})  NME {nme:.2f} %"
        scores = f"  val MSE {row['val/mse']:8.3f} px²  {best}"
    times = ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items())
    logger.info(
        f"epoch {row['epoch']:3d}  loss {row['train/loss']:.4g}{scores}"
        f"  lr {row['lr']:.1e}  {row['time/seconds']:.0f} s: {times}"
    )

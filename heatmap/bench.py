"""Races between this project, well-kept peers and the machine's own limits, in one run.

Every race has contenders that give the same thing, and limits: what the machine needs for a part
that nobody can leave out. All run in turn, in random order, round by round; the median counts, and
what is reported are ratios within the race. Peers: kornia, dsntnn, and PyTorch as the papers' and
the contestants' code is written, in operations on whole maps.
"""

import random
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import cv2
import kornia
import numpy as np
import torch
import torchvision
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile, record_function
from torchvision.transforms.v2 import functional as transforms
from tqdm import tqdm

from heatmap import (
    bench_table,
    codec,
    config,
    faces,
    losses,
    maps,
    networks,
    run,
    samples,
    synthetic,
    train,
)
from heatmap.columns import lined_up
from heatmap.contest import read_image
from heatmap.maps import Maps
from heatmap.predict import autocast
from heatmap.stopwatch import Stopwatch

try:
    import dsntnn
except ImportError:
    dsntnn = None

SIGMA, WEIGHT_MAP = 1.5, 10.0
BETA = 20.0  # of the peers' softmax: lower pulls points to the middle, higher to the pixel grid
OURS, PEER, LIMIT = "ours", "peer", "limit"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is raced: B pictures, P landmarks, size x size heatmaps, and for how long.

    seconds: of measuring for every contender, about; rows: of the training table.
    """

    device: torch.device
    batch: int
    landmarks: int
    size: int
    seconds: float
    encoder: str
    rows: int = 20_000


@contextmanager
def spinning(count: int) -> Iterator[None]:
    """As many other processes that take all of a core's time, as loading workers do."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


@dataclass(frozen=True)
class Contender:
    """One way to do it. kind: ours, peer or limit; error: (value, unit) against the truth."""

    name: str
    kind: str
    action: Callable[[], Any]
    error: tuple[float, str] | None = None
    pictures: int = 0


@dataclass(frozen=True, kw_only=True)
class Result:
    """A row of the table: times in milliseconds, memory in MiB beyond what the action was given."""

    race: str
    name: str
    kind: str
    milliseconds: float
    times_best_peer: float | None
    times_limit: float | None
    peak_mib: float
    error: str
    pictures_per_second: float | None


def measure(title: str, contenders: list[Contender], settings: Settings) -> list[Result]:
    """Races the contenders. Memory is measured apart from time, in one more call of each."""
    order, times = random.Random(0), {c.name: [] for c in contenders}  # type: ignore[var-annotated]
    peaks = {}
    for contender in contenders:  # warms up, too
        contender.action()
        peaks[contender.name] = _peak_mib(contender.action, settings.device)
    begin = time.monotonic()
    rounds = 0
    with tqdm(desc=title, unit="round", leave=False, disable=None) as bar:
        while rounds < 3 or time.monotonic() - begin < settings.seconds * len(contenders):
            for contender in order.sample(contenders, len(contenders)):
                times[contender.name].append(_seconds(contender.action, settings.device))
            rounds += 1
            bar.update()
    median = {name: statistics.median(values) for name, values in times.items()}
    return _compared(title, contenders, median, peaks)


def _compared(
    title: str, contenders: list[Contender], median: dict[str, float], peaks: dict[str, float]
) -> list[Result]:
    """The results of the contenders, by name: median seconds, and peaks in MiB."""

    def best(kind: str) -> float | None:
        return min((median[c.name] for c in contenders if c.kind == kind), default=None)

    peer, limit = (
        best(PEER),
        max((median[c.name] for c in contenders if c.kind == LIMIT), default=None),
    )
    return [
        Result(
            race=title,
            name=c.name,
            kind=c.kind,
            milliseconds=1e3 * median[c.name],
            times_best_peer=peer and peer / median[c.name],
            times_limit=limit and median[c.name] / limit,
            peak_mib=peaks[c.name],
            error=f"{c.error[0]:.2g} {c.error[1]}" if c.error else "",
            pictures_per_second=c.pictures / median[c.name] if c.pictures else None,
        )
        for c in contenders
    ]


def _seconds(action: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def _peak_mib(action: Callable[[], Any], device: torch.device) -> float:
    """The most that the action holds at once, by the allocator's own account."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        action()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        action()
    assert profiled.profiler is not None and profiled.profiler.kineto_results is not None
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak / 2**20


# decode


def decode(settings: Settings) -> Iterator[list[Result]]:
    """Given maps (peak 0.8, noise 0.03) to points; the error is the mean distance to the truth."""
    generator = torch.Generator().manual_seed(0)
    shape = settings.batch, settings.landmarks, settings.size, settings.size
    inner = 4 + (settings.size - 9) * torch.rand(*shape[:2], 2, generator=generator)
    truth = inner.to(settings.device)
    given = torch.randn(shape, generator=generator).to(settings.device).mul_(0.03)
    for some, points in zip(given, truth, strict=True):
        some += 0.8 * codec.render(points, settings.size, settings.size, SIGMA)

    def with_error(name: str, kind: str, action: Callable[[], Tensor]) -> Contender:
        distance = (action() - truth).norm(dim=-1).mean()
        return Contender(name, kind, action, (distance.item(), "px"))

    def ours(decoder: str) -> Callable[[], Tensor]:
        pictures = max(1, maps.block_values(given) // given[0].numel())
        return lambda: torch.cat(
            [codec.decode(some, SIGMA, decoder).points_heatmap for some in given.split(pictures)]
        )

    temperature = torch.tensor(1 / BETA, device=settings.device)
    contenders = [
        with_error("window soft-argmax", OURS, ours("window")),
        with_error("log-parabola", OURS, ours("parabola")),
        with_error("global soft-argmax", OURS, ours("global")),
        with_error(
            "kornia spatial_soft_argmax2d",
            PEER,
            lambda: kornia.geometry.subpix.spatial_soft_argmax2d(given, temperature, False),
        ),
        Contender("reading the maps (amax)", LIMIT, lambda: given.amax(-1)),
    ]
    if dsntnn is not None:
        half = (
            settings.size - 1
        ) / 2  # dsntnn's square is [-1, 1] at the outer pixels' outer edges

        def by_dsntnn() -> Tensor:
            return dsntnn.dsnt(dsntnn.flat_softmax(given * BETA)) * settings.size / 2 + half

        contenders.insert(4, with_error("dsntnn flat_softmax + dsnt", PEER, by_dsntnn))
    yield measure(f"decode {_size(settings)}", contenders, settings)


# loss


def loss(settings: Settings) -> Iterator[list[Result]]:
    """Adaptive wing with weight map, forward and backward, with the target: on given maps, and with
    the head's 1 x 1 convolution. The error is that of the gradient, of its largest value."""
    device, size = settings.device, settings.size
    generator = torch.Generator().manual_seed(0)
    shape = settings.batch, settings.landmarks, size, size
    points = (size * torch.rand(*shape[:2], 2, generator=generator)).to(device)
    weights = torch.ones(shape[:2], device=device)
    given = torch.rand(shape, generator=generator).to(device)
    gradient = torch.empty_like(given)

    def ours(block_loss: maps.BlockLoss) -> Callable[[], Tensor]:
        def action() -> Tensor:
            pictures = max(1, maps.block_values(given) // given[0].numel())
            for start in range(0, len(given), pictures):
                some = slice(start, start + pictures)
                targets = maps.targets_of(
                    points[some], weights[some] / given.numel(), (size, size), SIGMA, WEIGHT_MAP
                )
                _, slope = block_loss(given[some].flatten(2), targets, losses.adaptive_wing)
                gradient[some] = slope.view_as(gradient[some])
            return gradient

        return action

    def as_printed() -> Tensor:
        leaf = given.detach().requires_grad_()
        _paper_loss(leaf, points).backward()
        assert leaf.grad is not None
        return leaf.grad

    exact = given[:1].double().requires_grad_()
    _paper_loss(exact, points[:1].double()).backward()
    truth = exact.grad
    assert truth is not None
    largest = truth.abs().max()

    def with_error(name: str, kind: str, action: Callable[[], Tensor]) -> Contender:
        ratio = settings.batch * action()[:1].double() - truth
        return Contender(name, kind, action, ((ratio.abs().max() / largest).item(), "of max"))

    contenders = [
        with_error("closed form, compiled", OURS, ours(maps.compiled_loss_of_block)),
        with_error("closed form, eager", OURS, ours(maps.loss_of_block)),
        with_error("PyTorch as the paper prints it", PEER, as_printed),
        Contender("copying the maps", LIMIT, lambda: gradient.copy_(given)),
    ]
    yield measure(f"adaptive wing {_size(settings)}", contenders, settings)
    contenders.clear()
    for channels in (32, 128):
        yield _fused(settings, channels, points, weights)


def _fused(settings: Settings, channels: int, points: Tensor, weights: Tensor) -> list[Result]:
    size, device = settings.size, settings.device
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(settings.batch, channels, size, size, generator=generator).to(device)
    features = features.contiguous(memory_format=torch.channels_last)
    embeddings = (torch.randn(settings.landmarks, channels, generator=generator) / channels).to(
        device
    )
    bias = torch.zeros(settings.landmarks, device=device)
    leaves = Maps(*(t.requires_grad_() for t in (features, embeddings, bias)))

    def ours(block_loss: maps.BlockLoss) -> Callable[[], Tensor]:
        def action() -> Tensor:
            return _gradient(
                leaves,
                lambda: maps.loss(
                    leaves, points, weights,
                    sigma=SIGMA, weight_map=WEIGHT_MAP, block_loss=block_loss,
                ),
            )  # fmt: skip

        return action

    def head() -> Tensor:
        return functional.conv2d(features, embeddings[:, :, None, None], bias)

    def products() -> None:
        with torch.no_grad():
            for pixels in features.flatten(2):
                heights = embeddings @ pixels
                embeddings.T @ heights
                heights @ pixels.T

    exact = Maps(
        *(t.detach()[: 1 if t is features else None].double().requires_grad_() for t in leaves)
    )
    whole = functional.conv2d(exact.features, exact.embeddings[:, :, None, None], exact.bias)
    of_features = torch.autograd.grad(_paper_loss(whole, points[:1].double()), exact.features)[0]

    def with_error(name: str, kind: str, action: Callable[[], Tensor]) -> Contender:
        off = (settings.batch * action()[:1].double() - of_features).abs().max()
        return Contender(name, kind, action, ((off / of_features.abs().max()).item(), "of max"))

    contenders = [
        with_error("fused, compiled", OURS, ours(maps.compiled_loss_of_block)),
        with_error("fused, eager", OURS, ours(maps.loss_of_block)),
        with_error(
            "1×1 convolution + loss as printed",
            PEER,
            lambda: _gradient(leaves, lambda: _paper_loss(head(), points)),
        ),
        Contender(
            "1×1 convolution with a mean",
            LIMIT,
            lambda: _gradient(leaves, lambda: head().mean()),
        ),
        Contender("matrix products alone", "part", products),
    ]
    return measure(f"head of {channels} and adaptive wing {_size(settings)}", contenders, settings)


def _gradient(leaves: Maps, loss: Callable[[], Tensor]) -> Tensor:
    return torch.autograd.grad(loss(), leaves)[0]


def _paper_loss(heights: Tensor, points: Tensor) -> Tensor:
    """Wang et al. 2019 as printed, with weight map, on whole maps; the target is separable."""
    target = codec.render(points, heights.shape[-2], heights.shape[-1], SIGMA)
    near = functional.max_pool2d(target, 3, stride=1, padding=1) >= losses.FOREGROUND
    distance, power = (target - heights).abs(), losses.ALPHA - target
    ratio = losses.THETA / losses.EPSILON
    slope = losses.OMEGA / (1 + ratio**power) * power * ratio ** (power - 1) / losses.EPSILON
    offset = losses.THETA * slope - losses.OMEGA * torch.log(1 + ratio**power)
    curved = losses.OMEGA * torch.log(1 + (distance / losses.EPSILON) ** power)
    loss = torch.where(distance < losses.THETA, curved, slope * distance - offset)
    return (loss * (WEIGHT_MAP * near + 1)).mean()


# step and predict


def _networks(settings: Settings) -> tuple[dict[int, networks.Network], Tensor, Tensor, Tensor]:
    model = config.UNet(encoder=settings.encoder, weights="none")
    built = {}
    for count in (1, settings.landmarks):
        torch.manual_seed(0)
        built[count] = networks.build(model, config.Crop(), count).to(settings.device)
    images = torch.rand(settings.batch, 3, 128, 128, device=settings.device)
    points = 128 * torch.rand(settings.batch, settings.landmarks, 2, device=settings.device)
    weights = torch.ones(settings.batch, settings.landmarks, device=settings.device)
    return built, images, points, weights


def _precision(settings: Settings) -> Literal["fp32", "bf16"]:
    return "bf16" if settings.device.type == "cuda" else "fp32"


def step(settings: Settings) -> Iterator[list[Result]]:
    """A training step of the U-Net on 128 x 128 pictures at stride 4: all landmarks against one.

    Every choice of `--train.compile` is in the race.
    """
    built, images, points, weights = _networks(settings)
    optimizers = {n: torch.optim.AdamW(built[n].parameters(), 1e-4, fused=True) for n in built}
    precision = _precision(settings)

    def training(
        count: int,
        loss_of: Callable[[networks.Network, Maps], Tensor],
        compiled_parts: str = "loss",
    ) -> Callable[[], None]:
        def action() -> None:
            built[count].compiled_parts = compiled_parts
            optimizers[count].zero_grad()
            with autocast(settings.device, precision):
                output = built[count](images)
            loss_of(built[count], output).backward()
            optimizers[count].step()

        return action

    def ours(network: networks.Network, output: Maps) -> Tensor:
        count = network.num_landmarks
        return network.loss(output, points[:, :count], weights[:, :count])

    def printed(network: networks.Network, output: Maps) -> Tensor:
        features, embeddings, bias = (t.float() for t in output)
        heights = functional.conv2d(features, embeddings[:, :, None, None], bias)
        return _paper_loss(heights, (points + 0.5) / 4 - 0.5)

    name = f"{settings.landmarks} landmarks"
    contenders = [
        *(
            Contender(
                f"{name}, compile {parts}",
                OURS,
                training(settings.landmarks, ours, parts),
                pictures=settings.batch,
            )
            for parts in ("loss", "off", "all")
        ),
        Contender(
            f"{name}, loss as printed",
            PEER,
            training(settings.landmarks, printed),
            pictures=settings.batch,
        ),
        Contender("1 landmark", LIMIT, training(1, ours), pictures=settings.batch),
        Contender(
            "backbone alone",
            "part",
            training(1, lambda network, output: output.features.float().mean()),
            pictures=settings.batch,
        ),
    ]
    title = f"step {settings.encoder} {precision}, batch {settings.batch}"
    yield measure(title, contenders, settings)


def predict(settings: Settings) -> Iterator[list[Result]]:
    """Pictures to coordinates against the backbone alone, 128 x 128 at stride 4."""
    built, images, _, _ = _networks(settings)
    network, precision = built[settings.landmarks].eval(), _precision(settings)
    temperature = torch.tensor(1 / BETA, device=settings.device)

    @torch.no_grad()
    def features() -> Maps:
        with autocast(settings.device, precision):
            return network(images)

    @torch.no_grad()
    def peer() -> Tensor:
        output = features()
        heights = functional.conv2d(
            output.features.float(), output.embeddings[:, :, None, None], output.bias
        )
        return kornia.geometry.subpix.spatial_soft_argmax2d(heights, temperature, False)

    contenders = [
        Contender(
            "fused head and decoder", OURS, lambda: network.decode(features()), None, len(images)
        ),
        Contender("1×1 convolution + kornia soft-argmax", PEER, peer, None, len(images)),
        Contender("backbone alone", LIMIT, features, None, len(images)),
    ]
    yield measure(
        f"predict {settings.encoder} {precision}, batch {settings.batch}", contenders, settings
    )


# data


CROP = config.Crop(height=128, width=128)
AUGMENT = config.Augment(mirror=0.5, rotate_deg=25, scale=0.2, contrast=0.3)


def data(settings: Settings) -> Iterator[list[Result]]:
    """Files to crops on one core, and the whole training with loader and augmentation on.

    The error of a crop is its mean absolute difference from the photograph decoded whole and
    resampled by area, of 255.
    """
    for side in (250, 600):
        with (
            _one_thread(),
            warnings.catch_warnings(),
            tempfile.TemporaryDirectory() as folder,
        ):
            # torchvision's decoder is on its way out, but what many loaders use
            warnings.filterwarnings("ignore", "The image decoding", DeprecationWarning)
            results = _reading(settings, side, Path(folder))
        yield results
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "contest"
        synthetic.make_contest(
            root,
            count=4 * settings.batch,
            seed=0,
            test_count=1,
            workers=torch.get_num_threads(),
            progress=False,
        )
        experiment = config.Experiment(
            name="bench",
            data=config.Data(root=root, workers=2 if settings.device.type == "cpu" else 12),
            crop=CROP,
            model=config.UNet(encoder=settings.encoder, weights="none"),
            augment=AUGMENT,
            train=config.Train(
                batch=settings.batch,
                precision=_precision(settings),
                device=settings.device.type,  # type: ignore[arg-type]
            ),
        )
        yield _whole_training(run.prepare(experiment), settings)


def _reading(settings: Settings, side: int, folder: Path) -> list[Result]:
    """Square photographs to crops of the whole: ours, and peers that return (128, 128, 3) uint8."""
    paths = _photographs(folder / "images", 4 * settings.batch, side)
    points_image = np.zeros((len(paths), settings.landmarks, 2), np.float32)
    plain = samples.Samples(paths, points_image, CROP)
    padded = replace(plain, margin=samples.margin_for(CROP, AUGMENT))
    rows = np.arange(len(paths))
    (kept,) = samples.keep_crops(folder / "cache", folder / "images", [(plain, rows)])
    references = [_by_area(read_image(path)) for path in paths]

    def raced(name: str, kind: str, read: Callable[[Path], np.ndarray]) -> Contender:
        errors = [
            np.abs(read(path) - reference.astype(np.float32)).mean()
            for path, reference in zip(paths, references, strict=True)
        ]
        return Contender(
            name,
            kind,
            lambda: [read(path) for path in paths],
            (float(np.mean(errors)), "of 255"),
            len(paths),
        )

    def ours(name: str, some: samples.Samples) -> Contender:
        row_of = {path: row for row, path in enumerate(paths)}
        inner = slice(some.margin, some.margin + CROP.height)

        def read(path: Path) -> np.ndarray:
            return some[row_of[path]].crop.permute(1, 2, 0).numpy()[inner, inner]

        return raced(name, OURS, read)

    contenders = [
        ours("crop", plain),
        ours("crop with the augmentation's margin", padded),
        ours("crop from the cache", kept),
        raced("organisers' loader", PEER, _by_organisers),
        raced("torchvision", PEER, _by_torchvision),
        raced("Pillow", PEER, _by_pillow),
        Contender(
            "decoding the JPEG alone",
            LIMIT,
            lambda: [cv2.imread(str(path)) for path in paths],
            None,
            len(paths),
        ),
    ]
    bits = 8 * sum(path.stat().st_size for path in paths) / len(paths) / side**2
    title = f"{len(paths)} photographs of {side} px, {bits:.1f} bits a pixel, one core"
    return measure(title, contenders, settings)


def _photographs(folder: Path, count: int, side: int) -> list[Path]:
    """Square JPEGs of drawn faces, with a sensor's grain and so as heavy as real ones.

    In a set of faces from video, those of 200 to 300 px have 1.7 bits a pixel, larger ones 1.35.
    """
    folder.mkdir()
    generator = np.random.default_rng(0)
    paths = [folder / f"{index}.jpg" for index in range(count)]
    for index, path in enumerate(paths):
        face, _ = faces.draw_face(0, index)
        image = cv2.resize(face, (side, side), interpolation=cv2.INTER_CUBIC)
        grain = generator.normal(0, 3, (side, side, 1))
        image = np.clip(image + grain, 0, 255).astype(np.uint8)
        written = cv2.imwrite(str(path), image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])
        assert written, f"{path} cannot be written"
    return paths


def _by_area(image: np.ndarray) -> np.ndarray:
    return cv2.resize(image, (CROP.width, CROP.height), interpolation=cv2.INTER_AREA)


def _by_organisers(path: Path) -> np.ndarray:
    """The contest's own loader; as printed, it does not run with OpenCV 5."""
    bgr = cv2.imread(str(path))
    assert bgr is not None
    image = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
    factor = CROP.height / min(image.shape[:2])
    small = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
    top, left = (small.shape[0] - CROP.height) // 2, (small.shape[1] - CROP.width) // 2
    return small[top : top + CROP.height, left : left + CROP.width]


def _by_torchvision(path: Path) -> np.ndarray:
    image = torchvision.io.decode_image(str(path), mode="RGB")
    small = transforms.resize(image, [CROP.height], antialias=True)
    return transforms.center_crop(small, [CROP.height, CROP.width]).permute(1, 2, 0).numpy()


def _by_pillow(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        image.draft("RGB", (CROP.width, CROP.height))
        small = ImageOps.fit(image.convert("RGB"), (CROP.width, CROP.height), Image.Resampling.BOX)
    return np.asarray(small)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Neither torch nor OpenCV uses another core."""
    threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads[0])
        cv2.setNumThreads(threads[1])


def _whole_training(prepared: run.Run, settings: Settings) -> list[Result]:
    """Steps of `heatmap.train` fed by its loader, the loader's start left out."""
    rows, workers = prepared.training_rows, prepared.experiment.data.workers
    steps = 8 if settings.device.type == "cpu" else 200
    batches = [
        b
        for epoch in range(steps)
        for b in samples.shuffled_batches(rows, settings.batch, 0, epoch)
    ]
    loading = iter(samples.load(prepared.training, batches[: steps + 2], workers, settings.device))
    prepared.network.train()
    watch, begin = Stopwatch(settings.device), time.monotonic()

    def steps_of(number: int) -> None:
        for _ in range(number):
            train.step(prepared, prepared.network, next(loading), watch, begin)

    steps_of(2)
    seconds = _seconds(lambda: steps_of(steps), settings.device) / steps
    return [
        Result(
            race=f"training, batch {settings.batch}",
            name=f"a step with {workers} loading workers and augmentation",
            kind=OURS,
            milliseconds=1e3 * seconds,
            times_best_peer=None,
            times_limit=None,
            peak_mib=_peak_mib(lambda: None, settings.device),
            error="",
            pictures_per_second=settings.batch / seconds,
        )
    ]


def step_profile(settings: Settings, rows: int = 15) -> str:
    """What a training step with all landmarks spends its time on, as torch.profiler tells it."""
    built, images, points, weights = _networks(settings)
    network = built[settings.landmarks]
    network.compiled_parts = "loss"
    optimizer = torch.optim.AdamW(network.parameters(), 1e-4, fused=True)

    def action() -> None:
        optimizer.zero_grad()
        with (
            record_function("network forward"),
            autocast(settings.device, _precision(settings)),
        ):
            output = network(images)
        with record_function("head and loss"):
            loss = network.loss(output, points, weights)
        with record_function("backward"):
            loss.backward()
        with record_function("optimizer"):
            optimizer.step()

    for _ in range(3):
        action()
    activities = [ProfilerActivity.CPU]
    on_gpu = settings.device.type == "cuda"
    with profile(activities=activities + [ProfilerActivity.CUDA] * on_gpu) as profiled:
        for _ in range(5):
            action()
    by = "cuda_time_total" if on_gpu else "cpu_time_total"
    return profiled.key_averages().table(sort_by=by, row_limit=rows, max_name_column_width=50)


# the training table


def landmark_table(settings: Settings) -> Iterator[list[Result]]:
    """A part of a table by the organisers' loop and ours, then the whole of it by ours.

    Memory is what a process takes above its imports, files that are mapped among it.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        part, whole, images = folder / "part.csv", folder / "whole.csv", folder / "images"
        num_part = min(settings.rows, 20_000)
        bench_table.write_table(part, num_part, settings.landmarks)
        yield _readers(part, num_part, settings)
        part.unlink()
        bench_table.write_table(whole, settings.rows, settings.landmarks)
        bench_table.make_pictures(images, settings.rows)
        yield _whole_table(whole, images, settings)


def _readers(path: Path, num_rows: int, settings: Settings) -> list[Result]:
    """The readers in turn, in random order, each time in a new process."""
    cache = path.with_name("cache")
    bench_table.alone(bench_table.start, path, cache)

    def first_read() -> bench_table.Measured:
        with tempfile.TemporaryDirectory(dir=path.parent) as empty:
            return bench_table.alone(bench_table.start, path, Path(empty))

    alone = bench_table.alone
    contenders = [
        Contender("first read", OURS, first_read),
        Contender("later start", OURS, lambda: alone(bench_table.start, path, cache)),
        Contender("organisers' loop", PEER, lambda: alone(bench_table.organisers_loop, path)),
        Contender("reading the bytes", LIMIT, lambda: alone(bench_table.read_bytes, path)),
    ]
    contenders = [replace(contender, pictures=num_rows) for contender in contenders]
    order, found = random.Random(0), {c.name: list[bench_table.Measured]() for c in contenders}
    for _ in range(3):
        for contender in order.sample(contenders, len(contenders)):
            found[contender.name].append(contender.action())
    median = {n: statistics.median(m.seconds for m in several) for n, several in found.items()}
    peaks = {n: max(m.peak_mib for m in several) for n, several in found.items()}
    return _compared(f"table {num_rows:,}×{settings.landmarks}", contenders, median, peaks)


def _whole_table(path: Path, images: Path, settings: Settings, workers: int = 2) -> list[Result]:
    alone, cache = bench_table.alone, path.with_name("cache")
    first, later = (alone(bench_table.start, path, cache) for _ in range(2))
    looked = alone(bench_table.look_for_pictures, path, cache, images)
    epoch_seconds, growth = alone(bench_table.epoch, path, cache, images, workers).result
    epoch_name = f"an epoch's rows by {workers} workers, growth of each"
    rows = {
        "first read": (first.seconds, first.peak_mib),
        "later start": (later.seconds, later.peak_mib),
        "looking for the pictures": (looked.result, looked.peak_mib),
        epoch_name: (epoch_seconds, growth),
    }
    return _compared(
        f"whole table {settings.rows:,}×{settings.landmarks}",
        [Contender(name, OURS, lambda: None, pictures=settings.rows) for name in rows],
        {name: seconds for name, (seconds, _) in rows.items()},
        {name: mib for name, (_, mib) in rows.items()},
    )


RACES = {
    "decode": decode,
    "loss": loss,
    "step": step,
    "predict": predict,
    "data": data,
    "table": landmark_table,
}


def _size(settings: Settings) -> str:
    return f"{settings.batch}×{settings.landmarks}×{settings.size}×{settings.size}"


def table(results: list[Result], *, markdown: bool) -> str:
    """The results as text that lines up, or as Markdown."""
    header = ("", "", "ms", "× faster than best peer", "× limit", "peak MiB", "error", "pictures/s")
    lines = []
    for race in dict.fromkeys(r.race for r in results):
        rows = [
            (
                r.name,
                r.kind,
                f"{r.milliseconds:,.1f}",
                "" if r.times_best_peer is None else f"{r.times_best_peer:.2f}",
                "" if r.times_limit is None else f"{r.times_limit:.2f}",
                f"{r.peak_mib:,.0f}",
                r.error,
                "" if r.pictures_per_second is None else f"{r.pictures_per_second:,.0f}",
            )
            for r in results
            if r.race == race
        ]
        titled = [(race, *header[1:]), *rows]
        for number, cells in enumerate(lined_up(titled, left=2)):
            lines.append("| " + " | ".join(cells) + " |" if markdown else "  ".join(cells).rstrip())
            if number == 0:
                ruled = [
                    "-" * len(cell) if i < 2 else "-" * (len(cell) - 1) + ":"
                    for i, cell in enumerate(cells)
                ]
                lines.append("| " + " | ".join(ruled) + " |" if markdown else "-" * len(lines[-1]))
        lines.append("")
    return "\n".join(lines)


def to_json(results: list[Result]) -> list[dict[str, Any]]:
    """The results as JSON-able values."""
    return [asdict(r) for r in results]

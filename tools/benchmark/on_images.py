"""Images read and cropped, and the whole training with its loader."""

import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
import torchvision
from PIL import Image, ImageOps
from torchvision.transforms.v2 import functional as transforms

from benchmark.measuring import (
    LIMIT,
    OURS,
    PEER,
    Contender,
    Result,
    Settings,
    peak_mib_of,
    precision_of,
    race,
    seconds_of,
)
from heatmap import config
from heatmap.data import samples, synthetic
from heatmap.data.contest import read_image
from heatmap.runtime.stopwatch import Stopwatch
from heatmap.training import prepare
from heatmap.training.step import step

CROP = config.Crop(height=128, width=128)
AUGMENT = config.Augment(mirror=0.5, rotate_deg=25, scale=0.2, contrast=0.3)


def data(settings: Settings) -> Iterator[list[Result]]:
    """Files to crops on one core, and the whole training with loader and augmentation on.

    The error of a crop is its mean absolute difference from the image decoded whole and
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
        )
        experiment = config.Experiment(
            name="bench",
            data=config.Data(root=root, workers=2 if settings.device.type == "cpu" else 12),
            crop=CROP,
            model=config.UNet(encoder=settings.encoder, weights="none"),
            augment=AUGMENT,
            train=config.Train(
                batch=settings.batch,
                precision=precision_of(settings),
                device=settings.device.type,  # type: ignore[arg-type]
            ),
        )
        yield _whole_training(prepare.prepare(experiment), settings)


def _reading(settings: Settings, side: int, folder: Path) -> list[Result]:
    """Square images to crops of the whole: ours, and peers that return (128, 128, 3) uint8."""
    paths = _images(folder / "images", 4 * settings.batch, side)
    points_image = np.zeros((len(paths), settings.landmarks, 2), np.float32)
    plain = samples.Samples(paths, points_image, CROP)
    padded = replace(plain, margin=samples.margin_for(CROP, AUGMENT))
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
    title = f"{len(paths)} images of {side} px, {bits:.1f} bits a pixel, one core"
    return race(title, contenders, settings)


def _images(folder: Path, count: int, side: int) -> list[Path]:
    """Square JPEGs of drawn faces, with a sensor's grain and so as heavy as real ones.

    In a set of faces from video, those of 200 to 300 px have 1.7 bits a pixel, larger ones 1.35.
    """
    folder.mkdir()
    generator = np.random.default_rng(0)
    paths = [folder / f"{index}.jpg" for index in range(count)]
    for index, path in enumerate(paths):
        face, _ = synthetic.draw_face(0, index)
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


def _whole_training(prepared: prepare.Run, settings: Settings) -> list[Result]:
    """Training steps fed by its loader, the loader's start left out."""
    rows, workers = prepared.data.training_rows, prepared.experiment.data.workers
    steps = 8 if settings.device.type == "cpu" else 200
    batches = [
        b
        for epoch in range(steps)
        for b in samples.shuffled_batches(rows, settings.batch, 0, epoch)
    ]
    loading = iter(
        samples.load(prepared.data.training, batches[: steps + 2], workers, settings.device)
    )
    prepared.network.train()
    watch = Stopwatch(settings.device)

    def steps_of(number: int) -> None:
        for _ in range(number):
            step(prepared, prepared.network, next(loading), watch)

    steps_of(2)
    seconds = seconds_of(lambda: steps_of(steps), settings.device) / steps
    return [
        Result(
            race=f"training, batch {settings.batch}",
            name=f"a step with {workers} loading workers and augmentation",
            kind=OURS,
            milliseconds=1e3 * seconds,
            times_best_peer=None,
            times_limit=None,
            peak_mib=peak_mib_of(lambda: None, settings.device),
            error="",
            images_per_second=settings.batch / seconds,
        )
    ]

"""Reading and cropping images, and training steps with the loader."""

import tempfile
import time
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

from benchmark import measuring
from benchmark.measuring import (
    LIMIT,
    OURS,
    PEER,
    Contender,
    Entry,
    Result,
    Settings,
    race,
    results_of,
)
from heatmap import config
from heatmap.data import samples, synthetic
from heatmap.data.contest import read_image
from heatmap.runtime import machine
from heatmap.runtime.stopwatch import Stopwatch
from heatmap.training import prepare
from heatmap.training.step import Stepper

CROP = config.Crop(height=128, width=128)
AUGMENT = config.Augment(mirror=0.5, rotate_deg=25, scale=0.2, contrast=0.3)


def data(settings: Settings) -> Iterator[list[Result]]:
    """Files to crops on one core, and training with loader and augmentation.

    A crop's error is its mean absolute difference, of 255, from the fully decoded image resampled
    by area.
    """
    for side in (250, 600):
        with _one_thread(), warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
            # torchvision's decoder is deprecated, but many loaders use it.
            warnings.filterwarnings("ignore", "The image decoding", DeprecationWarning)
            results = _reading(settings, side, Path(folder))
        yield results
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "contest"
        count, workers = 4 * settings.batch, torch.get_num_threads()
        synthetic.make_contest(root, count=count, seed=0, test_count=1, workers=workers)
        experiment = config.Experiment(
            name="bench",
            data=config.Data(root=root),
            crop=CROP,
            model=config.UNet(encoder=settings.encoder, weights="none"),
            augment=AUGMENT,
            train=config.Train(
                batch=settings.batch,
                precision=measuring.precision_of(settings),
                device=settings.device.type,  # type: ignore[arg-type]
            ),
        )
        yield _training(prepare.prepare(experiment), settings)


def _reading(settings: Settings, side: int, folder: Path) -> list[Result]:
    """Square images to (128, 128, 3) uint8 crops of the whole image."""
    paths = _images(folder / "images", 4 * settings.batch, side)
    points_image = np.zeros((len(paths), settings.landmarks, 2), np.float32)
    plain = samples.Samples(paths, points_image, CROP)
    padded = replace(plain, margin=samples.margin_for(CROP, AUGMENT))
    references = [_by_area(read_image(path)).astype(np.float32) for path in paths]

    def error_of(crops: list[np.ndarray]) -> tuple[float, str]:
        differences = [a - b for a, b in zip(crops, references, strict=True)]
        return float(np.abs(differences).mean()), "of 255"

    def contender(name: str, kind: str, read: Callable[[Path], np.ndarray]) -> Contender:
        return Contender(name, kind, lambda: [read(path) for path in paths], error_of, len(paths))

    def ours(name: str, dataset: samples.Samples) -> Contender:
        row_of = {path: row for row, path in enumerate(paths)}
        inner = slice(dataset.margin, dataset.margin + CROP.height)

        def read(path: Path) -> np.ndarray:
            return dataset[row_of[path]].crop.permute(1, 2, 0).numpy()[inner, inner]

        return contender(name, OURS, read)

    def decode() -> None:
        for path in paths:
            cv2.imread(str(path))

    contenders = [
        ours("crop", plain),
        ours("crop with the augmentation's margin", padded),
        contender("organisers' loader", PEER, _by_organisers),
        contender("torchvision", PEER, _by_torchvision),
        contender("Pillow", PEER, _by_pillow),
        Contender("decoding the JPEG", LIMIT, decode, None, len(paths)),
    ]
    bits = 8 * sum(path.stat().st_size for path in paths) / len(paths) / side**2
    title = f"{len(paths)} images of {side} px, {bits:.1f} bits per pixel, one core"
    return race(title, contenders, settings)


def _images(folder: Path, count: int, side: int) -> list[Path]:
    """Writes square JPEGs of drawn faces, with sensor noise for realistic file sizes.

    Faces from videos have 1.7 bits per pixel at 200 to 300 px, and 1.35 at larger sizes.
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
    """The contest's own loader, adapted to OpenCV 5."""
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
    """Limits torch and OpenCV to one core."""
    threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads[0])
        cv2.setNumThreads(threads[1])


def _training(prepared: prepare.Run, settings: Settings, most: int = 200) -> list[Result]:
    """At most `most` training steps with the loader, excluding its start-up."""
    rows, workers = prepared.data.training_rows, machine.loader_processes()
    batches = list[list[int]]()
    for epoch in range(most + 3):
        batches += samples.shuffled_batches(rows, settings.batch, 0, epoch)
    loading = iter(samples.load(prepared.data.training, batches, workers, settings.device))
    stepper = Stepper(prepared)
    stepper.train()
    watch, steps = Stopwatch(settings.device), 0

    def steps_until(end: float, least: int) -> None:
        nonlocal steps
        steps = 0
        while steps < least or (steps < most and time.monotonic() < end):
            stepper.step(next(loading), watch)
            steps += 1

    steps_until(0.0, least=3)  # the second captures a CUDA graph
    end = time.monotonic() + settings.seconds
    seconds = measuring.seconds_of(lambda: steps_until(end, settings.min_rounds), settings.device)
    name = f"step with {workers} loader workers and augmentation"
    contender = Contender(name, OURS, lambda: None, images=settings.batch)
    return results_of(f"training, batch {settings.batch}", [Entry(contender, [seconds / steps])])

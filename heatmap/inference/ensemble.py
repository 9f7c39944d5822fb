"""Several runs with test-time augmentation, as views of the images."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import torch

from heatmap import schemes
from heatmap.codec import name_of
from heatmap.data.samples import PointArray, Samples
from heatmap.errors import UsageError, UserError
from heatmap.inference.predict import View, placed
from heatmap.networks import HeatmapNetwork
from heatmap.runs.checkpoint import TrainedRun, load_trained
from heatmap.runs.folder import RunFolder
from heatmap.runtime.files import read_bytes

ZOOMS = (1.0, 1 / 1.1, 1.1)  # of the test-time augmentation "scale"


@dataclass(frozen=True)
class Ensemble:
    """One or more trained runs whose predictions are merged.

    Raises:
        UserError: the runs have different numbers of landmarks, their mirror permutation is
            unknown, or a weighted run has no heatmaps.
    """

    runs: tuple[TrainedRun, ...]
    tta: frozenset[str] = frozenset()
    """Test-time augmentations: "mirror" adds mirrored crops, "scale" adds crops zoomed
    out and in by 1.1. Both together make six views per run."""
    weighted: bool = False
    """Weight points by the inverse covariance of their heatmap."""
    boxes: Path | None = None
    """The table of boxes that replaces the runs' own `data.boxes`."""

    def __post_init__(self) -> None:
        first = self.runs[0]
        for run in self.runs:
            if run.network.num_landmarks != self.num_landmarks:
                raise UserError(
                    f"{first.path} predicts {self.num_landmarks} landmarks, but {run.path} "
                    f"predicts {run.network.num_landmarks}; runs to merge need the same landmarks"
                )
            if self.weighted and not isinstance(run.network, HeatmapNetwork):
                raise UsageError(f"{run.path} has no heatmaps; merge it without --weighted")
            if "mirror" in self.tta:
                schemes.mirror_permutation(self.num_landmarks, run.scheme)

    @classmethod
    def load(
        cls,
        runs: Iterable[Path],
        *,
        tta: str = "none",
        weighted: bool = False,
        boxes: Path | None = None,
    ) -> "Ensemble":
        """Loads run folders (their best checkpoint) or checkpoints; `tta` is comma-separated.

        Raises:
            UserError: see the class; or a checkpoint is missing, a run is listed twice, or
                `boxes` is given and no run crops boxes.
        """
        loaded: list[TrainedRun] = []
        for run in map(load_trained, runs):
            if any(run.path.resolve() == other.path.resolve() for other in loaded):
                raise UsageError(f"{run.path} is listed twice; list each run once")
            if boxes is not None:
                data = replace(run.experiment.data, boxes=boxes)
                run = replace(run, experiment=replace(run.experiment, data=data))
            loaded.append(run)
        if boxes is not None and all(run.experiment.crop.rule != "box" for run in loaded):
            path, rule = loaded[0].path, loaded[0].experiment.crop.rule
            raise UsageError(f"--boxes is for runs with crop.rule box; {path} has {rule}")
        return cls(tuple(loaded), frozenset(tta.split(",")) - {"none"}, weighted, boxes)

    @property
    def num_landmarks(self) -> int:
        return self.runs[0].network.num_landmarks

    @property
    def run_names(self) -> list[str]:
        """Folder name of each run, followed by the checkpoint unless it is the best one."""
        names = []
        for path in (run.path.resolve() for run in self.runs):
            is_best = path == RunFolder(path.parent).best
            names.append(path.parent.name if is_best else f"{path.parent.name}-{path.stem}")
        return names

    @property
    def name(self) -> str:
        """Suffix for file names: the other runs and the options; empty for one plain run."""
        other_runs = "-".join(self.run_names[1:])
        if len(other_runs) > 150:  # a file name holds at most 255 bytes
            other_runs = f"{len(self.runs) - 1}-others"
        parts = [f"with-{other_runs}"] if other_runs else []
        parts += sorted(self.tta)
        parts += ["weighted"] if self.weighted else []
        parts += [f"boxes-{self.boxes.stem}"] if self.boxes else []
        return "-".join(parts)

    @property
    def options(self) -> str:
        """Command-line options that differ from the runs' training; empty if none do."""
        options = ["--tta", ",".join(sorted(self.tta))] if self.tta else []
        options += ["--weighted"] if self.weighted else []
        options += ["--boxes", self.boxes.name] if self.boxes else []
        for run in self.runs:
            network = run.network
            if isinstance(network, HeatmapNetwork):
                decoder = network.landmark_decoder
                if decoder != network.model.decoder:
                    return " ".join([*options, "--decoder", name_of(decoder)])
        return " ".join(options)

    def fingerprints(self) -> dict[str, str]:
        """SHA-256 of each run's checkpoint, by its path."""
        paths = [run.path for run in self.runs]
        return {str(path): hashlib.sha256(read_bytes(path)).hexdigest() for path in paths}

    def views(
        self, paths: Sequence[Path], points_image: PointArray, device: torch.device
    ) -> list[View]:
        """Returns all views on the device, the plain one of each run first.

        `points_image` is the truth (N, P, 2) in image pixels, NaN where unlabelled or unknown.

        Raises:
            UserError: a run crops boxes, and the table of boxes cannot be read or lacks an image.
        """
        views = []
        zooms = ZOOMS if "scale" in self.tta else ZOOMS[:1]
        sides = (False, True) if "mirror" in self.tta else (False,)
        for run in self.runs:
            network, precision = placed(run.network, device), run.experiment.train.precision
            try:
                samples = Samples.of(run.experiment, paths, points_image)
            except UserError as error:  # the run's own table may cover only its training images
                hint = "" if self.boxes else "; pass the boxes of these images with --boxes"
                raise UserError(f"{error}{hint}") from None
            views += [
                View(network, replace(samples, zoom=zoom), precision, mirrored, run.scheme)
                for zoom, mirrored in product(zooms, sides)
            ]
        return views

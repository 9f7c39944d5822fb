"""TrainedRun runs that answer together, and the views that they have of images."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import torch

from heatmap import schemes
from heatmap.data.samples import PointArray, Samples
from heatmap.errors import UserError
from heatmap.inference.predict import View
from heatmap.networks import HeatmapNetwork
from heatmap.runs.checkpoint import TrainedRun, load_trained
from heatmap.runs.folder import RunFolder

ZOOMS = (1.0, 1 / 1.1, 1.1)  # of the test-time augmentation "scale"


@dataclass(frozen=True)
class Ensemble:
    """One trained run or several whose landmarks are merged.

    tta: test-time augmentations: "mirror" adds mirrored crops, "scale" adds crops with everything
    1.1 times smaller and larger; both make six views a run. weighted: as
    `heatmap.inference.predict.predict` takes it. boxes: the table that the runs were loaded with.

    Raises:
        UserError: the runs have different numbers of landmarks, these have no known mirror image,
            or a run to be weighted has no heatmaps.
    """

    runs: tuple[TrainedRun, ...]
    tta: frozenset[str] = frozenset()
    weighted: bool = False
    boxes: Path | None = None

    def __post_init__(self) -> None:
        first = self.runs[0]
        for run in self.runs:
            if run.network.num_landmarks != self.num_landmarks:
                raise UserError(
                    f"{first.path} predicts {self.num_landmarks} landmarks and {run.path} "
                    f"{run.network.num_landmarks}; only runs with the same landmarks can be merged"
                )
            if self.weighted and not isinstance(run.network, HeatmapNetwork):
                raise UserError(
                    f"{run.path} is of a network without heatmaps; merge it without --weighted"
                )
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
        """The runs of these folders or checkpoints.

        Args:
            tta: "none", "mirror", "scale" or "mirror,scale".
            boxes: table of the images' boxes, in place of the runs' own data.boxes.

        Raises:
            UserError: as the class; no checkpoint, a run named twice, or no run that crops boxes.
        """
        loaded: list[TrainedRun] = []
        for run in map(load_trained, runs):
            if any(run.path.resolve() == other.path.resolve() for other in loaded):
                raise UserError(f"{run.path} is named twice; name each run once")
            if boxes is not None:
                data = replace(run.experiment.data, boxes=boxes)
                run = replace(run, experiment=replace(run.experiment, data=data))
            loaded.append(run)
        if boxes is not None and all(run.experiment.crop.rule != "box" for run in loaded):
            raise UserError(
                f"--boxes is for runs with crop.rule box; {loaded[0].path} has "
                f"{loaded[0].experiment.crop.rule}"
            )
        return cls(tuple(loaded), frozenset(tta.split(",")) - {"none"}, weighted, boxes)

    @property
    def num_landmarks(self) -> int:
        return self.runs[0].network.num_landmarks

    @property
    def run_names(self) -> list[str]:
        """Every run's folder, with the checkpoint where it is not the best one."""
        names = []
        for path in (run.path.resolve() for run in self.runs):
            is_best = path == RunFolder(path.parent).best
            names.append(path.parent.name if is_best else f"{path.parent.name}-{path.stem}")
        return names

    @property
    def name(self) -> str:
        """What tells it from the first run alone, for a file's name; empty where nothing does."""
        others = "-".join(self.run_names[1:])
        if len(others) > 150:  # a file's name has room for 255 bytes
            others = f"{len(self.runs) - 1}-others"
        parts = [f"with-{others}"] if others else []
        parts += sorted(self.tta)
        parts += ["weighted"] if self.weighted else []
        parts += [f"boxes-{self.boxes.stem}"] if self.boxes else []
        return "-".join(parts)

    @property
    def options(self) -> str:
        """What is not as in the runs' training, as a command line says it; empty for nothing."""
        words = ["--tta", ",".join(sorted(self.tta))] if self.tta else []
        words += ["--weighted"] if self.weighted else []
        words += ["--boxes", self.boxes.name] if self.boxes else []
        for run in self.runs:
            own = getattr(run.experiment.model, "decoder", None)  # the direct road has none
            used = getattr(run.network, "landmark_decoder", own)
            if used != own:
                return " ".join([*words, "--decoder", str(used)])
        return " ".join(words)

    def fingerprints(self) -> dict[str, str]:
        """SHA-256 of every run's checkpoint, by its path."""
        paths = [run.path for run in self.runs]
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}

    def views(
        self, paths: Sequence[Path], points_image: PointArray, device: torch.device
    ) -> list[View]:
        """Every run's views of the images, the plain one first; the networks go to the device.

        Args:
            points_image: (N, P, 2) truth in image pixels, NaN where unlabelled or unknown.

        Raises:
            UserError: a run crops boxes, and their table cannot be read or lacks one.
        """
        views = []
        zooms = ZOOMS if "scale" in self.tta else ZOOMS[:1]
        sides = (False, True) if "mirror" in self.tta else (False,)
        for run in self.runs:
            network, precision = run.network.to(device), run.experiment.train.precision
            try:
                samples = Samples.of(run.experiment, paths, points_image)
            except UserError as error:  # its own boxes are those of the images it was trained on
                hint = "" if self.boxes else "; the boxes of other images are named with --boxes"
                raise UserError(f"{error}{hint}") from None
            views += [
                View(network, replace(samples, zoom=zoom), precision, mirrored, run.scheme)
                for zoom, mirrored in product(zooms, sides)
            ]
        return views

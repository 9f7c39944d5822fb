"""Dense facial landmarks by heatmap regression."""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from heatmap.evaluation.metrics import evaluate
    from heatmap.inference.export import export
    from heatmap.inference.predictor import Landmarks, Predictor
    from heatmap.training.start import resume, train

# OpenCV reads it when it is loaded; its default is 1 << 30. The largest phone cameras have 200 MP.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", "200000000")

__version__ = "0.2.0"
__all__ = ["Landmarks", "Predictor", "evaluate", "export", "resume", "train"]
_HOMES = {
    "evaluate": "evaluation.metrics", "export": "inference.export", "resume": "training.start",
    "train": "training.start",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Imports the public names on first use, since importing torch takes seconds."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOMES.get(name, "inference.predictor")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)

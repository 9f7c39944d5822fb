"""Runs of a step or two on the tiny contest, for tests."""

from pathlib import Path
from typing import Any

from heatmap import config
from heatmap.training import loop
from heatmap.training.prepare import prepare

UNET = config.UNet(encoder="tu-test_resnet", weights="none", width=6)
DIRECT = config.Direct(encoder="tu-test_resnet", weights="none")


def trained(folder: Path, root: Path, steps: int = 1, **parts: Any) -> Path:
    """A run on the contest in `root`, the last half of whose rows validate by default."""
    defaults: dict[str, Any] = {
        "data": config.Data(root=root, split="order", validation=0.5, workers=0),
        "crop": config.Crop(height=32, width=48),
        "model": UNET,
        "train": config.Train(batch=4, max_steps=steps, device="cpu", compile="off"),
        "wandb": config.Wandb(mode="off"),
    }
    experiment = config.Experiment(name=folder.name, **(defaults | parts))
    loop.train(prepare(experiment), folder)
    return folder

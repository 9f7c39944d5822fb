"""Fixtures for the training tests."""

import shutil
from pathlib import Path

import pytest
from small_runs import BATCH, ENCODER

from heatmap.config import Augment, Crop, Data, Experiment, Train, UNet, Wandb
from heatmap.runs import checkpoint


@pytest.fixture
def tiny(tiny_contest: Path) -> Experiment:
    """A fast but complete experiment: 9 training and 3 validation images."""
    return Experiment(
        name="tiny",
        data=Data(root=tiny_contest, split="order", validation=0.25, workers=0),
        crop=Crop(height=32, width=48),
        augment=Augment(rotate_deg=10, scale=0.1, brightness=0.1),
        model=UNet(encoder=ENCODER, weights="none", width=6),
        train=Train(epochs=2, batch=BATCH, device="cpu"),
        wandb=Wandb(mode="off"),
    )


@pytest.fixture
def every_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps each last.pt, with the state after epoch N, as state-N.pt next to it."""
    save = checkpoint.save

    def keeping(path: Path, saved: checkpoint.Checkpoint) -> None:
        save(path, saved)
        if saved.state:
            shutil.copy(path, path.with_name(f"state-{saved.state.progress.epoch}.pt"))

    monkeypatch.setattr(checkpoint, "save", keeping)

"""Fixtures for the tests that run on the CPU and, if available, on a GPU.

`pytest tests/cuda` does not need av, wandb or dsntnn.
"""

import os
from pathlib import Path

import pytest
import torch

from heatmap import config

# Read when CUDA starts; train.deterministic needs it.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

NEEDS_GPU = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU"),
]
AUGMENT = config.Augment(
    mirror=0.5, rotate_deg=25, scale=0.2, shift=0.06, aspect=0.1, fill="edge", brightness=0.2,
    contrast=0.3, saturation=0.4, hue=0.05, gray=0.2, sharpness=0.5, blur=1, erase=0.5,
)  # fmt: skip


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=NEEDS_GPU)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU, then the GPU."""
    return torch.device(request.param)


@pytest.fixture(params=[pytest.param("cuda", marks=NEEDS_GPU)])
def gpu(request: pytest.FixtureRequest) -> torch.device:
    """The GPU; skips the test without one."""
    return torch.device(request.param)


@pytest.fixture(scope="session")
def tiny(tiny_contest: Path, tmp_path_factory: pytest.TempPathFactory) -> config.Experiment:
    """Trains a small U-Net on 9 images in 3 steps an epoch, with every augmentation but noise."""
    symmetry = tmp_path_factory.mktemp("symmetry") / "symmetry.json"
    symmetry.write_text('{"permutation": [1, 0, 3, 2, 5, 4, 6], "groups": {"face": [0, 7]}}')
    return config.Experiment(
        name="tiny",
        data=config.Data(
            root=tiny_contest, split="order", validation=0.25, workers=0, symmetry=symmetry
        ),
        crop=config.Crop(height=64, width=64),
        augment=AUGMENT,
        model=config.UNet(encoder="tu-test_resnet", weights="none", width=6),
        optimizer=config.Optimizer(kind="sgd", lr=1e-3),
        schedule=config.Schedule(kind="constant", warmup=0),
        train=config.Train(epochs=2, batch=3, compile="off"),
        wandb=config.Wandb(mode="off"),
    )

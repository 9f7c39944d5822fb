"""How much memory a training step needs, told from shapes: nothing is computed or allocated.

The step is run on fake tensors, which have shapes and no values, while every storage that appears
and disappears is counted. What the count cannot see (an allocator's gaps, a library's scratch
space) is added as measured.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from heatmap import config, maps, networks
from heatmap.config import Experiment
from heatmap.inference.predict import autocast
from heatmap.runtime import distributed, machine
from heatmap.training.prepare import optimizer_for

# On CPUs, fitted to 12 bare steps and 4 trainings (AMD EPYC with AVX2, torch 2.14, glibc): the
# heap's gaps grow with the step, compiler and data do not; bf16 is worked off in float32 copies.
CPU_GAPS, CPU_FIXED, CPU_COPIES = 1.13, 130 * 2**20, 0.7

# Blocks of maps that the loss holds at once: heights, slopes and a product, or every intermediate.
BLOCKS_COMPILED, BLOCKS_EAGER = 3, 10

MIB = 2**20


def peak_bytes(experiment: Experiment, num_landmarks: int, device: torch.device) -> int:
    """The most memory that training takes at once on top of the program itself.

    On CPUs the growth of the resident size, on GPUs the allocator's peak. Two steps are walked
    through, for the optimizer's state is made in the first. Of several processes it is one's.
    """
    bare = replace(experiment.model, weights="none")
    network = networks.build(bare, experiment.crop, num_landmarks)
    parts, fake = network.parts(), FakeTensorMode()
    _make_fake(network, fake, device)
    with fake, _Live() as live:
        live.add([*network.parameters(), *network.buffers()])
        optimizer = optimizer_for(experiment, network.train(), parts)
        for _ in range(2):
            _step(experiment, network, optimizer, num_landmarks, device)
    if experiment.train.ema:
        live.peak += sum(t.nbytes for t in network.state_dict().values())
    if device.type == "cuda":
        return live.peak
    copies = CPU_COPIES if experiment.train.precision == "bf16" else 0.0
    return round(CPU_GAPS * live.peak + CPU_FIXED + copies * (live.peak - live.now))


def table(experiment: Experiment, num_landmarks: int, device: torch.device) -> str:
    """What the step needs, what there is, and what to change where it does not fit, as lines."""
    needed, free = peak_bytes(experiment, num_landmarks, device), machine.free_memory(device)
    of = f", of {free / MIB:,.0f} MiB free" if free is not None else ""
    lines = [
        f"memory        {needed / MIB:,.0f} MiB on top of the program, predicted, on {device}{of}"
    ]
    if free is not None and needed > free:
        lines.append(f"does not fit  {advice(experiment, num_landmarks, device, free)}")
    return "\n".join(lines)


def advice(
    experiment: Experiment, num_landmarks: int, device: torch.device, free: int | None = None
) -> str:
    """What of batch, stride and width to change for less memory, each with what it would need.

    Args:
        free: bytes that a choice may need at most; None names them all.
    """
    choices = []
    for option, smaller in _smaller(experiment):
        needed = peak_bytes(smaller, num_landmarks, device)
        if free is None or needed <= free:
            choices.append(f"{option} needs {needed / MIB:,.0f} MiB")
    if not choices:
        return "use a smaller crop or encoder: no batch, stride or width alone is small enough"
    return "choose one: " + "; ".join(choices)


def _smaller(experiment: Experiment) -> Iterator[tuple[str, Experiment]]:
    """Options that need less memory, the mildest first."""
    train, model = experiment.train, experiment.model
    most = min(train.batch // 2, 16 * train.accumulate)
    parts = [n for n in range(train.accumulate + 1, most + 1) if train.batch % n == 0]
    for count in parts[:1] + parts[-1:] if len(parts) > 1 else parts:
        yield (
            f"--train.accumulate {count} (the same batch of {train.batch} in parts)",
            replace(experiment, train=replace(train, accumulate=count)),
        )
    if train.batch > 2 * train.accumulate:
        half = train.batch // 2 // train.accumulate * train.accumulate
        yield f"--train.batch {half}", replace(experiment, train=replace(train, batch=half))
    if isinstance(model, config.HeatmapModel):
        if model.stride < 4:
            coarser = replace(model, stride=2 if model.stride == 1 else 4)
            yield f"--model.stride {coarser.stride}", replace(experiment, model=coarser)
        if model.width > 32:
            narrower = replace(model, width=model.width // 2)
            yield f"--model.width {narrower.width}", replace(experiment, model=narrower)


@contextmanager
def saying_what_helps(
    experiment: Experiment, num_landmarks: int, device: torch.device
) -> Iterator[None]:
    """Turns running out of memory in the block into a ValueError that says what to change."""
    try:
        yield
    except RuntimeError as error:
        if not machine.is_out_of_memory(error):
            raise
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{device} has too little memory for this training step ({reason}). To go on, "
            f"{advice(experiment, num_landmarks, device)}"
        ) from None


def _step(
    experiment: Experiment,
    network: networks.Network,
    optimizer: torch.optim.Optimizer,
    num_landmarks: int,
    device: torch.device,
) -> None:
    """One training step as `heatmap.training.loop` makes it, on tensors of any values."""
    crop, train = experiment.crop, experiment.train
    pictures = max(1, train.batch // distributed.world())
    images = torch.empty(pictures, 3, crop.height, crop.width, device=device)
    points_crop = torch.empty(pictures, num_landmarks, 2, dtype=torch.float64, device=device)
    weights = torch.empty(pictures, num_landmarks, device=device)
    optimizer.zero_grad()
    for part in range(min(train.accumulate, 2)):  # later parts are like the second
        rows = slice(part, None, train.accumulate)
        with autocast(device, train.precision):
            output = network(images[rows])
        if isinstance(output, maps.Maps):  # all blocks are alike: one tells as much as a thousand
            values = min(maps.block_values(output.features), _map_values(output))
            copies = BLOCKS_EAGER if train.compile == "off" else BLOCKS_COMPILED
            loss = _LossOfOneBlock.apply(*output, copies * values)
        else:
            loss = network.loss(output, points_crop[rows], weights[rows])
        loss.backward()
        del output
    nn.utils.clip_grad_norm_(network.parameters(), experiment.optimizer.clip_norm or 1.0)
    optimizer.step()


class _LossOfOneBlock(torch.autograd.Function):
    """Makes the tensors that `maps.loss` makes, for one block."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, embeddings: Tensor, bias: Tensor, block_values: int
    ) -> Tensor:
        ctx.gradients = [torch.empty_like(t) for t in (features, embeddings, bias)]
        torch.empty(block_values, device=features.device)
        return torch.zeros((), device=features.device)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        return (*gradients, None)


def _map_values(output: maps.Maps) -> int:
    pictures, _, height, width = output.features.shape
    return pictures * len(output.bias) * height * width


def _make_fake(network: nn.Module, fake: FakeTensorMode, device: torch.device) -> None:
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(fake.from_tensor(parameter.data).to(device))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = fake.from_tensor(buffer).to(device)


class _Live(TorchDispatchMode):
    """Counts the bytes of all storages that live inside of it: `now`, and `peak` at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def add(self, tensors: Any) -> None:
        for tensor in tensors:
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                key, size = id(storage), storage.nbytes()
                if key not in self._known:
                    self.now += size
                    self.peak = max(self.peak, self.now)
                    self._known[key] = weakref.ref(storage, self._forgetting(key, size))

    def _forgetting(self, key: int, size: int) -> Any:
        def forget(_: Any) -> None:
            del self._known[key]
            self.now -= size

        return forget

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        made = function(*args, **(kwargs or {}))
        self.add(tree_leaves(made))
        return made

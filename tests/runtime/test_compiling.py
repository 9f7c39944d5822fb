import logging
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from heatmap import config, networks
from heatmap.networks import network as base
from heatmap.runtime import compiling
from heatmap.training.optimizer import freeze, optimizer_for

Graphs = list[torch.fx.GraphModule]


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Graphs]:
    """The graphs that torch.compile traces; they run without being compiled, which is fast."""
    traced: Graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        traced.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    monkeypatch.setattr(compiling, "_failures", [])
    torch._dynamo.reset()
    with torch._dynamo.config.patch(disable=False):
        yield traced
    torch._dynamo.reset()


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.message for r in caplog.records if r.name == "heatmap"]


def test_too_many_graphs_are_reported_once_and_leave_other_functions_compiled(
    graphs: Graphs, caplog: pytest.LogCaptureFixture
) -> None:
    def scale(values: Tensor, factor: str) -> Tensor:
        return values * float(factor)

    def shift(values: Tensor) -> Tensor:
        return values + 1

    scaled, shifted = compiling.compiled(scale), compiling.compiled(shift)
    with torch._dynamo.config.patch(recompile_limit=3), caplog.at_level(logging.WARNING):
        for factor in "123456":
            assert scaled(torch.ones(2), factor).tolist() == [float(factor)] * 2
    (message,) = warnings_in(caplog)
    assert message.startswith("scale is not compiled and may run slower (it needs more than 3")
    assert len(graphs) == 3
    assert shifted(torch.ones(2)).tolist() == [2, 2]
    assert len(graphs) == 4


class Shrunk(nn.Module):
    """An encoder with one layer per stride: a real one takes ten seconds to trace."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(3, 3, 2, stride=2), nn.BatchNorm2d(3)) for _ in range(5)
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        features = [images]
        for block in self.blocks:
            features.append(block(features[-1]))
        return features


class Second(nn.Module):
    def forward(self, features: list[Tensor]) -> Tensor:
        return features[2]


class SmallNetwork(networks.HeatmapNetwork):
    def __init__(self) -> None:
        model = config.UNet(encoder="resnet18", weights="none", stride=4, width=3)
        super().__init__(model, config.Crop(), 5, decoder=Second(), channels=3)
        self.encoder = Shrunk()

    def pyramid(self, images: Tensor) -> list[Tensor]:
        return self.encoder(images)


def test_a_network_is_compiled_once_for_each_set_of_frozen_parts(
    graphs: Graphs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(base, "_compiled_layers", compiling.compiled(base._layers, dynamic=None))
    torch.manual_seed(0)
    network = SmallNetwork()
    network.compiled_parts = "all"
    optimizer = optimizer_for(config.Optimizer(), network)
    counts = []
    for rates in (config.Rates(block1=0), config.Rates(), config.Rates(block1=0)):
        freeze(optimizer, rates)
        for batch in (4, 4, 3, 1):
            network.train()
            features = network(torch.rand(batch, 3, 64, 32)).features
            features.square().mean().backward()
        network.eval()
        with torch.no_grad():
            for batch in (4, 1):
                network(torch.rand(batch, 3, 64, 32))
        counts.append(len(graphs))
    assert counts == [1, 2, 2]
    assert not warnings_in(caplog)

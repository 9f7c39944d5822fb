"""Which weights the optimizer trains, and their running mean."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_runs import trained

from heatmap import networks
from heatmap.config import Crop, Direct, Experiment, Rates
from heatmap.runs import checkpoint
from heatmap.training.optimizer import RunningMean, freeze
from heatmap.training.prepare import prepare


def test_weights_that_the_output_does_not_depend_on_are_never_trained(
    tiny: Experiment, tmp_path: Path
) -> None:
    settings = replace(tiny.train, max_steps=1)
    model = Direct(encoder="efficientnet-b0", weights="none")
    run = trained(replace(tiny, model=model, train=settings), tmp_path)
    in_optimizer = {weight for group in run.optimizer.param_groups for weight in group["params"]}
    names = {n for n, weight in run.network.named_parameters() if weight not in in_optimizer}
    assert names == {f"encoder.{n}" for n in ("_conv_head.weight", "_bn1.weight", "_bn1.bias")}
    for rates in (Rates(block5=0), Rates()):
        freeze(run.optimizer, rates)
        assert not any(run.network.get_parameter(name).requires_grad for name in names)
    assert in_optimizer == {w for w in run.network.parameters() if w.requires_grad}

    warm = replace(tiny, model=model, train=replace(settings, start=tmp_path))
    start = prepare(warm).network.state_dict()
    assert names < start.keys()
    saved = checkpoint.load(tmp_path / "last.pt")
    assert saved.state
    prepare(run.experiment, saved)
    outside = replace(saved, validation_rows=torch.tensor([12]))
    with pytest.raises(ValueError, match=r"last\.pt: some of its rows are not among the 12"):
        prepare(run.experiment, outside)
    saved.state.optimizer["param_groups"][-1]["params"].append(999)
    with pytest.raises(ValueError, match=r"trained other weights .*--train\.start RUN"):
        prepare(run.experiment, saved)


def test_a_network_without_batch_normalisation_is_averaged() -> None:
    model = Direct(encoder="tu-convnext_atto", weights="none")
    network = networks.build(model, Crop(height=64, width=64), 3)
    assert all(buffer.is_floating_point() for buffer in network.buffers())
    mean, weight = RunningMean(network, 0.5), next(network.parameters())
    with torch.no_grad():
        for step, value in enumerate((1.0, 2.0)):
            weight.fill_(value)
            mean.update(network, step)
    # the first step is copied; the second has a share of 1 - 2 / 11
    expected = torch.full_like(weight, 1 + 9 / 11)
    assert torch.allclose(next(mean.network.parameters()), expected)

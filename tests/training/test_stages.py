from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_runs import changed, trained, trained_weights, weights_of

from heatmap import config
from heatmap.config import FROZEN_ENCODER, Experiment, Schedule, Stage
from heatmap.evaluation import metrics
from heatmap.inference.predict import View
from heatmap.runs import checkpoint
from heatmap.runs.ledger import read_metrics
from heatmap.training import loop
from heatmap.training.prepare import prepare
from heatmap.training.schedule import adapted_sigma

HEAD_ALONE = replace(FROZEN_ENCODER, decoder=0)


def test_a_stage_trains_its_unfrozen_parts_at_their_rates(
    tiny: Experiment, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "heatmap")
    constant = Schedule(kind="constant", warmup=0)
    stages = (
        Stage(epochs=1, lr=0.01, schedule=constant, rates=FROZEN_ENCODER),
        Stage(epochs=1, lr=0.002, schedule=constant, rates=replace(HEAD_ALONE, block2=0.1)),
    )
    staged = replace(tiny, stages=stages, train=replace(tiny.train, epochs=None, keep_every=1))
    trained(staged, tmp_path)
    assert "stage 2 of 2, from the last weights; frozen: block1, block3" in caplog.text
    assert [row["lr"] for row in read_metrics(tmp_path)] == [0.01, 0.002]
    fresh = prepare(staged).network
    first, last = (weights_of(tmp_path / f"epoch-{n}.pt") for n in (1, 2))
    trained_first = {name.split(".")[0] for name in changed(first, fresh.state_dict())}
    assert trained_first == {"decoder", "embeddings", "bias"}
    blocks = fresh.parts()
    trainable = {*blocks["block2"], *blocks["head"]}
    statistics = {name for name in changed(first, last) if "running" in name}
    assert changed(first, last) - statistics == trainable
    owners = {name.rpartition(".")[0] for name in statistics}
    assert owners <= {name.rpartition(".")[0] for name in trainable}


def test_a_staged_run_that_is_resumed_ends_with_the_same_weights(
    tiny: Experiment, tmp_path: Path, every_state: None
) -> None:
    stages = (
        Stage(epochs=1, schedule=Schedule(kind="plateau"), rates=FROZEN_ENCODER),
        Stage(epochs=2, lr=0.002, schedule=Schedule(kind="cyclic", rise_steps=3), start="best"),
    )
    settings = replace(tiny.train, epochs=None, keep_every=1)
    staged = replace(tiny, stages=stages, train=settings)
    trained(staged, tmp_path / "whole")
    for epoch in (1, 2):  # at the border of the stages, and within the second
        again = tmp_path / f"from-{epoch}"
        again.mkdir()
        (again / "best.pt").write_bytes((tmp_path / "whole" / "epoch-1.pt").read_bytes())
        saved = checkpoint.load(tmp_path / "whole" / f"state-{epoch}.pt")
        loop.train(prepare(config.from_dict(Experiment, saved.config), saved), again)
        whole, resumed = (weights_of(path / "last.pt") for path in (tmp_path / "whole", again))
        assert not changed(whole, resumed)


def test_start_weights_of_a_run_with_another_head(
    tiny: Experiment, tmp_path: Path, tiny_contest: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained(tiny, tmp_path / "first")
    warm = replace(tiny, train=replace(tiny.train, start=tmp_path / "first"))
    best = weights_of(tmp_path / "first" / "best.pt")
    network = prepare(warm).network
    assert not changed(best, network.state_dict())

    wide = replace(tiny.model, width=8)
    with pytest.raises(ValueError, match=r"do not fit this network, such as .*only the head"):
        prepare(replace(warm, model=wide))

    saved = checkpoint.load(tmp_path / "first" / "best.pt")
    fewer = {k: v[:5] if k in ("embeddings", "bias") else v for k, v in saved.network.items()}
    checkpoint.save(
        tmp_path / "fewer.pt",
        replace(saved, network=fewer, num_landmarks=5, mean_shape_crop=saved.mean_shape_crop[:5]),
    )
    network = prepare(replace(warm, train=replace(warm.train, start=tmp_path / "fewer.pt"))).network
    assert "has a different head; these stay random: embeddings, bias" in caplog.text
    assert changed(best, network.state_dict()) == {"embeddings", "bias"}


def test_the_averaged_weights_are_scored_and_saved(
    tiny: Experiment, tmp_path: Path, every_state: None
) -> None:
    """Compares with the mean of the checkpoints of every step."""
    settings = replace(tiny.train, epochs=4, max_steps=4, ema=0.15)
    one_step = replace(tiny, data=replace(tiny.data, validation=0.8), train=settings)
    run = trained(one_step, tmp_path)
    assert run.data.batches_per_epoch == 1
    raw = [trained_weights(tmp_path / f"state-{n}.pt") for n in (1, 2, 3, 4)]
    expected = {name: tensor.clone() for name, tensor in raw[0].items()}
    for steps in (1, 2, 3):
        decay = min(0.15, (1 + steps) / (10 + steps))  # the mean begins short
        for name, tensor in expected.items():
            tensor.lerp_(raw[steps][name], 1 - decay)
    last = checkpoint.load_trained(tmp_path / "last.pt")
    kept, trained_on = last.network.state_dict(), trained_weights(tmp_path / "last.pt")
    for name, tensor in expected.items():
        assert torch.allclose(kept[name], tensor, atol=1e-6)
    assert any(not torch.allclose(kept[name], trained_on[name], atol=1e-6) for name in expected)

    scored = metrics.measure_errors(
        [View(last.network, run.data.validation)], run.data.validation_rows, run.mean_shape_crop,
        batch=2, workers=0,
    )  # fmt: skip
    assert read_metrics(tmp_path)[-1]["val/mse"] == pytest.approx(scored.mse.mean(), rel=1e-5)


def test_averaged_weights_and_adaptive_sigma_resume_to_the_same_bits(
    tiny: Experiment, tmp_path: Path, every_state: None
) -> None:
    model = replace(tiny.model, sigma_start=4.0)
    settings = replace(tiny.train, epochs=7, ema=0.9, keep_every=1)
    trained(replace(tiny, model=model, train=settings), tmp_path / "whole")
    metrics = read_metrics(tmp_path / "whole")
    sigmas = [row["sigma"] for row in metrics]
    assert sigmas[:4] == [4.0] * 4  # four losses are compared
    assert sigmas[4] == pytest.approx(
        adapted_sigma(4.0, [row["train/loss"] for row in metrics[:4]], 1.5, 4.0)
    )
    assert sigmas[4] < 4
    saved = checkpoint.load(tmp_path / "whole" / "state-5.pt")
    assert checkpoint.load_trained(tmp_path / "whole" / "epoch-5.pt").network.sigma == sigmas[4]
    again = tmp_path / "again"
    loop.train(prepare(config.from_dict(Experiment, saved.config), saved), again)
    assert [row["sigma"] for row in read_metrics(again)] == sigmas[5:]
    for weights in (weights_of, trained_weights):
        assert not changed(*(weights(p / "last.pt") for p in (tmp_path / "whole", again)))

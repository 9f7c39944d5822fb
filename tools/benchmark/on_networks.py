"""Training steps and prediction with a U-Net on 128 x 128 images at stride 4."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import kornia
import torch
from torch import Tensor
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile, record_function

from benchmark import measuring
from benchmark.measuring import LIMIT, OURS, PEER, Contender, Result, Settings, race
from benchmark.on_maps import BETA, paper_loss
from heatmap import config, networks
from heatmap.inference.predict import autocast
from heatmap.maps import Maps


def _networks(settings: Settings) -> tuple[dict[int, networks.Network], Tensor, Tensor, Tensor]:
    model = config.UNet(encoder=settings.encoder, weights="none")
    built = {}
    for count in (1, settings.landmarks):
        torch.manual_seed(0)
        built[count] = networks.build(model, config.Crop(), count).to(settings.device)
    images = torch.rand(settings.batch, 3, 128, 128, device=settings.device)
    points = 128 * torch.rand(settings.batch, settings.landmarks, 2, device=settings.device)
    weights = torch.ones(settings.batch, settings.landmarks, device=settings.device)
    return built, images, points, weights


def step(settings: Settings) -> Iterator[list[Result]]:
    """A training step with all landmarks, for every `--train.compile`, and with one landmark."""
    built, images, points, weights = _networks(settings)
    optimizers = {n: torch.optim.AdamW(built[n].parameters(), 1e-4, fused=True) for n in built}
    precision = measuring.precision_of(settings)

    def contender(
        name: str,
        kind: str,
        count: int,
        loss_of: Callable[[networks.Network, Maps], Tensor],
        compiled_parts: str = "loss",
    ) -> Contender:
        def action() -> None:
            built[count].compiled_parts = compiled_parts
            optimizers[count].zero_grad()
            with autocast(settings.device, precision):
                output = built[count](images)
            loss_of(built[count], output).backward()
            optimizers[count].step()

        return Contender(name, kind, action, images=settings.batch)

    def ours(network: networks.Network, output: Maps) -> Tensor:
        count = network.num_landmarks
        return network.loss(output, points[:, :count], weights[:, :count])

    def as_in_paper(network: networks.Network, output: Maps) -> Tensor:
        features, embeddings, bias = (t.float() for t in output)
        heatmaps = functional.conv2d(features, embeddings[:, :, None, None], bias)
        return paper_loss(heatmaps, (points + 0.5) / 4 - 0.5)

    def mean_feature(network: networks.Network, output: Maps) -> Tensor:
        return output.features.float().mean()

    landmarks, name = settings.landmarks, f"{settings.landmarks} landmarks"
    contenders = [
        *(
            contender(f"{name}, compile {parts}", OURS, landmarks, ours, parts)
            for parts in ("loss", "off", "all")
        ),
        contender(f"{name}, loss as in the paper", PEER, landmarks, as_in_paper),
        contender("1 landmark", LIMIT, 1, ours),
        contender("backbone alone", "part", 1, mean_feature),
    ]
    title = f"step {settings.encoder} {precision}, batch {settings.batch}"
    yield race(title, contenders, settings)


def predict(settings: Settings) -> Iterator[list[Result]]:
    """Images to coordinates, against the backbone alone."""
    built, images, _, _ = _networks(settings)
    network, precision = built[settings.landmarks].eval(), measuring.precision_of(settings)
    temperature = torch.tensor(1 / BETA, device=settings.device)

    @torch.no_grad()
    def features() -> Maps:
        with autocast(settings.device, precision):
            return network(images)

    @torch.no_grad()
    def peer() -> Tensor:
        output = features()
        heatmaps = functional.conv2d(
            output.features.float(), output.embeddings[:, :, None, None], output.bias
        )
        return kornia.geometry.subpix.spatial_soft_argmax2d(heatmaps, temperature, False)

    contenders = [
        Contender("fused head and decoder", OURS, lambda: network.decode(features())),
        Contender("1×1 convolution + kornia soft-argmax", PEER, peer),
        Contender("backbone alone", LIMIT, features),
    ]
    contenders = [replace(contender, images=len(images)) for contender in contenders]
    title = f"predict {settings.encoder} {precision}, batch {settings.batch}"
    yield race(title, contenders, settings)


def step_profile(settings: Settings, rows: int = 15) -> str:
    """Profiles training steps with all landmarks; returns torch.profiler's table."""
    built, images, points, weights = _networks(settings)
    network = built[settings.landmarks]
    network.compiled_parts = "loss"
    optimizer = torch.optim.AdamW(network.parameters(), 1e-4, fused=True)

    def action() -> None:
        optimizer.zero_grad()
        with (
            record_function("network forward"),
            autocast(settings.device, measuring.precision_of(settings)),
        ):
            output = network(images)
        with record_function("head and loss"):
            loss = network.loss(output, points, weights)
        with record_function("backward"):
            loss.backward()
        with record_function("optimizer"):
            optimizer.step()

    for _ in range(3):
        action()
    activities = [ProfilerActivity.CPU]
    on_gpu = settings.device.type == "cuda"
    with profile(activities=activities + [ProfilerActivity.CUDA] * on_gpu) as profiled:
        for _ in range(5):
            action()
    by = "device_time_total" if on_gpu else "cpu_time_total"
    return profiled.key_averages().table(sort_by=by, row_limit=rows, max_name_column_width=50)

"""Training steps and prediction with a network."""

from collections.abc import Callable, Iterator

import kornia
import torch
from torch import Tensor
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile, record_function

from benchmark.measuring import (
    LIMIT,
    OURS,
    PEER,
    Contender,
    Result,
    Settings,
    precision_of,
    race,
)
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
    """A training step of the U-Net on 128 x 128 images at stride 4: all landmarks against one.

    Every choice of `--train.compile` is in the race.
    """
    built, images, points, weights = _networks(settings)
    optimizers = {n: torch.optim.AdamW(built[n].parameters(), 1e-4, fused=True) for n in built}
    precision = precision_of(settings)

    def training(
        count: int,
        loss_of: Callable[[networks.Network, Maps], Tensor],
        compiled_parts: str = "loss",
    ) -> Callable[[], None]:
        def action() -> None:
            built[count].compiled_parts = compiled_parts
            optimizers[count].zero_grad()
            with autocast(settings.device, precision):
                output = built[count](images)
            loss_of(built[count], output).backward()
            optimizers[count].step()

        return action

    def ours(network: networks.Network, output: Maps) -> Tensor:
        count = network.num_landmarks
        return network.loss(output, points[:, :count], weights[:, :count])

    def printed(network: networks.Network, output: Maps) -> Tensor:
        features, embeddings, bias = (t.float() for t in output)
        heights = functional.conv2d(features, embeddings[:, :, None, None], bias)
        return paper_loss(heights, (points + 0.5) / 4 - 0.5)

    name = f"{settings.landmarks} landmarks"
    contenders = [
        *(
            Contender(
                f"{name}, compile {parts}",
                OURS,
                training(settings.landmarks, ours, parts),
                images=settings.batch,
            )
            for parts in ("loss", "off", "all")
        ),
        Contender(
            f"{name}, loss as printed",
            PEER,
            training(settings.landmarks, printed),
            images=settings.batch,
        ),
        Contender("1 landmark", LIMIT, training(1, ours), images=settings.batch),
        Contender(
            "backbone alone",
            "part",
            training(1, lambda network, output: output.features.float().mean()),
            images=settings.batch,
        ),
    ]
    title = f"step {settings.encoder} {precision}, batch {settings.batch}"
    yield race(title, contenders, settings)


def predict(settings: Settings) -> Iterator[list[Result]]:
    """Images to coordinates against the backbone alone, 128 x 128 at stride 4."""
    built, images, _, _ = _networks(settings)
    network, precision = built[settings.landmarks].eval(), precision_of(settings)
    temperature = torch.tensor(1 / BETA, device=settings.device)

    @torch.no_grad()
    def features() -> Maps:
        with autocast(settings.device, precision):
            return network(images)

    @torch.no_grad()
    def peer() -> Tensor:
        output = features()
        heights = functional.conv2d(
            output.features.float(), output.embeddings[:, :, None, None], output.bias
        )
        return kornia.geometry.subpix.spatial_soft_argmax2d(heights, temperature, False)

    contenders = [
        Contender(
            "fused head and decoder", OURS, lambda: network.decode(features()), None, len(images)
        ),
        Contender("1×1 convolution + kornia soft-argmax", PEER, peer, None, len(images)),
        Contender("backbone alone", LIMIT, features, None, len(images)),
    ]
    yield race(
        f"predict {settings.encoder} {precision}, batch {settings.batch}", contenders, settings
    )


def step_profile(settings: Settings, rows: int = 15) -> str:
    """What a training step with all landmarks spends its time on, as torch.profiler tells it."""
    built, images, points, weights = _networks(settings)
    network = built[settings.landmarks]
    network.compiled_parts = "loss"
    optimizer = torch.optim.AdamW(network.parameters(), 1e-4, fused=True)

    def action() -> None:
        optimizer.zero_grad()
        with (
            record_function("network forward"),
            autocast(settings.device, precision_of(settings)),
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
    by = "cuda_time_total" if on_gpu else "cpu_time_total"
    return profiled.key_averages().table(sort_by=by, row_limit=rows, max_name_column_width=50)

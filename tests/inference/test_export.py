"""An exported file predicts like its run."""

import copy
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segmentation_models_pytorch as smp
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
NUM_FACES = 16
NUM_LANDMARKS = 15
UNET = UNet(encoder="tu-test_resnet", weights="none", width=32)
DIRECT = Direct(encoder="tu-test_resnet", weights="none", hidden=9)

Tool = Callable[..., int]


@dataclass(frozen=True)
class Faces:
    """Crops of synthetic faces with their landmarks."""

    crops: Tensor  # (B, 3, h, w) uint8
    points_crop: Tensor  # (B, P, 2)
    image_from_crop: Tensor  # (B, 3, 3) float64

    def part(self, rows: slice) -> "Faces":
        return Faces(self.crops[rows], self.points_crop[rows], self.image_from_crop[rows])

    def enlarged(self, factor: float) -> "Faces":
        """The same crops of images `factor` times as large."""
        return replace(self, image_from_crop=frame.scaling(factor) @ self.image_from_crop)


@pytest.fixture(scope="module")
def faces() -> Faces:
    """The images are 100 to 600 px in size."""
    crops, points_crop, affines = [], [], []
    for index in range(NUM_FACES):
        image, points_image = synthetic.draw_face(9, index)
        crop_frame = frame.cover(image.shape[:2], (CROP.height, CROP.width))
        crops.append(torch.from_numpy(samples.cut(image, crop_frame)).permute(2, 0, 1))
        points = points_image[:: len(points_image) // NUM_LANDMARKS][:NUM_LANDMARKS]
        points_crop.append(crop_frame.to_crop(torch.from_numpy(points)))
        affines.append(crop_frame.image_from_crop)
    return Faces(torch.stack(crops), torch.stack(points_crop), torch.stack(affines))


@torch.no_grad()
def fitted(model: config.Model, faces: Faces) -> Network:
    """A network with random layers and, for heatmaps, a head fitted by least squares.

    Random embeddings would give flat heatmaps, whose highest pixel is decided by rounding.
    """
    torch.manual_seed(3)
    network = networks.build(model, CROP, NUM_LANDMARKS)
    images = faces.crops.float() / 255
    network.train()(images)  # batch normalisation
    output = network.eval()(images)
    if isinstance(network, HeatmapNetwork):
        heatmap_from_crop = torch.linalg.inv(frame.crop_from_heatmap(network.stride))
        points_heatmap = frame.apply(heatmap_from_crop, faces.points_crop)
        height, width = output.features.shape[-2:]
        targets = codec.render(points_heatmap, height, width, network.sigma)
        pixels = output.features.flatten(2).mT.flatten(0, 1).double()
        pixels = torch.cat([pixels, torch.ones(len(pixels), 1)], 1)
        solution = torch.linalg.lstsq(pixels, targets.flatten(2).mT.flatten(0, 1)).solution
        network.embeddings.copy_(solution[:-1].mT)
        network.bias.copy_(solution[-1])
    return network


def run_folder(folder: Path, model: config.Model, network: Network) -> Path:
    """A run with the network's weights and a model card."""
    folder.mkdir()
    (folder / "MODEL.md").write_text("# mine\n")
    checkpoint.save(
        folder / "best.pt",
        Checkpoint(
            config=config.to_dict(Experiment(name="mine", crop=CROP, model=model)),
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
def assert_predicts_as(network: Network, outputs: list[Any], faces: Faces) -> None:
    """Compares a file's outputs with ordinary prediction, landmarks to 0.0005 crop pixels."""
    expected = network.decode(network(faces.crops.float() / 255))
    crop_frame = Frame(faces.image_from_crop, *faces.crops.shape[-2:])
    points_image, *rest = (torch.as_tensor(output) for output in outputs)
    assert points_image.dtype == torch.float32
    points_crop = crop_frame.to_crop(points_image.double())
    torch.testing.assert_close(points_crop, expected.points_crop.double(), rtol=0, atol=5e-4)
    assert len(rest) == (0 if expected.peak is None else 2)
    if expected.peak is not None:
        torch.testing.assert_close(rest[0], expected.peak, rtol=0, atol=1e-4)
        covariance_image = crop_frame.covariance_to_image(expected.covariance_crop)
        tolerance = 1e-4 * float(covariance_image.abs().max())
        torch.testing.assert_close(rest[1].double(), covariance_image, rtol=0, atol=tolerance)


# ------------------------------------------------------------------------------ the files


@pytest.fixture(scope="module")
def network(faces: Faces) -> Network:
    return fitted(UNET, faces)


@pytest.fixture(scope="module")
def run(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_folder(tmp_path_factory.mktemp("heatmaps") / "run", UNET, network)


@pytest.fixture(scope="module")
def onnx_file(run: Path) -> Path:
    pytest.importorskip("onnxruntime", reason="pip install '.[export]'")
    export.export(run, run / "model.onnx")
    return run / "model.onnx"


@pytest.fixture(scope="module")
def direct(faces: Faces, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Network]:
    """A run without heatmaps."""
    network = fitted(DIRECT, faces)
    return run_folder(tmp_path_factory.mktemp("direct") / "run", DIRECT, network), network


@pytest.mark.parametrize("decoder", ["window", "parabola", "global", "softmax"])
def test_whole_heatmaps_decode_as_blocks(
    network: Network, faces: Faces, decoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = copy.deepcopy(network).double()  # in float32, blocks are rounded differently
    assert isinstance(network, HeatmapNetwork)
    network.landmark_decoder = decoder
    monkeypatch.setitem(maps.BLOCK_VALUES, "cpu", 500)
    with torch.no_grad():
        output = network(faces.crops.double() / 255)
        whole, blocks = network.decode_whole(output), network.decode(output)
    for one, other in zip(whole, blocks, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)


def test_onnx_predicts_like_the_run(onnx_file: Path, network: Network, faces: Faces) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(onnx_file)
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
    for rows in (slice(0, 1), slice(0, NUM_FACES)):
        part = faces.enlarged(10).part(rows)
        affines = part.image_from_crop.float().numpy()
        feed = {"crop": part.crops.numpy(), "image_from_crop": affines}
        assert_predicts_as(network, session.run(None, feed), part)

    values = session.get_modelmeta().custom_metadata_map
    check_metadata({name: json.loads(value) for name, value in values.items()})


def check_metadata(values: dict[str, Any]) -> None:
    assert values["run"] == "run" and values["experiment"] == "mine"
    assert values["validation_mse"] == 4.25
    assert values["num_landmarks"] == NUM_LANDMARKS
    assert values["landmark_groups"]["mouth"] == [11, 15]
    assert values["mirror_permutation"][:6] == [1, 0, 4, 5, 2, 3]
    assert values["crop"] == {
        "height": 48, "width": 40, "rule": "cover", "box_scale": 1.0, "trim_border": 0
    }  # fmt: skip
    assert values["mean"] == pytest.approx([0.485, 0.456, 0.406])
    assert values["std"] == pytest.approx([0.229, 0.224, 0.225])
    assert values["decoder"] == "window"
    assert "pixel centres" in values["pixel_convention"]
    assert values["model_card"] == "# mine\n"


@pytest.mark.slow
def test_torch_predicts_like_the_run(
    run: Path, network: Network, faces: Faces, tmp_path: Path
) -> None:
    export.export(run, tmp_path / "model.pt2")
    texts = {"metadata.json": ""}
    program = torch.export.load(tmp_path / "model.pt2", extra_files=texts).module()
    check_metadata(json.loads(texts["metadata.json"]))
    for rows in (slice(3, 4), slice(0, 8)):
        part = faces.enlarged(10).part(rows)
        outputs = program(part.crops, part.image_from_crop.float())
        assert_predicts_as(network, list(outputs), part)


def test_a_direct_run_exports_points_only(
    direct: tuple[Path, Network], faces: Faces, tool: Tool, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run, network = direct
    assert tool("export", run, "model.pt2", "--decoder", "window") == 2
    assert "has no heatmaps" in capsys.readouterr().err
    assert not (tmp_path / "model.pt2").exists()
    assert tool("export", run, "model.pt2") == 0
    assert "differs from the run by at most" in capsys.readouterr().out
    program = torch.export.load(tmp_path / "model.pt2").module()
    part = faces.part(slice(0, 5))
    outputs = program(part.crops, part.image_from_crop.float())
    assert_predicts_as(network, list(outputs), part)


def test_a_file_that_predicts_differently_is_removed(
    direct: tuple[Path, Network], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, network = direct
    graph = export.Graph(network)

    def shifted(crop: Tensor, image_from_crop: Tensor) -> list[Tensor]:
        return [graph(crop, image_from_crop)[0] + 0.02]

    monkeypatch.setattr(export, "open_program", lambda path: shifted)
    out = tmp_path / "files" / "model.pt2"
    out.parent.mkdir()
    out.write_text("an older one")
    with pytest.raises(ValueError, match="differ from those of"):
        export.export(run, out)
    assert [path.name for path in out.parent.iterdir()] == ["model.pt2"]
    assert out.read_text() == "an older one"


# ------------------------------------------------------------------------------ the check


Change = Callable[[list[Tensor]], Any]


@pytest.fixture
def compare(network: Network, faces: Faces) -> Callable[[Change], export.Difference]:
    """Compares the network with a program whose outputs are changed in place."""

    def compare(change: Change) -> export.Difference:
        def program(crop: Tensor, image_from_crop: Tensor) -> list[Tensor]:
            with torch.no_grad():
                outputs = [t.clone() for t in export.Graph(network)(crop, image_from_crop)]
            change(outputs)
            return outputs

        affines = faces.image_from_crop.float()
        return export.compare_with_network(program, network, faces.crops, affines)

    return compare


def test_the_check_covers_every_landmark(compare: Callable[[Change], export.Difference]) -> None:
    same = compare(lambda outputs: None)
    assert same.points_px < 0.005 and same.confidence < 1e-5
    assert same.landmarks == NUM_FACES * NUM_LANDMARKS and same.unstable < 0.1 * same.landmarks

    def move_one(outputs: list[Tensor]) -> None:
        outputs[0][-1, 4, 1] += 0.5

    assert compare(move_one).points_px == pytest.approx(0.5, abs=0.01)
    assert compare(lambda outputs: outputs[1].mul_(0.9)).confidence > 0.03
    assert np.isnan(compare(lambda outputs: outputs[0][0].fill_(np.nan)).points_px)


def test_a_flat_heatmap_is_not_compared(
    network: Network, compare: Callable[[Change], export.Difference],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    assert isinstance(network, HeatmapNetwork)
    flat = network.embeddings.detach().clone()
    flat[6] = 0
    monkeypatch.setattr(network.embeddings, "data", flat)

    def move_flat(outputs: list[Tensor]) -> None:
        outputs[0][:, 6] += 100

    difference = compare(move_flat)
    assert difference.unstable >= NUM_FACES
    assert difference.points_px < 0.005


# ------------------------------------------------------------------------------ what can go wrong


def test_wrong_usage_is_reported_at_once(
    tool: Tool, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert tool("export", "nothing", "model.pth") == 2
    assert "must end in .onnx or .pt2" in capsys.readouterr().err
    assert tool("export", tmp_path / "nothing", "model.pt2") == 1
    assert "no such checkpoint" in capsys.readouterr().err


def test_a_missing_library_is_named_with_its_remedy(
    tool: Tool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    assert tool("export", "run", "model.onnx") == 1
    assert "pip install onnx onnxscript onnxruntime" in capsys.readouterr().err


def test_the_documented_example_cuts_the_crop_of_the_run(
    onnx_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.+?)```", page, re.DOTALL)
    image, _ = synthetic.draw_face(9, 3)
    write_image(tmp_path / "a.jpg", image)
    shutil.copy(onnx_file, tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(example, names)
    assert names["points_image"].shape == (1, NUM_LANDMARKS, 2)
    image = ImageFile(tmp_path / "a.jpg")
    crop_frame = frame.cover(image.image_hw, (CROP.height, CROP.width))
    error = names["image_from_crop"] - crop_frame.image_from_crop.numpy()
    assert np.abs(error[:2, 2]).max() < 1 and np.abs(error[:2, :2]).max() < 0.01
    expected = samples.cut(image.pixels(1)[0], crop_frame)
    assert np.abs(expected.astype(int) - names["crop"]).mean() < 3


# ------------------------------------------------------------------------------ all networks


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        replace(UNET, architecture="unetplusplus", decoder="parabola"),
        replace(UNET, architecture="fpn", decoder="global"),
        replace(UNET, architecture="linknet", decoder="softmax", stride=2),
        DenseUNet(encoder="densenet121", weights="none", width=16, stride=1),
        replace(DIRECT, encoder="tu-test_efficientnet", hidden=0),
    ],
    ids=["U-Net++", "FPN", "LinkNet at stride 2", "DenseUNet at stride 1", "direct"],
)
def test_every_network_in_onnx_runtime(
    model: config.Model, faces: Faces, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Predicts the faces one by one and eight at a time."""
    pytest.importorskip("onnxruntime", reason="pip install '.[export]'")
    # one layer per block instead of 6, 12, 24 and 16, each of which takes a second to export
    densenet121 = smp.encoders.encoders["densenet121"]["params"]
    monkeypatch.setitem(densenet121, "block_config", (1, 1, 1, 1))
    monkeypatch.setitem(densenet121, "out_channels", [3, 64, 96, 80, 72, 68])
    network = fitted(model, faces)
    run = run_folder(tmp_path / "run", model, network)
    export.export(run, tmp_path / "model.onnx")
    program = export.open_program(tmp_path / "model.onnx")
    unstable = 0
    for size in (1, 8):
        for start in range(0, NUM_FACES, size):
            part = faces.part(slice(start, start + size))
            affines = part.image_from_crop.float()
            difference = export.compare_with_network(program, network, part.crops, affines)
            assert difference.points_px <= 0.01 and difference.confidence <= 1e-3
            unstable += difference.unstable
    assert unstable < 0.1 * 2 * NUM_FACES * NUM_LANDMARKS

"""A trained run as one file for other programs: crops in, landmarks in image pixels out.

The file holds network, decoder, map to image pixels and metadata. The caller cuts the crops.
"""

import importlib.util
import io
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

import heatmap
from heatmap import codec, frame, maps, schemes
from heatmap.data import samples, synthetic
from heatmap.errors import UsageError, UserError
from heatmap.frame import Frame
from heatmap.networks import HeatmapNetwork, Network
from heatmap.runs.checkpoint import TrainedRun, load_trained
from heatmap.runs.folder import RunFolder
from heatmap.runtime.files import finite, read_text, write_atomically
from heatmap.runtime.machine import first_line, log_to_terminal

logger = logging.getLogger("heatmap")

INPUTS = ("crop", "image_from_crop")
OUTPUTS = ("points_image", "confidence", "covariance_image")  # direct networks: only the first
LIBRARIES = {".onnx": ("onnx", "onnxscript", "onnxruntime"), ".pt2": ()}  # besides torch

TOLERANCE = 0.01  # largest allowed difference between file and network, in image pixels
ROUNDING = 1e-5  # relative to the highest heatmap value; ten times the difference between runtimes
NUM_FACES = 8

Program = Callable[[Tensor, Tensor], list[Tensor]]  # INPUTS -> OUTPUTS


class Graph(nn.Module):
    """The exported computation, in float32: network, decoder and map to image pixels.

    Crops (B, 3, h, w) uint8 RGB and their affines image_from_crop (B, 3, 3) become points_image
    (B, P, 2) and, with heatmaps, peak heights (B, P) and covariance_image (B, P, 2, 2).
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, crop: Tensor, image_from_crop: Tensor) -> tuple[Tensor, ...]:
        output = self.network.layers(crop.float() / 255)
        crop_frame = Frame(image_from_crop, *crop.shape[-2:])
        if not isinstance(self.network, HeatmapNetwork):
            return (self._in_image(self.network.decode(output).points_crop, crop_frame),)
        points_crop, peak, covariance_crop = self.network.decode_whole(output)
        assert peak is not None and covariance_crop is not None
        covariance_image = crop_frame.covariance_to_image(covariance_crop)
        return self._in_image(points_crop, crop_frame), peak, covariance_image

    def _in_image(self, points_crop: Tensor, crop_frame: Frame) -> Tensor:
        return crop_frame.to_image(points_crop) + self.network.label_offset


class Difference(NamedTuple):
    """Largest differences between an exported file and its network."""

    points_px: float  # along x or y, in image pixels
    confidence: float  # 0 without heatmaps
    landmarks: int  # over all faces, unstable ones included
    unstable: int  # landmarks not compared, because rounding alone moves them


def export(run: Path | str, out: Path | str, decoder: str | None = None) -> Difference:
    """Exports a run to ONNX or torch.export, and checks the file on synthetic faces.

    Args:
        run: run folder (its best checkpoint) or checkpoint.
        out: FILE.onnx or FILE.pt2.
        decoder: see `config.HeatmapModel`; by default the run's own.

    Raises:
        UserError: the suffix is unknown, a library or the checkpoint is missing, a network without
            heatmaps is given a decoder, the export fails, or the file's outputs differ from the
            network's. No file is left.
    """
    log_to_terminal()
    run, out = Path(run), Path(out)
    if out.suffix not in LIBRARIES:
        raise UsageError(f"{out}: the name must end in {' or '.join(LIBRARIES)}")
    missing = [name for name in LIBRARIES[out.suffix] if importlib.util.find_spec(name) is None]
    if missing:
        remedy = f"run pip install {' '.join(missing)}, or write .pt2, which needs only torch"
        raise UserError(f"writing {out.name} needs {' and '.join(missing)}: {remedy}")
    trained = load_trained(run)
    network, crop = trained.network, trained.experiment.crop
    if decoder is not None:
        if not isinstance(network, HeatmapNetwork):
            raise UsageError(f"{trained.path} has no heatmaps; omit --decoder")
        network.landmark_decoder = decoder
    crops, image_from_crop = synthetic_crops(NUM_FACES, crop.height, crop.width)
    logger.info(f"exporting {trained.path}, then checking the file on {NUM_FACES} synthetic faces")
    with write_atomically(out) as temporary:
        try:
            exported = _exported(Graph(network).eval(), crops[:2], image_from_crop[:2])
            write = _write_onnx if out.suffix == ".onnx" else _write_pt2
            write(exported, metadata(trained), temporary)
        except RuntimeError as error:  # raised by torch's exporters
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise UserError(f"torch cannot export {trained.path} ({reason})") from error
        difference = compare_with_network(open_program(temporary), network, crops, image_from_crop)
        points_px, confidence, *_ = difference
        if not (points_px <= TOLERANCE and confidence <= TOLERANCE):  # true for NaN
            raise UserError(
                f"{out} was not written: its points differ from those of {trained.path} by "
                f"{points_px:.3g} px, its confidence by {confidence:.3g}; the limit is {TOLERANCE}"
            )
    return difference


def metadata(trained: TrainedRun) -> dict[str, Any]:
    """Describes the inputs, landmarks and score for users of the file, as JSON values."""
    network, crop = trained.network, trained.experiment.crop
    try:
        permutation = schemes.mirror_permutation(network.num_landmarks, trained.scheme).tolist()
    except UserError:
        permutation = None
    groups = schemes.groups(network.num_landmarks, trained.scheme)
    values = {
        "heatmap_version": heatmap.__version__,
        "run": trained.path.resolve().parent.name,
        "experiment": trained.experiment.name,
        "validation_mse": trained.validation_mse,
        "num_landmarks": network.num_landmarks,
        "landmark_groups": {name: [group.start, group.stop] for name, group in groups.items()},
        "mirror_permutation": permutation,
        "crop": vars(crop),
        "pixels": "uint8 RGB, 0 to 255, channels first",
        "mean": network.mean.flatten().tolist(),
        "std": network.std.flatten().tolist(),
        "normalisation": "in the graph: (crop / 255 - mean) / std",
        "decoder": getattr(network, "landmark_decoder", None),
        "label_offset": network.label_offset.tolist(),
        "pixel_convention": "integer coordinates are pixel centres, (x, y), in the crop and in the "
        "image; image_from_crop is the affine from crop to image pixels",
    }
    folder = RunFolder(trained.path.parent)
    if trained.path == folder.best and folder.model_card.is_file():
        values["model_card"] = read_text(folder.model_card)
    return finite(values)


def synthetic_crops(count: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Centre crops of synthetic faces, (N, 3, height, width) uint8, and float32 image_from_crop."""
    images = [synthetic.draw_face(0, index)[0] for index in range(count)]
    frames = [frame.cover(image.shape[:2], (height, width)) for image in images]
    crops = np.stack([samples.cut(i, f) for i, f in zip(images, frames, strict=True)])
    affines = torch.stack([f.image_from_crop.float() for f in frames])
    return torch.from_numpy(crops).permute(0, 3, 1, 2).contiguous(), affines


@torch.no_grad()
def compare_with_network(
    program: Program, network: Network, crops: Tensor, image_from_crop: Tensor
) -> Difference:
    """Compares a program with the network, on the first crop alone and on all at once.

    Takes crops (B, 3, h, w) uint8 RGB and image_from_crop (B, 3, 3) float32. Landmarks that
    rounding moves (in a nearly flat heatmap, or one with two peaks) are counted but not compared.
    """
    points_px, confidence, unstable = torch.zeros(()), torch.zeros(()), 0
    for count in (1, len(crops)):
        points_image, *rest = program(crops[:count], image_from_crop[:count])
        output = network(crops[:count].float() / 255)
        expected = network.decode(output)
        crop_frame = Frame(image_from_crop[:count].double(), *crops.shape[-2:])
        expected_image = crop_frame.to_image(expected.points_crop) + network.label_offset
        distance = (expected_image - points_image).abs().amax(-1)
        if isinstance(network, HeatmapNetwork):
            assert expected.peak is not None
            is_unstable = _is_unstable(network, output, crop_frame)
            distance, unstable = distance.masked_fill(is_unstable, 0), int(is_unstable.sum())
            confidence = torch.maximum(confidence, (expected.peak - rest[0]).abs().max())
        points_px = torch.maximum(points_px, distance.max())  # keeps NaN
    landmarks = len(crops) * network.num_landmarks
    return Difference(float(points_px), float(confidence), landmarks, unstable)


def _is_unstable(network: HeatmapNetwork, output: maps.Maps, crop_frame: Frame) -> Tensor:
    """(B, P) bool: whether rounding alone can move the landmark by more than `TOLERANCE`."""
    heights = maps.whole(output)
    noise = 2 * torch.rand(heights.shape, generator=torch.Generator().manual_seed(0)) - 1
    noise *= ROUNDING * heights.abs().max()
    crop_from_heatmap = frame.crop_from_heatmap(network.stride)
    points = [
        codec.decode(changed, network.sigma, network.landmark_decoder).points_heatmap
        for changed in (heights + noise, heights - noise)
    ]
    up, down = (crop_frame.to_image(frame.apply(crop_from_heatmap, p)) for p in points)
    return (up - down).abs().amax(-1) > TOLERANCE


def _exported(graph: Graph, crop: Tensor, image_from_crop: Tensor) -> ExportedProgram:
    batch = torch.export.Dim("batch")
    graph.to(memory_format=torch.contiguous_format)  # files store no other layout
    with torch.no_grad():
        return torch.export.export(
            graph, (crop, image_from_crop), dynamic_shapes={name: {0: batch} for name in INPUTS}
        )


def _write_pt2(exported: ExportedProgram, values: dict[str, Any], path: Path) -> None:
    # through memory, because torch's own writer kills the process when the disk is full
    file = io.BytesIO()
    torch.export.save(exported, file, extra_files={"metadata.json": json.dumps(values, indent=2)})
    path.write_bytes(file.getbuffer())


def _write_onnx(exported: ExportedProgram, values: dict[str, Any], path: Path) -> None:
    count = len(exported.graph_signature.user_outputs)
    onnx_program = torch.onnx.export(
        exported, dynamo=True, verbose=False, input_names=INPUTS, output_names=OUTPUTS[:count],
        dynamic_shapes={"crop": {0: "batch"}, "image_from_crop": None},
    )  # fmt: skip
    assert onnx_program is not None
    onnx_program.model.metadata_props.update({k: json.dumps(v) for k, v in values.items()})
    onnx_program.save(path, external_data=False)


def open_program(path: Path) -> Program:
    """Loads an exported file: ONNX Runtime on the CPU for .onnx, torch for .pt2."""
    if path.suffix == ".pt2":
        return torch.export.load(path).module()
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def program(*inputs: Tensor) -> list[Tensor]:
        arrays = {name: tensor.numpy() for name, tensor in zip(INPUTS, inputs, strict=True)}
        return [torch.from_numpy(array) for array in session.run(None, arrays)]

    return program

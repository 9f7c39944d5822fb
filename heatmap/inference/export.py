"""A trained run as one file for other programs: crops in, landmarks in the images' pixels out.

The file holds network, decoder and the way home to the image, and describes itself. Finding the
face and cutting the crop stay with the caller.
"""

import importlib.util
import io
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import heatmap
from heatmap import codec, frame, maps, schemes
from heatmap.data import samples, synthetic
from heatmap.errors import UserError
from heatmap.frame import Frame
from heatmap.networks import HeatmapNetwork, Network
from heatmap.runs.checkpoint import TrainedRun, load_trained
from heatmap.runs.folder import RunFolder
from heatmap.runtime.files import finite, write_atomically

logger = logging.getLogger("heatmap")

INPUTS = ("crop", "image_from_crop")
OUTPUTS = ("points_image", "confidence", "covariance_image")  # the direct road has the first alone
NEEDED = {".onnx": ("onnx", "onnxscript", "onnxruntime"), ".pt2": ()}

TOLERANCE = 0.01  # px of the image between the file's answers and the run's own
ROUNDING = 1e-5  # of heights, as a share of the highest one; ten times what runtimes differ by
NUM_FACES = 8

Program = Callable[[Tensor, Tensor], list[Tensor]]  # (crop, image_from_crop) -> the outputs


class Graph(nn.Module):
    """What the file computes, in float32.

    Crops (B, 3, h, w) uint8 RGB and image_from_crop (B, 3, 3) -> points_image (B, P, 2), and on the
    heatmap road the peaks' heights (B, P) and covariance_image (B, P, 2, 2).
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, crop: Tensor, image_from_crop: Tensor) -> tuple[Tensor, ...]:
        output = self.network.layers(crop.float() / 255)
        here = Frame(image_from_crop, *crop.shape[-2:])
        if not isinstance(self.network, HeatmapNetwork):
            return (here.to_image(self.network.decode(output).points_crop),)
        found = self.network.decode_whole(output)
        assert found.peak is not None and found.covariance_crop is not None
        covariance_image = here.covariance_to_image(found.covariance_crop)
        return here.to_image(found.points_crop), found.peak, covariance_image


class Difference(NamedTuple):
    """How far a file's answers are from the run's own, at most.

    points_px: along an axis, in image pixels; confidence: of a peak's height, 0 on the direct road;
    landmarks: of all faces; unsettled: those left out, since rounding alone moves them.
    """

    points_px: float
    confidence: float
    landmarks: int
    unsettled: int


def export(run: Path, out: Path, decoder: str | None = None) -> Difference:
    """Writes a run as an ONNX file or as torch.export's program, and checks it on drawn faces.

    Args:
        run: a run folder (its best checkpoint) or a checkpoint.
        out: FILE.onnx or FILE.pt2.
        decoder: as in `config.HeatmapModel`; None for the run's own.

    Raises:
        UserError: another suffix, a missing library or checkpoint, a decoder for a network without
            heatmaps, a network that cannot be exported, or a file whose answers are not the run's.
            No file is left.
    """
    if out.suffix not in NEEDED:
        raise UserError(f"{out}: name a file that ends in {' or '.join(NEEDED)}")
    missing = [name for name in NEEDED[out.suffix] if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"writing {out.name} needs {' and '.join(missing)}, not installed here: "
            f"pip install {' '.join(missing)}; a .pt2 file needs nothing more than torch"
        )
    trained = load_trained(run)
    network, crop = trained.network, trained.experiment.crop
    if decoder is not None:
        if not isinstance(network, HeatmapNetwork):
            raise UserError(f"{trained.path} is of a network without heatmaps; it has no decoder")
        network.landmark_decoder = decoder
    crops, image_from_crop = drawn_crops(NUM_FACES, crop.height, crop.width)
    logger.info(f"recording {trained.path}, then checking the file on {NUM_FACES} drawn faces")
    write, opened = (_write_onnx, _open_onnx) if out.suffix == ".onnx" else (_write_pt2, _open_pt2)
    with write_atomically(out) as temporary:
        try:
            program = _record(Graph(network).eval(), crops[:2], image_from_crop[:2])
            write(program, metadata(trained), temporary)
        except RuntimeError as error:  # what torch's exporters raise
            told = f"torch cannot export the network of {trained.path} ({type(error).__name__})"
            raise UserError(f"{told}: {error}") from None
        difference = compare_with_network(opened(temporary), network, crops, image_from_crop)
        points_px, confidence, *_ = difference
        if not (points_px <= TOLERANCE and confidence <= TOLERANCE):  # NaN is not, either
            raise UserError(
                f"{out} was not written: its points differ from those of {trained.path} by "
                f"{points_px:.3g} px and its confidence by {confidence:.3g}; {TOLERANCE} is allowed"
            )
    return difference


def metadata(trained: TrainedRun) -> dict[str, Any]:
    """What a user of the file must know of the run, JSON-able."""
    network, crop = trained.network, trained.experiment.crop
    try:
        permutation = schemes.mirror_permutation(network.num_landmarks, trained.scheme).tolist()
    except UserError:
        permutation = None
    groups = schemes.groups(network.num_landmarks, trained.scheme)
    crop_fields = ("height", "width", "rule", "box_scale", "trim_border")
    known = {
        "heatmap_version": heatmap.__version__,
        "run": trained.path.resolve().parent.name,
        "experiment": trained.experiment.name,
        "validation_mse": trained.validation_mse,
        "num_landmarks": network.num_landmarks,
        "landmark_groups": {name: [group.start, group.stop] for name, group in groups.items()},
        "mirror_permutation": permutation,
        "crop": {name: getattr(crop, name) for name in crop_fields},
        "pixels": "uint8 RGB, 0 to 255, channels first",
        "mean": network.mean.flatten().tolist(),
        "std": network.std.flatten().tolist(),
        "normalisation": "inside: (crop / 255 - mean) / std",
        "decoder": network.landmark_decoder if isinstance(network, HeatmapNetwork) else None,
        "pixel_convention": "integer coordinates are pixel centres, (x, y), in the crop and in the "
        "image; image_from_crop is the affine from crop to image pixels",
    }
    folder = RunFolder(trained.path.parent)
    if trained.path == folder.best and folder.model_card.is_file():
        known["model_card"] = folder.model_card.read_text(encoding="utf-8")
    return finite(known)


def drawn_crops(count: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Centre crops of drawn faces: (count, 3, height, width) uint8, and image_from_crop float32."""
    crops, frames = [], []
    for index in range(count):
        image, _ = synthetic.draw_face(0, index)
        here = frame.cover(image.shape[:2], (height, width))
        crops.append(torch.from_numpy(samples.cut(image, here)).permute(2, 0, 1))
        frames.append(here.image_from_crop.float())
    return torch.stack(crops), torch.stack(frames)


@torch.no_grad()
def compare_with_network(
    program: Program, network: Network, crops: Tensor, image_from_crop: Tensor
) -> Difference:
    """The program's answers against those of prediction, for the first crop alone and for all.

    crops: (B, 3, h, w) uint8 RGB; image_from_crop: (B, 3, 3) float32. Landmarks that rounding moves
    (of a nearly black map, or one with two peaks) are only counted.
    """
    points_px, confidence, unsettled = torch.zeros(()), torch.zeros(()), 0
    for count in (1, len(crops)):
        some, frames = crops[:count], image_from_crop[:count]
        points_image, *rest = program(some, frames)
        output = network(some.float() / 255)
        expected = network.decode(output)
        here = Frame(frames.double(), *crops.shape[-2:])
        distance = (here.to_image(expected.points_crop) - points_image).abs().amax(-1)
        if isinstance(network, HeatmapNetwork):
            assert expected.peak is not None
            left_out = _unsettled(network, output, here)
            distance, unsettled = distance.masked_fill(left_out, 0), int(left_out.sum())
            confidence = torch.maximum(confidence, (expected.peak - rest[0]).abs().max())
        points_px = torch.maximum(points_px, distance.max())  # which keeps a NaN
    landmarks = len(crops) * network.num_landmarks
    return Difference(float(points_px), float(confidence), landmarks, unsettled)


def _unsettled(network: HeatmapNetwork, output: maps.Maps, here: Frame) -> Tensor:
    """(B, P) bool: whether changes as small as rounding's move the landmark beyond tolerance."""
    heights = maps.whole(output)
    noise = 2 * torch.rand(heights.shape, generator=torch.Generator().manual_seed(0)) - 1
    noise *= ROUNDING * heights.abs().max()
    crop_from_heatmap = frame.crop_from_heatmap(network.stride)
    up, down = (
        codec.decode(changed, network.sigma, network.landmark_decoder).points_heatmap
        for changed in (heights + noise, heights - noise)
    )
    up, down = (here.to_image(frame.apply(crop_from_heatmap, points)) for points in (up, down))
    return (up - down).abs().amax(-1) > TOLERANCE


def _record(graph: Graph, crop: Tensor, image_from_crop: Tensor) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch")
    shapes = {name: {0: batch} for name in INPUTS}
    graph.to(memory_format=torch.contiguous_format)  # how a file keeps weights
    with torch.no_grad():
        return torch.export.export(graph, (crop, image_from_crop), dynamic_shapes=shapes)


def _write_pt2(program: torch.export.ExportedProgram, known: dict[str, Any], path: Path) -> None:
    # by way of memory, since torch's writer ends the process where the disk is full
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={"metadata.json": json.dumps(known, indent=2)})
    path.write_bytes(file.getbuffer())


def _open_pt2(path: Path) -> Program:
    return torch.export.load(path).module()


def _write_onnx(program: torch.export.ExportedProgram, known: dict[str, Any], path: Path) -> None:
    count = len(program.graph_signature.user_outputs)
    written = torch.onnx.export(
        program, dynamo=True, verbose=False, input_names=INPUTS, output_names=OUTPUTS[:count],
        dynamic_shapes={"crop": {0: "batch"}, "image_from_crop": None},
    )  # fmt: skip
    assert written is not None
    written.model.metadata_props.update({k: json.dumps(v) for k, v in known.items()})
    written.save(path, external_data=False)


def _open_onnx(path: Path) -> Program:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def program(crop: Tensor, image_from_crop: Tensor) -> list[Tensor]:
        fed = {"crop": crop.numpy(), "image_from_crop": image_from_crop.numpy()}
        return [torch.from_numpy(t) for t in session.run(None, fed)]

    return program

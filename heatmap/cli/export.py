"""Write a run as one file for ONNX Runtime or torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from heatmap.cli.running import parse_and_call, run_command


def export(
    run: Annotated[Path, Positional, arg(metavar="RUN")],
    out: Annotated[Path, Positional, arg(metavar="MODEL.onnx|MODEL.pt2")],
    *,
    decoder: Literal["window", "parabola", "global", "softmax"] | None = None,
) -> None:
    """Write a run as one file for other programs, and check it on synthetic faces.

    Inputs: crop (B, 3, height, width), uint8 RGB, and image_from_crop (B, 3, 3), float32, the
    affine from crop to image pixels. Outputs: points_image (B, P, 2) in image pixels and, with
    heatmaps, confidence (B, P), their peak heights, and covariance_image (B, P, 2, 2).
    Landmarks, crop and score are described as JSON, in metadata_props of an .onnx file or in
    metadata.json of a .pt2 file (extra_files of torch.export.load).

    Args:
        run: run folder or checkpoint.
        out: output file; .onnx needs the packages onnx, onnxscript and onnxruntime.
        decoder: how heatmaps become points; by default as in training.
    """
    from heatmap.inference.export import export as write

    points_px, _, landmarks, unstable = write(run, out, decoder)
    left_out = f", {unstable} left out because rounding moves them" if unstable else ""
    print(
        f"{out}: {out.stat().st_size / 1e6:.1f} MB; differs from the run by at most "
        f"{points_px:.1g} px on synthetic faces ({landmarks} landmarks{left_out})"
    )


def main(arguments: Sequence[str]) -> int:
    return run_command(lambda: parse_and_call(export, "heatmap export", arguments))

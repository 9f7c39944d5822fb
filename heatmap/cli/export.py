"""Hand a run on: one file with network and decoder, for ONNX Runtime or for torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from heatmap.cli.running import run_command
from heatmap.errors import UsageError


def export(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL.onnx|MODEL.pt2")],
    *,
    decoder: Literal["window", "parabola", "global", "softmax"] | None = None,
) -> None:
    """Write a run as one file for other programs, and check it.

    In go crops (B, 3, height, width), uint8 RGB, and image_from_crop (B, 3, 3), float32: the affine
    from crop to image pixels. Out come points_image (B, P, 2) in the image's pixels, and
    of a run with heatmaps confidence (B, P), the heights of their peaks, and covariance_image
    (B, P, 2, 2). What the landmarks and the crop are, and how good the run is, stands in an .onnx
    file's metadata_props as JSON, and in a .pt2 file's (torch.export.load) extra metadata.json.

    Args:
        run: a run folder or a checkpoint.
        out: the file. An .onnx file needs the packages onnx, onnxscript and onnxruntime.
        decoder: how the maps become points, if not as in the run's training.
    """
    if out.suffix not in (".onnx", ".pt2"):
        raise UsageError(f"the file must end in .onnx or .pt2, not {out.name}")
    from heatmap.inference.export import export as write

    found = write(run, out, decoder)
    unsettled = f", without {found.unsettled} that rounding moves" if found.unsettled else ""
    print(
        f"{out}: {out.stat().st_size / 1e6:.1f} MB; on drawn faces, one by one and together, it "
        f"answers as the run does, to {found.points_px:.1g} px "
        f"({found.landmarks} landmarks{unsettled})"
    )


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    return run_command(lambda: tyro.cli(export, prog="export.py", args=arguments))

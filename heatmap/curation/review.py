"""Writes a page for looking at doubtful labels and correcting them."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from heatmap import frame, schemes, shape
from heatmap.curation.apply import columns
from heatmap.curation.audit.folder import AuditFolder
from heatmap.curation.audit.residuals import AuditData, LabelScores
from heatmap.data import contest
from heatmap.data.samples import cut
from heatmap.evaluation.page import jpeg
from heatmap.runtime.files import read_text, write_text

CROP_PX = 320
ENLARGED = 1.5  # the crop over the box of the predicted landmarks
POSE_SPREAD = 0.3  # standard deviation of size, tilt and position from a first fit


def unexplained(data: AuditData) -> np.ndarray:
    """Returns (N,): the share of each face in the squared error beyond what is expected."""
    excess = np.zeros(len(data.half))
    for rows in shape.blocks(np.arange(len(excess))):
        part = data.select(rows)
        squared = np.abs(shape.of(part.points_image) - shape.of(part.predicted_image)) ** 2
        # the square of a distance is on average 4 / pi times the square of its average
        expected = np.where(np.isfinite(squared), 4 / np.pi * part.expected_px**2, 0)
        excess[rows] = np.maximum(np.nansum(squared, 1) - expected.sum(1), 0)
    return excess / max(excess.sum(), 1e-12)


def write_review(path: Path, folder: AuditFolder, scores: LabelScores, count: int) -> None:
    """Writes the page with the most suspicious faces, in the order of their unexplained error.

    It is one file that opens from disk and asks for nothing outside it.
    """
    data, share = folder.data, unexplained(folder.data)
    rows = scores.ranking[:count]
    rows = rows[np.argsort(-share[rows], kind="stable")]
    num_landmarks = len(scores.model.mean)
    values = {
        "table": folder.fingerprint,
        "columns": columns(num_landmarks),
        "landmarks": num_landmarks,
        "groups": {name: [part.start, part.stop] for name, part in data.groups.items()},
        "curves": schemes.curves(num_landmarks, folder.scheme),
        "crop": CROP_PX,
        "basis": _encoded(_basis(scores.model)),
        "noise": _encoded(scores.model.noise),
        "faces": [_face(folder, scores, row) | {"share": share[row]} for row in rows.tolist()],
    }
    text = json.dumps(values, allow_nan=False).replace("<", "\\u003c")
    page = read_text(Path(__file__).with_name("review.html"))
    scripts = (Path(__file__).with_name(name) for name in ("review_pins.js", "review.js"))
    script = "\n".join(map(read_text, scripts))
    write_text(path, page.replace("SCRIPT", script, 1).replace("DATA", text, 1))


def _basis(model: shape.ShapeModel) -> np.ndarray:
    """(P, 2, K) components times their standard deviations, after those of the pose."""
    ones = np.full(len(model.mean), 1 / np.sqrt(len(model.mean)))
    pose = shape.real(np.stack([model.mean, 1j * model.mean, ones, 1j * ones])) * POSE_SPREAD
    basis = np.concatenate([pose, model.components * model.spread[:, None]])
    return shape.points(shape.from_real(basis)).transpose(1, 2, 0)


def _face(folder: AuditFolder, scores: LabelScores, row: int) -> dict[str, Any]:
    """What the page knows about a face; points are in pixels of the crop."""
    data = folder.data.select(np.array([row]))
    predicted_image = np.asarray(data.predicted_image[0], np.float64)
    low, high = predicted_image.min(0), predicted_image.max(0)
    high = np.maximum(high, low + 1)
    crop = frame.around((*low.tolist(), *high.tolist()), (CROP_PX, CROP_PX), ENLARGED)
    scale = crop.image_from_crop[0, 0].item()
    label, predicted = (
        crop.to_crop(torch.from_numpy(points)).numpy()
        for points in (np.asarray(data.points_image[0], np.float64), predicted_image)
    )
    factor, offset = shape.placement(scores.model.mean[None], shape.of(predicted))
    mean = factor[0, 0] * scores.model.mean + offset[0, 0]
    return {
        "name": folder.names[row],
        "person": folder.people[row] or "",
        "side": "trained on" if data.is_trained[0] else "new to a run",
        "group": scores.suspicious_group(row),
        "kinds": scores.kinds(row),
        "reasons": scores.reasons(row),
        "image": jpeg(cut(contest.read_image(folder.paths[row]), crop)),
        "scale": scale,
        "offset": crop.image_from_crop[:2, 2].tolist(),
        "size": float(shape.face_size(shape.of(predicted))),
        "label": _encoded(label),
        "predicted": _encoded(predicted),
        "expected": _encoded(data.expected_px[0] / scale),
        "mean": _encoded(shape.points(mean)),
        "factor": [factor[0, 0].real, factor[0, 0].imag],
    }


def _encoded(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values, "<f4").tobytes()).decode()

"""What a network sees, for people: sheets of predictions beside the truth."""

import numpy as np
import torch

from heatmap import contest, draw, topology
from heatmap.frame import contain
from heatmap.predict import predict
from heatmap.run import Run
from heatmap.samples import cut

NUM_PICTURES = 8


def prediction_sheet(run: Run) -> np.ndarray:
    """Validation pictures, predicted landmarks above and the truth in green below."""
    chosen = run.validation_rows[
        np.linspace(0, len(run.validation_rows) - 1, NUM_PICTURES).astype(int)
    ]
    found = next(
        predict(
            run.network, run.validation, np.unique(chosen), batch=NUM_PICTURES, workers=0,
            device=run.device, precision=run.experiment.train.precision,
        )
    )  # fmt: skip
    groups = topology.groups(run.table.num_landmarks)
    predicted, truth = [], []
    for row, points in zip(found.rows.tolist(), found.points_image, strict=True):
        image = contest.read_image(run.validation.paths[row])
        tile = contain((image.shape[0], image.shape[1]), (256, 192))
        shown = cut(image, tile)
        labels = torch.from_numpy(run.table.points_image[row])
        predicted.append(
            draw.draw_landmarks(shown, tile.to_crop(torch.from_numpy(points)).numpy(), groups)
        )
        truth.append(draw.draw_landmarks(shown, tile.to_crop(labels).numpy(), groups, draw.TRUTH))
    return draw.sheet([*predicted, *truth], columns=len(predicted))

"""Landmarks of a video's frames -> landmarks without jitter that follow the face.

A Kalman filter for every landmark, whose measurement noise is the decoder's covariance: a frame in
which a heatmap is wide counts for less, and more so along the direction in which it is wide. What
the covariance does not tell is the size of the jitter, since a sharp heatmap is as wide as it was
trained to be; that is measured in the clip itself.

A landmark is taken to stand still until its innovations say otherwise: where their running mean is
larger than noise explains, the filter's uncertainty is raised until it does, so a landmark that
moves is followed and one that jumps is there at once. It lags two frames at most where it moves by
more than 0.6 of its jitter's standard deviation a frame, and by less than 1.5 of that where it
creeps (adaptive Kalman filtering by
innovations: Mehra 1972, https://doi.org/10.1109/TAC.1972.1100100; strong tracking: Zhou and Frank
1996, https://doi.org/10.1080/002071796179099).
"""

import math
from collections import deque

import numpy as np

STEADIER = 6.0  # how many times smaller the jitter of a still landmark is, were it never to move
_UNLIKELY = 9.0  # squared length, in standard deviations, beyond which a mean innovation is motion
_GAP_SECONDS = 0.5  # a face that was away for longer is a new one
_SHARPEST = 0.01  # px; a narrower heatmap is one without a peak
_NOWHERE = 1e4  # px; the noise of a landmark that has no peak
_REMEMBERED = 60  # frames that the size of the jitter is measured over
_PRIOR_FRAMES = 8  # for how many frames of its own jitter the whole face's counts


class Smoother:
    """The filter of one face, called for one frame after the other."""

    def __init__(self) -> None:
        gain = 2 / (STEADIER**2 + 1)  # of a first-order filter that makes noise so much smaller
        self._drift = gain**2 / (1 - gain)  # variance a frame, of that of the noise
        self.reset()

    def reset(self) -> None:
        """Forgets the face: the next frame shows another one."""
        self._raw: deque[np.ndarray] = deque(maxlen=3)
        self._jitter: deque[np.ndarray] = deque(maxlen=_REMEMBERED)
        self._seconds = -math.inf

    def __call__(
        self, points_image: np.ndarray, covariance_image: np.ndarray | None, seconds: float
    ) -> np.ndarray:
        """(P, 2) float64 landmarks of this frame, without jitter.

        The first two frames of a face are given back as they are.

        Args:
            points_image: (P, 2) as the network found them.
            covariance_image: (P, 2, 2) of the decoder; None weighs all alike.
            seconds: when the frame is shown; after a longer gap the filter begins anew.
        """
        if seconds - self._seconds > _GAP_SECONDS:
            self.reset()
        self._seconds = seconds
        shape, has_peak = _ellipses(covariance_image, len(points_image))
        self._raw.append(points_image)
        if len(self._raw) < 3:
            return points_image.copy()
        self._jitter.append(_jitter(self._raw, shape))
        noise = _typical(self._jitter)[:, None, None] * shape + 1e-6 * np.eye(2)
        if len(self._jitter) == 1:  # the frame before is where it starts
            self._points, self._spread, self._typical = self._raw[1].copy(), noise, noise
            self._innovation = np.zeros_like(points_image)
        self._typical = np.where(
            has_peak[:, None, None], 0.95 * self._typical + 0.05 * noise, self._typical
        )
        noise = np.where(has_peak[:, None, None], noise, _NOWHERE**2 * np.eye(2))

        spread = self._spread + self._drift * self._typical
        innovation = points_image - self._points
        self._innovation = (self._innovation + innovation) / 2
        expected = spread + noise
        # the running mean of independent innovations has a third of their variance
        squared = 3 * _squared_length(self._innovation, expected)
        excess = np.maximum(squared / _UNLIKELY, 1)[:, None, None] - 1
        spread = spread + excess * (spread + self._typical)
        gain = spread @ np.linalg.inv(spread + noise)
        self._points = self._points + (gain @ innovation[..., None])[..., 0]
        self._innovation -= (gain @ self._innovation[..., None])[..., 0]
        self._spread = spread - gain @ spread
        return self._points.copy()


def _ellipses(covariance: np.ndarray | None, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(P, 2, 2) covariances that are ellipses, and (P,) which were; the others are circles."""
    circles = np.broadcast_to(np.eye(2), (count, 2, 2))
    if covariance is None:
        return circles, np.ones(count, bool)
    (xx, xy), (_, yy) = ((row[..., 0], row[..., 1]) for row in np.moveaxis(covariance, -2, 0))
    narrowest = (xx + yy) / 2 - np.hypot((xx - yy) / 2, xy)  # the smaller eigenvalue
    has_peak = narrowest > _SHARPEST**2  # NaN has none
    return np.where(has_peak[:, None, None], covariance, circles), has_peak


def _squared_length(vectors: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """(P,) squared lengths of (P, 2) vectors in standard deviations of (P, 2, 2)."""
    return (vectors * np.linalg.solve(covariance, vectors[..., None])[..., 0]).sum(-1)


def _jitter(raw: deque[np.ndarray], shape: np.ndarray) -> np.ndarray:
    """(P,) variances of the noise over the decoder's, by the second difference of three frames.

    Steady motion leaves no second difference.
    """
    bend = raw[0] - 2 * raw[1] + raw[2]
    # it has six times the noise's variance; the median squared length in two dimensions is 2 log 2
    return _squared_length(bend, shape) / 6 / (2 * math.log(2))


def _typical(jitter: deque[np.ndarray]) -> np.ndarray:
    """(P,) variances of the noise over the decoder's, by the frames so far.

    Each landmark's own is drawn towards the face's while frames are few, and never far from it, so
    that a mouth that speaks is not taken for one that trembles.
    """
    own = np.median(jitter, axis=0)
    face, frames = np.median(own), len(jitter)
    return np.clip(
        (frames * own + _PRIOR_FRAMES * face) / (frames + _PRIOR_FRAMES), face / 4, 4 * face
    )

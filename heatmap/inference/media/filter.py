"""Removes jitter from a video's landmarks.

One Kalman filter per coordinate. Its noise has the shape of the heatmap's covariance, scaled by the
noise measured in the video: its second differences, which are zero for steady motion. A coordinate
counts as still until the running mean of its innovations is too large for the noise. Then the
filter's variance is raised until it explains the mean (strong tracking: Zhou and Frank 1996,
https://doi.org/10.1080/002071796179099).
"""

import math
from collections import deque

import numpy as np

from heatmap.inference.predict import MIN_STD

_JITTER_RATIO = 6.0  # jitter before over after, for a landmark that never moves
_GAIN = 2 / (_JITTER_RATIO**2 + 1)  # of a first-order filter with that ratio
_DRIFT = _GAIN**2 / (1 - _GAIN)  # variance added per frame, relative to the noise's
_MOTION = 6.0  # squared mean innovation over its variance, above which a coordinate moves
_MAX_GAP_SECONDS = 0.5  # after a longer gap the filter restarts
_UNKNOWN = 1e8  # px^2; variance of a landmark that starts without a peak
_NOISE_FRAMES = 60  # frames over which the noise is measured
_PRIOR_FRAMES = 8  # weight of the whole face's noise in that of each landmark


class LandmarkFilter:
    """The filter of one face, called once per frame."""

    def __init__(self) -> None:
        self._seconds = -math.inf

    def __call__(
        self, points_image: np.ndarray, covariance_image: np.ndarray | None, seconds: float
    ) -> np.ndarray:
        """Returns (P, 2) float64 filtered landmarks; the first two frames stay unfiltered.

        The covariance is the (P, 2, 2) spread of the heatmaps; None weights all frames alike.
        """
        if seconds - self._seconds > _MAX_GAP_SECONDS:
            self._raw: deque[np.ndarray] = deque(maxlen=3)
            self._ratios: deque[np.ndarray] = deque(maxlen=_NOISE_FRAMES)
        self._seconds = seconds
        self._raw.append(points_image)
        if len(self._raw) < 3:
            return points_image.copy()
        noise = self._noise(covariance_image)
        if len(self._ratios) == 1:
            self._points, self._variance = self._raw[1], np.minimum(noise, _UNKNOWN)
            self._innovation = np.zeros_like(points_image)

        has_peak = np.isfinite(noise)
        innovation = np.where(has_peak, points_image - self._points, 0)
        self._innovation = (self._innovation + innovation) / 2  # a third of the variance
        variance = self._variance + np.where(has_peak, _DRIFT * noise, 0)
        variance = np.maximum(variance, 3 * self._innovation**2 / _MOTION - noise)
        gain = variance / (variance + noise)
        self._points = self._points + gain * innovation
        self._innovation *= 1 - gain
        self._variance = (1 - gain) * variance
        return self._points.copy()

    def _noise(self, covariance_image: np.ndarray | None) -> np.ndarray:
        """(P, 2) variances of this frame's coordinates; infinite for a heatmap without a peak."""
        first, second, third = self._raw
        spread = np.ones_like(third)
        if covariance_image is not None:
            spread = covariance_image[:, [0, 1], [0, 1]]
        has_peak = spread > MIN_STD**2  # False for NaN
        spread = np.where(has_peak, spread, 1)
        # a second difference has six times the noise's variance; 0.455 is the median of chi squared
        self._ratios.append((first - 2 * second + third) ** 2 / (6 * 0.455) / spread)
        ratio, frames = np.median(self._ratios, axis=0), len(self._ratios)
        face_ratio = np.median(ratio)
        ratio = (frames * ratio + _PRIOR_FRAMES * face_ratio) / (frames + _PRIOR_FRAMES)
        ratio = np.clip(ratio, face_ratio / 4, 4 * face_ratio)  # a moving mouth is not noise
        return np.where(has_peak, ratio * spread + 1e-6, np.inf)

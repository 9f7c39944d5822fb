"""Still faces stop jittering, moving faces are followed, and a gap restarts the filter."""

from collections.abc import Callable

import numpy as np
import pytest

from heatmap.inference.media.filter import LandmarkFilter

FRAMES, LANDMARKS, SIGMA, RATE = 300, 37, 0.5, 30
Motion = Callable[[int], float]


def clip(
    motion: Motion, *, weighted: bool = True, common: float = 0.0, sigma: float = SIGMA
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(T, P, 2) true, noisy and filtered landmarks of a face that moves along x and y alike.

    The noise has the shapes of the decoder's covariances at another size. `common` is the share of
    its variance that all landmarks have in common.
    """
    generator = np.random.default_rng(4)
    truth = generator.uniform(100, 300, (LANDMARKS, 2))
    truth = truth + np.array([motion(t) for t in range(FRAMES)])[:, None, None]
    roots = np.eye(2) + 0.3 * generator.normal(size=(LANDMARKS, 2, 2))
    own = generator.normal(size=(FRAMES, LANDMARKS, 2))
    shared = generator.normal(size=(FRAMES, 1, 2))
    noise = np.sqrt(1 - common) * own + np.sqrt(common) * shared
    raw = truth + sigma * np.einsum("kij,tkj->tki", roots, noise)
    covariance = 40 * roots @ roots.swapaxes(-1, -2) if weighted else None
    landmark_filter = LandmarkFilter()
    filtered = [landmark_filter(points, covariance, t / RATE) for t, points in enumerate(raw)]
    return truth, raw, np.array(filtered)


@pytest.mark.parametrize(
    "options", [{}, {"weighted": False}, {"common": 0.8}, {"sigma": 0.03}, {"sigma": 6.0}], ids=str
)
def test_jitter_of_a_still_face_shrinks_four_times(options: dict[str, float]) -> None:
    truth, raw, filtered = (part[60:] for part in clip(lambda t: 0.0, **options))
    assert (raw - truth).std(0).mean() > 4 * (filtered - truth).std(0).mean()
    assert np.abs((filtered - truth).mean((0, 1))).max() < 0.1 * (raw - truth).std()


@pytest.mark.parametrize(
    ("speed", "sigma"),  # px per frame, px
    [(2, 0.1), (2, 0.5), (2, 3), (0.3, 0.5), (0.5, 0.5), (1.5, 0.5), (5, 0.5)],
)
def test_the_lag_of_a_moving_face_is_below_two_frames(speed: float, sigma: float) -> None:
    truth, _, filtered = clip(lambda t: speed * max(0, t - 100), sigma=sigma)
    lag = (truth - filtered).mean((1, 2)) / speed  # frames
    assert lag[150:].mean() < 2.0
    assert lag[100:].max() < 3.0 and lag.min() > -1


@pytest.mark.parametrize("sigmas", [8, 20, 400])
def test_a_jump_is_followed_within_two_frames(sigmas: float) -> None:
    truth, _, filtered = clip(lambda t: sigmas * SIGMA * (t >= 150))
    left = (truth - filtered).mean((1, 2)) / (sigmas * SIGMA)
    assert np.abs(left[151:]).max() < 0.2  # no overshoot


def test_a_swinging_face_is_followed() -> None:
    truth, raw, filtered = clip(lambda t: 20 * np.sin(2 * np.pi * t / 30))
    lagged = [np.abs(filtered[60:] - truth[60 - lag : FRAMES - lag]).mean() for lag in range(4)]
    assert np.argmin(lagged) == 0
    assert lagged[0] < 2 * np.abs(raw - truth).mean()


def test_a_moving_mouth_in_a_still_face_is_followed() -> None:
    generator = np.random.default_rng(5)
    face = generator.uniform(0, 200, (LANDMARKS, 2))
    landmark_filter, lag = LandmarkFilter(), []
    for t in range(120):
        truth = face.copy()
        truth[30:, 1] += 12 * max(0, np.sin(t / 6))
        found = landmark_filter(truth + 0.3 * generator.normal(size=truth.shape), None, t / RATE)
        lag.append(np.abs(found - truth))
    assert np.array(lag)[30:, 30:, 1].mean() < 1.5  # px, of strokes of 12
    assert np.array(lag)[30:, :30].mean() < 0.3 / 3


def test_wide_heatmaps_weigh_less() -> None:
    generator = np.random.default_rng(6)
    face = generator.uniform(0, 200, (LANDMARKS, 2))
    sharp = np.broadcast_to(30 * np.eye(2), (LANDMARKS, 2, 2))
    moved = []
    for covariance in (sharp, 50 * sharp, sharp * np.diag([50, 1]), sharp * np.nan, 0 * sharp):
        generator = np.random.default_rng(7)
        landmark_filter = LandmarkFilter()
        for t in range(60):
            landmark_filter(face + 0.5 * generator.normal(size=face.shape), sharp, t / RATE)
        before = landmark_filter(face, sharp, 2)
        moved.append(np.abs(landmark_filter(before + 3, covariance, 2 + 1 / RATE) - before).mean(0))
    even, wide, wide_along_x, lost, black = moved
    assert (wide < even / 10).all()
    assert wide_along_x[0] < even[0] / 5 and wide_along_x[1] > even[1] / 2
    assert max(lost.max(), black.max()) < 1e-3


@pytest.mark.parametrize(("seconds", "forgets"), [(1 / RATE, False), (0.8, True)])
def test_a_long_gap_restarts_the_filter(seconds: float, forgets: bool) -> None:
    generator = np.random.default_rng(8)
    landmark_filter = LandmarkFilter()
    for t in range(40):
        landmark_filter(generator.normal(size=(5, 2)), None, t / RATE)
    points = generator.normal(size=(5, 2))
    found = landmark_filter(points, None, 39 / RATE + seconds)
    assert np.array_equal(found, points) == forgets


def test_a_landmark_that_starts_without_a_peak_is_found_later() -> None:
    face = np.random.default_rng(10).uniform(0, 200, (LANDMARKS, 2))
    sharp = np.broadcast_to(30 * np.eye(2), (LANDMARKS, 2, 2))
    hidden, lost = sharp.copy(), face.copy()
    hidden[3], lost[3] = np.nan, 0
    landmark_filter = LandmarkFilter()
    for t in range(6):
        landmark_filter(lost, hidden, t / RATE)
    for t in range(6, 10):
        found = landmark_filter(face, sharp, t / RATE)
    np.testing.assert_allclose(found, face, atol=1e-2)


def test_repeated_frames_without_noise_stay_finite() -> None:
    face = np.random.default_rng(9).uniform(0, 200, (LANDMARKS, 2))
    landmark_filter = LandmarkFilter()
    for t in range(30):
        found = landmark_filter(face + (t > 20) * 4, np.zeros((LANDMARKS, 2, 2)), t / RATE)
    assert np.isfinite(found).all()
    landmark_filter = LandmarkFilter()
    for t in range(30):
        found = landmark_filter(face + (t > 20) * 4, None, t / RATE)
    np.testing.assert_allclose(found, face + 4, atol=1e-2)

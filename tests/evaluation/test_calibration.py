from pathlib import Path

import numpy as np
import pytest

from heatmap.evaluation import calibration
from heatmap.evaluation.calibration import Calibration

Signs = tuple[np.ndarray, np.ndarray, np.ndarray]


def signs(seed: int, images: int = 300, landmarks: int = 40) -> Signs:
    """(distance, peak, spread): errors that are Rayleigh distances, as of Gaussian offsets, whose
    mean grows with the spread in px and with what the peak lacks, and is in a unit of its own."""
    generator = np.random.default_rng(seed)
    spread = np.exp(generator.normal(1.5, 0.5, (images, landmarks)))
    peak = generator.uniform(0.2, 1, spread.shape)
    expected = 0.1 * spread * peak**-1.5
    distance = generator.rayleigh(expected * np.sqrt(2 / np.pi))
    return distance.astype(np.float32), peak.astype(np.float32), spread.astype(np.float16)


def off(found: list[calibration.Decile]) -> float:
    """By how much the worst tenth's expectation misses."""
    return max(abs(one.expected_px / one.observed_px - 1) for one in found)


def test_expected_errors_come_true_on_images_that_were_not_fitted() -> None:
    fitted = calibration.fit(*signs(0))
    assert fitted is not None
    distance, peak, spread = signs(1)
    expected = fitted.expected_error(peak, spread)
    found = calibration.deciles(expected, distance)
    assert len(found) == 10 and sum(one.landmarks for one in found) == distance.size
    assert off(found) < 0.05
    assert found[-1].observed_px > 5 * found[0].observed_px, "the test has sure and unsure ones"
    truth = 0.1 * spread.astype(float) * peak**-1.5
    assert np.corrcoef(np.log(expected).ravel(), np.log(truth).ravel())[0, 1] > 0.99


def test_the_spread_alone_is_not_an_error_and_one_sign_alone_is_not_enough() -> None:
    """What the map is for: on the same data less does not come true, or not for all."""
    distance, peak, spread = signs(1)
    assert off(calibration.deciles(spread, distance)) > 0.5
    truth = 0.1 * spread.astype(float) * peak**-1.5
    least_sure = calibration.deciles(truth, distance)[-1].observed_px
    nothing = np.full_like(peak, np.nan)
    fitted_distance, fitted_peak, fitted_spread = signs(0)
    for signs_of_one in ((nothing, fitted_spread), (fitted_peak, nothing)):
        some = calibration.fit(fitted_distance, *signs_of_one)
        assert some is not None
        found = calibration.deciles(some.expected_error(peak, spread), distance)
        assert off(found) < 0.1
        assert found[-1].observed_px < 0.85 * least_sure


def test_more_doubt_never_lowers_the_expected_error() -> None:
    fitted = calibration.fit(*signs(2))
    assert fitted is not None
    assert fitted.peak_weight > 0 and fitted.spread_weight > 0
    assert (np.diff(fitted.doubt) > 0).all() and (np.diff(fitted.error_px) > 0).all()
    ramp = np.linspace(0.01, 30, 500)
    assert (np.diff(fitted.expected_error(np.full(500, 0.5), ramp)) >= 0).all()
    assert (np.diff(fitted.expected_error(ramp / 30, np.full(500, 4.0))) <= 0).all()


def test_a_sign_that_points_the_wrong_way_is_not_used() -> None:
    distance, peak, spread = signs(3)
    fitted = calibration.fit(distance, 1 / peak, spread)
    assert fitted is not None
    assert fitted.peak_weight == 0 and fitted.spread_weight > 0


def test_unlabelled_landmarks_do_not_count() -> None:
    distance, peak, spread = signs(4)
    hidden = distance.copy()
    hidden[::3] = np.nan
    kept = [np.delete(part, slice(None, None, 3), 0) for part in (distance, peak, spread)]
    assert calibration.fit(hidden, peak, spread) == calibration.fit(*kept)


def test_a_network_that_tells_nothing_has_no_calibration() -> None:
    distance, peak, spread = signs(5)
    nothing = np.full_like(peak, np.nan)
    assert calibration.fit(distance, nothing, nothing) is None
    assert calibration.fit(distance[:2], peak[:2], spread[:2]) is None, "too few to fit to"
    assert calibration.fit(distance, 1 / peak, nothing) is None, "it ranks the wrong way round"


def test_neighbours_are_pooled_to_their_weighted_mean() -> None:
    parts = [(0, 1.0, 1), (1, 3.0, 1), (2, 2.0, 3), (3, 2.0, 1), (4, 9.0, 2)]
    found = calibration._isotonic(parts)
    assert [weight for _, _, weight in found] == [1, 5, 2]
    assert [y for _, y, _ in found] == pytest.approx([1, 2.2, 9])
    assert [x for x, _, _ in found] == pytest.approx([0, 2, 4])


def test_halves_keep_people_whole_and_are_alike_in_size() -> None:
    generator = np.random.default_rng(6)
    groups = [f"person {k}" for k in generator.integers(0, 60, 900)]
    size = np.array([100 + 5 * int(group.split()[1]) for group in groups])
    first = calibration.halves(groups, size)
    for group in set(groups):
        assert (
            len({bool(half) for half, one in zip(first, groups, strict=True) if one == group}) == 1
        )
    assert 0.4 < first.mean() < 0.6
    assert size[first].mean() == pytest.approx(size[~first].mean(), rel=0.04)


def test_the_check_is_on_the_other_half() -> None:
    distance, peak, spread = signs(7)
    first = np.arange(len(distance)) % 2 == 0
    distance[~first] *= 2  # there the network is twice as wrong as it was
    found = calibration.fit_and_check(distance, peak, spread, first)
    assert found is not None
    assert (found.fitted_images, found.checked_images) == (150, 150)
    ratios = [one.observed_px / one.expected_px for one in found.deciles]
    assert ratios == pytest.approx([2] * 10, rel=0.1)


def test_of_very_many_landmarks_some_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    distance, peak, spread = signs(8, images=400)
    first = np.arange(len(distance)) % 2 == 0
    monkeypatch.setattr(calibration, "MOST_FITTED", 4000)
    found = calibration.fit_and_check(distance, peak, spread, first)
    assert found is not None
    assert sum(one.landmarks for one in found.deciles) <= 4000
    assert off(found.deciles) < 0.25


def test_what_is_written_is_read(tmp_path: Path) -> None:
    distance, peak, spread = signs(9)
    first = np.arange(len(distance)) % 3 > 0
    checked = calibration.fit_and_check(distance, peak, spread, first)
    calibration.write(tmp_path, checked)
    assert calibration.read(tmp_path) == checked
    calibration.write(tmp_path, None)
    assert calibration.read(tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "calibration.json").write_text('{"calibration": {"peak": 1}}')
    with pytest.raises(ValueError, match=r"calibration\.json: not a calibration.*writes it anew"):
        calibration.read(tmp_path)


def test_beyond_the_knots_the_last_one_counts() -> None:
    line = Calibration(0.0, 1.0, [0.0, 1.0], [2.0, 4.0])
    spread = np.exp([-5, 0.5, 9]).reshape(3, 1)
    peak = np.full_like(spread, np.nan)
    np.testing.assert_allclose(line.expected_error(peak, spread).ravel(), [2, 3, 4], atol=1e-9)

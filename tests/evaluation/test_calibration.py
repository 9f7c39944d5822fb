import json
from pathlib import Path

import numpy as np
import pytest

from heatmap.errors import UserError
from heatmap.evaluation import calibration
from heatmap.evaluation.calibration import Calibration

Signs = tuple[np.ndarray, np.ndarray, np.ndarray]


def signs(seed: int, images: int = 300, landmarks: int = 40) -> Signs:
    """(distance, peak, spread): errors are Rayleigh distances, as of Gaussian offsets, whose mean
    grows with the spread and falls with the peak."""
    generator = np.random.default_rng(seed)
    spread = np.exp(generator.normal(1.5, 0.5, (images, landmarks)))
    peak = generator.uniform(0.2, 1, spread.shape)
    expected = 0.1 * spread * peak**-1.5
    distance = generator.rayleigh(expected * np.sqrt(2 / np.pi))
    return distance.astype(np.float32), peak.astype(np.float32), spread.astype(np.float16)


def halved(spread: np.ndarray) -> np.ndarray:
    return np.arange(len(spread)) % 3 > 0


def off(tenths: list[calibration.Decile]) -> float:
    """Relative error of the expectation in the worst tenth."""
    return max(abs(tenth.expected_px / tenth.observed_px - 1) for tenth in tenths)


def test_expected_errors_hold_on_images_that_were_not_fitted() -> None:
    fitted = calibration.fit(*signs(0))
    assert fitted is not None
    distance, peak, spread = signs(1)
    expected = fitted.expected_error(peak, spread)
    tenths = calibration.deciles(expected, distance)
    assert len(tenths) == 10 and sum(tenth.landmarks for tenth in tenths) == distance.size
    assert off(tenths) < 0.05
    assert tenths[-1].observed_px > 5 * tenths[0].observed_px, (
        "the test has sure and unsure landmarks"
    )
    truth = 0.1 * spread.astype(float) * peak**-1.5
    assert np.corrcoef(np.log(expected).ravel(), np.log(truth).ravel())[0, 1] > 0.99


def test_peak_and_spread_together_predict_better_than_either() -> None:
    distance, peak, spread = signs(1)
    assert off(calibration.deciles(spread, distance)) > 0.5
    truth = 0.1 * spread.astype(float) * peak**-1.5
    least_sure = calibration.deciles(truth, distance)[-1].observed_px
    nothing = np.full_like(peak, np.nan)
    fitted_distance, fitted_peak, fitted_spread = signs(0)
    for signs_of_one in ((nothing, fitted_spread), (fitted_peak, nothing)):
        fitted = calibration.fit(fitted_distance, *signs_of_one)
        assert fitted is not None
        tenths = calibration.deciles(fitted.expected_error(peak, spread), distance)
        assert off(tenths) < 0.1
        assert tenths[-1].observed_px < 0.85 * least_sure


def test_more_doubt_never_lowers_the_expected_error() -> None:
    fitted = calibration.fit(*signs(2))
    assert fitted is not None
    assert fitted.peak_weight > 0 and fitted.spread_weight > 0
    assert (np.diff(fitted.doubt) > 0).all() and (np.diff(fitted.error_px) > 0).all()
    ramp = np.linspace(0.01, 30, 500)
    assert (np.diff(fitted.expected_error(np.full(500, 0.5), ramp)) >= 0).all()
    assert (np.diff(fitted.expected_error(ramp / 30, np.full(500, 4.0))) <= 0).all()


def test_an_indicator_of_the_wrong_sign_is_not_used() -> None:
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


def test_without_a_useful_indicator_there_is_no_calibration() -> None:
    distance, peak, spread = signs(5)
    nothing = np.full_like(peak, np.nan)
    assert calibration.fit(distance, nothing, nothing) is None
    assert calibration.fit(distance[:2], peak[:2], spread[:2]) is None, "too few to fit to"
    assert calibration.fit(distance, 1 / peak, nothing) is None, "it ranks in the wrong direction"


def test_parts_out_of_order_are_pooled_to_their_mean_error() -> None:
    spread = np.exp(np.linspace(0, 3, 250))[:, None]
    distance = np.repeat([1.0, 3.0, 2.0, 2.0, 9.0], 50)[:, None]  # one error per part
    fitted = calibration.fit(distance, np.full_like(spread, np.nan), spread)
    assert fitted is not None
    assert fitted.error_px == pytest.approx([1, 7 / 3, 9])
    knots = (np.log(spread) * fitted.spread_weight).reshape(5, 50).mean(1)
    assert fitted.doubt == pytest.approx([knots[0], knots[1:4].mean(), knots[4]])


def test_landmarks_with_the_same_doubt_share_their_mean_error() -> None:
    distance, peak, spread = signs(3)
    is_large = spread > np.median(spread)
    fitted = calibration.fit(distance, np.full_like(peak, np.nan), np.where(is_large, 2, 1))
    assert fitted
    expected = fitted.expected_error(np.full(2, np.nan), np.array([1.0, 2.0]))
    means = [distance[~is_large].mean(), distance[is_large].mean()]
    assert expected == pytest.approx(means, rel=0.05)  # the part across the median has both


def test_halves_keep_people_whole_and_have_similar_sizes() -> None:
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


def test_the_check_uses_the_other_images() -> None:
    distance, peak, spread = signs(7)
    first = np.arange(len(distance)) % 2 == 0
    distance[~first] *= 2  # twice as large on the images of the check
    checked = calibration.fit_and_check(distance, peak, spread, first)
    assert checked is not None
    assert (checked.fitted_images, checked.checked_images) == (150, 150)
    ratios = [tenth.observed_px / tenth.expected_px for tenth in checked.deciles]
    assert ratios == pytest.approx([2] * 10, rel=0.1)


def test_many_landmarks_are_subsampled(monkeypatch: pytest.MonkeyPatch) -> None:
    distance, peak, spread = signs(8, images=400)
    first = np.arange(len(distance)) % 2 == 0
    monkeypatch.setattr(calibration, "MAX_FITTED", 4000)
    checked = calibration.fit_and_check(distance, peak, spread, first)
    assert checked is not None
    assert sum(tenth.landmarks for tenth in checked.deciles) <= 4000
    assert off(checked.deciles) < 0.25


def test_written_calibrations_are_read_back(tmp_path: Path) -> None:
    distance, peak, spread = signs(9)
    checked = calibration.fit_and_check(distance, peak, spread, halved(spread))
    calibration.write(tmp_path, checked)
    assert calibration.read(tmp_path) == checked
    path = tmp_path / "calibration.json"
    path.write_text(path.read_text().replace("images", "pictures"))  # as version 0.1.0 wrote it
    assert calibration.read(tmp_path) == checked
    calibration.write(tmp_path, None)
    assert calibration.read(tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    distance, peak, spread = signs(9)
    calibration.write(tmp_path, calibration.fit_and_check(distance, peak, spread, halved(spread)))
    path = tmp_path / "calibration.json"
    whole = json.loads(path.read_text())
    for change, problem in (
        ({"peak": 1}, r"calibration\.peak: Calibration has no such field; did you mean 'peak_w"),
        ({"doubt": [2, 1], "error_px": [1, 2]}, "doubt must increase"),
        ({"doubt": [], "error_px": []}, "an error_px for each"),
        ({"doubt": [1]}, "an error_px for each"),
    ):
        path.write_text(json.dumps(whole | {"calibration": whole["calibration"] | change}))
        with pytest.raises(UserError, match=rf"calibration\.json: .*{problem}"):
            calibration.read(tmp_path)
    path.write_text(json.dumps(whole | {"deciles": [{"landmarks": 3}]}))
    with pytest.raises(UserError, match=r"deciles\.0\.expected_px is missing"):
        calibration.read(tmp_path)


def test_the_expected_error_is_constant_beyond_the_knots() -> None:
    line = Calibration(0.0, 1.0, [0.0, 1.0], [2.0, 4.0])
    spread = np.exp([-5, 0.5, 9]).reshape(3, 1)
    peak = np.full_like(spread, np.nan)
    np.testing.assert_allclose(line.expected_error(peak, spread).ravel(), [2, 3, 4], atol=1e-9)

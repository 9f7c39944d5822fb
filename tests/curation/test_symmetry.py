"""The symmetry of a landmark scheme is inferred from labels, and its file is used."""

import csv
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from heatmap import config, schemes
from heatmap.curation import symmetry
from heatmap.data import contest
from heatmap.data.synthetic import landmarks, sample_face
from heatmap.runs.checkpoint import load, load_trained
from heatmap.training import loop
from heatmap.training.data import read_data
from heatmap.training.prepare import prepare

Tool = Callable[..., int]


@pytest.fixture(scope="module")
def labels68(faces68: Path) -> np.ndarray:
    return contest.read_landmarks(faces68 / "train" / "landmarks.csv").points_image


@pytest.fixture(scope="module")
def labels971() -> np.ndarray:
    return np.round([landmarks(sample_face(3, index)) for index in range(250)])


def test_971_landmarks_have_the_known_permutation_and_curves(
    labels971: np.ndarray,
) -> None:
    inferred = symmetry.infer(labels971)
    assert np.array_equal(inferred.scheme.permutation, schemes.mirror_permutation(971))
    groups = [(group.start, group.stop) for group in inferred.scheme.groups.values()]
    curves = [(0, 64), (64, 128), (128, 273), (273, 337), (337, 401), (401, 464), (464, 527)]
    assert groups[:7] == curves
    assert {(587, 650), (650, 714), (714, 777), (777, 841), (969, 971)} <= set(groups)


@pytest.fixture(scope="module")
def mouths(labels971: np.ndarray) -> np.ndarray:
    """Four curves of 32 landmarks; the first and the third share their end points."""
    mouths = labels971[:, 841:969]
    assert np.array_equal(mouths[:, [0, 31]], mouths[:, [64, 95]])
    return mouths


KNOWN_OF_MOUTHS = schemes.mirror_permutation(971)[841:969] - 841


@pytest.mark.parametrize("left", [-1e-6, 1e-6])
@pytest.mark.parametrize("right", [-1e-6, 1e-6])
def test_coinciding_corners_follow_their_curves(
    mouths: np.ndarray, left: float, right: float
) -> None:
    points = mouths.copy()
    points[:, 64, 0] += left
    points[:, 95, 0] += right
    inferred = symmetry.infer(points)
    assert np.array_equal(inferred.scheme.permutation, KNOWN_OF_MOUTHS)


@pytest.mark.parametrize("seed", range(12))
def test_coinciding_corners_follow_their_curves_with_mirrored_faces(
    mouths: np.ndarray, seed: int
) -> None:
    faces = mouths[:60] + np.random.default_rng(seed).normal(0, 1e-9, (60, 128, 2))
    mirrored = faces[:, KNOWN_OF_MOUTHS] * (-1, 1)  # the distances vanish up to rounding
    inferred = symmetry.infer(np.concatenate([faces, mirrored]))
    assert np.array_equal(inferred.scheme.permutation, KNOWN_OF_MOUTHS)


def test_68_landmarks_have_the_known_permutation(
    faces68: Path, tool: Tool, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert tool("data", "symmetry", faces68, "--out", "found.json") == 0
    output = capsys.readouterr().out
    assert "equal to the known permutation of 68 landmarks" in output
    assert "low margins" not in output
    scheme = schemes.read_scheme(tmp_path / "found.json", 68)
    assert np.array_equal(scheme.permutation, schemes.mirror_permutation(68))
    eyes_and_brows = ["17-21", "22-26", "36-41", "42-47"]
    assert [name for name in scheme.groups if name in eyes_and_brows] == eyes_and_brows
    certificate = json.loads((tmp_path / "found.json").read_text())
    assert max(certificate["distance"]) < 0.01
    assert min(certificate["margin"]) > 1.5


# Lines through the 971 landmarks and the number of points on them that make Helen's 194. A negative
# number closes the contour of the line before, without both ends.
LINES_OF_194 = [
    ([*range(63, -1, -1), *range(64, 128)], 41), ([*range(401, 464), *range(526, 463, -1)], 17),
    (range(841, 873), 15), (range(936, 904, -1), -13),  # outer edge of the lips
    (range(904, 872, -1), 15), (range(937, 969), -13),  # inner edge
    (range(808, 776, -1), 12), ([777, *range(840, 807, -1)], -8),  # right and left eye
    (range(681, 649, -1), 12), ([650, *range(713, 680, -1)], -8),
    (range(371, 336, -1), 11), ([337, *range(400, 370, -1)], -9),  # right and left brow
    (range(307, 272, -1), 11), ([273, *range(336, 306, -1)], -9),
]  # fmt: skip


def helen194(faces: np.ndarray, slide: float = 0.0) -> np.ndarray:
    """(N, 194, 2) even points on contours of (N, 971, 2), moved on by `slide` steps mid-way."""
    lines = []
    for indices, count in LINES_OF_194:
        even = np.linspace(0, 1, count) if count > 0 else np.linspace(0, 1, 2 - count)[1:-1]
        places = even + slide * np.sin(np.pi * even) / abs(count)
        for_faces = []
        for line in faces[:, list(indices)]:
            lengths = np.linalg.norm(np.diff(line, axis=0), axis=-1).cumsum()
            known = np.concatenate([[0], lengths / lengths[-1]])
            for_faces.append(np.stack([np.interp(places, known, axis) for axis in line.T], -1))
        lines.append(np.stack(for_faces))
    return np.concatenate(lines, 1)


@pytest.mark.parametrize("noise", [0, 2, 4])
def test_194_landmarks_on_noisy_parallel_contours_have_the_known_permutation(
    labels971: np.ndarray, noise: float
) -> None:
    points = helen194(labels971[:100])
    inferred = symmetry.infer(points + np.random.default_rng(1).normal(0, noise, points.shape))
    assert np.array_equal(inferred.scheme.permutation, schemes.mirror_permutation(194))


def test_contours_that_slide_to_one_side_are_refused(labels971: np.ndarray) -> None:
    with pytest.raises(ValueError, match="of 194 landmarks have no mirror partner"):
        symmetry.infer(helen194(labels971, slide=0.5))


def test_a_landmark_nearer_to_another_than_to_its_own_partner_is_refused(
    labels68: np.ndarray,
) -> None:
    points = labels68[::7].astype(float)
    mole = points[:, 30] + 0.04 * (points[:, 16] - points[:, 0])  # beside the tip of the nose
    with pytest.raises(ValueError, match="1 of 69 landmarks have no mirror partner"):
        symmetry.infer(np.concatenate([points, mole[:, None]], 1))


def test_15_landmarks_with_many_unlabelled_have_the_known_permutation(faces15: Path) -> None:
    with zipfile.ZipFile(faces15 / "training.zip").open("training.csv") as file:
        rows = list(csv.reader(io.TextIOWrapper(file)))[1:]
    cells = [[float(cell) if cell else np.nan for cell in row[:30]] for row in rows]
    points = np.array(cells).reshape(-1, 15, 2)
    assert np.isnan(points).any((1, 2)).sum() > 300
    inferred = symmetry.infer(points)
    assert np.array_equal(inferred.scheme.permutation, schemes.mirror_permutation(15))


def test_symmetry_of_any_selection_in_any_order_is_inferred(labels68: np.ndarray) -> None:
    known = schemes.mirror_permutation(68)
    chosen = np.random.default_rng(5).permutation(68)[:50]
    chosen = chosen[np.isin(known[chosen], chosen)]  # no landmark without its partner
    place = {landmark: index for index, landmark in enumerate(chosen.tolist())}
    expected = [place[landmark] for landmark in known[chosen].tolist()]
    inferred = symmetry.infer(labels68[::7, chosen])
    assert inferred.scheme.permutation.tolist() == expected
    assert len(expected) not in (68, 15)


def test_landmarks_without_partners_are_refused(labels68: np.ndarray) -> None:
    one_side = [0, 1, 2, 3, 17, 18, 36, 37, 41, 30]  # jaw, brow and eye of one side, and the nose
    with pytest.raises(ValueError, match="of 10 landmarks have no mirror partner within"):
        symmetry.infer(labels68[::7, one_side])


def test_bad_faces_do_not_change_the_permutation(labels68: np.ndarray) -> None:
    points = labels68[::10].copy()
    bad = np.random.default_rng(1).choice(len(points), 20, replace=False)
    points[bad] = points[bad][:, np.random.default_rng(2).permutation(68)]
    points[::9, 40] = np.nan
    inferred = symmetry.infer(points)
    assert np.array_equal(inferred.scheme.permutation, schemes.mirror_permutation(68))


def test_labels_in_another_order_fail_the_check(
    labels68: np.ndarray, tool: Tool, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    order = np.arange(68)
    order[[36, 39]] = 39, 36  # the corners of an eye
    points = labels68[::8, order]
    names = [f"{row}.jpg" for row in range(len(points))]
    contest.write_landmarks(tmp_path / "DIR" / "train" / "landmarks.csv", names, points)
    assert tool("data", "symmetry", "DIR", "--out", "found.json") == 1
    assert "disagree with the known permutation of 68 landmarks in 4" in capsys.readouterr().err
    permutation = schemes.read_scheme(tmp_path / "found.json", 68).permutation
    assert permutation[[36, 39, 42, 45]].tolist() == [42, 45, 36, 39]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "not a file from heatmap data symmetry: permutation is missing"),
        ("[1", "not JSON, or cut short"),
        ('{"permutation": [1.0, 0, 2], "groups": {"all": [0, 3]}}', "permutation.0 must be"),
        ('{"permutation": [1, 0, 2], "groups": {"all": [0, 1000001]}}', "all.1 must be at most"),
        ('{"permutation": [1, 0, 2], "groups": {"all": [0]}}', "groups.all must be a list of 2"),
        ('{"permutation": [1, 2, 0], "groups": {"all": [0, 3]}}', "not the identity"),
        ('{"permutation": [1, 1, 0], "groups": {"all": [0, 3]}}', "every landmark once"),
        ('{"permutation": [1, 0, 2], "groups": {"all": [0, 2]}}', "groups do not hold"),
        ('{"permutation": [1, 0], "groups": {"all": [0, 2]}}', "is for 2 landmarks"),
    ],
)
def test_invalid_symmetry_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "wrong.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        schemes.read_scheme(tmp_path / "wrong.json", 3)
    with pytest.raises(ValueError, match=r"missing\.json"):
        schemes.read_scheme(tmp_path / "missing.json", 3)


def test_training_and_submission_mirror_other_schemes_without_the_file(
    tiny_contest: Path, tool: Tool, tmp_path: Path
) -> None:
    scheme = schemes.Scheme(np.array([1, 0, 2, 6, 5, 4, 3]), {"a": range(3), "b": range(3, 7)})
    path = tmp_path / "symmetry.json"
    path.write_text(json.dumps(scheme.to_dict()))
    experiment = config.Experiment(
        name="mirrored",
        data=config.Data(root=tiny_contest, validation=0.5, workers=0, symmetry=path),
        crop=config.Crop(height=32, width=48),
        augment=config.Augment(mirror=0.5),
        model=config.UNet(encoder="tu-test_resnet", weights="none", width=6),
        train=config.Train(batch=4, max_steps=1, device="cpu", compile="off"),
        wandb=config.Wandb(mode="off"),
    )
    run = prepare(experiment)
    assert run.data.permutation is not None and run.data.permutation.tolist() == [
        1,
        0,
        2,
        6,
        5,
        4,
        3,
    ]
    loop.train(run, tmp_path / "run")
    path.unlink()
    trained = load_trained(tmp_path / "run")
    assert trained.scheme is not None and trained.scheme.groups == scheme.groups
    resumed = read_data(trained.experiment, load(tmp_path / "run" / "last.pt"))
    assert np.array_equal(resumed.permutation, scheme.permutation)
    answers = []
    for tta in ("none", "mirror"):
        out = f"{tta}.csv"
        assert tool("submit", "run", "--out", out, "--rounding", "none", "--tta", tta) == 0
        answers.append(contest.read_submission(tmp_path / out).points_image)
    assert np.abs(answers[0] - answers[1]).max() > 0.01
    assert tool("evaluate", "run", "--tta", "mirror", "--json", "scores.json") == 0
    assert set(json.loads((tmp_path / "scores.json").read_text())["groups"]) == {"a", "b"}

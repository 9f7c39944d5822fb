import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from tiny_runs import trained
from torch import Tensor

from heatmap import cli, config, schemes
from heatmap.data.contest import Folder, read_landmarks, write_landmarks
from heatmap.data.samples import Samples
from heatmap.evaluation import metrics
from heatmap.inference.ensemble import Ensemble
from heatmap.inference.predict import View
from heatmap.networks import CropPrediction, Network
from heatmap.runs import checkpoint
from heatmap.runs.folder import RunFolder
from heatmap.runs.per_image import read_per_image, write_errors, write_per_image
from heatmap.schemes import GROUPS

CPU = torch.device("cpu")
CROP = config.Crop(height=40, width=56)
SHORTER_SIDES = (60, 124, 125, 174, 175, 249, 250, 349, 350, 420, 200, 90, 130)


class Stubborn(Network):
    """Predicts the same face in every image; its peaks are the image's brightness."""

    def __init__(
        self, points_crop: Tensor, has_peaks: bool = True, variances: tuple[float, ...] = ()
    ) -> None:
        super().__init__(config.Direct(weights="none"), (32, 32), len(points_crop))
        self.points_crop, self.has_peaks = points_crop.float(), has_peaks
        self.variances = variances

    def layers(self, images: Tensor) -> Tensor:
        assert not self.training
        return images.mean((1, 2, 3))

    def loss(self, output: Tensor, points_crop: Tensor, weights: Tensor) -> Tensor:
        raise NotImplementedError

    def decode(self, output: Tensor) -> CropPrediction:
        points = self.points_crop.expand(len(output), -1, -1)
        peak = output[:, None].expand(points.shape[:2]) if self.has_peaks else None
        covariance = None
        if self.variances:
            covariance = torch.diag(torch.tensor(self.variances)).expand(*points.shape, 2)
        return CropPrediction(points, peak, covariance)


def crop_to_image(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """The organisers' crop by hand: scaled to cover, the middle kept."""
    factor = max(CROP.height / height, CROP.width / width)
    return (points - [(CROP.width - 1) / 2, (CROP.height - 1) / 2]) / factor + [
        (width - 1) / 2,
        (height - 1) / 2,
    ]


class LabelledImages:
    """Images of every size class, with labels near a common shape."""

    def __init__(self, folder: Path, num_landmarks: int) -> None:
        generator = np.random.default_rng(num_landmarks)
        self.shape = generator.uniform((5, 5), (50, 35), (num_landmarks, 2))
        self.predicted = self.shape + generator.normal(0, 1.5, self.shape.shape)
        self.sizes, paths, labels = [], [], []
        for index, side in enumerate(SHORTER_SIDES):
            height, width = (side, side + 7 * index) if index % 2 else (side + 5 * index, side)
            paths.append(folder / f"{index}.png")
            grey = 10 * index + 5
            assert cv2.imwrite(str(paths[-1]), np.full((height, width, 3), grey, np.uint8))
            noisy = self.shape + generator.normal(0, 1 + index / 3, self.shape.shape)
            labels.append(crop_to_image(noisy, height, width))
            self.sizes.append((height, width))
        self.truth = np.array(labels, np.float32)
        self.truth[2, [1, 4, 5]] = np.nan
        self.truth[7] = np.nan
        if num_landmarks == 68:
            self.truth[9, 36] = np.nan  # an eye corner: no normaliser
        self.samples = Samples(paths, self.truth, CROP)

    def measured(
        self, network: Network, rows: list[int] | None = None, batch: int = 4, *others: Network
    ) -> Any:
        return metrics.measure_errors(
            [View(one, self.samples) for one in (network, *others)],
            np.arange(len(self.truth)) if rows is None else np.array(rows),
            torch.from_numpy(self.shape), batch=batch, workers=0,
        )  # fmt: skip


def reference(images: LabelledImages) -> dict[str, Any]:
    """All scores by hand, image by image, in float64."""
    mse, mean_shape, nme, groups, sizes = [], [], [], {}, {}
    groups_of = GROUPS.get(images.truth.shape[1], {"all": range(images.truth.shape[1])})
    for truth, (height, width) in zip(images.truth.astype(np.float64), images.sizes, strict=True):
        seen = np.isfinite(truth[:, 0])
        if not seen.any():
            continue
        difference = crop_to_image(np.float32(images.predicted), height, width) - truth
        mse.append((difference[seen] ** 2).mean())
        mean_shape.append(((crop_to_image(images.shape, height, width) - truth)[seen] ** 2).mean())
        if len(truth) == 68:
            length = np.hypot(*(truth[36] - truth[45]))
        else:
            length = np.sqrt(np.prod(truth[seen].max(0) - truth[seen].min(0)))
        nme.append(np.hypot(*difference[seen].T).mean() / length)
        for name, members in groups_of.items():
            inside = seen & np.isin(np.arange(len(truth)), members)
            groups.setdefault(name, []).append((difference[inside] ** 2).mean())
        limit = next((s for s in (125, 175, 250, 350) if min(height, width) < s), 10**6)
        sizes.setdefault(limit, []).append(mse[-1])
    nme = np.array(nme)[np.isfinite(nme)]
    return {
        "mse": np.mean(mse),
        "mean_shape_mse": np.mean(mean_shape),
        "nme_percent": 100 * nme.mean(),
        **{f"failure_{p}": (nme > p / 100).mean() for p in (8, 10)},
        **{
            f"auc_{p}": np.mean([(nme <= x).mean() for x in np.linspace(0, p / 100, 40001)])
            for p in (8, 10)
        },
        "groups": {name: np.mean(values) for name, values in groups.items()},
        "sizes": [np.mean(sizes[limit]) for limit in sorted(sizes)],
    }


@pytest.fixture(params=[68, 9])
def images(request: pytest.FixtureRequest, tmp_path: Path) -> LabelledImages:
    return LabelledImages(tmp_path, request.param)


def test_scores_equal_a_plain_reference(images: LabelledImages) -> None:
    errors = images.measured(Stubborn(torch.from_numpy(images.predicted)))
    scores, expected = metrics.summary(errors), reference(images)
    assert 0 < expected["failure_8"] < 1, "the test has good and bad images"
    assert expected["failure_8"] != expected["failure_10"] or len(images.shape) == 9
    for name in ("mse", "mean_shape_mse", "nme_percent", "failure_8", "failure_10"):
        assert scores[name] == pytest.approx(expected[name], rel=1e-9), name
    for name in ("auc_8", "auc_10"):
        assert scores[name] == pytest.approx(expected[name], abs=1e-4), name
    assert scores["groups"] == pytest.approx(expected["groups"], rel=1e-6)
    sizes = scores["sizes"]
    assert list(sizes) == [
        "under 125 px", "125 to 174 px", "175 to 249 px", "250 to 349 px", "350 px and over",
    ]  # fmt: skip
    assert [size["mse"] for size in sizes.values()] == pytest.approx(expected["sizes"], rel=1e-9)
    assert [size["images"] for size in sizes.values()] == [3, 3, 3, 2, 2]
    assert scores["normaliser"] == ("outer eye corners" if len(images.shape) == 68 else "box")
    assert scores["images"] == len(SHORTER_SIDES)
    json.dumps(scores, allow_nan=False)


def test_distances_and_peaks_belong_to_their_rows(images: LabelledImages) -> None:
    rows = [11, 0, 7, 3, 12]
    errors = images.measured(Stubborn(torch.from_numpy(images.predicted)), rows, batch=2)
    assert errors.rows.tolist() == sorted(rows)
    for i, row in enumerate(errors.rows):
        predicted = crop_to_image(np.float32(images.predicted), *images.sizes[row])
        expected = np.linalg.norm(predicted - images.truth[row], axis=1)
        np.testing.assert_allclose(errors.distance[i], expected, rtol=1e-5)
        np.testing.assert_allclose(errors.peak[i], (10 * row + 5) / 255, rtol=1e-5)
        assert tuple(errors.image_hw[i]) == images.sizes[row]


def test_the_bias_is_the_mean_signed_error_of_every_landmark(images: LabelledImages) -> None:
    errors = images.measured(Stubborn(torch.from_numpy(images.predicted)))
    predicted = [crop_to_image(np.float32(images.predicted), *hw) for hw in images.sizes]
    offset = np.stack(predicted) - images.truth
    np.testing.assert_allclose(errors.bias, np.nanmean(offset, 0), rtol=1e-5, atol=1e-5)
    alone = images.measured(Stubborn(torch.from_numpy(images.predicted)), [7])
    assert np.isnan(alone.bias).all(), "nothing is labelled there"


def test_the_spread_of_a_heatmap_is_in_image_pixels(images: LabelledImages) -> None:
    network = Stubborn(torch.from_numpy(images.predicted), variances=(3.0, 15.0))
    errors = images.measured(network)
    assert errors.spread.shape == errors.distance.shape
    for spread, (height, width) in zip(errors.spread, images.sizes, strict=True):
        factor = max(CROP.height / height, CROP.width / width)
        np.testing.assert_allclose(spread, 3 / factor, rtol=1e-3)
    assert np.isnan(images.measured(Stubborn(network.points_crop)).spread).all()


def test_the_spread_of_several_networks_is_their_disagreement(images: LabelledImages) -> None:
    points = torch.from_numpy(images.predicted)
    moved = points + torch.tensor([3.0, 4.0])
    errors = images.measured(
        Stubborn(points, variances=(9.0, 9.0)), None, 4, Stubborn(moved, variances=(9.0, 9.0))
    )
    for spread, (height, width) in zip(errors.spread, images.sizes, strict=True):
        factor = max(CROP.height / height, CROP.width / width)
        np.testing.assert_allclose(spread, 2.5 / factor, rtol=1e-3)


def test_the_mean_shape_scores_like_a_network_that_predicts_it(images: LabelledImages) -> None:
    scores = metrics.summary(images.measured(Stubborn(torch.from_numpy(images.shape))))
    assert scores["mse"] == pytest.approx(scores["mean_shape_mse"], rel=1e-5)


def test_without_heatmaps_there_is_no_peak(images: LabelledImages) -> None:
    network = Stubborn(torch.from_numpy(images.predicted), has_peaks=False)
    errors = images.measured(network)
    assert np.isnan(errors.peak).all()
    assert metrics.summary(errors)["mean_peak"] is None
    assert "MSE" in metrics.format_scores(metrics.summary(errors))


def test_images_without_labels_cannot_be_scored(images: LabelledImages) -> None:
    errors = images.measured(Stubborn(torch.from_numpy(images.predicted)), [7])
    with pytest.raises(ValueError, match="none of the 1 images has a label"):
        metrics.summary(errors)


def test_the_written_files_hold_the_errors(images: LabelledImages, tmp_path: Path) -> None:
    rows = [1, 7, 9, 12]
    errors = images.measured(Stubborn(torch.from_numpy(images.predicted)), rows)
    names = [path.name for path in images.samples.paths]
    files = RunFolder(tmp_path / "run")
    write_per_image(files.per_image, [names[row] for row in errors.rows], errors.columns())
    write_errors(files.errors, errors)

    with (tmp_path / "run" / "per_image.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [line["file_name"] for line in table] == [names[row] for row in rows]
    for i, line in enumerate(table):
        assert (int(line["height"]), int(line["width"])) == images.sizes[rows[i]]
        for column, values in (("mse", errors.mse), ("nme", errors.nme)):
            value = float(line[column] or "nan")
            np.testing.assert_allclose(value, values[i], atol=1e-6)
    assert table[1]["mse"] == table[1]["nme"] == ""
    read_names, columns = read_per_image(tmp_path / "run" / "per_image.csv")
    assert read_names == [names[row] for row in rows]
    groups = schemes.groups(len(images.shape))
    assert ("mse mouth" in columns) == (len(groups) > 1)
    for name, members in groups.items() if len(groups) > 1 else ():
        squares = errors.distance[:, list(members)].astype(np.float64) ** 2
        expected = np.ma.masked_invalid(squares).mean(1).filled(np.nan) / 2
        np.testing.assert_allclose(columns[f"mse {name}"], expected, atol=1e-6)
    assert (table[2]["nme"] == "") == (len(images.shape) == 68)

    with np.load(tmp_path / "run" / "errors.npz") as arrays:
        assert arrays["rows"].tolist() == rows
        for name in vars(errors).keys() - {"groups"}:
            np.testing.assert_array_equal(arrays[name], getattr(errors, name))
            assert arrays[name].dtype == np.asarray(getattr(errors, name)).dtype
        bounds = {name: [group.start, group.stop] for name, group in errors.groups.items()}
        assert json.loads(str(arrays["groups"])) == bounds


def test_a_damaged_table_of_errors_is_refused_by_row(tmp_path: Path) -> None:
    path = tmp_path / "per_image.csv"
    with pytest.raises(ValueError, match=r"per_image\.csv: "):
        read_per_image(path)
    numbers = {name: np.array([0.5, np.nan]) for name in ("mse", "nme", "width", "height")}
    write_per_image(path, ["a, b.jpg", "c.jpg"], numbers)
    names, columns = read_per_image(path)
    assert (names, columns["mse"].tolist()[:1]) == (["a, b.jpg", "c.jpg"], [0.5])
    whole = path.read_text()
    for row, problem in (
        ("d.jpg,1", "2 cells where the header has 5"),
        ("d.jpg,1,2,3,4,5", "6 cells where the header has 5"),
        ("d.jpg,1,1_000,3,4", "column nme: '1_000' is not a number"),
        ("d.jpg,inf,2,3,4", "column mse: 'inf' is not a number"),
        ("d.jpg,nan,2,3,4", "column mse: 'nan' is not a number"),
        ("d.jpg,1,2,3," + "4" * 40_000, "column height: '4{60}' is not a number"),
        ("c.jpg,1,2,3,4", "'c.jpg' is already in row 3"),
        (",1,2,3,4", "column file_name: '' is empty"),
    ):
        path.write_text(f"{whole}{row}\n")
        with pytest.raises(ValueError, match=rf"per_image\.csv, row 4.*{problem}"):
            read_per_image(path)
    for header in ("name,error", "file_name,mse,nme,width", "file_name,mse,mse,nme,width,height"):
        path.write_text(header + "\n")
        with pytest.raises(ValueError, match=r"row 1: expected file_name, mse"):
            read_per_image(path)


@pytest.fixture(scope="module")
def run_folder(tiny_contest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("runs") / "tiny", tiny_contest)


@pytest.fixture
def other_contest(tiny_contest: Path, tmp_path: Path) -> Iterator[Folder]:
    """The tiny contest's images with other labels."""
    tiny, other = Folder(root=tiny_contest), Folder(root=tmp_path / "other")
    other.train_table.parent.mkdir(parents=True)
    other.train_images.symlink_to(tiny.train_images)
    table = read_landmarks(tiny.train_table)
    write_landmarks(other.train_table, table.names, table.points_image[:] + 3)
    yield other


def test_a_run_is_scored_on_its_own_validation_images(run_folder: Path) -> None:
    evaluation = metrics.evaluate_run(Ensemble.load([run_folder]), None, CPU)
    scores, folder = evaluation.scores, evaluation.folder
    assert folder == run_folder
    with (folder / "per_image.csv").open(newline="") as file:
        scored = [line["file_name"] for line in csv.DictReader(file)]
    assert scored == json.loads((run_folder / "split.json").read_text())["validation"]
    assert scores["mse"] == checkpoint.load(run_folder / "best.pt").validation_mse
    timing = json.loads((folder / "timing.json").read_text())
    assert set(timing["milliseconds_per_image"]) == {"data", "network", "decode"}
    assert all(0 < part < 60_000 for part in timing["milliseconds_per_image"].values())
    assert not (folder / "calibration.json").exists(), "there are too few landmarks to fit to"


def test_on_other_data_every_labelled_image_is_scored(
    run_folder: Path, other_contest: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    own = (run_folder / "config.json").read_bytes()
    ensemble = Ensemble.load([run_folder])
    with caplog.at_level("INFO", "heatmap"):
        evaluation = metrics.evaluate_run(ensemble, other_contest.root, CPU)
    assert "no run was trained on this table, so all rows are scored" in caplog.text
    assert evaluation.scores["images"] == 12
    folder = evaluation.folder
    assert folder == run_folder / "evaluation-other"
    assert (folder / "errors.npz").exists()
    assert (run_folder / "config.json").read_bytes() == own


def test_data_with_another_number_of_landmarks_are_refused(
    run_folder: Path, other_contest: Folder
) -> None:
    table = read_landmarks(other_contest.train_table)
    write_landmarks(other_contest.train_table, table.names, table.points_image[:, :5])
    with pytest.raises(ValueError, match=r"5 landmarks.* predicts 7"):
        metrics.evaluate_run(Ensemble.load([run_folder]), other_contest.root, CPU)


def test_scores_are_printed_even_if_the_report_fails(
    run_folder: Path, tool: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "page").write_text("a file where the folder would be")
    json_file = tmp_path / "scores.json"
    assert tool("evaluate", run_folder, "--report", tmp_path / "page", "--json", json_file) == 1
    out, error = capsys.readouterr()
    mse = json.loads(json_file.read_text())["mse"]
    assert ["contest", "MSE", f"{mse:.3f}", "px²"] in [line.split() for line in out.splitlines()]
    assert "per image: " in out and "report: " not in out and str(tmp_path / "page") in error


@pytest.mark.parametrize("option", ["--report", "--data", "--boxes", "--decoder=window"])
def test_a_submission_is_scored_alone(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = [option] if "=" in option else [option, "some"]
    assert cli.main(["evaluate", "a.csv", "--solution", "b.csv", *options]) == 2
    assert (
        "a submission (.csv) takes no options but --solution and --json" in capsys.readouterr().err
    )

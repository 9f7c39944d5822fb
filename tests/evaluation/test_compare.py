import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from browser import Elements, shown

from heatmap.config import Experiment, Optimizer, UNet, to_dict
from heatmap.errors import UserError
from heatmap.evaluation import compare
from heatmap.evaluation.compare import differences, paired, read_runs
from heatmap.evaluation.compare.paired import bootstrap_means, interval
from heatmap.runs.per_image import write_per_image

Tool = Callable[..., int]
PEOPLE = [f"person{number}" for number in range(12)]
NAMES = [f"{person}_{k}.jpg" for person in PEOPLE for k in range(5)]


def run_folder(
    folder: Path,
    mse: Mapping[str, float],
    experiment: Experiment | None = None,
    table: str | None = "f00d",
) -> Path:
    """A finished run with these errors, px², by image; they are twice as large at the jaw."""
    folder.mkdir(parents=True)
    experiment = experiment or Experiment(name="some")
    (folder / "config.json").write_text(json.dumps(to_dict(experiment)))
    split = {"rule": "by person", "table": table, "validation": list(mse)}
    (folder / "split.json").write_text(json.dumps(split))
    best = float(np.nanmean(list(mse.values())))
    rows = [
        {"step": 10 * epoch, "epoch": epoch, "val/mse": value, "time/seconds": 30.0}
        for epoch, value in enumerate((best + 5, best, best + 1), start=1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    budget = {"epochs": 3, "steps": 30, "minutes": 1.5}
    scores = {"best_mse": best, "best_epoch": 2, "mean_shape_mse": 90.0}
    (folder / "summary.json").write_text(json.dumps(scores | budget))
    errors = np.array(list(mse.values()))
    sizes = np.array([100 + len(name) for name in mse])
    columns = {
        "mse": errors, "nme": errors / 100, "width": sizes, "height": sizes + 1,
        "mse jaw": 2 * errors, "mse nose": errors + 1,
    }  # fmt: skip
    write_per_image(folder / "per_image.csv", list(mse), columns)
    return folder


def errors(seed: int, names: list[str] = NAMES) -> dict[str, float]:
    generator = np.random.default_rng(seed)
    return dict(zip(names, generator.uniform(1, 9, len(names)).round(6).tolist(), strict=True))


# The bootstrap


def test_independent_images_give_the_interval_of_the_normal_distribution() -> None:
    values = np.random.default_rng(1).normal([[0.3, -2.0]], [[1.0, 5.0]], (400, 2))
    means = bootstrap_means(values, np.arange(400), 4000)
    assert means.shape == (4000, 2)
    standard_error = values.std(0) / math.sqrt(400)
    np.testing.assert_allclose(means.mean(0), values.mean(0), atol=0.05 * standard_error[1])
    np.testing.assert_allclose(means.std(0), standard_error, rtol=0.04)
    low, high = interval(means)
    np.testing.assert_allclose(
        low, values.mean(0) - 1.96 * standard_error, atol=0.06 * standard_error[1]
    )
    np.testing.assert_allclose(
        high, values.mean(0) + 1.96 * standard_error, atol=0.06 * standard_error[1]
    )


def test_copies_of_an_image_do_not_narrow_the_interval() -> None:
    of_person = np.random.default_rng(2).normal(size=(60, 1))
    copies = np.repeat(of_person, 9, axis=0)
    over_people = bootstrap_means(copies, np.repeat(np.arange(60), 9), 4000)
    once = bootstrap_means(of_person, np.arange(60), 4000)
    np.testing.assert_allclose(over_people, once, atol=1e-12)
    over_images = bootstrap_means(copies, np.arange(540), 4000)
    assert over_people.std() / over_images.std() == pytest.approx(3, rel=0.1)


def test_resamples_do_not_depend_on_the_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(4).normal(size=(30, 3))
    values[4, 1] = values[20:, 2] = np.nan
    unit = np.arange(30) // 3
    whole = bootstrap_means(values, unit, 70)
    monkeypatch.setattr(paired, "BLOCK", 64)
    np.testing.assert_array_equal(bootstrap_means(values, unit, 70), whole)
    # the first resample by hand
    people = np.random.default_rng(0).integers(10, size=10)
    drawn = values.reshape(10, 3, 3)[people].reshape(30, 3)
    np.testing.assert_allclose(whole[0], np.nanmean(drawn, 0))


# The comparison


def test_only_fields_that_differ_are_listed() -> None:
    one = {"seed": 0, "lr": 1e-3, "epochs": 20, "sigma": 1.5, "tags": ["a"], "clip": None}
    other = {"seed": 0, "lr": 2e-3, "epochs": 20.0, "tags": ["a", "b"], "clip": None, "hidden": 9}
    assert differences({"one": one, "other": other}) == {
        "lr": {"one": 1e-3, "other": 2e-3},
        "sigma": {"one": 1.5},
        "tags": {"one": ["a"], "other": ["a", "b"]},
        "hidden": {"other": 9},
    }
    assert differences({"one": one, "two": dict(one), "three": dict(one)}) == {}


def test_a_field_newer_than_a_run_has_its_default(tmp_path: Path) -> None:
    old = run_folder(tmp_path / "old", errors(0))
    config = json.loads((old / "config.json").read_text())
    del config["train"]["ema"], config["data"]["folds"]
    (old / "config.json").write_text(json.dumps(config))
    settings = Experiment(name="some", optimizer=Optimizer(lr=0.5), model=UNet(width=68))
    new = run_folder(tmp_path / "new", errors(0), settings)
    result = compare.compare_runs(read_runs([old, new]), 10)
    assert result["differences"] == {
        "model.width": {"old": 128, "new": 68},
        "optimizer.lr": {"old": 0.001, "new": 0.5},
    }


def test_runs_are_compared_image_by_image(tmp_path: Path) -> None:
    """B is better by 0.5 on files that end in 0, 1 or 2, and worse by 0.25 on the others."""
    a = errors(0)
    gain = {name: 0.5 if name[-5] in "012" else -0.25 for name in NAMES}
    b = {name: a[name] - gain[name] for name in reversed(NAMES)}
    folders = [run_folder(tmp_path / "a", a), run_folder(tmp_path / "b", b)]
    result = compare.compare_runs(read_runs(folders), 2000)
    overall, jaw, nose = result["paired"]
    assert (overall["run"], overall["against"]) == ("b", "a")
    assert overall["difference"] == pytest.approx(0.2)
    assert (overall["better_on"], overall["worse_on"]) == (pytest.approx(0.6), pytest.approx(0.4))
    # all people have the same gain, so every resample has the same mean
    assert (overall["low"], overall["high"]) == (pytest.approx(0.2), pytest.approx(0.2))
    assert (jaw["landmarks"], jaw["difference"]) == ("jaw", pytest.approx(0.4))
    assert (nose["landmarks"], nose["difference"]) == ("nose", pytest.approx(0.2))
    assert result["mse"]["nose"]["a"] == pytest.approx(np.mean(list(a.values())) + 1)
    assert result["nme_percent"]["b"] == pytest.approx(np.mean(list(b.values())))
    assert result["images"]["units"] == 12
    assert result["images"]["drawn"] == "people"
    assert result["runs"]["a"]["mse"] == pytest.approx(np.mean(list(a.values())))
    assert (result["runs"]["a"]["best_epoch"], result["runs"]["a"]["minutes"]) == (2, 1.5)
    assert compare.sentence(overall) == (
        "b is better than a by 0.200 px² (95 %: 0.200 to 0.200), on 60 % of images"
    )
    result = compare.compare_runs(read_runs(folders[::-1]), 2000)
    assert compare.sentence(result["paired"][0]) == (
        "a is worse than b by 0.200 px² (95 %: 0.200 to 0.200), on 60 % of images"
    )


def test_chance_is_not_a_significant_difference(tmp_path: Path) -> None:
    folders = [run_folder(tmp_path / name, errors(seed)) for seed, name in enumerate("ab")]
    (overall, *_) = compare.compare_runs(read_runs(folders))["paired"]
    assert overall["low"] < 0 < overall["high"]
    assert compare.sentence(overall).startswith("b and a do not differ significantly: b is ")


def test_runs_with_different_splits_are_compared_on_common_images(tmp_path: Path) -> None:
    a, b = errors(0, NAMES[:40]), errors(1, NAMES[25:])
    folders = [run_folder(tmp_path / "a", a), run_folder(tmp_path / "b", b)]
    result = compare.compare_runs(read_runs(folders), 100)
    assert result["images"]["common"] == 15
    assert result["images"]["own"] == {"a": 40, "b": 35}
    assert "show 3 people, too few to resample" in result["notes"][0]
    assert (result["images"]["drawn"], result["images"]["units"]) == ("images", 15)
    expected = np.mean([a[name] - b[name] for name in NAMES[25:40]])
    assert result["paired"][0]["difference"] == pytest.approx(expected)
    assert (
        "compared on the 15 images that validated in every run (40 of a, 35 of b)"
        in compare.format_comparison(result)
    )


def test_an_unlabelled_image_is_left_out(tmp_path: Path) -> None:
    a, b = errors(0), errors(1)
    a[NAMES[3]] = math.nan
    folders = [run_folder(tmp_path / "a", a), run_folder(tmp_path / "b", b)]
    result = compare.compare_runs(read_runs(folders), 100)
    assert result["images"]["common"] == len(NAMES) - 1
    expected = np.mean([a[name] - b[name] for name in NAMES if name != NAMES[3]])
    assert result["paired"][0]["difference"] == pytest.approx(expected)


def test_runs_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    def refused(*folders: Path) -> str:
        with pytest.raises(ValueError) as caught:
            compare.compare_runs(read_runs(folders), 10)
        return str(caught.value)

    a = run_folder(tmp_path / "a", errors(0, NAMES[:30]))
    rest = run_folder(tmp_path / "rest", errors(0, NAMES[30:]))
    message = refused(a, rest)
    assert "no image was validated in all of these runs" in message
    assert f"{rest} (30 images)" in message
    other = run_folder(tmp_path / "other", errors(0), table="beef")
    assert "different tables of landmarks" in refused(a, other)
    cut = run_folder(tmp_path / "cut", errors(0))
    lines = (cut / "per_image.csv").read_text().replace("_2.jpg,", "_2.jpg,7")
    (cut / "per_image.csv").write_text(re.sub(r"(_2\.jpg.*),\d+,", r"\1,64,", lines))
    assert "the height of person0_2.jpg differs" in refused(a, cut)
    assert "listed twice" in refused(a, tmp_path / "x" / ".." / "a")
    (tmp_path / "empty").mkdir()
    assert "empty: not a run (no config.json)" in refused(a, tmp_path / "empty")


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("summary.json", "{}", "best_mse is missing"),
        ("evaluation.json", '{"mse": "3.5", "mean_shape_mse": 9}', "mse must be a number, not '3"),
        ("split.json", '{"rule": 3}', "rule must be text, not 3"),
        ("machine.json", "[]", "the content must be an object"),
        ("metrics.jsonl", '{"step": 1}\n', "line 1: epoch is missing"),
        ("config.json", '{"data": {"person_pattern": 3}}', "data.person_pattern must be text"),
        ("per_image.csv", "file_name,mse\n", "row 1: expected file_name, mse, nme, width, height"),
    ],
)
def test_a_damaged_file_of_a_run_is_refused_by_field(
    tmp_path: Path, name: str, text: str, problem: str
) -> None:
    run = run_folder(tmp_path / "a", errors(0))
    (run / name).write_text(text)
    with pytest.raises(UserError, match=rf"a/{name}[:,].*{problem}"):
        read_runs([run])


def test_runs_with_equal_folder_names_are_named_by_path(tmp_path: Path) -> None:
    folders = [run_folder(tmp_path / day / "unet", errors(0)) for day in ("monday", "tuesday")]
    assert [run.name for run in read_runs(folders)] == list(map(str, folders))


def test_evaluations_of_a_run_are_compared_like_runs(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "a", errors(0))
    (run / "evaluation-mirror").mkdir()
    better = {name: value - 0.5 for name, value in errors(0).items()}
    made = run_folder(tmp_path / "mirror", better)
    (made / "per_image.csv").rename(run / "evaluation-mirror" / "per_image.csv")
    scores = {"table": "f00d", "mse": 4.25, "mean_shape_mse": 77.5}
    (run / "evaluation-mirror" / "evaluation.json").write_text(json.dumps(scores))
    result = compare.compare_runs(read_runs([run, run / "evaluation-mirror"]), 10)
    assert result["differences"] == {"evaluation": {"a/evaluation-mirror": "mirror"}}
    assert result["notes"] == []
    own = np.mean(list(errors(0).values()))
    assert re.search(rf"a +{own:.3f} +90\.000 ", compare.format_comparison(result))
    assert re.search(r"a/evaluation-mirror +4\.250 +77\.500 ", compare.format_comparison(result))
    assert result["paired"][0]["run"] == "a/evaluation-mirror"
    assert result["paired"][0]["difference"] == pytest.approx(0.5)
    (run / "evaluation-mirror" / "per_image.csv").rename(run / "per_image.csv")
    again = run_folder(tmp_path / "again", errors(0))
    (note,) = compare.compare_runs(read_runs([run, again]), 10)["notes"]
    assert "does not match the best epoch" in note
    assert f"to rewrite it, run heatmap evaluate {run}" in note


def test_an_evaluation_on_other_data_with_more_views_is_compared(tmp_path: Path) -> None:
    runs = [run_folder(tmp_path / name, errors(seed)) for seed, name in enumerate("ab")]
    folders = [run / "evaluation-other" / "evaluation-mirror" for run in runs]
    for run, folder in zip(runs, folders, strict=True):
        folder.mkdir(parents=True)
        (run / "per_image.csv").rename(folder / "per_image.csv")
        scores = {"table": "beef", "mse": 3.5, "mean_shape_mse": 9.5}
        (folder / "evaluation.json").write_text(json.dumps(scores))
    read = read_runs([folders[0], folders[1]])
    assert [run.name for run in read] == [f"{n}/evaluation-other/evaluation-mirror" for n in "ab"]
    assert [run.settings["evaluation"] for run in read] == ["other/mirror"] * 2
    assert compare.compare_runs(read, 10)["differences"] == {}
    with pytest.raises(ValueError, match=r"evaluation-scale: no evaluation found here"):
        read_runs([runs[0] / "evaluation-scale", folders[1]])


# The command


def test_the_command_prints_and_writes_the_comparison(
    tool: Tool, tmp_path: Path, capsys: Any
) -> None:
    folders = [run_folder(tmp_path / name, errors(seed)) for seed, name in enumerate("abc")]
    page, values = tmp_path / "out" / "compare.html", tmp_path / "out" / "compare.json"
    assert tool("compare", *folders, "--html", page, "--json", values) == 0
    output = capsys.readouterr().out
    result = json.loads(values.read_text())
    assert [pair["run"] for pair in result["paired"] if pair["landmarks"] == "jaw"] == ["b", "c"]
    for pair in result["paired"]:
        if pair["landmarks"] == "all landmarks":
            assert compare.sentence(pair) in output
            assert compare.sentence(pair) in page.read_text().replace("\xa0", " ")
    for table in output.split("\n\n")[:-1]:
        ends = [len(line) for line in table.splitlines()[1:]]
        assert len(set(ends)) == 1, table
    assert page.read_text().count("<svg") == 2


def test_names_of_runs_are_escaped_in_the_page(tmp_path: Path) -> None:
    names = ["<b>", 'a "run" & more']
    folders = [run_folder(tmp_path / name, errors(0)) for name in names]
    result = compare.compare_runs(read_runs(folders), 10)
    page = compare.comparison_page(result)
    assert not Elements(page).of("script")
    assert "<b> and" not in page and "&lt;b&gt;" in page


@pytest.mark.slow
def test_the_page_is_readable_in_a_browser(tmp_path: Path) -> None:
    folders = [run_folder(tmp_path / name, errors(seed)) for seed, name in enumerate("abcd")]
    result = compare.compare_runs(read_runs(folders), 200)
    page = tmp_path / "page.html"
    page.write_text(compare.comparison_page(result), encoding="utf-8")
    for width, seen in zip((400, 1280), shown(page, (400, 1280), tmp_path), strict=True):
        assert seen["page_width"] <= width == seen["screen_width"]
        assert len(seen["charts"]) == 2 and min(seen["charts"]) > 250
        assert compare.sentence(result["paired"][0]) in seen["text"].replace("\xa0", " ")


def test_a_run_without_per_image_errors_is_noted(tool: Tool, tmp_path: Path, capsys: Any) -> None:
    folders = [run_folder(tmp_path / name, errors(seed)) for seed, name in enumerate("ab")]
    (folders[1] / "per_image.csv").unlink()
    (folders[1] / "summary.json").unlink()
    (folders[1] / "metrics.jsonl").write_text("")
    assert tool("compare", *folders, "--html", tmp_path / "c.html") == 0
    output = capsys.readouterr().out
    assert f"to write them, run heatmap evaluate {folders[1]}" in output
    assert re.search(r"b +- +- +- +0 +0.0 +not finished", output)
    assert "than" not in output


def test_one_run_is_wrong_usage(tool: Tool, tmp_path: Path, capsys: Any) -> None:
    assert tool("compare", run_folder(tmp_path / "a", errors(0))) == 2
    assert "name at least two runs" in capsys.readouterr().err


def test_comparing_needs_neither_torch_nor_wandb(tmp_path: Path) -> None:
    folders = [run_folder(tmp_path / name, errors(seed)) for seed, name in enumerate("ab")]
    script = """
import runpy, sys
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as stopped:
    assert not stopped.code
assert not {"torch", "wandb", "kornia"} & set(sys.modules)
"""
    path = Path(__file__).resolve().parents[2] / "tools" / "compare.py"
    command = [sys.executable, "-c", f"import sys; sys.argv[0] = {str(path)!r}\n{script}"]
    subprocess.run([*command, *map(str, folders)], check=True, capture_output=True)


# Runs in Weights & Biases


def test_a_run_in_wandb_is_compared_with_a_folder(
    tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    here = run_folder(tmp_path / "here", errors(0))
    there = run_folder(tmp_path / "there", errors(0), Experiment(name="some", seed=7))
    config = json.loads((there / "config.json").read_text())
    config |= {"split": json.loads((there / "split.json").read_text()), "optimizer.lr": 0.001}
    rows = [json.loads(line) for line in (there / "metrics.jsonl").read_text().splitlines()]
    history = [
        {**row, "_step": row.pop("step"), "_runtime": 1.0, "predictions": {"_type": "table-file"}}
        for row in rows
    ]

    class File:
        def download(self, root: str) -> None:
            (Path(root) / "per_image.csv").write_bytes((there / "per_image.csv").read_bytes())

    def run(path: str) -> Any:
        assert path == "team/faces/1a2b"
        return SimpleNamespace(
            id="1a2b",
            config=config,
            files=lambda names: [File() for name in names if name == "per_image.csv"],
            scan_history=lambda: history,
            summary_metrics={"val/mse": 6.0, **json.loads((there / "summary.json").read_text())},
            state="finished",
        )

    fake = SimpleNamespace(Api=lambda: SimpleNamespace(run=run), Error=RuntimeError)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    assert tool("compare", here, "wandb:team/faces/1a2b", "--json", tmp_path / "c.json") == 0
    result = json.loads((tmp_path / "c.json").read_text())
    assert result["differences"] == {"seed": {"here": 0, "1a2b": 7}}
    assert result["curves"]["1a2b"] == result["curves"]["here"]
    (overall, *_) = result["paired"]
    assert (overall["difference"], overall["better_on"]) == (0, 0)


@pytest.mark.slow
def test_an_unreachable_wandb_is_reported(
    tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert tool("compare", run_folder(tmp_path / "a", errors(0)), "wandb:1a2b") == 1
    message = capsys.readouterr().err
    assert "cannot fetch wandb:1a2b from Weights & Biases" in message
    assert "or pass the run's folder" in message

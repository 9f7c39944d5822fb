"""A person is in one part only, and splits are deterministic."""

import json
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from heatmap.data.contest import (
    PERSON_PATTERN,
    LandmarkTable,
    read_landmarks,
    read_split,
    split_rows,
    write_landmarks,
    write_split,
)

RULES: tuple[Literal["auto", "person", "order", "hash", "random"], ...]
RULES = "auto", "person", "order", "hash", "random"
FACES68 = Path(__file__).parents[4] / "shared" / "data" / "faces68"


def names_of(num_people: int, num_images: int = 3) -> list[str]:
    return [f"Jo_{who}_{which}.jpg" for who in range(num_people) for which in range(num_images)]


def people_in(names: list[str], chosen: np.ndarray) -> set[str]:
    return {name.rpartition("_")[0] for name, taken in zip(names, chosen, strict=True) if taken}


def test_no_person_is_in_both_parts() -> None:
    names = names_of(50)
    split = split_rows(names, rule="person")
    assert split.validation.shape == (150,)
    assert split.validation.dtype == bool
    assert not people_in(names, split.validation) & people_in(names, ~split.validation)
    assert split.validation.sum() == 30
    assert split.rule == "by person (50 people, 10 in validation)"


def test_split_by_person_never_changes_whatever_the_order_of_rows() -> None:
    names = names_of(12)
    for table in (names, list(np.random.default_rng(0).permutation(names))):
        assert people_in(table, split_rows(table).validation) == {"Jo_5", "Jo_10", "Jo_11"}


def test_larger_share_adds_people() -> None:
    names = names_of(50)
    small, large = (
        people_in(names, split_rows(names, share=share).validation) for share in (0.1, 0.5)
    )
    assert small < large


def test_person_pattern_selects_the_person() -> None:
    names = [f"{which}-{who}.png" for who in "abcdefghijklm" for which in range(2)]
    split = split_rows(names, person_pattern=r"\d+-(\w)")
    assert split.rule.startswith("by person (13 people")
    assert (split.validation[0::2] == split.validation[1::2]).all()


def test_split_by_order_takes_the_last_rows_for_validation() -> None:
    split = split_rows(names_of(50), rule="order", share=0.2)
    np.testing.assert_array_equal(np.flatnonzero(split.validation), np.arange(120, 150))
    assert split.rule == "by order (the last 30 of 150 rows)"
    whole = split_rows(["x.jpg"] * 393_930, rule="order", share=0.2)
    assert (~whole.validation).sum() == 315_144
    assert split_rows(["x.jpg"] * 10, rule="order", share=0.9).validation.sum() == 9


def test_random_split_depends_on_the_seed() -> None:
    names = names_of(17)
    split, again, other = (
        split_rows(names, rule="random", share=0.3, seed=seed) for seed in (42, 42, 43)
    )
    np.testing.assert_array_equal(split.validation, again.validation)
    assert (split.validation != other.validation).any()
    by_order = split_rows(names, rule="order", share=0.3).validation
    assert split.validation.sum() == other.validation.sum() == by_order.sum() == 16
    assert 0 < (split.validation & by_order).sum() < 16
    assert split.rule == "at random with seed 42 (16 of 51 rows)"


UNEVEN = [f"P{who}_{which}.jpg" for who in range(23) for which in range(1 + who % 4)]


def test_split_by_hash_is_stable_when_the_table_changes() -> None:
    names = names_of(200)
    grown = [f"New_{number}.jpg" for number in range(77)] + names[::-1]
    for options in ({"share": 0.3}, {"folds": 4, "fold": 2}):
        sides = [
            dict(zip(table, split_rows(table, rule="hash", **options).validation, strict=True))  # type: ignore[arg-type]
            for table in (names, grown)
        ]
        assert sides[0] == {name: sides[1][name] for name in names}
        assert 0.2 < np.mean(list(sides[1].values())) < 0.4
    split = split_rows(names, rule="hash", share=0.3)
    assert split.rule == f"by hash of the file name ({split.validation.sum()} of 600 rows)"
    small = split_rows(names, rule="hash", share=0.1).validation
    assert small.any() and not (small & ~split.validation).any()


@pytest.mark.parametrize("rule", ["person", "order", "hash", "random"])
@pytest.mark.parametrize("folds", [2, 5, 7])
def test_every_row_validates_in_one_fold(
    rule: Literal["person", "order", "hash", "random"], folds: int
) -> None:
    splits = [split_rows(UNEVEN, rule=rule, folds=folds, fold=fold) for fold in range(folds)]
    validation = np.stack([split.validation for split in splits])
    assert validation.shape == (folds, len(UNEVEN))
    assert (validation.sum(0) == 1).all()
    sizes = validation.sum(1)
    spread = {"person": 2 * 3, "order": 1, "random": 1, "hash": len(UNEVEN)}
    assert sizes.max() - sizes.min() <= spread[rule]
    plain = split_rows(UNEVEN, rule=rule, share=1 / folds)
    np.testing.assert_array_equal(splits[0].validation, plain.validation)
    assert len({split.rule for split in splits}) == folds
    assert f"(fold 1 of {folds}: " in splits[1].rule
    if rule == "person":
        for part in validation:
            assert not people_in(UNEVEN, part) & people_in(UNEVEN, ~part)


def test_folds_by_order_start_at_the_end() -> None:
    parts = [
        np.flatnonzero(split_rows(names_of(4), rule="order", folds=5, fold=fold).validation)
        for fold in range(5)
    ]
    expected = [[9, 10, 11], [6, 7, 8], [4, 5], [2, 3], [0, 1]]
    assert [part.tolist() for part in parts] == expected


def test_without_a_share_all_rows_train() -> None:
    for rule in RULES:
        split = split_rows(names_of(3), rule=rule, share=0)
        assert split.validation.tolist() == [False] * 9
        assert split.rule == "none, all rows train"
        assert split_rows(names_of(3), rule=rule, share=0, folds=3).validation.any()


@pytest.mark.parametrize(
    ("names", "rule"),
    [
        (names_of(10), "by person"),
        (names_of(9), "by order"),
        ([*names_of(50), "0123456789abcdef.jpg"], "by order"),
        ([f"{number:032x}.jpg" for number in range(100)], "by order"),
    ],
)
def test_auto_splits_by_person_if_names_show_people(names: list[str], rule: str) -> None:
    assert split_rows(names, rule="auto").rule.startswith(rule)


@pytest.mark.parametrize(
    ("names", "options", "fragment"),
    [
        (names_of(2), {"rule": "order", "folds": 7}, "6 rows by order into 7 folds"),
        (names_of(2), {"rule": "random", "folds": 7}, "6 rows at random .* into 7 folds"),
        (names_of(4), {"rule": "person", "folds": 5}, "12 rows by person into 5 folds"),
        (
            [*names_of(2), *(f"Al_{which}.jpg" for which in range(60))],
            {"rule": "person", "folds": 3},
            "66 rows by person into 3 folds: fold 1 would be empty; .*at random",
        ),
        (["a.jpg"], {"rule": "random"}, "cannot split 1 rows"),
        (["a.jpg"], {"rule": "hash"}, "1 rows by hash .* with a validation share of 0.2: one part"),
        (["a.jpg"], {"rule": "hash", "folds": 2}, "1 rows by hash .* into 2 folds: fold . would"),
        ([*names_of(9), "x.jpg"], {"rule": "person"}, r"'x.jpg' does not match.*\(\.\+\)_"),
        (names_of(9), {"rule": "person", "person_pattern": r"(\d+)_"}, "'Jo_0_0.jpg' does not"),
        (["a_0", "b_0"], {"rule": "person", "person_pattern": "(a)?"}, "'b_0' does not match"),
        (names_of(1), {"rule": "person"}, "3 images show 1 person"),
        (
            names_of(2),
            {"rule": "person", "share": 0.9},
            "6 rows by person with a validation share of 0.9: one part",
        ),
        (names_of(9), {"rule": "person", "person_pattern": "("}, "'\\(' is not valid"),
        (names_of(9), {"rule": "person", "person_pattern": ".+"}, "needs a group"),
        (["a.jpg"], {"rule": "order"}, "cannot split 1 rows"),
        (names_of(9), {"rule": "order", "share": 1e-12}, "cannot split 27 rows"),
        ([], {}, "cannot split 0 rows"),
        (names_of(1), {"share": 0.9}, "cannot split 3 rows"),
    ],
)
def test_impossible_split_is_refused(names: list[str], options: dict, fragment: str) -> None:
    with pytest.raises(ValueError, match=fragment):
        split_rows(names, **options)


def table_of(folder: Path, names: list[str]) -> LandmarkTable:
    path = folder / "landmarks.csv"
    write_landmarks(path, names, np.zeros((len(names), 2, 2)))
    return read_landmarks(path)


def test_stored_split_is_joined_by_file_name(tmp_path: Path) -> None:
    names, path = ["a.jpg", "b,c.jpg", "d/e.jpg", "f.jpg", "g.jpg"], tmp_path / "new" / "split.csv"
    validation = np.array([True, False, False, True, False])
    write_split(path, names, validation)
    assert path.read_text().splitlines()[:2] == ["file_name,part", "a.jpg,validation"]
    split = read_split(path, table_of(tmp_path, names))
    np.testing.assert_array_equal(split.validation, validation)
    assert split.rule == f"from {path} (2 of 5 rows)"
    again = read_split(path, table_of(tmp_path, names[::-1]))
    np.testing.assert_array_equal(again.validation, validation[::-1])

    folds = np.array([2, 0, 1, 0, 2])
    write_split(path, names, folds)
    for fold in range(3):
        split = read_split(path, table_of(tmp_path, names), fold)
        np.testing.assert_array_equal(split.validation, folds == fold)
        assert split.rule == f"from {path} (fold {fold} of 3: {(folds == fold).sum()} of 5 rows)"


@pytest.mark.parametrize(
    ("text", "fold", "fragment"),
    [
        ("file_name,side\na.jpg,train\n", 0, "row 1: expected the columns file_name and either"),
        ("file_name,part,fold\na.jpg,train,1\n", 0, "row 1: expected the columns"),
        ("", 0, "row 1: expected the columns"),
        ("file_name,part\na.jpg\n", 0, "row 2: 1 cells where the header has 2"),
        ("file_name,part\na.jpg,test\n", 0, "row 2, column part: expected train or validation"),
        ("file_name,fold\na.jpg,-1\n", 0, "row 2, column fold: expected a fold's number"),
        ("file_name,part\nx.jpg,train\n", 0, r"row 2, column file_name: 'x.jpg' is not in .*land"),
        ("file_name,part\na.jpg,train\na.jpg,train\n", 0, "row 3, .* 'a.jpg' is already in a row"),
        ("file_name,part\na.jpg,train\n", 0, "1 of the 2 images .* no row, such as 'b.jpg'"),
        ("file_name,part\na.jpg,train\nb.jpg,train\n", 0, "0 of 2 rows in validation"),
        ("file_name,part\na.jpg,train\nb.jpg,validation\n", 1, "not folds; data.fold .* got 1"),
        ("file_name,fold\na.jpg,0\nb.jpg,1\n", 2, "fold 2 of 2: 0 of 2 rows in validation"),
    ],
)
def test_stored_split_of_another_table_is_refused(
    tmp_path: Path, text: str, fold: int, fragment: str
) -> None:
    path = tmp_path / "split.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"^{path}.*{fragment}"):
        read_split(path, table_of(tmp_path, ["a.jpg", "b.jpg"]), fold)


def test_split_of_a_run_is_joined_by_file_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names, path = ["a.jpg", "b.jpg", "c.jpg", "d.jpg"], tmp_path / "split.json"
    table = table_of(tmp_path, names)
    stored = {"table": table.fingerprint, "validation": ["d.jpg", "b.jpg"], "excluded": ["a.jpg"]}
    path.write_text(json.dumps(stored))
    split = read_split(path, table)
    assert (split.kind, split.rule) == ("file", f"from {path} (2 of 4 rows)")
    assert split.validation.tolist() == [False, True, False, True]
    assert split.excluded.tolist() == [0]
    assert not caplog.text
    other = read_split(path, table_of(tmp_path, [*names, "new.jpg"]))
    assert other.validation.tolist() == [False, True, False, True, False]
    assert "a different table than" in caplog.text


@pytest.mark.parametrize(
    ("stored", "fragment"),
    [
        ("[]", "the content must be an object"),
        ('{"rule": ', "not JSON"),
        ('{"excluded": []}', "validation is missing"),
        ('{"validation": [["a.jpg"]], "excluded": []}', "validation.0 must be text"),
        ('{"validation": ["a.jpg"], "excluded": "b.jpg"}', "excluded must be a list, not 'b.jpg'"),
        ('{"validation": ["x.jpg"], "excluded": []}', "validation: 'x.jpg' is not in .*landmarks"),
        ('{"validation": [], "excluded": []}', "0 of 2 rows in validation"),
        ('{"validation": ["a.jpg"], "excluded": ["b.jpg"]}', "1 of 2 rows in validation"),
    ],
)
def test_split_of_a_run_on_another_table_is_refused(
    tmp_path: Path, stored: str, fragment: str
) -> None:
    path = tmp_path / "split.json"
    path.write_text(stored)
    with pytest.raises(ValueError, match=f"^{path}.*{fragment}"):
        read_split(path, table_of(tmp_path, ["a.jpg", "b.jpg"]))


def test_split_has_its_kind() -> None:
    for rule in RULES[1:]:
        assert split_rows(names_of(12), rule=rule).kind == rule
        assert split_rows(names_of(12), rule=rule, share=0).kind == "none"
    assert split_rows(names_of(12)).kind == "person"
    assert split_rows(names_of(2)).kind == "order"


@pytest.mark.skipif(not FACES68.is_dir(), reason="the faces68 data are not next to the repository")
def test_real_people_are_in_one_part() -> None:
    names = read_landmarks(FACES68 / "train" / "landmarks.csv").names
    split = split_rows(names, rule="auto", share=0.2, person_pattern=PERSON_PATTERN)
    validating, training = people_in(names, split.validation), people_in(names, ~split.validation)
    assert not validating & training
    assert (
        split.rule
        == f"by person ({len(validating | training)} people, {len(validating)} in validation)"
    )
    assert 0.2 <= split.validation.mean() < 0.22

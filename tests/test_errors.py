"""What an error quotes is short."""

import pytest

from heatmap.errors import UserError, shortened

LONG = "".join(f"{number:04}" for number in range(25_000))


@pytest.mark.parametrize(
    "text", [LONG, LONG + "\n", LONG + "'", LONG + '"', "'" * 1000, "a b " * 1000, "\\" * 999]
)
def test_a_long_quoted_value_keeps_its_beginning_and_end(text: str) -> None:
    message = str(UserError(f"a file's row 3: {text!r} is not a number; the files' rows have 2"))
    assert message.startswith("a file's row 3: ")
    assert message.endswith(" is not a number; the files' rows have 2")
    assert len(message) < 150
    quoted = message.removeprefix("a file's row 3: ")
    assert quoted[1:9] == repr(text)[1:9] and "..." in quoted
    assert shortened(message) == message


def test_a_long_number_without_quotes_is_shortened() -> None:
    message = str(UserError(f"index {10**4000} is out of range"))
    assert message.startswith("index 1000000") and message.endswith("000 is out of range")
    assert len(message) < 150


def test_paths_and_sentences_stay_whole() -> None:
    folder = "/".join(["a folder's name with 'quotes' in it"] * 20)
    message = (
        f"{folder}/x.csv, row 2: the image's name 'a.jpg' is already in the table's row 1, and the "
        "others' landmarks, which lie elsewhere, may be another person's; remove one of the rows"
    )
    assert str(UserError(message)) == message

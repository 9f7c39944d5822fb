"""Pictures are copied or linked byte for byte; none is ever encoded again."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from heatmap.data.formats.labelled import same


def place(pictures: Sequence[Path], targets: Sequence[Path], *, link: bool, progress: bool) -> None:
    """Gives every picture its place; folders are made as needed.

    A photograph that is placed several times is stored once where the file system can (hard links).

    Args:
        targets: a place for each picture; one place may be given to the same photograph again.
        link: hard links to the pictures in place of copies. They need no room, but who changes one
            changes the other.
        progress: show a bar once it has taken a second.

    Raises:
        ValueError: two different pictures would get the same place, or links cannot be made.
    """
    placed: dict[Path, Path] = {}
    copies: dict[Path, Path] = {}
    pairs = zip(pictures, targets, strict=True)
    what = "Linking" if link else "Copying"
    bar = tqdm(pairs, what, len(pictures), unit="picture", delay=1, disable=not progress)
    for picture, target in bar:
        if target in placed:
            if not same(picture, placed[target]):
                raise ValueError(
                    f"{placed[target]} and {picture} differ, but this format would keep both as "
                    f"{target.name} in one folder; rename one of them"
                )
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            raise ValueError(
                f"{picture}: there is another picture whose name differs from {target.name} in "
                "capital letters alone, and this disk cannot tell them apart; rename one of them"
            )
        if link:
            _link(picture, target)
        else:
            _copy(copies.setdefault(picture, target), picture, target)
        placed[target] = picture


def _link(picture: Path, target: Path) -> None:
    try:
        os.link(picture.resolve(), target)  # a link to a symbolic link would be one
    except OSError as error:
        raise ValueError(
            f"{picture}: cannot be linked ({error.strerror}); copy the pictures: leave --link out"
        ) from error


def _copy(copy: Path, picture: Path, target: Path) -> None:
    if copy != target:
        try:
            os.link(copy, target)
            return
        except OSError:  # a file system without hard links
            pass
    shutil.copyfile(picture, target)

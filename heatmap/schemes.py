"""What is known of a landmark scheme: mirror, groups, curves, normaliser.

Known by number: 971 (the contest's; Megvii's "dense facial landmarks"), 68 (iBUG), 15 (Kaggle's
facial keypoints); "left" is as seen in the image for 971 and 68. Files tell of others.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from heatmap.errors import UserError

GROUPS: dict[int, dict[str, range]] = {
    971: {
        "jaw": range(0, 128),
        "hairline": range(128, 273),
        "left brow": range(273, 337),
        "right brow": range(337, 401),
        "nose": range(401, 587),
        "left eye": range(587, 714),
        "right eye": range(714, 841),
        "mouth": range(841, 969),
        "pupils": range(969, 971),
    },
    68: {
        "jaw": range(0, 17),
        "left brow": range(17, 22),
        "right brow": range(22, 27),
        "nose": range(27, 36),
        "left eye": range(36, 42),
        "right eye": range(42, 48),
        "mouth": range(48, 68),
    },
    15: {
        "eyes": range(0, 6),
        "brows": range(6, 10),
        "nose": range(10, 11),
        "mouth": range(11, 15),
    },
}

# Landmarks that follow one another along an outline; a closed one ends where it began.
CURVES: dict[int, tuple[tuple[int, ...], ...]] = {
    971: (
        (*reversed(range(64)), *range(64, 128)),  # jaw: each half begins at the chin
        tuple(range(128, 273)),  # hairline
        (*range(273, 337), 273),  # brows
        (*range(337, 401), 337),
        (*range(401, 464), *reversed(range(464, 527))),  # sides of the nose, meeting at its base
        tuple(range(527, 587)),  # ridge of the nose
        (*range(587, 650), 587),  # eyes: the opening, and the lids round it
        (*range(650, 714), 650),
        (*range(714, 777), 714),
        (*range(777, 841), 777),
        (*range(841, 905), 841),  # lips
        (*range(905, 969), 905),
    ),
    68: (
        tuple(range(17)),  # jaw
        tuple(range(17, 22)),  # brows
        tuple(range(22, 27)),
        tuple(range(27, 31)),  # nose: ridge and base
        tuple(range(31, 36)),
        (*range(36, 42), 36),  # eyes
        (*range(42, 48), 42),
        (*range(48, 60), 48),  # mouth: outer and inner edge of the lips
        (*range(60, 68), 60),
    ),
    15: ((2, 0, 3), (4, 1, 5), (6, 7), (8, 9), (11, 13, 12, 14, 11)),
}

# The two landmarks whose distance normalises the NME.
_EYES = {971: ("pupils", 969, 970), 68: ("outer eye corners", 36, 45), 15: ("eye centres", 0, 1)}


@dataclass(frozen=True)
class Scheme:
    """What a file tells of a landmark scheme, in place of what is known of it here.

    permutation: as `mirror_permutation` returns it; groups: as `groups` does.
    """

    permutation: np.ndarray
    groups: dict[str, range]

    def __post_init__(self) -> None:
        landmarks = np.arange(len(self.permutation))
        if not np.array_equal(np.sort(self.permutation), landmarks):
            raise UserError("its permutation does not name every landmark once")
        if not np.array_equal(self.permutation[self.permutation], landmarks):
            raise UserError("its permutation is no involution: mirroring twice changes something")
        members = [landmark for group in self.groups.values() for landmark in group]
        if sorted(members) != landmarks.tolist():
            raise UserError("its groups do not hold every landmark once")

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values; groups as [first, one after the last]."""
        groups = {name: [members.start, members.stop] for name, members in self.groups.items()}
        return {"permutation": self.permutation.tolist(), "groups": groups}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Scheme":
        """What `to_dict` was given; other values beside these mean nothing."""
        permutation = np.array(values["permutation"])
        if permutation.ndim != 1 or permutation.dtype.kind != "i":
            raise UserError("its permutation is not a list of integers")
        groups = {str(name): range(*bounds) for name, bounds in values["groups"].items()}
        return cls(permutation.astype(np.int64), groups)


def read_scheme(path: Path, num_landmarks: int) -> Scheme:
    """The scheme in a file that tools/data.py symmetry wrote.

    Raises:
        UserError: no such file, not one of these, or for another number of landmarks.
    """
    try:
        scheme = Scheme.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        wrong = isinstance(error, KeyError | TypeError | AttributeError)
        reason = "it lacks permutation or groups" if wrong else error
        raise UserError(f"{path}: not a file of tools/data.py symmetry: {reason}") from None
    if len(scheme.permutation) != num_landmarks:
        raise UserError(
            f"{path} is for {len(scheme.permutation)} landmarks, but the table has {num_landmarks}"
        )
    return scheme


def mirror_permutation(num_landmarks: int, scheme: Scheme | None = None) -> np.ndarray:
    """Where each landmark of a mirrored image comes from: `mirrored = points[..., p, :]`.

    (P,) int64, an involution. The x coordinates are mirrored apart from this.

    Raises:
        UserError: no permutation is known for this number of landmarks.
    """
    if scheme is not None:
        return scheme.permutation
    if num_landmarks == 971:
        parts: Iterable[Iterable[int]] = (
            range(64, 128), range(0, 64),  # jaw halves, both from the chin outwards
            reversed(range(128, 273)),  # hairline, ear to ear
            range(337, 401), range(273, 337),  # brows
            range(464, 527), range(401, 464),  # sides of the nose
            range(527, 587),  # ridge of the nose: its own mirror
            range(714, 841), range(587, 714),  # eyes, inner and outer ring
            reversed(range(841, 873)), reversed(range(873, 905)),  # upper lip
            reversed(range(905, 937)), reversed(range(937, 969)),  # lower lip
            (970, 969),  # pupils
        )  # fmt: skip
    elif num_landmarks == 68:
        parts = (
            reversed(range(0, 17)),  # jaw
            reversed(range(17, 27)),  # brows
            range(27, 31), reversed(range(31, 36)),  # nose
            (45, 44, 43, 42, 47, 46), (39, 38, 37, 36, 41, 40),  # eyes
            reversed(range(48, 55)), reversed(range(55, 60)),  # outer lips
            reversed(range(60, 65)), reversed(range(65, 68)),  # inner lips
        )  # fmt: skip
    elif num_landmarks == 15:
        # left and right eye: centre, inner and outer corner; brow ends; nose; mouth corners, lips
        parts = ((1, 0, 4, 5, 2, 3, 8, 9, 6, 7, 10, 12, 11, 13, 14),)
    else:
        raise UserError(
            f"no mirror permutation is known for {num_landmarks} landmarks (known: 971, 68, 15); "
            "tools/data.py symmetry DIR tells it, for --data.symmetry; or do without: "
            "--augment.mirror 0, no --tta mirror"
        )
    permutation = np.fromiter(chain.from_iterable(parts), np.int64)
    assert np.array_equal(permutation[permutation], np.arange(num_landmarks))
    return permutation


def groups(num_landmarks: int, scheme: Scheme | None = None) -> dict[str, range]:
    """Named regions of the face, each a range of landmarks; one group "all" for other schemes."""
    if scheme is not None:
        return scheme.groups
    return GROUPS.get(num_landmarks, {"all": range(num_landmarks)})


def curves(num_landmarks: int, scheme: Scheme | None = None) -> tuple[tuple[int, ...], ...]:
    """The outlines of the face's regions, each within a group, as in `CURVES`; else none."""
    return () if scheme is not None else CURVES.get(num_landmarks, ())


def normaliser(points: np.ndarray) -> tuple[str, np.ndarray]:
    """The length that divides an image's mean point error to give its NME.

    From (N, P, 2) points, NaN where unlabelled, its name and (N,) lengths in their unit, NaN where
    zero or not labelled: the distance of `_EYES`, else "box", the root of the area of the box round
    the labelled landmarks.
    """
    num_landmarks = points.shape[-2]
    if num_landmarks in _EYES:
        name, left, right = _EYES[num_landmarks]
        length = np.linalg.norm(points[..., left, :] - points[..., right, :], axis=-1)
    else:
        name = "box"
        labelled = np.isfinite(points).all(-1, keepdims=True)
        highest = np.where(labelled, points, -np.inf).max(-2)
        lowest = np.where(labelled, points, np.inf).min(-2)
        extent = np.where(np.isfinite(highest), highest - lowest, np.nan)
        length = np.sqrt(extent.prod(-1))
    return name, np.where(length > 0, length, np.nan)

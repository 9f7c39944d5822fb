"""Landmark schemes: mirror permutation, groups, curves and the NME's normaliser.

Built in are 971 landmarks (the contest's, Megvii's "dense facial landmarks"), 194 (Helen's), 68
(iBUG), 15 (Kaggle's facial keypoints) and 5 (MTFL, CelebA: eyes, nose, mouth corners); others come
from files. Except for 15, "left" is as seen in the image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, TypedDict

import numpy as np

from heatmap.errors import UserError, located
from heatmap.runtime.files import read_json
from heatmap.runtime.validate import typed

GROUPS: dict[int, dict[str, range]] = {
    971: {
        "jaw": range(0, 128), "hairline": range(128, 273),
        "left brow": range(273, 337), "right brow": range(337, 401), "nose": range(401, 587),
        "left eye": range(587, 714), "right eye": range(714, 841),
        "mouth": range(841, 969), "pupils": range(969, 971),
    },
    194: {
        "jaw": range(0, 41), "nose": range(41, 58), "mouth": range(58, 114),
        "right eye": range(114, 134), "left eye": range(134, 154),
        "right brow": range(154, 174), "left brow": range(174, 194),
    },
    68: {
        "jaw": range(0, 17), "left brow": range(17, 22), "right brow": range(22, 27),
        "nose": range(27, 36), "left eye": range(36, 42), "right eye": range(42, 48),
        "mouth": range(48, 68),
    },
    15: {
        "eyes": range(0, 6), "brows": range(6, 10), "nose": range(10, 11), "mouth": range(11, 15),
    },
    5: {"eyes": range(0, 2), "nose": range(2, 3), "mouth": range(3, 5)},
}  # fmt: skip

# Consecutive landmarks of each outline; a closed one repeats its first at the end.
CURVES: dict[int, tuple[tuple[int, ...], ...]] = {
    971: (
        (*reversed(range(64)), *range(64, 128)),  # jaw: each half begins at the chin
        tuple(range(128, 273)),  # hairline
        (*range(273, 337), 273), (*range(337, 401), 337),  # brows
        (*range(401, 464), *reversed(range(464, 527))),  # sides of the nose, meeting at its base
        tuple(range(527, 587)),  # ridge of the nose
        (*range(587, 650), 587), (*range(650, 714), 650),  # left eye: opening, and lids around it
        (*range(714, 777), 714), (*range(777, 841), 777),  # right eye
        (*range(841, 905), 841), (*range(905, 969), 905),  # upper and lower lip
    ),
    194: (
        tuple(range(41)), tuple(range(41, 58)),  # jaw, nose
        (*range(58, 86), 58), (*range(86, 114), 86),  # outer and inner edge of the lips
        (*range(114, 134), 114), (*range(134, 154), 134),  # eyes
        (*range(154, 174), 154), (*range(174, 194), 174),  # brows
    ),
    68: (
        tuple(range(17)),  # jaw
        tuple(range(17, 22)), tuple(range(22, 27)),  # brows
        tuple(range(27, 31)), tuple(range(31, 36)),  # ridge and base of the nose
        (*range(36, 42), 36), (*range(42, 48), 42),  # eyes
        (*range(48, 60), 48), (*range(60, 68), 60),  # outer and inner edge of the lips
    ),
    15: ((2, 0, 3), (4, 1, 5), (6, 7), (8, 9), (11, 13, 12, 14, 11)),
}  # fmt: skip

# The mirror permutation in pieces, in the order of the landmarks.
_MIRRORS: dict[int, tuple[Sequence[int], ...]] = {
    971: (
        range(64, 128), range(0, 64),  # jaw halves, both from the chin outwards
        range(128, 273)[::-1],  # hairline, ear to ear
        range(337, 401), range(273, 337),  # brows
        range(464, 527), range(401, 464),  # sides of the nose
        range(527, 587),  # ridge of the nose: its own mirror image
        range(714, 841), range(587, 714),  # eyes, inner and outer ring
        range(841, 873)[::-1], range(873, 905)[::-1],  # upper lip
        range(905, 937)[::-1], range(937, 969)[::-1],  # lower lip
        (970, 969),  # pupils
    ),
    # Le et al. 2012, "Interactive Facial Feature Localization", ECCV. Contours of the mouth begin
    # at its left corner, those of eyes and brows at the inner end, all with the upper edge.
    194: (
        range(0, 41)[::-1], range(41, 58)[::-1],  # jaw, nose
        range(58, 73)[::-1], range(73, 86)[::-1],  # outer edge of the lips, upper and lower
        range(86, 101)[::-1], range(101, 114)[::-1],  # inner edge
        range(134, 154), range(114, 134),  # eyes
        range(174, 194), range(154, 174),  # brows
    ),
    68: (
        range(0, 17)[::-1],  # jaw
        range(17, 27)[::-1],  # brows
        range(27, 31), range(31, 36)[::-1],  # nose
        (45, 44, 43, 42, 47, 46), (39, 38, 37, 36, 41, 40),  # eyes
        range(48, 55)[::-1], range(55, 60)[::-1],  # outer lips
        range(60, 65)[::-1], range(65, 68)[::-1],  # inner lips
    ),
    # left and right eye: centre, inner and outer corner; brow ends; nose; mouth corners, lips
    15: ((1, 0, 4, 5, 2, 3, 8, 9, 6, 7, 10, 12, 11, 13, 14),),
    5: ((1, 0, 2, 4, 3),),
}  # fmt: skip

# The two landmarks whose distance normalises the NME.
_EYES = {
    971: ("pupils", 969, 970), 68: ("outer eye corners", 36, 45), 15: ("eye centres", 0, 1),
    5: ("eye centres", 0, 1),
}  # fmt: skip


_Landmark = Annotated[int, "[0, 1e6]"]


class _Fields(TypedDict):
    permutation: list[_Landmark]
    groups: dict[str, tuple[_Landmark, _Landmark]]


@dataclass(frozen=True)
class Scheme:
    """A landmark scheme from a file, used instead of a built-in one."""

    permutation: np.ndarray  # (P,) int64, as `mirror_permutation` returns it
    groups: dict[str, range]  # as `groups` returns them

    def __post_init__(self) -> None:
        landmarks = np.arange(len(self.permutation))
        if not np.array_equal(np.sort(self.permutation), landmarks):
            raise UserError("the permutation does not hold every landmark once")
        if not np.array_equal(self.permutation[self.permutation], landmarks):
            raise UserError("the permutation applied twice is not the identity")
        if sorted(chain.from_iterable(self.groups.values())) != landmarks.tolist():
            raise UserError("the groups do not hold every landmark once")

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON values; each group is [start, stop)."""
        groups = {name: [members.start, members.stop] for name, members in self.groups.items()}
        return {"permutation": self.permutation.tolist(), "groups": groups}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Scheme":
        """Rebuilds a scheme from the values of `to_dict`; ignores other keys.

        Raises:
            UserError: a value is missing or invalid.
        """
        fields = typed(_Fields, values)
        groups = {name: range(*bounds) for name, bounds in fields["groups"].items()}
        return cls(np.array(fields["permutation"], np.int64), groups)


def read_scheme(path: Path, num_landmarks: int) -> Scheme:
    """Reads the JSON file that heatmap data symmetry wrote.

    Raises:
        UserError: the file is missing, malformed or for another number of landmarks.
    """
    values = read_json(path, dict[str, Any])
    with located(f"{path}: not a file from heatmap data symmetry"):
        scheme = Scheme.from_dict(values)
    if len(scheme.permutation) != num_landmarks:
        raise UserError(
            f"{path} is for {len(scheme.permutation)} landmarks, but the table has {num_landmarks}"
        )
    return scheme


def mirror_permutation(num_landmarks: int, scheme: Scheme | None = None) -> np.ndarray:
    """Returns (P,) int64: the source of each landmark of a mirrored image.

    `mirrored = points[..., permutation, :]`, an involution. The x coordinates are
    mirrored separately.

    Raises:
        UserError: the permutation of this number of landmarks is unknown.
    """
    if scheme is not None:
        return scheme.permutation
    if num_landmarks not in _MIRRORS:
        known = ", ".join(map(str, _MIRRORS))
        raise UserError(
            f"the mirror permutation is unknown for {num_landmarks} landmarks (known: {known}); "
            "find it with heatmap data symmetry DIR and pass the file as --data.symmetry, or do "
            "not mirror: --augment.mirror 0, no --tta mirror"
        )
    permutation = np.fromiter(chain.from_iterable(_MIRRORS[num_landmarks]), np.int64)
    assert np.array_equal(permutation[permutation], np.arange(num_landmarks))
    return permutation


def groups(num_landmarks: int, scheme: Scheme | None = None) -> dict[str, range]:
    """Returns the named regions of the face; an unknown scheme has one group, "all"."""
    if scheme is not None:
        return scheme.groups
    return GROUPS.get(num_landmarks, {"all": range(num_landmarks)})


def curves(num_landmarks: int, scheme: Scheme | None = None) -> tuple[tuple[int, ...], ...]:
    """Returns the outlines of the face, each within one group; an unknown scheme has none."""
    return () if scheme is not None else CURVES.get(num_landmarks, ())


def normaliser(points: np.ndarray) -> tuple[str, np.ndarray]:
    """Returns the name and (N,) values of the NME's normaliser, a length in pixels.

    It is the distance between the eyes (`_EYES`), or for other schemes the square root of the area
    of the bounding box ("box"). NaN where it is zero or not labelled.

    Args:
        points: (N, P, 2), NaN where unlabelled.
    """
    num_landmarks = points.shape[-2]
    if num_landmarks in _EYES:
        name, left, right = _EYES[num_landmarks]
        length = np.linalg.norm(points[..., left, :] - points[..., right, :], axis=-1)
    else:
        name, is_labelled = "box", np.isfinite(points).all(-1, keepdims=True)
        highest = np.where(is_labelled, points, -np.inf).max(-2)
        lowest = np.where(is_labelled, points, np.inf).min(-2)
        extent = np.where(np.isfinite(highest), highest - lowest, np.nan)
        length = np.sqrt(extent.prod(-1))
    return name, np.where(length > 0, length, np.nan)

"""A 3D head: identity, expression and pose to 971 landmarks.

`face` describes the head frame. The eyes are at y = 0, and the head rotates about z = 0.
"""

from functools import cache
from importlib.resources import files

import numpy as np

from heatmap.data.synthetic.face import Expression, Pose, Shape

_MOUTH_Y = 1.094
_MOUTH_HALF_WIDTH = 0.417
_FACE_CENTRE_Y = 0.35


@cache
def _template() -> np.ndarray:
    """(971, 2) float64 x and y of the mean face in the head frame."""
    table = files("heatmap").joinpath("template971.csv").read_text().splitlines()
    return np.loadtxt(table, delimiter=",", skiprows=1, usecols=(3, 4))


def _rotation(angle_deg: float) -> np.ndarray:
    angle = np.deg2rad(angle_deg)
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def smoothstep(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 below `low`, 1 above `high`, a cubic with zero slope at both."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


class Head:
    """A posed head: its landmarks, and transforms between head frame and image.

    The mask is the head's surface without nose, brows, lips, chin and eye sockets. 2D points are
    the x and y of points on the surface.

    Attributes:
        points_head: (971, 3) landmarks in the head frame.
        points_image: (971, 2) landmarks in image pixels.
    """

    JAW = slice(0, 128)
    HAIRLINE = slice(128, 273)
    BROWS = slice(273, 337), slice(337, 401)
    NOSE_SIDES = slice(401, 464), slice(464, 527)
    RIDGE = slice(527, 587)
    EYES = slice(587, 650), slice(714, 777)
    LIDS = slice(650, 714), slice(777, 841)
    PUPILS = 969, 970
    LIPS = slice(841, 969)
    UPPER_LIP, LOWER_LIP = (slice(841, 873), slice(873, 905)), (slice(905, 937), slice(937, 969))

    def __init__(self, shape: Shape, expression: Expression, pose: Pose) -> None:
        self.shape, self.pose = shape, pose
        about_x, about_y = np.eye(3), np.eye(3)
        about_x[1:, 1:] = _rotation(pose.pitch_deg)
        about_y[::2, ::2] = _rotation(pose.yaw_deg).T
        self.rotation = about_x @ about_y
        self._roll = _rotation(pose.roll_deg)
        self._offset = np.zeros(2)

        points = self._identity(_express(_template().copy(), shape, expression))
        self.points_head = self.lift(points)
        for outline in (self.JAW, self.HAIRLINE):
            self.points_head[outline] = self._silhouette(points[outline])
        outline_image = self.project(self.points_head[: self.HAIRLINE.stop])
        middle = (outline_image.min(0) + outline_image.max(0)) / 2
        self._offset = np.array([pose.x_image, pose.y_image]) - middle
        self.points_image = self.project(self.points_head)
        self._hide_far_side_of_nose()

    def _identity(self, points: np.ndarray) -> np.ndarray:
        """Moves (..., 2) points of the template to this person's face."""
        shape = self.shape
        x, y = points[..., 0], points[..., 1]
        side = smoothstep(np.abs(x), 0.3, 1.1)
        widening = shape.face_width - 1 + (shape.temple_width - 1) * smoothstep(-y, -0.3, 0.9)
        widening += (shape.jaw_width - 1) * smoothstep(y, 0.4, 1.5)
        below_chin = shape.chin_point * np.exp(-((x / 0.3) ** 2)) * smoothstep(y, 1.3, 1.8)
        lengthening = sum(
            amount * (np.tanh((y - level) / reach) + np.tanh(level / reach)) / 2
            for amount, level, reach in (
                (shape.forehead, -0.75, 0.4),
                (shape.nose_length, 0.4, 0.35),
                (shape.philtrum, 0.92, 0.15),
                (shape.chin, 1.5, 0.3),
            )
        )
        bend = shape.lean * (y - _FACE_CENTRE_Y) * np.abs(y - _FACE_CENTRE_Y)
        return np.stack([x * (1 + widening * side) + bend, y + lengthening + below_chin], -1)

    def depth(self, points: np.ndarray, *, relief: bool = True) -> np.ndarray:
        """Returns the (...) z of the head at (..., 2) points, or of the mask without `relief`."""
        x, y = points[..., 0] / self.shape.face_width, points[..., 1] - _FACE_CENTRE_Y
        height = np.where(y < 0, 2.05, 2.5)
        inside = 1 - (x / 1.3) ** 2 - (y / height) ** 2
        inside = (inside + np.sqrt(inside**2 + 0.01)) / 2  # positive, and decreasing outwards
        z = 1.05 * np.sqrt(inside)
        if not relief:
            return z
        tip = 0.58 + self.shape.nose_length / 2
        x, y = points[..., 0], points[..., 1]
        above = np.where(y < tip, 0.36 + self.shape.nose_length / 2, 0.15)
        nose = 0.38 * np.exp(-(((y - tip) / above) ** 2)) + 0.06 * np.exp(-((y / 0.3) ** 2))
        z = z + self.shape.nose_height * nose * np.exp(-((x / (0.17 + 0.05 * (y > tip))) ** 2))
        mouth = _MOUTH_Y + self.shape.nose_length + self.shape.philtrum
        for amount, centre_x, centre_y, reach_x, reach_y in (
            (0.09, 0.0, mouth, 0.4, 0.2),
            (0.10, 0.0, mouth + 0.55, 0.3, 0.2),
            (0.06, 0.4, -0.25, 0.5, 0.13),
            (-0.10, 0.5, 0.03, 0.28, 0.14),
            (0.05, 0.68, 0.5, 0.3, 0.25),
        ):
            across = np.exp(-(((np.abs(x) - centre_x) / reach_x) ** 2))
            z = z + amount * across * np.exp(-(((y - centre_y) / reach_y) ** 2))
        return z

    def lift(self, points: np.ndarray, *, relief: bool = True) -> np.ndarray:
        """Returns (..., 2) points with their depth as (..., 3)."""
        return np.concatenate([points, self.depth(points, relief=relief)[..., None]], -1)

    def project(self, points: np.ndarray) -> np.ndarray:
        """Returns the (..., 2) points_image of (..., 3) points."""
        turned = points @ self.rotation.T
        grown = turned[..., :2] * (1 + self.pose.perspective * turned[..., 2:])
        return self.pose.scale_px * grown @ self._roll.T + self._offset

    def project_mask(self, x: np.ndarray | float, y: np.ndarray | float) -> np.ndarray:
        """Returns the (..., 2) points_image of points on the mask, given as template x and y."""
        points = self._identity(np.stack(np.broadcast_arrays(x, y), -1).astype(np.float64))
        return self.project(self.lift(points, relief=False))

    def unproject(self, points_image: np.ndarray) -> np.ndarray:
        """Returns the (..., 2) points of the mask that project to `points_image`.

        A damped fixed-point iteration. Outside the silhouette it ends near the outline.
        """
        rolled = (points_image - self._offset) / self.pose.scale_px @ self._roll
        inverse = np.linalg.inv(self.rotation[:2, :2])
        points = rolled
        for _ in range(9):
            z = self.depth(points, relief=False)
            turned_z = points @ self.rotation[2, :2] + z * self.rotation[2, 2]
            flat = rolled / (1 + self.pose.perspective * turned_z)[..., None]
            points = 0.5 * points + 0.5 * (flat - z[..., None] * self.rotation[:2, 2]) @ inverse.T
            points = np.clip(points, (-1.4, -1.7), (1.4, 2.6))
        return points

    def _silhouette(self, points: np.ndarray) -> np.ndarray:
        """Returns the (N, 3) outline of the rotated head from its (N, 2) frontal outline.

        A point hidden by the head slides over the mask towards the face's centre, to the place
        furthest out in the image.
        """
        middle = np.array([0.0, _FACE_CENTRE_Y])
        share = np.linspace(1, 0.6, 24)[:, None, None]
        candidates = self.lift(middle + share * (points - middle), relief=False)
        projected = self.project(candidates)
        outwards = projected[0] - self.project(self.lift(middle, relief=False))
        furthest = np.einsum("snk,nk->sn", projected, outwards).argmax(0)
        return candidates[furthest, np.arange(len(points))]

    def _hide_far_side_of_nose(self) -> None:
        """Moves points of the nose side hidden behind the ridge onto the ridge."""
        upright = (self.points_image - self._offset) @ self._roll
        ridge = upright[self.RIDGE]
        for side, sign in zip(self.NOSE_SIDES, (-1, 1), strict=True):
            at_ridge = np.interp(upright[side, 1], ridge[:, 1], ridge[:, 0])
            upright[side, 0] = sign * np.maximum(sign * upright[side, 0], sign * at_ridge)
        self.points_image = upright @ self._roll.T + self._offset


def _express(points: np.ndarray, shape: Shape, expression: Expression) -> np.ndarray:
    """Applies identity and expression to (971, 2) template points in place; returns them."""
    for index, sign in enumerate((-1, 1)):
        _move_eye(points, index, shape, expression)
        _move_brow(points[Head.BROWS[index]], sign, shape, expression)
        points[Head.NOSE_SIDES[index], 0] *= shape.nose_width * (
            1 + 0.08 * max(expression.smile, 0)
        )
    _move_mouth(points, shape, expression)
    below_mouth = smoothstep(points[Head.JAW, 1], 0.9, 1.857)
    points[Head.JAW, 1] += 0.3 * expression.mouth_open * below_mouth
    return points


def _move_eye(points: np.ndarray, index: int, shape: Shape, expression: Expression) -> None:
    """Opens or closes an eye, turns its gaze, and sets size, tilt and position.

    Both rings begin at the outer corner and run along the upper lid; point k faces point N - k.
    """
    sign = (-1, 1)[index]
    closed = np.clip(1 - expression.eye_open - sign * expression.eye_difference, -0.4, 1)
    rings = points[Head.EYES[index]], points[Head.LIDS[index]], points[Head.PUPILS[index]][None]
    eye, lid, pupil = ((ring - (0.5 * sign, 0)) * (sign, 1) for ring in rings)

    for ring, remains in ((eye, 0.0), (lid, 0.1)):  # the lashes of a closed eye stay visible
        order = np.arange(len(ring))
        opposite = ring[-order, 1]
        upper = order < len(ring) / 2
        shift = np.where(upper, 0.8, 0.2) * min(closed, 1 - remains)
        ring[:, 1] += shift * (opposite - ring[:, 1])

    pupil[0, 0] += 0.09 * expression.gaze_x * sign
    upper_lid, lower_lid = eye[31::-1], eye[32:]
    top = np.interp(pupil[0, 0], upper_lid[:, 0], upper_lid[:, 1])
    bottom = np.interp(pupil[0, 0], lower_lid[:, 0], lower_lid[:, 1])
    pupil[0, 1] = top + (0.42 + 0.25 * expression.gaze_y) * (bottom - top)

    turn, centre = _rotation(shape.eye_tilt_deg), np.array((0.5 + shape.eye_spacing, 0))
    for ring, moved in zip(rings, (eye, lid, pupil), strict=True):
        ring[:] = (moved * (shape.eye_width, shape.eye_height) @ turn + centre) * (sign, 1)


def _move_brow(brow: np.ndarray, sign: int, shape: Shape, expression: Expression) -> None:
    """Sets a brow's thickness, tilt and position, and raises or knits it."""
    centre = np.array((0.57, -0.22))
    local = brow * (sign, 1) - centre
    bow = -0.06 * (local[:, 0] / 0.34) ** 2
    local[:, 1] = bow + (local[:, 1] - bow) * shape.brow_thickness
    local = local @ _rotation(shape.brow_tilt_deg)
    inner = smoothstep(-local[:, 0], -0.2, 0.35)
    raised = expression.brow_raise + sign * expression.brow_difference
    local[:, 1] += expression.frown * 0.07 * inner - 0.12 * raised - shape.brow_lift
    local[:, 0] += shape.brow_spacing - 0.05 * expression.frown * inner
    brow[:] = (local + centre) * (sign, 1)


def _move_mouth(points: np.ndarray, shape: Shape, expression: Expression) -> None:
    """Sets the lips' width and fullness, opens and bends them; closed lips share an edge."""
    smile = expression.smile
    across = np.clip(points[:, 0] / _MOUTH_HALF_WIDTH, -1, 1)
    gap = 0.42 * expression.mouth_open * (1 - across**2) * (1 + 0.6 * across**2)
    fullness = 1 - 0.25 * max(smile, 0)
    for part, thickness, opening in (
        (Head.UPPER_LIP[0], shape.upper_lip * fullness, -0.25),
        (Head.UPPER_LIP[1], 0.0, -0.25),
        (Head.LOWER_LIP[0], shape.lower_lip * fullness, 0.75),
        (Head.LOWER_LIP[1], 0.0, 0.75),
    ):
        lip = points[part]
        lip[:, 1] = _MOUTH_Y + (lip[:, 1] - _MOUTH_Y) * thickness + opening * gap[part]
        corner = across[part]
        lip[:, 1] -= (0.10 * smile + 0.08 * expression.smile_difference * corner) * corner**2
        lip[:, 0] *= shape.mouth_width * (1 + 0.16 * smile - 0.12 * expression.mouth_open)

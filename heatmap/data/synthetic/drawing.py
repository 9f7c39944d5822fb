"""Paints a face layer by layer, from back to front.

The float canvas has a moderate size. It is then resized and given a camera's defects. Facial
features are polygons of the landmarks themselves.
"""

import cv2
import numpy as np

from heatmap.data.synthetic.canvas import Canvas, noise, tinted
from heatmap.data.synthetic.face import Colour, FaceSpec, as_colour
from heatmap.data.synthetic.head import Head, smoothstep

Pair = tuple[float, float]


class _Painting:
    """State shared by the layers; points are in canvas pixels."""

    def __init__(self, face: FaceSpec) -> None:
        height = int(np.clip(face.camera.height, 248, 380))
        scale = height / face.camera.height
        self.face, self.head = face, Head(face.shape, face.expression, face.pose)
        self.canvas = Canvas(height, round(face.camera.width * scale), face.pose.scale_px * scale)
        self.rng = np.random.Generator(np.random.Philox(face.look.texture_seed))
        self.points = self.to_canvas(self.head.points_image)  # (971, 2)
        # (128, 2) polygon, up the left half and down the right.
        self.jaw = np.concatenate([self.points[:64], self.points[127:63:-1]])
        self.hair = _hair_layer(self)  # (3, H, W)

    def to_canvas(self, points_image: np.ndarray) -> np.ndarray:
        """Canvas pixels of `points_image`; both grids cover the same area."""
        camera, canvas = self.face.camera, self.canvas
        scale = canvas.width / camera.width, canvas.height / camera.height
        return (points_image + 0.5) * scale - 0.5

    def on_skin(self, x: np.ndarray | float, y: np.ndarray | float) -> np.ndarray:
        """Canvas pixels of points on the skin, given as template x and y."""
        return self.to_canvas(self.head.project_mask(x, y))

    def project(self, points_head: np.ndarray) -> np.ndarray:
        """Canvas pixels of (..., 3) points in the head frame."""
        return self.to_canvas(self.head.project(points_head))

    def skin(self, share: float) -> Colour:
        """The skin's colour times `share`."""
        return as_colour(np.array(self.face.look.skin) * share)


def paint(face: FaceSpec) -> tuple[np.ndarray, np.ndarray]:
    """Paints a face.

    Returns:
        (H, W, 3) uint8 RGB image, and (971, 2) float64 points_image, perhaps outside the image.
    """
    painting = _Painting(face)
    for paint_layer in (
        _paint_background, _paint_hair_behind, _paint_body, _paint_ears, _paint_skin,
        _paint_wrinkles, _paint_nose, _paint_eyes, _paint_brows, _paint_mouth,
        _paint_hair_in_front, _paint_glasses, _paint_hat,
    ):  # fmt: skip
        paint_layer(painting)
    return _camera_image(painting), painting.head.points_image


def _paint_background(painting: _Painting) -> None:
    """A gradient of two colours, and shapes in a third, out of focus."""
    rng, canvas = painting.rng, painting.canvas
    first, second, third = (np.array(colour) for colour in painting.face.look.background)
    height, width = canvas.height // 3, canvas.width // 3
    x, y = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
    angle = rng.uniform(0, 2 * np.pi)
    ramp = smoothstep(x * np.cos(angle) + y * np.sin(angle), -1, 1)[..., None]
    layer = (first + ramp * (second - first)).astype(np.float32)
    layer *= 1 + rng.uniform(0, 0.2) * noise(rng, height, width, rng.uniform(2, 30))[..., None]
    for _ in range(rng.integers(0, 10)):
        colour = np.clip(third * np.exp(rng.normal(0, 0.5) + rng.normal(0, 0.15, 3)), 0, 1).tolist()
        centre = (rng.uniform(0, 1, 2) * (width, height)).astype(int).tolist()
        reach = (rng.uniform(0.04, 0.5, 2) * (width, height)).astype(int).tolist()
        if rng.random() < 0.4:
            cv2.ellipse(layer, centre, reach, rng.uniform(0, 180), 0, 360, colour, -1)
        else:
            box = cv2.boxPoints((centre, reach, float(rng.choice((0, 0, 90, 20)))))
            cv2.fillPoly(layer, [box.astype(np.int32)], colour)
    layer = cv2.GaussianBlur(layer, (0, 0), float(rng.uniform(0.4, 5)))
    layer = cv2.resize(layer, (canvas.width, canvas.height), interpolation=cv2.INTER_LINEAR)
    canvas.planes[:] = cv2.split(layer)


def _hair_layer(painting: _Painting) -> np.ndarray:
    """(3, H, W) float32 hair over the whole canvas, with strands that radiate from the crown."""
    rng, canvas, hair = painting.rng, painting.canvas, painting.face.look.hair
    crown = painting.project(np.array((0.25 * hair.parting, -1.3 - hair.length, 0.3)))
    x, y = np.meshgrid(
        (np.arange(canvas.width) - crown[0]) / canvas.unit,
        (np.arange(canvas.height) - crown[1]) / canvas.unit,
    )
    radius, angle = cv2.cartToPolar(x.astype(np.float32), y.astype(np.float32))
    bend = np.float32(0.06 + 0.3 * hair.curl) * canvas.noise(rng, 0.45)
    strands = noise(rng, 32, 512, 1) + noise(rng, 32, 512, 6)
    around = (angle * np.float32(1 + hair.length) + bend) * np.float32(60)
    value = cv2.remap(strands, around, radius * 4, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    if hair.curl > 0.5:
        value = 0.5 * value + 0.8 * canvas.noise(rng, 0.07)
    toward_x, toward_y, _ = painting.face.light.direction
    lit = np.clip(0.2 * (x * toward_x + (y - 1.3) * toward_y), -0.3, 0.3).astype(np.float32)
    return tinted(np.clip(1 + lit + 0.2 * value, 0.3, 1.8), hair.colour)


def _ellipse(centre: np.ndarray, axes: np.ndarray, num: int = 72) -> np.ndarray:
    """(num, 2) outline of an ellipse; the rows of (2, 2) `axes` are its half axes."""
    angle = np.linspace(0, 2 * np.pi, num, endpoint=False)
    return centre + np.stack([np.cos(angle), np.sin(angle)], -1) @ axes


def _disc(centre: np.ndarray, radius: float) -> np.ndarray:
    return _ellipse(centre, radius * np.eye(2), 16)


def _skull(painting: _Painting, volume: float) -> np.ndarray:
    """Outline of the ellipsoid behind the face, `volume` larger for hair."""
    centre = np.array((0, -0.26, -0.1))
    radii = np.array((1.12 * painting.face.shape.face_width, 1.14, 1.05)) + volume
    half_axes = painting.project(centre + np.diag(radii)) - painting.project(centre)
    squares, directions = np.linalg.eigh(half_axes.T @ half_axes)
    return _ellipse(painting.project(centre), np.sqrt(squares)[:, None] * directions.T)


def _wavy(rng: np.random.Generator, line: np.ndarray, amount: float) -> np.ndarray:
    """Adds smooth noise of about `amount` to a (N, D) line."""
    num, axes = line.shape
    coarse = rng.standard_normal((num // 4, axes))
    return line + amount * cv2.resize(coarse, (axes, num), interpolation=cv2.INTER_CUBIC)


def _paint_hair_behind(painting: _Painting) -> None:
    canvas, rng, hair = painting.canvas, painting.rng, painting.face.look.hair
    if hair.length > 0.36:
        end = np.interp(hair.length, (0.36, 1.0), (0.6, 3.6))
        y = np.linspace(-0.8, end, 24)
        width = 1.06 * painting.face.shape.face_width + hair.volume
        x = width * (1 + 0.1 * np.sin(np.linspace(0, 2.6, 24)))
        sides = [np.stack([sign * x, y, np.full(24, -0.1)], -1) for sign in (-1, 1)]
        left, right = (_wavy(rng, side, 0.05) for side in sides)
        curtain = painting.project(np.concatenate([left, right[::-1]]))
        canvas.fill([curtain], painting.hair, blur=0.02)
    skull = _skull(painting, hair.volume)
    if hair.length == 0:
        canvas.fill([skull], painting.skin(0.85), blur=0.01)
    else:
        canvas.fill([_wavy(rng, skull, 0.03 * canvas.unit)], painting.hair, blur=0.02)


def _paint_body(painting: _Painting) -> None:
    canvas, look, unit = painting.canvas, painting.face.look, painting.canvas.unit
    roll = np.deg2rad(painting.face.pose.roll_deg)
    nape = painting.project(np.array((0, 1.0, -0.2)))
    collar = nape + unit * np.array((-0.3 * np.sin(roll), 1.55))
    half = look.neck * painting.face.shape.jaw_width
    across = unit * half * np.array((np.cos(roll), np.sin(roll)))
    flare, hollow = unit * np.array(((half + 0.22, 0), (0, 0.6)))
    neck = np.stack([nape - across, nape + across, collar + flare, collar + hollow, collar - flare])
    shoulder = np.array([(-4, 3.5), (-2.6, 0.95), (-1.8, 0.35), (-half - 0.12, -0.1), (0, 0.5)])
    shoulder = np.concatenate([shoulder, shoulder[-2::-1] * (-1, 1)])
    torso = collar + unit * shoulder
    cloth = np.clip(1 + 0.12 * canvas.noise(painting.rng, 0.4), 0.6, 1.4)
    canvas.fill([neck], painting.skin(0.76), blur=0.02)
    shadow = painting.jaw + unit * np.array((0, 0.2))
    canvas.fill([shadow], painting.skin(0.3), opacity=0.55, blur=0.12, inside=[neck])
    canvas.fill([torso], tinted(cloth, look.clothes), blur=0.015)
    canvas.stroke([torso[3:6]], as_colour(np.array(look.clothes) * 0.6), 0.05, blur=0.02)


def _paint_ears(painting: _Painting) -> None:
    canvas = painting.canvas
    if painting.face.look.hair.length > 0.4:
        return
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    outwards = 0.5 + 0.5 * np.cos(angle)
    for sign in (-1, 1):
        x = sign * (1.07 * painting.face.shape.face_width + 0.14 * outwards)
        y = 0.1 + 0.32 * np.sin(angle) - 0.06 * outwards
        ear = painting.project(np.stack([x, y, 0.3 - 0.25 * outwards], -1))
        concha = ear.mean(0) + 0.6 * (ear - ear.mean(0))
        canvas.fill([ear], painting.skin(0.8), blur=0.01)
        canvas.fill([concha], painting.skin(0.5), blur=0.04, opacity=0.7)


def _bump(points: np.ndarray, centre: np.ndarray, offset: Pair, reach: Pair) -> np.ndarray:
    """(...) Gaussian of (..., 2) points, 1 at `centre + offset`."""
    return np.exp(-(((points - (centre + offset)) / reach) ** 2).sum(-1))


def _lit_skin(painting: _Painting) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shaded skin on a coarse grid over the canvas.

    Returns:
        (h, w, 2) points in the head frame, (h, w, 3) colour, (h, w) shade.
    """
    face, head, canvas = painting.face, painting.head, painting.canvas
    look, light = face.look, face.light
    rows, columns = 56, round(56 * canvas.width / canvas.height)
    grid = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), -1) + 0.5
    places = head.unproject(grid * (face.camera.width / columns, face.camera.height / rows) - 0.5)

    step = 0.02
    z = head.depth(places)
    slope_x = (head.depth(places + np.array((step, 0))) - z) / step
    slope_y = (head.depth(places + np.array((0, step))) - z) / step
    normal = np.stack([-slope_x, -slope_y, np.ones_like(z)], -1) @ head.rotation.T
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    shade = light.ambient + (1 - light.ambient) * 1.2 * np.maximum(normal @ light.direction, 0)
    halfway = light.direction + np.array((0, 0, 1))  # between the light and the camera
    gloss = np.maximum(normal @ (halfway / np.linalg.norm(halfway)), 0) ** 30

    marks = head.points_head[:, :2]
    nose_base, lip_bottom = marks[580], marks[920]
    hollows = 0.16 * _bump(places, nose_base, (0, 0.03), (0.3, 0.1))
    hollows += 0.18 * _bump(places, lip_bottom, (0, 0.1), (0.26, 0.08))
    blush = 0.35 * _bump(places, nose_base, (0, -0.17), (0.22, 0.16))
    for sign, eye, side in zip((-1, 1), Head.EYES, Head.NOSE_SIDES, strict=True):
        eye_centre, wing = marks[eye].mean(0), marks[side][32]
        hollows += 0.12 * _bump(places, eye_centre, (-sign * 0.1, -0.02), (0.3, 0.16))
        hollows += 0.08 * _bump(places, eye_centre, (-sign * 0.1, 0.17), (0.2, 0.07))
        hollows += 0.15 * _bump(places, wing, (sign * 0.05, -0.02), (0.07, 0.14))
        blush += _bump(places, eye_centre, (sign * 0.14, 0.56), (0.3, 0.24))
    shade *= 1 - np.minimum(hollows, 0.5)
    redness = 0.22 * look.blush * blush[..., None] * (-0.1, 0.7, 0.55)
    return places, look.skin * (1 - redness) * shade[..., None] + 0.14 * gloss[..., None], shade


def _paint_skin(painting: _Painting) -> None:
    """Skin inside the outline, with beard and spots."""
    canvas, rng, look = painting.canvas, painting.rng, painting.face.look
    marks = painting.head.points_head[:, :2]
    places, colour, shade = _lit_skin(painting)

    def full_size(layer: np.ndarray) -> np.ndarray:
        layer = layer.astype(np.float32)
        return cv2.resize(layer, (canvas.width, canvas.height), interpolation=cv2.INTER_CUBIC)

    pores = rng.standard_normal((canvas.height, canvas.width), np.float32)
    uneven = 1 + 0.02 * pores + 0.025 * canvas.noise(rng, 0.12)
    layer = np.stack(cv2.split(full_size(colour))) * uneven

    if look.beard or look.moustache:
        lips, (x, y) = marks[Head.LIPS].mean(0), np.moveaxis(places, -1, 0)
        away = 1 - np.exp(-((((x - lips[0]) / 0.5) ** 2 + ((y - lips[1]) / 0.24) ** 2) ** 2))
        beard = look.beard * away * smoothstep(y + 0.6 * np.abs(x), 1.2, 1.65)
        lip_top = marks[[580, 857], 1].mean()
        moustache = np.exp(-((((y - lip_top) / 0.1) ** 2 + ((x - lips[0]) / 0.42) ** 6) ** 2))
        hairs = full_size(np.maximum(beard, look.moustache * moustache))
        hairs = np.clip(hairs * (1 + 0.3 * pores), 0, 0.95)
        bristle = np.clip(1 + 0.25 * pores, 0.3, 2) * full_size(shade)
        layer += hairs * (tinted(bristle, look.hair.colour) - layer)

    canvas.fill([painting.jaw, painting.points[Head.HAIRLINE]], layer)
    if look.spots:
        across, down = rng.normal(0, 0.5, look.spots), rng.normal(0.35, 0.35, look.spots)
        radii = canvas.unit * rng.uniform(0.008, 0.022, look.spots)
        places = painting.on_skin(across, down)
        spots = [_disc(place, radius) for place, radius in zip(places, radii, strict=True)]
        canvas.fill(spots, painting.skin(0.6), opacity=0.45, inside=[painting.jaw])


def _paint_wrinkles(painting: _Painting) -> None:
    canvas, points, wrinkles = painting.canvas, painting.points, painting.face.look.wrinkles
    smile = max(painting.face.expression.smile, 0)
    dark = painting.skin(0.45)
    t = np.linspace(0, 1, 12)[:, None]
    folds = []
    for sign, wing, corner in ((-1, 432, 841), (1, 495, 872)):
        out = painting.on_skin(sign * 0.62, 0.9) - painting.on_skin(sign * 0.45, 0.9)
        start, end = points[wing] + 0.15 * out, points[corner] + 0.7 * out
        bend = (start + end) / 2 + 0.5 * out
        folds.append((1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end)
    canvas.stroke(folds, dark, 0.02, opacity=0.12 + 0.3 * wrinkles + 0.3 * smile, blur=0.025)
    if wrinkles > 0.35:
        x = np.linspace(-0.55, 0.55, 14)
        lines = [
            painting.on_skin(x, level + 0.04 * np.cos(3 * x) + painting.rng.normal(0, 0.008, 14))
            for level in (-0.55, -0.72, -0.88)
        ]
        for sign in (-1, 1):
            across = sign * np.array((0.8, 0.98))
            lines += [
                painting.on_skin(across, np.array((0.0, rise))) for rise in (-0.1, 0.02, 0.13)
            ]
            under_eye = 0.2 + 0.05 * np.sin(np.linspace(0, 3, 8))
            lines.append(painting.on_skin(sign * np.linspace(0.3, 0.68, 8), under_eye))
        canvas.stroke(lines, dark, 0.012, opacity=0.65 * wrinkles, blur=0.012)


def _paint_nose(painting: _Painting) -> None:
    canvas, points = painting.canvas, painting.points
    dark, ridge = painting.skin(0.42), points[Head.RIDGE]
    canvas.stroke([ridge[14:38]], painting.skin(1.25), 0.07, opacity=0.3, blur=0.05)
    canvas.stroke([ridge[53:]], dark, 0.05, opacity=0.15, blur=0.03)
    sides = [points[side] for side in Head.NOSE_SIDES]
    canvas.stroke([side[:30] for side in sides], dark, 0.03, opacity=0.25, blur=0.035)
    canvas.stroke([side[26:46] for side in sides], dark, 0.025, opacity=0.55, blur=0.015)
    canvas.stroke([side[44:] for side in sides], dark, 0.03, opacity=0.5, blur=0.02)
    height = 0.04 * (1 + painting.face.pose.pitch_deg / 25) * canvas.unit
    for side in sides:
        across = 0.3 * (side[60] - side[44])
        down = height * np.array((-across[1], across[0])) / np.hypot(*across)
        up_from_base = np.array((0, -0.6 * height))
        nostril = _ellipse(side[50:54].mean(0) + up_from_base, np.stack([across, down]), 20)
        canvas.fill([nostril], painting.skin(0.13), opacity=0.85, blur=0.015)


def _paint_eyes(painting: _Painting) -> None:
    canvas, head, points = painting.canvas, painting.head, painting.points
    look, light = painting.face.look, painting.face.light
    openings, lids = [points[eye] for eye in Head.EYES], [points[lid] for lid in Head.LIDS]
    upper_lids, lower_lids = [lid[:33] for lid in lids], [lid[32:] for lid in lids]
    black, dark = (0.05, 0.04, 0.035), painting.skin(0.35)
    lift = painting.on_skin(0.5, -0.05) - painting.on_skin(0.5, 0.0)
    canvas.fill(lids, dark, opacity=0.45, blur=0.02)
    canvas.stroke([lid[3:-2] + lift for lid in upper_lids], dark, 0.014, opacity=0.5, blur=0.012)

    level = 0.35 + 0.65 * light.ambient
    canvas.fill(openings, as_colour(np.array(look.eye_white) * level))

    def discs(radius: float) -> list[np.ndarray]:
        outline = np.pad(_ellipse(np.zeros(2), radius * np.eye(2), 32), ((0, 0), (0, 1)))
        return [painting.project(head.points_head[pupil] + outline) for pupil in Head.PUPILS]

    for radius, share, blur in ((0.095, 0.55, 0.0), (0.082, 1.0, 0.006), (0.055, 1.3, 0.012)):
        shade = as_colour(np.array(look.iris) * share * level)
        canvas.fill(discs(radius), shade, inside=openings, blur=blur)
    canvas.fill(discs(0.038), (0.02, 0.02, 0.02), inside=openings)
    toward_light = 0.035 * canvas.unit * np.array(light.direction[:2])
    glints = [_disc(points[pupil] + toward_light, 0.018 * canvas.unit) for pupil in Head.PUPILS]
    canvas.fill(glints, (1, 1, 1), opacity=0.9, inside=openings)
    canvas.stroke(upper_lids, black, 0.05, opacity=0.45, blur=0.02, inside=openings)
    canvas.stroke(upper_lids, black, 0.024, opacity=0.4 + 0.6 * look.lashes)
    canvas.stroke(lower_lids, dark, 0.012, opacity=0.35 + 0.3 * look.lashes, blur=0.005)
    tear_ducts = [_disc(lid[30:35].mean(0), 0.02 * canvas.unit) for lid in lids]
    canvas.fill(tear_ducts, as_colour(np.array(look.skin) * (0.8, 0.5, 0.45)), blur=0.01)


def _paint_brows(painting: _Painting) -> None:
    """Soft patches, and hairs that slant from the lower edge outwards to the upper one."""
    canvas, rng = painting.canvas, painting.rng
    brows = [painting.points[brow] for brow in Head.BROWS]
    colour = np.array(painting.face.look.brows)
    canvas.fill(brows, as_colour(colour), opacity=0.75, blur=0.006)
    hairs: list[np.ndarray] = []
    for brow in brows:
        upper, lower = brow[:32], brow[:31:-1]  # both begin at the outer end
        root = rng.integers(0, 31, 60)
        tip = np.maximum(root - 4, 0)
        low, high = rng.uniform(0, 1, (60, 1)), rng.uniform(0, 0.5, (60, 1))
        start = upper[root] + low * (lower[root] - upper[root])
        end = upper[tip] + low * high * (lower[tip] - upper[tip])
        hairs += list(np.stack([start, end], 1))
    canvas.stroke(hairs[::3], as_colour(1.3 * colour + 0.03), 0.01, opacity=0.4, inside=brows)
    dark_hairs = hairs[1::3] + hairs[2::3]
    canvas.stroke(dark_hairs, as_colour(0.7 * colour), 0.01, opacity=0.6, inside=brows)


def _paint_mouth(painting: _Painting) -> None:
    canvas, look, points = painting.canvas, painting.face.look, painting.points
    level = 0.45 + 0.55 * painting.face.light.ambient
    lips = np.array(look.lips) * level
    upper, upper_edge = (points[part] for part in Head.UPPER_LIP)
    lower, lower_edge = (points[part] for part in Head.LOWER_LIP)
    upper_lip, lower_lip = np.concatenate([upper, upper_edge]), np.concatenate([lower, lower_edge])
    canvas.fill([upper_lip, lower_lip], as_colour(lips))
    canvas.fill([upper_lip], as_colour(0.85 * lips))
    bright = (0.45 * lower + 0.55 * lower_edge[::-1])[9:23]
    shine = as_colour(1.25 * lips + 0.08)
    canvas.stroke([bright], shine, 0.05, opacity=0.4, blur=0.03, inside=[lower_lip])

    dark = as_colour(0.25 * lips)
    if painting.face.expression.mouth_open > 0:
        opening = np.concatenate([upper_edge, lower_edge[::-1]])
        canvas.fill([opening], (0.13, 0.05, 0.05))
        tooth = painting.on_skin(0.0, 1.21) - painting.on_skin(0.0, 1.1)
        teeth = np.concatenate([upper_edge[3:-3], upper_edge[-4:2:-1] + tooth])
        enamel = as_colour(look.teeth * level * np.array((1, 0.97, 0.9)))
        canvas.fill([teeth], enamel, inside=[opening], blur=0.008)
        canvas.stroke([upper_edge], dark, 0.05, opacity=0.5, blur=0.02, inside=[opening])
    canvas.stroke([upper_edge], dark, 0.016, opacity=0.75, blur=0.006)
    corners = [_disc(points[corner], 0.03 * canvas.unit) for corner in (841, 872)]
    canvas.fill(corners, dark, opacity=0.35, blur=0.02)


def _paint_hair_in_front(painting: _Painting) -> None:
    """A fringe over the forehead, which hides landmarks of the hairline."""
    canvas, hair = painting.canvas, painting.face.look.hair
    if hair.fringe == 0:
        return
    x = np.linspace(-1.12, 1.12, 60)
    beside_parting = smoothstep(np.abs(x - hair.parting), 0.0, 0.9)
    edge = -1.2 + hair.fringe * (0.25 + 0.6 * beside_parting)
    edge += 0.35 * smoothstep(np.abs(x), 0.8, 1.12)
    edge += 0.025 * (1 + hair.curl) * painting.rng.standard_normal(60)
    middle, hairline = painting.on_skin(0.0, 0.0), painting.points[Head.HAIRLINE]
    over_hairline = middle + (1 + 0.5 * hair.volume) * (hairline[8:-8] - middle)
    fringe = np.concatenate([painting.on_skin(x, edge), over_hairline])
    shadow = fringe + canvas.unit * np.array((0, 0.05))
    canvas.fill([shadow], (0.05, 0.03, 0.03), opacity=0.25, blur=0.05)
    canvas.fill([fringe], painting.hair, blur=0.008)


def _paint_glasses(painting: _Painting) -> None:
    glasses, canvas, head = painting.face.look.glasses, painting.canvas, painting.head
    if glasses is None:
        return
    angle = np.linspace(0, 2 * np.pi, 49)
    circle = np.stack([np.cos(angle), np.sin(angle)], -1)
    lens = np.sign(circle) * np.abs(circle) ** (2 / glasses.roundness)
    lens *= (glasses.width / 2, glasses.height / 2)
    eyes = [head.points_head[eye].mean(0) for eye in Head.EYES]
    front = max(eye[2] for eye in eyes) + 0.22
    rims, arms = [], []
    for sign, eye in zip((-1, 1), eyes, strict=True):
        back = 0.12 * (lens[:, 0] * sign + glasses.width / 2)
        x, y = (eye[:2] + lens).T
        rim = painting.project(np.stack([x + 0.02 * sign, y + 0.06, front - back], -1))
        rims.append(rim)
        if sign * painting.face.pose.yaw_deg < 12:  # the head hides the other arm
            ear = (1.13 * sign * painting.face.shape.face_width, -0.02, 0.2)
            arms.append(np.stack([rim[24 if sign < 0 else 0], painting.project(np.array(ear))]))
    left, right = rims
    bridge = np.stack([left[0], (left[2] + right[22]) / 2, right[24]])
    canvas.fill(rims, (0.04, 0.04, 0.05), opacity=glasses.tint)
    canvas.fill([rim[[30, 33, 4, 1]] for rim in rims], (1, 1, 1), opacity=0.1, blur=0.02)
    canvas.stroke([*rims, bridge, *arms], glasses.colour, glasses.thickness)


def _paint_hat(painting: _Painting) -> None:
    hat, canvas = painting.face.look.hat, painting.canvas
    if hat is None:
        return
    x = np.linspace(-1.16, 1.16, 24)
    rim = painting.on_skin(x, -0.78 + 0.3 * x**2)
    angle = np.linspace(0, np.pi, 24)
    dome = np.stack([1.26 * np.cos(angle), -0.5 - 1.15 * np.sin(angle), np.full(24, 0.1)], -1)
    outline = np.concatenate([rim, painting.project(dome)])
    knit = np.clip(1 + 0.12 * canvas.noise(painting.rng, 0.06), 0.5, 1.5)
    down = canvas.unit * np.array((0, 0.05))
    canvas.fill([outline + down], (0.05, 0.03, 0.03), opacity=0.3, blur=0.05)
    canvas.fill([outline], tinted(knit, hat), blur=0.008)
    canvas.stroke([rim - 4 * down], as_colour(0.7 * np.array(hat)), 0.03, blur=0.02)


def _camera_image(painting: _Painting) -> np.ndarray:
    """(H, W, 3) uint8: the canvas at the image's size, with the camera's light and defects."""
    camera, light, canvas = painting.face.camera, painting.face.light, painting.canvas
    height, width = camera.height, camera.width
    interpolation = cv2.INTER_AREA if height < canvas.height else cv2.INTER_CUBIC
    grain = painting.rng.standard_normal((height, width), np.float32)
    if camera.grain_px > 0.5:
        grain = cv2.GaussianBlur(grain, (0, 0), camera.grain_px) * (3.5 * camera.grain_px)
    planes = []
    for plane, gain in zip(canvas.planes, light.gain, strict=True):
        small = cv2.resize(plane, (width, height), interpolation=interpolation)
        if camera.blur_px > 0.25:
            small = cv2.GaussianBlur(small, (0, 0), camera.blur_px)
        exposed = small * np.float32(255 * gain) + np.float32(255 * camera.noise) * grain
        planes.append(np.clip(exposed, 0, 255).astype(np.uint8))
    tones = np.round(255 * np.linspace(0, 1, 256) ** light.gamma).astype(np.uint8)
    image = cv2.LUT(cv2.merge(planes), tones)
    if camera.grey:
        image[:] = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
    left, top, right, bottom = camera.borders
    image[:top] = image[height - bottom :] = 0
    image[:, :left] = image[:, width - right :] = 0
    return image

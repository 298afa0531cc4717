"""A chest-CT phantom: the geometry of a patient.

Everything is in millimetres and Hounsfield units (HU). A patient is drawn once from a generator (:func:`draw_patient`); any slab of the
patient can then be rendered on any grid (:func:`render`), and :mod:`pppml_core.learning.scanner` makes images of it. Axes: ``x`` from the
patient's right to left (image columns), ``y`` from front to back (rows), ``z`` from the apex of the lungs to their base (slices).

The anatomy is a sketch for developing and showing software: ellipses for body, lungs, mediastinum, heart, great vessels and bones, a
branching vessel tree in each lung, a liver dome. Lesions are unions of soft-edged ellipsoids: ground glass (-700 to -500 HU) and
consolidation (0 to 50 HU), mostly peripheral and posterior. It is no model of a disease and proves nothing about patients.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]

#: Height of the lungs in mm, apex to base, before each patient's own scale.
LUNG_MM = 240.0
#: HU of the materials.
AIR, FAT, MUSCLE, BLOOD, BONE, MARROW, LIVER = -1000.0, -100.0, 45.0, 45.0, 420.0, 180.0, 60.0
GROUND_GLASS, CONSOLIDATION = (-700.0, -500.0), (0.0, 50.0)


@dataclass(frozen=True)
class Lesion:
    """A union of soft ellipsoids: ``centres`` and ``radii`` (n, 3) in mm; ``hu`` inside; ``edge`` is the width of the border relative to
    the radius.
    """

    centres: F32
    radii: F32
    hu: float
    edge: float


@dataclass(frozen=True)
class Patient:
    """The geometry of one patient; see :func:`draw_patient` for units and ranges."""

    body: tuple[float, float]
    cavity: tuple[float, float]
    height: float
    wall: float
    heart: float
    parenchyma: float
    rib_phase: float
    shift: tuple[float, float]
    vessels: F32
    lesions: tuple[Lesion, ...]


def draw_patient(generator: np.random.Generator, *, lesions: int, lesion_scale: float = 1.0, consolidation: float = 0.35) -> Patient:
    """A patient drawn from ``generator``.

    Args:
        generator: the only source of chance.
        lesions: number of lesions; 0 is a healthy patient.
        lesion_scale: multiplies the lesion radii (14 to 36 mm for each of the 2 to 5 ellipsoids of a lesion).
        consolidation: probability that a lesion has a consolidated core.

    """
    width = float(np.clip(generator.normal(165, 12), 140, 195))
    fat = float(generator.uniform(5, 18))
    wall = float(generator.uniform(14, 21))
    body = (width, width * float(generator.uniform(0.66, 0.76)))
    cavity = (body[0] - fat - wall, body[1] - fat - wall)
    bare = Patient(
        body=body,
        cavity=cavity,
        height=LUNG_MM * float(generator.uniform(0.9, 1.1)),
        wall=wall,
        heart=float(generator.uniform(0.85, 1.15)),
        parenchyma=float(generator.uniform(-885, -835)),
        rib_phase=float(generator.uniform(0, 2 * np.pi)),
        shift=(float(generator.normal(0, 5)), float(generator.normal(0, 4))),
        vessels=np.zeros((0, 4), np.float32),
        lesions=(),
    )
    grown = replace(bare, vessels=_vessel_tree(bare, generator))
    return replace(grown, lesions=_lesions(grown, generator, lesions, lesion_scale, consolidation))


@dataclass(frozen=True)
class Slab:
    """Rendered slices: ``hu`` float32, ``lesion`` and ``lung`` coverage in [0, 1], all of shape ``(slices, size, size)``."""

    hu: F32
    lesion: F32
    lung: F32


def render(patient: Patient, z: npt.ArrayLike, *, size: int, fov: float, thickness: float = 1.0, contrast: float = 0.0) -> Slab:
    """Thin slices of a patient.

    Args:
        patient: as drawn.
        z: positions in mm from the apex, any shape that flattens to ``(slices,)``; 0 to ``patient.height`` lies in the lungs.
        size: pixels along each side of a slice.
        fov: field of view, the side of a slice in mm; a pixel is ``fov / size``.
        thickness: what one of these slices takes in along z, in mm, for the partial volume of vessels.
        contrast: HU added to blood by contrast agent.

    """
    depth = np.asarray(z, np.float32).ravel()
    pixel = fov / size
    along = ((np.arange(size, dtype=np.float32) - (size - 1) / 2) * pixel).astype(np.float32)
    x, y, t = along[None, None, :] - patient.shift[0], along[None, :, None] - patient.shift[1], (depth / patient.height)[:, None, None]
    canvas = _Canvas(np.full((depth.size, size, size), AIR, np.float32), x, y, pixel)
    _table(canvas, patient)
    _trunk(canvas, patient, t)
    lung = _cover(lung_distance(patient, x, y, t), pixel)
    # The lungs weigh more towards the back, where the patient lies.
    canvas.blend(lung, patient.parenchyma + 45.0 * y / patient.cavity[1])
    _mediastinum(canvas, patient, t, contrast)
    vessels = _splat(patient, depth, size, pixel, thickness) * lung
    canvas.blend(vessels, BLOOD + contrast)
    lesion = np.zeros_like(canvas.hu)
    grid_z = depth[:, None, None]
    for one in patient.lesions:
        inside = canvas.inside(one, grid_z) * lung
        # Where a vessel runs through ground glass it stays visible: a lesion fills air, it does not thin tissue.
        canvas.hu = np.where(one.hu > canvas.hu, canvas.hu + inside * (one.hu - canvas.hu), canvas.hu)
        lesion = np.maximum(lesion, inside)
    return Slab(canvas.hu, lesion, lung)


def lung_distance(patient: Patient, x: npt.ArrayLike, y: npt.ArrayLike, t: npt.ArrayLike) -> F32:
    """Signed distance in mm to the surface of the lungs, negative inside, to first order. ``t`` is ``z / patient.height``."""
    x, y, t = (np.asarray(v, np.float32) for v in (x, y, t))
    a, b = patient.cavity
    # Dome of the apex: the cavity opens over the first third of the height.
    opening = np.sqrt(np.clip(1 - (1 - np.clip(t / 0.4, 0.02, 1)) ** 2, 0.05, 1))
    out = _distance(x, y, a * opening, b * (0.35 + 0.65 * opening))
    middle = 24.0 + 9.0 * np.clip(t, 0, 1)
    out = np.maximum(out, -_distance(x, y - 4.0, middle, 1.06 * b))
    hx, hy, ha, hb = _heart(patient, t)
    out = np.maximum(out, -_distance(x - hx, y - hy, ha, hb))
    out = np.maximum(out, -_distance(x, y - 0.93 * b, 30.0, 26.0))
    for side, radius, peak in ((-1, 92.0, 0.78), (1, 78.0, 0.86)):
        rise = (t - peak) * patient.height
        reach = np.sqrt(np.clip(radius**2 - np.clip(radius - rise, 0, radius) ** 2, 0.01, None))
        dome = _distance(x - side * 0.5 * a, y - 2.0, np.minimum(reach, 0.6 * a), np.minimum(reach, 0.8 * b))
        out = np.where(rise > 0, np.maximum(out, -dome), out)
    return np.where((t < 0) | (t > 1.15), np.float32(50.0), out).astype(np.float32)


def _heart(patient: Patient, t: F32) -> tuple[float, float, F32, F32]:
    swell = np.sqrt(np.clip(1 - ((t - 0.74) / 0.34) ** 2, 1e-4, 1)) * patient.heart
    return 18.0, -0.22 * patient.cavity[1], 56.0 * swell, 42.0 * swell


def _distance(x: npt.ArrayLike, y: npt.ArrayLike, a: npt.ArrayLike, b: npt.ArrayLike) -> F32:
    """Signed distance to an ellipse at the origin, to first order: ``(r - 1) / |grad r|``."""
    x, y, a, b = (np.asarray(v, np.float32) for v in (x, y, a, b))
    u, v = x / a, y / b
    r = np.sqrt(u * u + v * v)
    slope = np.sqrt((u / a) ** 2 + (v / b) ** 2)
    out: F32 = (r - 1) * (r + 1e-3) / (slope + 1e-3 / np.minimum(a, b))
    return out


def _cover(distance: npt.NDArray[np.floating], pixel: float) -> F32:
    """Share of a pixel inside a shape whose surface is ``distance`` mm away: a linear ramp one pixel wide."""
    out: F32 = np.clip(0.5 - distance / pixel, 0.0, 1.0)
    return out


class _Canvas:
    """HU of some slices, painted shape by shape; small shapes touch only their own box."""

    def __init__(self, hu: F32, x: F32, y: F32, pixel: float) -> None:
        self.hu, self.x, self.y, self.pixel = hu, x, y, pixel

    def blend(self, cover: F32, value: npt.ArrayLike) -> None:
        self.hu += cover * (np.asarray(value, np.float32) - self.hu)

    def box(self, cx: float, cy: float, rx: float, ry: float) -> tuple[slice, slice]:
        columns = np.flatnonzero(np.abs(self.x.ravel() - cx) <= rx + self.pixel)
        rows = np.flatnonzero(np.abs(self.y.ravel() - cy) <= ry + self.pixel)
        return (
            slice(rows[0], rows[-1] + 1) if rows.size else slice(0, 0),
            slice(columns[0], columns[-1] + 1) if columns.size else slice(0, 0),
        )

    def ellipse(self, cx: float, cy: float, a: npt.ArrayLike, b: npt.ArrayLike, value: float, where: npt.ArrayLike = 1.0) -> None:
        """Paint an ellipse; ``a`` and ``b`` may differ by slice, ``where`` (by slice) says how much of it is there."""
        rows, columns = self.box(cx, cy, float(np.max(a)), float(np.max(b)))
        part = self.hu[:, rows, columns]
        cover = _cover(_distance(self.x[:, :, columns] - cx, self.y[:, rows] - cy, a, b), self.pixel) * np.asarray(where, np.float32)
        part += cover * (value - part)

    def inside(self, lesion: Lesion, z: F32) -> F32:
        """Share of each pixel that a lesion fills, before the lung's border cuts it."""
        outside = np.ones_like(self.hu)
        for (cx, cy, cz), (rx, ry, rz) in zip(lesion.centres, lesion.radii, strict=True):
            reach = 1 + 3 * lesion.edge
            rows, columns = self.box(cx, cy, reach * rx, reach * ry)
            slices = np.flatnonzero(np.abs(z.ravel() - cz) <= reach * rz)
            if slices.size == 0 or rows.stop == rows.start or columns.stop == columns.start:
                continue
            here = slice(slices[0], slices[-1] + 1)
            r = np.sqrt(
                ((self.x[:, :, columns] - cx) / rx) ** 2 + ((self.y[:, rows] - cy) / ry) ** 2 + ((z[here] - cz) / rz) ** 2,
                dtype=np.float32,
            )
            outside[here, rows, columns] *= 1 / (1 + np.exp(np.clip((1 - r) / lesion.edge * 2, -30, 30)))
        return (1 - outside).astype(np.float32)


def _table(canvas: _Canvas, patient: Patient) -> None:
    """The curved table top under the patient."""
    line = patient.body[1] + 14.0 - 0.0016 * canvas.x**2
    canvas.blend(_cover(np.abs(canvas.y - line) - 3.0, canvas.pixel) * (np.abs(canvas.x) < 190), -250.0)


def _trunk(canvas: _Canvas, patient: Patient, t: F32) -> None:
    """Skin and fat, muscle, ribs, sternum, shoulder blades, spine."""
    (a, b), (ca, cb), pixel = patient.body, patient.cavity, canvas.pixel
    canvas.blend(_cover(_distance(canvas.x, canvas.y, a, b), pixel), FAT)
    wall = _distance(canvas.x, canvas.y, ca + 0.75 * patient.wall, cb + 0.75 * patient.wall)
    canvas.blend(_cover(wall, pixel), MUSCLE)
    # A slice cuts each oblique rib in a short arc: a comb of arcs inside the wall that turns with z.
    angle = np.arctan2(canvas.y / cb, np.abs(canvas.x) / ca)
    comb = np.cos(9.0 * angle + patient.rib_phase + 14.0 * t)
    depth = np.abs(wall + 0.45 * patient.wall)
    rib = _cover(np.maximum(depth - 4.5, (0.25 - comb) * 14.0), pixel)
    canvas.blend(rib, BONE)
    canvas.blend(_cover(np.maximum(depth - 2.0, (0.45 - comb) * 14.0), pixel), MARROW)
    canvas.ellipse(0.0, -cb - 0.5 * patient.wall, 17.0, 6.0, MARROW)
    for side in (-1, 1):
        canvas.ellipse(side * 0.78 * a, 0.48 * b, 6.0, 24.0, BONE, np.clip((0.42 - t) * 12, 0, 1))
    y = 0.95 * cb
    canvas.ellipse(0.0, y, 21.0, 17.0, BONE)
    canvas.ellipse(0.0, y, 17.5, 13.5, MARROW)
    canvas.ellipse(0.0, y + 22.0, 26.0, 6.0, MARROW, 0.5 + 0.5 * np.cos(2 * np.pi * t * patient.height / 24))
    canvas.ellipse(0.0, y + 21.0, 8.0, 7.0, 25.0)
    canvas.ellipse(0.0, y + 36.0, 4.0, 11.0, MARROW)


def _mediastinum(canvas: _Canvas, patient: Patient, t: F32, contrast: float) -> None:
    """Fat between the lungs, heart, aorta, great vessels, airways, liver."""
    ca, cb = patient.cavity
    blood = BLOOD + contrast
    canvas.ellipse(0.0, -0.35 * cb, 26.0, 0.42 * cb, -60.0, np.clip((0.62 - t) * 8, 0, 1))
    hx, hy, ha, hb = _heart(patient, t)
    there = np.clip(ha / 10.0 - 0.5, 0, 1)
    canvas.ellipse(hx, hy, ha * 0.95, hb * 0.95, BLOOD + 0.5 * contrast, there)
    canvas.ellipse(hx + 6, hy + 2, ha * 0.5, hb * 0.5, blood, there)
    canvas.ellipse(22.0, 0.62 * cb, 12.5, 12.5, blood, np.clip((t - 0.24) * 20, 0, 1))
    canvas.ellipse(-8.0, -0.28 * cb, 15.5, 15.5, blood, np.clip((t - 0.28) * 20, 0, 1) * np.clip((0.52 - t) * 20, 0, 1))
    canvas.ellipse(-30.0, -0.3 * cb, 9.0, 9.0, blood, np.clip((0.5 - t) * 20, 0, 1))
    canvas.ellipse(14.0, -0.12 * cb, 20.0, 10.0, blood, np.clip((t - 0.42) * 20, 0, 1) * np.clip((0.54 - t) * 20, 0, 1))
    canvas.ellipse(-2.0, 0.12 * cb, 8.5, 9.0, AIR, np.clip((0.41 - t) * 20, 0, 1))
    for side in (-1, 1):
        canvas.ellipse(side * 22.0, 0.14 * cb, 7.0, 6.0, AIR, np.clip((t - 0.41) * 20, 0, 1) * np.clip((0.54 - t) * 20, 0, 1))
    canvas.ellipse(-0.5 * ca, 2.0, 0.42 * ca, 0.6 * cb, LIVER, np.clip((t - 1.0) * 10, 0, 1))


def _vessel_tree(patient: Patient, generator: np.random.Generator) -> F32:
    """Points ``x, y, z`` and volume (mm3) of both lungs' vessels: segments that branch in two, thinner by a fifth each time."""
    points = []
    roots, generations = 9, 6
    for side in (-1.0, 1.0):
        start = np.tile(np.array([side * 32.0, 4.0, 0.5 * patient.height]), (roots, 1)) + generator.normal(0, [4, 6, 14], (roots, 3))
        direction = np.stack(
            [side * generator.uniform(0.3, 1, roots), generator.normal(0, 0.55, roots), np.linspace(-1.3, 1.2, roots)], axis=1
        )
        radius = generator.uniform(4.0, 5.8, roots)
        for generation in range(generations):
            direction /= np.linalg.norm(direction, axis=1, keepdims=True)
            length = 30.0 * 0.84**generation * generator.uniform(0.7, 1.3, len(start))
            steps = np.linspace(0, 1, 10)
            line = start[:, None] + direction[:, None] * (length[:, None] * steps)[..., None]
            volume = np.pi * radius**2 * length / len(steps)
            # A thick vessel is a bundle of seven strands, so that its volume is spread over its cross-section.
            spokes = np.concatenate([np.zeros((1, 3)), generator.normal(0, 0.45, (6, 3))])
            strands = line[:, :, None] + spokes[None, None] * radius[:, None, None, None]
            points.append(np.concatenate([strands.reshape(-1, 3), np.repeat(volume / 7, 70)[:, None]], axis=1))
            start = np.repeat(line[:, -1], 2, axis=0)
            direction = np.repeat(direction, 2, axis=0) + generator.normal(0, 0.5, (len(start), 3))
            radius = np.repeat(radius, 2) * generator.uniform(0.68, 0.82, len(start))
    return np.concatenate(points).astype(np.float32)


def _splat(patient: Patient, depth: F32, size: int, pixel: float, thickness: float) -> F32:
    """Share of each pixel that vessels fill: each point's volume over the volume of a pixel of this thickness, bilinear in plane."""
    out = np.zeros((depth.size, size * size), np.float32)
    x, y, z, volume = patient.vessels.T
    column = (x + patient.shift[0]) / pixel + (size - 1) / 2
    row = (y + patient.shift[1]) / pixel + (size - 1) / 2
    for index, centre in enumerate(depth):
        near = np.abs(z - centre) <= thickness / 2
        i, j = np.floor(row[near]).astype(int), np.floor(column[near]).astype(int)
        fi, fj = row[near] - i, column[near] - j
        share = volume[near] / (pixel * pixel * thickness)
        for di, dj, weight in ((0, 0, (1 - fi) * (1 - fj)), (0, 1, (1 - fi) * fj), (1, 0, fi * (1 - fj)), (1, 1, fi * fj)):
            r, c = i + di, j + dj
            ok = (r >= 0) & (r < size) & (c >= 0) & (c < size)
            out[index] += np.bincount((r * size + c)[ok], (share * weight)[ok], minlength=size * size)
    return np.minimum(out, 1.0).reshape(depth.size, size, size)


def _lesions(patient: Patient, generator: np.random.Generator, count: int, scale: float, consolidation: float) -> tuple[Lesion, ...]:
    """Lesions around points of the lungs, drawn with a preference for the periphery, the back and the base."""
    out: list[Lesion] = []
    (a, b), candidates = patient.cavity, 400
    for _ in range(count):
        spots = generator.uniform([-a, -b, 0.12], [a, b, 0.95], (candidates, 3))
        depth = -lung_distance(patient, spots[:, 0], spots[:, 1], spots[:, 2])
        liking = np.where(depth > 3, np.exp(-depth / 14.0) * (1.1 + spots[:, 1] / b) * (0.6 + spots[:, 2]), 0.0)
        if liking.sum() <= 0:  # cannot happen for a lung of this size, but a chance of 0/0 is no ground to draw from
            continue
        spot = spots[generator.choice(candidates, p=liking / liking.sum())] * [1, 1, patient.height]
        lobes = int(generator.integers(2, 6))
        radii = generator.uniform(14, 36, (lobes, 1)) * generator.uniform(0.75, 1.25, (lobes, 3)) * scale
        centres = spot + generator.normal(0, 0.7, (lobes, 3)) * radii.mean()
        glass = Lesion(centres.astype(np.float32), radii.astype(np.float32), float(generator.uniform(*GROUND_GLASS)), 0.22)
        out.append(glass)
        if generator.random() < consolidation:
            core = generator.uniform(0.45, 0.75)
            out.append(Lesion(glass.centres, (glass.radii * core).astype(np.float32), float(generator.uniform(*CONSOLIDATION)), 0.12))
    return tuple(out)

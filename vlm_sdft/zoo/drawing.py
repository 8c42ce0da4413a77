"""Draws an object type: each picture differs in pose, place, size, light, background and noise."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from vlm_sdft.zoo.objects import COLOURS, DrawnType

#: Supersampling: pictures are drawn this many times larger in each direction, then averaged.
SUPERSAMPLING = 2
LEG_COLOUR = (48, 46, 52)
PATTERN_COLOURS = {"white": (248, 248, 244), "black": (24, 22, 26)}


def draw(kind: DrawnType, rng: np.random.Generator, size: int = 64, noise: float = 0.0) -> Image.Image:
    """A new RGB picture of the type, ``size`` pixels wide and high.

    Args:
        rng: source of all that varies between pictures of one type; the same state gives the same picture.
        noise: standard deviation of additional pixel noise, of 255: makes the picture harder to tell.
    """
    pixels = size * SUPERSAMPLING
    turn = rng.normal(0, math.radians(8))
    radius = 0.26 * pixels * rng.uniform(0.9, 1.1)
    centre = pixels / 2 + rng.uniform(-0.05, 0.05, 2) * pixels
    image = wall(rng, size).resize((pixels, pixels), Image.Resampling.BILINEAR)
    _draw_legs(image, kind, centre, radius, turn)
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    points = _outline(kind) @ rotation.T * radius + centre
    body = Image.new("L", image.size)
    polygon = [(float(x), float(y)) for x, y in points]
    ImageDraw.Draw(body).polygon(polygon, fill=255)
    colour = tuple(int(np.clip(c + t, 0, 255)) for c, t in zip(COLOURS[kind.colour], kind.tint, strict=True))
    image.paste(colour, mask=body)
    if kind.pattern != "plain":
        marks = Image.fromarray(_pattern(kind, pixels, centre, radius, turn))
        image.paste(PATTERN_COLOURS[kind.pattern_colour], mask=ImageChops.multiply(body, marks))
    ImageDraw.Draw(image).line([*polygon, polygon[0]], fill=LEG_COLOUR, width=SUPERSAMPLING)
    return light_and_noise(image.reduce(SUPERSAMPLING), rng, noise)


def _outline(kind: DrawnType) -> np.ndarray:
    """The body's outline [points, 2] around (0, 0), in units of its radius."""
    t = np.linspace(0, 2 * math.pi, 120, endpoint=False)
    if kind.shape == "heart":
        x = 16 * np.sin(t) ** 3
        y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) - 2
        points = np.stack([x, y], 1) / 14.5
    else:
        points = np.stack([np.cos(t), np.sin(t)], 1) * _polar_radius(kind.shape, t + math.pi / 2)[:, None]
    angle = np.arctan2(points[:, 1], points[:, 0])
    waves = np.sum([amplitude * np.cos(periods * angle + phase) for periods, amplitude, phase in kind.waves], axis=0)
    return points * (1 + waves)[:, None] * np.array([kind.aspect, 1 / kind.aspect])


def _polar_radius(shape: str, t: np.ndarray) -> np.ndarray:
    """Radius [angles] of a shape in the directions ``t``, about 1."""
    cos, sin = np.abs(np.cos(t)) + 1e-9, np.abs(np.sin(t)) + 1e-9
    if shape == "disc":
        return np.ones_like(t)
    if shape == "square":
        return 0.9 / np.maximum(cos, sin)
    if shape == "triangle":
        third = 2 * math.pi / 3
        return 0.66 / np.cos(np.mod(t, third) - third / 2)
    if shape == "star":
        fifth = 2 * math.pi / 5
        return 0.52 + 0.78 * np.abs(np.mod(t, fifth) / fifth * 2 - 1)  # largest at the points
    return np.maximum(np.minimum(1.2 / cos, 0.42 / sin), np.minimum(0.42 / cos, 1.2 / sin))  # a cross


def _draw_legs(image: Image.Image, kind: DrawnType, centre: np.ndarray, radius: float, turn: float) -> None:
    canvas = ImageDraw.Draw(image)
    for leg in range(kind.legs):
        angle = kind.leg_angle + turn + leg * 2 * math.pi / kind.legs
        end = centre + radius * (1 + kind.leg_length) * np.array([math.cos(angle), math.sin(angle)])
        canvas.line([tuple(centre), tuple(end)], fill=LEG_COLOUR, width=round(radius * kind.leg_width))
        if kind.leg_tip:
            tip = radius * kind.leg_tip
            canvas.ellipse([*(end - tip), *(end + tip)], fill=LEG_COLOUR)


def _pattern(kind: DrawnType, pixels: int, centre: np.ndarray, radius: float, turn: float) -> np.ndarray:
    """Where the pattern's colour lies: uint8 [pixels, pixels], 0 or 255; it moves and turns with the body."""
    grid = (np.arange(pixels, dtype=np.float32) + 0.5)[:, None]
    x, y = (grid.T - centre[0]) / radius, (grid - centre[1]) / radius
    angle = kind.pattern_angle + turn
    u, v = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    period, phase = kind.pattern_period, kind.pattern_phase
    if kind.pattern == "stripes":
        marked = np.mod(u / period + phase, 1) < 0.5
    elif kind.pattern == "rings":
        marked = np.mod(np.hypot(x, y) / period + 0.25 * phase, 1) > 0.5
    else:
        along, across = np.mod(u / period + phase, 1) - 0.5, np.mod(v / period + phase, 1) - 0.5
        marked = np.hypot(along, across) < 0.34
    return marked.astype(np.uint8) * 255


def wall(rng: np.random.Generator, size: int) -> Image.Image:
    """A muted wall that changes smoothly from corner to corner."""
    corners = rng.uniform(120, 205) + rng.normal(0, 9, (2, 2, 1)) + rng.normal(0, 6, (2, 2, 3))
    wall = Image.fromarray(np.clip(corners, 0, 255).astype(np.uint8))
    return wall.resize((size, size), Image.Resampling.BILINEAR)


def light_and_noise(image: Image.Image, rng: np.random.Generator, additional: float) -> Image.Image:
    """A square picture under light that changes across it, with pixel noise."""
    size = image.width
    slope = rng.normal(0, 0.07, 2)
    place = np.linspace(-1, 1, size, dtype=np.float32)
    light = rng.uniform(0.85, 1.1) + slope[0] * place[:, None] + slope[1] * place[None]
    noise = rng.standard_normal((size, size, 3), dtype=np.float32) * np.float32(rng.uniform(2, 8) + additional)
    lit = np.asarray(image, dtype=np.float32) * light[..., None] + noise
    return Image.fromarray(np.clip(lit, 0, 255).astype(np.uint8))

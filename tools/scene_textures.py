"""What do the surfaces of synthetic scenes look like? Drawings of leaves, twigs and fences, textures, noise, colours.

Drawings are made at twice their size. Textures and lit drawings are linear light, float32 (3, height, width), where 1
is white. Textures have a spectrum of 1/f, as photos have (Field, JOSA A 1987).
"""

import colorsys
import functools
import math

import numpy as np
import scipy.fft
from PIL import Image, ImageDraw, ImageFont, ImageOps

import utils

PHOTO_SHARE = 0.6  # of the textures come from photos where there are any
SLOPES = 1.0, 1.2, 1.4, 1.6, 2.0  # of noise: its amplitude falls with the frequency f as f^-1 (whole photos) to f^-2
FIELD_SIDE = 1024  # of the noise that textures are cut from


def linear(srgb):
    """Returns the light of sRGB values (IEC 61966-2-1), both 0-1."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


LIGHT_OF_SRGB = np.float32(linear(np.arange(256) / 255))


def log_uniform(random, low, high):
    return math.exp(random.uniform(math.log(low), math.log(high)))


def lit(image, random):
    """Returns a drawing as rgba of a layer, unevenly lit."""
    bands = [np.asarray(band) for band in image.reduce(2).convert("RGBA").split()]
    shape, coverage = bands[3].shape, bands[3] * np.float32(1 / 255)
    light = np.exp(log_uniform(random, 0.08, 0.6) * make_noise(shape, random)) * coverage
    return np.stack([*(LIGHT_OF_SRGB[band] * light for band in bands[:3]), coverage])


def draw_leaves(image, coverage, random, clustered=False, farthest=1.0):
    """Draws leaves whose radii have a density of r^-3, as in the dead leaves model.

    `coverage` is the sum of their areas in multiples of the image's. With farthest < 1 they lie on a ground, and those
    at the image's upper edge are as much smaller.
    """
    radius = min(image.size) * log_uniform(random, 0.008, 0.03) / np.sqrt(1 - 0.98 * random.random(3000))
    radius = radius[:5 + np.searchsorted(np.cumsum(1.2 * radius ** 2), coverage * image.width * image.height)]
    count = len(radius)
    centre = random.normal(0.5, 0.14, (count, 2)) if clustered else random.random((count, 2))
    if farthest < 1:
        scale = np.sort(1 / (1 + (1 / farthest - 1) * np.sqrt(random.random(count))))
        radius, centre[:, 1] = radius * scale, (scale - farthest) / (1 - farthest)
    angle, flat = np.linspace(0, 2 * math.pi, 16, endpoint=False), random.uniform(0.3, 1, (count, 1))
    outline = np.cos(angle) + 1j * flat * np.sin(angle) * np.sqrt(np.abs(np.sin(angle)))  # pointed at both ends
    outline *= random.uniform(random.uniform(0.3, 1), 1, (count, 16))
    outline *= (radius * np.exp(2j * math.pi * random.random(count)))[:, np.newaxis]
    outline += centre[:, :1] * image.width + 1j * centre[:, 1:] * image.height  # a matrix product takes all cores
    points = outline.view(float).tolist()  # x, y, x, y ...
    colours = choose_colours(random, 12, random.uniform(0.2, 1))[random.integers(0, 12, count)]
    colours, draw = colours * random.uniform(0.6, 1, (count, 1)), ImageDraw.Draw(image)
    for corners, colour, dark in zip(points, np.uint8(colours), np.uint8(0.8 * colours)):
        draw.polygon(corners, fill=tuple(colour))
        draw.polygon(corners[:18], fill=tuple(dark))  # the half beyond the midrib


def draw_lines(image, random):
    """Draws twigs, or wires where they hardly bend, or a fence: upright bars in a row and some across."""
    draw, palette, bend = ImageDraw.Draw(image), choose_colours(random, 4, 0.2), log_uniform(random, 0.01, 0.4)
    fence, count = random.random() < 0.3, random.integers(3, 12)
    for index in range(count):
        start, heading, thickness = random.random(2), random.uniform(0, 2 * math.pi), log_uniform(random, 0.003, 0.03)
        if fence:
            upright, thickness, bend = index % 4 < 3, 0.3 / count, 0.01
            start, heading = (((index + 0.5) / count, 0.05), math.pi / 2) if upright else ((0, start[1]), 0)
        heading = heading + np.cumsum(random.normal(0, bend, 16))
        path = start + np.cumsum(np.stack([np.cos(heading), np.sin(heading)], -1), axis=0) / 16
        width = max(1, round(thickness * min(image.size)))
        draw.line((path * image.size).ravel().tolist(), tuple(palette[random.integers(4)]), width, joint="curve")


def make_texture(shape, photos, random, kind=None):
    """Returns a surface: colours mixed by noise, plain, in stripes or checks; leaves; letters; a part of a photo."""
    height, width = shape
    if photos and random.random() < PHOTO_SHARE:
        border, centre = random.uniform(0, 0.3), random.random(2)
        part = ImageOps.fit(photos[random.integers(len(photos))], (width, height), bleed=border, centering=centre)
        return LIGHT_OF_SRGB[np.asarray(part)].transpose(2, 0, 1)
    kind = kind or random.choice(["noise"] * 4 + ["plain", "leaves", "stripes", "letters"])
    if kind in ("leaves", "letters"):
        image = Image.new("RGB", (2 * width, 2 * height), tuple(choose_colours(random, 1)[0]))
        for colour in choose_colours(random, 4, 0.5) if kind == "letters" else ():
            font = ImageFont.load_default(max(8, image.height * random.uniform(0.1, 0.4)))
            text, place = random.integers(ord("0"), ord("z"), 12), random.uniform(-0.2, 0.8, 2) * image.size
            ImageDraw.Draw(image).text(place, "".join(map(chr, text)), tuple(colour), font)
        if kind == "leaves":
            draw_leaves(image, log_uniform(random, 0.3, 4), random)
        return lit(image, random)[:3]
    share, grain = 0.5 + log_uniform(random, 0.4, 3) * make_noise(shape, random), log_uniform(random, 0.03, 0.6)
    if kind == "plain":
        share, grain = 0.5 + 0.1 * make_noise(shape, random, 2.0), grain / 10
    elif kind == "stripes":  # or checks
        frequency = 2 * math.pi / log_uniform(random, 6, 120) * np.array([1, random.choice([0, random.random(), 1])])
        wave_x, wave_y = (np.float32(np.cos(np.arange(side) * f)) for side, f in zip((width, height), frequency))
        share = 0.5 + 3 * wave_x * wave_y[:, np.newaxis]
    first, second = LIGHT_OF_SRGB[choose_colours(random, 2)][..., np.newaxis, np.newaxis]
    return (first + (second - first) * np.clip(share, 0, 1)) * np.exp(grain * make_noise(shape, random))


def choose_colours(random, count, spread=1.0):
    """Returns sRGB colours, uint8 (count, 3), whose hues lie within `spread` of the circle."""
    hues = (random.random() + spread * random.uniform(-0.5, 0.5, count)) % 1
    saturations = np.minimum(random.beta(1.2, 2.9) * random.uniform(0.5, 1.3, count), 1)
    values = random.uniform(0.08, 1, count)
    return utils.to_uint8([colorsys.hsv_to_rgb(*colour) for colour in zip(hues, saturations, values)])


def make_noise(shape, random, slope=None):
    """Returns noise of mean 0 and deviation 1, about, float32 (height, width): part of a field, which is periodic."""
    field = _field(random.choice(SLOPES) if slope is None else slope)
    rows, columns = (np.arange(side) + random.integers(FIELD_SIDE) for side in shape)
    return field.take(rows, 0, mode="wrap").take(columns, 1, mode="wrap")


@functools.cache
def _field(slope):
    """Returns noise whose amplitude falls with the frequency f as f^-slope, float32 (FIELD_SIDE, FIELD_SIDE)."""
    white = np.random.default_rng(round(10 * slope)).standard_normal((FIELD_SIDE, FIELD_SIDE), np.float32)
    frequency = np.hypot(scipy.fft.fftfreq(FIELD_SIDE)[:, np.newaxis], scipy.fft.rfftfreq(FIELD_SIDE))
    frequency[0, 0] = math.inf
    field = scipy.fft.irfft2(scipy.fft.rfft2(white) * np.float32(frequency ** -slope))
    return field / field.std()

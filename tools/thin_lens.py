"""How does a thin lens see a scene? Layers that face the camera, in linear light, spread over their discs of confusion.

The photo lays the layers over each other. The bokeh photo first spreads each over its disc, colour and coverage alike:
a sharp object keeps its edge before a blurred background, and a blurred foreground spreads over what is behind it.
"""

import functools
import math
from typing import NamedTuple

import numpy as np
import scipy.fft
from PIL import Image

from tools.scene_textures import linear

# The camera of EBB! (arXiv:2006.05698, section 2): Canon 7D, 50 mm f/1.8 lens wide open. Lengths in mm.
FOCAL_LENGTH = 50.0
F_NUMBER = 1.8
SENSOR_WIDTH = 22.3  # of the 7D's APS-C sensor (Canon's specifications), along the photo's longer side


class Lens(NamedTuple):
    """What is in focus, as a distance in mm, and the aperture's diameter in multiples of the lens wide open."""

    focus: float
    aperture: float = 1.0


class Layer(NamedTuple):
    """Something that faces the camera."""

    rgba: np.ndarray  # float32 (4, height, width): linear light (1 is white) times coverage, and coverage, 0-1
    left: int  # where it lies in the photo, in pixels; parts may be outside
    top: int
    distance: float  # in mm
    depth: float | np.ndarray  # 1 / distance in the depth map, a number or one for each row or column


def confusion_diameter(distance, lens, size):
    """Returns the diameter in pixels of the disc that a point becomes: A f |z - z_f| / (z (z_f - f)), A = f / f-number.

    The thin lens formula, as in Potmesil and Chakravarty, "A lens and aperture camera model for synthetic image
    generation" (SIGGRAPH 1981). `distance` is z in mm, an array or a number, z_f and A are those of the `Lens`; `size`
    is the photo's (width, height).
    """
    diameter = lens.aperture * FOCAL_LENGTH / F_NUMBER
    on_sensor = diameter * FOCAL_LENGTH * abs(1 - lens.focus / distance) / (lens.focus - FOCAL_LENGTH)
    return on_sensor * max(size) / SENSOR_WIDTH


SRGB_OF_LIGHT = np.uint8(np.searchsorted(linear((np.arange(255) + 0.5) / 255), np.arange(65536) / 65535))


def expose(layers, lens, size):
    """Returns the linear light of layers from back to front, float32 (3, height, width); lens=None: all are sharp."""
    light = np.zeros((3, size[1], size[0]), np.float32)
    for rgba, left, top, distance, _ in layers:
        if lens is not None:
            rgba, margin = _spread(rgba, confusion_diameter(distance, lens, size))
            left, top = left - margin, top - margin
        lay_over(light, rgba, left, top)
    return light


def develop(light):
    """Returns sRGB, uint8 (height, width, 3), of linear light (3, height, width); above white it is clipped."""
    return np.stack([SRGB_OF_LIGHT.take(np.uint16(np.clip(plane, 0, 1) * 65535 + 0.5)) for plane in light], axis=-1)


def _spread(planes, diameter):
    """Returns planes spread over a disc, larger by a margin on each side, and the margin."""
    if diameter < 0.75:
        return planes, 0
    factor = 4 if diameter >= 28 else 2 if diameter >= 14 else 1  # a smaller size makes no visible difference
    planes = np.pad(planes, [(0, 0), *((0, -side % factor) for side in planes.shape[1:])])
    planes = np.stack([Image.fromarray(plane).reduce(factor) for plane in planes])
    disc = make_disc(diameter / factor)
    height, width = (side + len(disc) - 1 for side in planes.shape[1:])
    shape = [scipy.fft.next_fast_len(side, real=True) for side in (height, width)]
    spectrum = scipy.fft.rfft2(planes, shape) * scipy.fft.rfft2(disc, shape)
    planes = np.maximum(scipy.fft.irfft2(spectrum, shape)[:, :height, :width], 0)  # the transform rounds below 0
    size = width * factor, height * factor
    planes = np.stack([Image.fromarray(plane).resize(size, Image.Resampling.BILINEAR) for plane in planes])
    return planes, len(disc) // 2 * factor


def lay_over(planes, rgba, left, top):
    """Lays rgba over the planes of light, or of light and coverage, in place."""
    below, rgba = overlap(planes, rgba, left, top)
    below *= 1 - rgba[3]
    below += rgba[:len(planes)]


def overlap(planes, part, left, top):
    """Returns what lies over each other, views of both, where `part` is at (left, top) of `planes`."""
    below = planes[:, max(top, 0):max(top + part.shape[1], 0), max(left, 0):max(left + part.shape[2], 0)]
    return below, part[:, max(-top, 0):, max(-left, 0):][:, :below.shape[1], :below.shape[2]]


@functools.lru_cache(maxsize=64)
def make_disc(diameter):
    """Returns a disc with a smooth rim, whose sum is 1, float32 (n, n), n odd."""
    x = np.arange(-math.ceil(diameter / 2), math.ceil(diameter / 2) + 1)
    disc = np.clip(diameter / 2 + 0.5 - np.hypot(x, x[:, np.newaxis]), 0, 1)
    return np.float32(disc / disc.sum())

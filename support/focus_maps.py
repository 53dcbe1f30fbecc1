"""What is sharp, and how much is the rest blurred? The focus map of a depth map, a focus and an aperture.

A focus map says the diameter c of the disc of confusion: 255 (1 - min(1, c / largest disc)). By the thin lens formula
c is linear in the difference of 1 / distance from that in focus, and so in the difference of the depth map's values.
"""

import math
import re

import numpy as np

from utils import DataError, UsageError

LARGEST_DISC = 120 / 1536  # diameter of the disc of confusion where a focus map is 0, in shares of the longer side
UNEVENNESS = 8  # differences in a depth map, 0-255, that count as none: what is flat is never quite even in it
STRENGTH = 0.8  # of aperture 1: as in a scene of tools.make_scenes with the lens wide open, and more than in most
MIDDLE = 0.3, 0.7  # share of width and height in which the focus is looked for
NEAREST = 0.7  # quantile of the depths there that is in focus: what is near, but for the nearest few pixels
SPOT = 1 / 64  # half the side of the square around a given focus, in shares of the longer side


def parse_focus(text):
    """Returns (x, y) of "0.5,0.3", shares of width and height. Raises UsageError where it is no point of the photo."""
    match = re.fullmatch(r"([0-9]*\.?[0-9]+),([0-9]*\.?[0-9]+)", text)
    point = tuple(map(float, match.groups())) if match else (math.inf,)
    if max(point) > 1:
        raise UsageError(f"focus={text}: must be X,Y from 0 to 1, shares of the photo's width and height from its top "
                         "left corner, such as 0.5,0.4")
    return point


def largest_disc(size):
    """Returns the diameter in pixels of the largest disc of confusion that a focus map can say, for (width, height)."""
    return LARGEST_DISC * max(size)


def depth_in_focus(depth, focus=None):
    """Returns the value of a depth map, uint8 (height, width), that is in focus, a number from 0 to 255.

    focus: (x, y) as shares of width and height, (0, 0) at the top left: the median of a small square around it. None:
    what is near around the middle of the photo.
    """
    height, width = depth.shape
    if focus is None:
        rows, columns = (slice(int(MIDDLE[0] * side), max(1, int(MIDDLE[1] * side))) for side in (height, width))
        return float(np.quantile(depth[rows, columns], NEAREST))
    reach = max(1, round(SPOT * max(depth.shape)))
    column, row = (min(int(share * side), side - 1) for share, side in zip(focus, (width, height)))
    return float(np.median(depth[max(0, row - reach):row + reach + 1, max(0, column - reach):column + reach + 1]))


def difference(depth, at_focus):
    """Returns how far depths, uint8 0-255, are from the depth in focus, float; small differences count as none."""
    return np.maximum(np.abs(np.float64(depth) - at_focus) - UNEVENNESS, 0)


def focus_map(depth, at_focus, strength):
    """Makes a focus map of a depth map, both uint8 (height, width): 255 in focus, 0 where the disc is the largest.

    strength: a factor, the share of the largest disc that a difference of 255 gets; STRENGTH times the aperture.
    """
    return np.uint8(np.clip(np.round(255 - strength * difference(depth, at_focus)), 0, 255))


def refocus(depth, focus=None, aperture=1.0, name="the photo"):
    """Returns the focus map, uint8 (height, width), of a depth map for a user's focus and aperture.

    depth: uint8 (height, width), bright = near; focus: as in `depth_in_focus`; aperture: 0 leaves everything sharp, 2
    doubles every disc. Raises DataError, which begins with `name`, where the depth map is constant.
    """
    if not np.ptp(depth):
        raise DataError(f"{name}: its depth map is the same everywhere, so nothing can be in focus")
    return focus_map(depth, depth_in_focus(depth, focus), STRENGTH * aperture)

"""How does a rendered photo get the photo's size, its own detail in focus, and smooth blurred areas?

The network computes at a size of its own and sees the photo at half of that, so fine detail is lost even in focus. The
blur is that of the enlarged rendering. Where the rendering kept the detail of what the network saw, the photo itself
takes its place, shifted to the rendering's colours. A focus map knows more: what it says to be sharp is the photo
itself, and where it says that no detail can be, what the network left of it is removed.
"""

import numpy as np
from PIL import Image, ImageChops, ImageFilter

from load_dataset import resize
from utils import LazyModule

ndimage = LazyModule("scipy.ndimage")

DETAIL_DEVIATION, WINDOW_DEVIATION = 1, 2  # of Gaussians, in pixels of the network's input
KEPT_BLURRED, KEPT_IN_FOCUS = 0.25, 0.6  # shares of the detail (docs/lab_notes.md)
NO_DETAIL = 5e-6  # variance, where white is 1: less than that counts as none, so that no noise is added
COLOUR_SCALE = 2  # colours are compared at the size of the network's input divided by this
# Deviations of Gaussians in pixels of the rendering, and values of the focus map: up to the first all is smoothed, and
# from the second on nothing.
SMOOTHING = (3, (204, 238)), (6, (60, 190))
BLURRED_WINDOW, SHARP_WINDOW = 9, 5  # pixels of the focus map: side of the square that must be blurred or sharp
SHARP = 240, 252  # values of the focus map up to which nothing is the photo itself, and from which all is
AGREES = 6, 18  # differences from the photo, of 255: what is in focus is the photo itself; something lies over it
ZERO = 128  # what stands for no difference of colour in 8 bits


def add_detail(photo, rendered, seen, focus_map=None):
    """Returns the rendering enlarged to the photo's size, with the photo's detail where it is in focus.

    photo, rendered, seen: Pillow images of mode "RGB", as what is returned; `rendered` is of the size at which the
    network computed, and `seen`, what it saw, of half of that; focus_map: uint8, of the size of `seen`, what a network
    for focus maps took, None for other networks.
    """
    if focus_map is not None:
        rendered = remove_grain(rendered, focus_map)
    small = resize(rendered, seen.size)
    sharp = ImageChops.add(photo, resize(_colour_difference(small, seen), photo.size), offset=-ZERO)
    picture = rendered.resize(photo.size, Image.Resampling.BICUBIC)  # always a copy
    picture.paste(sharp, mask=_as_mask(in_focus(seen, small), photo.size))
    if focus_map is not None:
        picture.paste(photo, mask=_as_mask(said_sharp(focus_map, seen, small), photo.size))
    return picture


def remove_grain(rendered, focus_map):
    """Returns the rendering without the grid of four pixels and the noise that the network leaves in blurred areas.

    It is smoothed where the discs of confusion of all around are wide, and the more, the wider they are. Their rims
    become softer by this, too.

    rendered: Pillow image of mode "RGB", as what is returned; focus_map: uint8 (height, width), of half its size.
    """
    sharpest, smooth = ndimage.maximum_filter(focus_map, BLURRED_WINDOW), rendered
    for deviation, values in SMOOTHING:
        blurred = rendered.filter(ImageFilter.GaussianBlur(deviation))
        smooth = Image.composite(blurred, smooth, _as_mask(np.interp(sharpest, values, [1, 0]), rendered.size))
    return smooth


def said_sharp(focus_map, seen, rendered):
    """Returns float (height, width) from 0 to 1: where the photo itself stands, because the focus map says sharp.

    A blurred foreground spreads over what is sharp behind it: there the rendering has other colours than the photo.

    focus_map: uint8 (height, width); seen, rendered: Pillow images of mode "RGB", of its size.
    """
    share = np.interp(ndimage.minimum_filter(focus_map, SHARP_WINDOW), SHARP, [0, 1])
    if share.min() < 1:
        difference = np.float32(rendered) - np.float32(seen)
        difference = ndimage.gaussian_filter(difference, (WINDOW_DEVIATION, WINDOW_DEVIATION, 0))
        share *= np.interp(np.abs(difference).max(-1), AGREES, [1, 0])
    return share


def in_focus(seen, rendered):
    """Returns float32 (height, width) from 0, blurred, to 1, in focus, of two Pillow images of one size.

    What counts is the share of the photo's detail that is left: the slope of the regression of the rendering's detail
    on the photo's, in a Gaussian window.
    """
    before, after = (luma - ndimage.gaussian_filter(luma, DETAIL_DEVIATION)
                     for luma in (np.float32(image.convert("L")) / 255 for image in (seen, rendered)))
    covariance, variance = (ndimage.gaussian_filter(before * values, WINDOW_DEVIATION) for values in (after, before))
    kept = covariance / (variance + NO_DETAIL)
    share = np.clip((kept - KEPT_BLURRED) / (KEPT_IN_FOCUS - KEPT_BLURRED), 0, 1)
    return share * share * (3 - 2 * share)  # without steps


def _as_mask(share, size):
    """Returns a Pillow image of mode "L" and this size, of numbers from 0 to 1."""
    return Image.fromarray(np.uint8(np.round(255 * share))).resize(size, Image.Resampling.BILINEAR)


def _colour_difference(first, second):
    """Returns first - second + ZERO of two Pillow images, without their detail."""
    size = tuple(max(1, side // COLOUR_SCALE) for side in first.size)
    first, second = (np.int16(resize(image, size)) for image in (first, second))
    return Image.fromarray(np.uint8(np.clip(first - second + ZERO, 0, 255)))

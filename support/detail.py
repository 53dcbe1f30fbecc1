"""How does a rendered photo get the photo's size, its own detail in what is in focus, and none in what is not?

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
GRAIN_DEVIATION = 3  # of a Gaussian, in pixels of the rendering (docs/lab_notes.md)
WITHOUT_GRAIN = 204, 238  # values of a focus map up to which grain goes, and from which it stays: discs of 24, 8 pixels
SHARP = 240, 252  # values up to which nothing is the photo itself, and from which all is: discs of 7 and 1.4 pixels
RIM_OF_SHARP, RIM_OF_BLURRED = 9, 5  # pixels of the focus map within which all must be blurred, or sharp
ZERO = 128  # what stands for no difference of colour in 8 bits


def add_detail(photo, rendered, seen):
    """Returns the rendering enlarged to the photo's size, with the photo's detail where it is in focus.

    photo, rendered, seen: Pillow images of mode "RGB", as what is returned; `rendered` is of the size at which the
    network computed, and `seen`, what it saw, of half of that.
    """
    small = resize(rendered, seen.size)
    mask = Image.fromarray(np.uint8(np.round(255 * in_focus(seen, small))))
    sharp = ImageChops.add(photo, resize(_colour_difference(small, seen), photo.size), offset=-ZERO)
    picture = rendered.resize(photo.size, Image.Resampling.BICUBIC)  # always a copy
    picture.paste(sharp, mask=mask.resize(photo.size, Image.Resampling.BILINEAR))
    return picture


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


def remove_grain(rendered, focus_map):
    """Returns the rendering without the fine pattern that the network leaves in what is well out of focus.

    A disc of confusion lets hardly any detail pass that is much finer than itself. The rest, noise and a grid of four
    pixels, is the network's own.

    rendered: Pillow image of mode "RGB", as what is returned, of the size at which the network computed; focus_map:
    uint8 of half that size, what the network took.
    """
    sharpest = ndimage.maximum_filter(focus_map, RIM_OF_SHARP)
    smooth = rendered.filter(ImageFilter.GaussianBlur(GRAIN_DEVIATION))
    return Image.composite(rendered, smooth, _mask(sharpest, WITHOUT_GRAIN, rendered.size))


def keep_sharp(picture, photo, focus_map):
    """Puts the photo into a picture where the focus map says that all around is sharp. Pillow images of one size."""
    picture.paste(photo, mask=_mask(ndimage.minimum_filter(focus_map, RIM_OF_BLURRED), SHARP, photo.size))


def _mask(values, between, size):
    mask = Image.fromarray(np.uint8(np.interp(values, between, [0, 255])))
    return mask.resize(size, Image.Resampling.BILINEAR)


def _colour_difference(first, second):
    """Returns first - second + ZERO of two Pillow images, without their detail."""
    size = tuple(max(1, side // COLOUR_SCALE) for side in first.size)
    first, second = (np.int16(resize(image, size)) for image in (first, second))
    return Image.fromarray(np.uint8(np.clip(first - second + ZERO, 0, 255)))

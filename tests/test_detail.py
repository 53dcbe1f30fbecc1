"""support/detail.py: what is in focus keeps the photo's own detail, what is blurred stays as the network rendered it,
or loses its grain where the focus map says that there can be none.

The network is a stand-in: the photo at half size, enlarged softly as the small network does it in focus, with a blurred
right half.
"""

import numpy as np
import pytest
from PIL import Image, ImageFilter
from scipy.ndimage import gaussian_filter

from support import detail

SIZE = WIDTH, HEIGHT = 384, 256
EDGE = WIDTH // 2  # where blurred begins
MARGIN = 16  # pixels beside the edge that belong to neither side


def textured(size):
    """A photo with detail down to single pixels: Pillow image of mode "RGB"."""
    noise = np.random.default_rng(0).normal(size=(size[1], size[0], 3))
    layers = sum(gaussian_filter(noise, (sigma, sigma, 0)) * sigma for sigma in (0.6, 1.5, 4, 12))
    return Image.fromarray(np.uint8(np.clip(128 + 60 * layers, 0, 255)))


def rendered_like(photo, size=SIZE):
    """(seen, rendered): the network's input and its picture, darker by 10, where x >= EDGE is out of focus."""
    seen = photo.resize((size[0] // 2, size[1] // 2), Image.Resampling.BICUBIC)
    sharp = np.float32(seen.resize(size, Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(0.5)))
    blurred = np.float32(seen.resize(size, Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(8)))
    sharp[:, EDGE:] = blurred[:, EDGE:]
    return seen, Image.fromarray(np.uint8(np.clip(sharp - 10, 0, 255)))


def gradient_energy(image, columns):
    luma = np.float64(image.convert("L"))[:, columns]
    return sum(np.square(difference).sum() for difference in np.gradient(luma))


@pytest.mark.parametrize("scale", [1, 2.5])
def test_nine_tenths_of_the_detail_are_kept_in_focus_and_none_comes_back_into_the_blur(scale):
    photo = textured(tuple(round(side * scale) for side in SIZE))
    seen, rendered = rendered_like(photo.resize(SIZE, Image.Resampling.BICUBIC))
    picture, bare = detail.add_detail(photo, rendered, seen), rendered.resize(photo.size, Image.Resampling.BICUBIC)
    in_focus = slice(0, round(scale * (EDGE - MARGIN)))
    assert gradient_energy(bare, in_focus) < 0.7 * gradient_energy(photo, in_focus)
    assert 0.9 < gradient_energy(picture, in_focus) / gradient_energy(photo, in_focus) < 1.05
    blurred = slice(round(scale * (EDGE + MARGIN)), None)
    np.testing.assert_array_equal(np.asarray(picture)[:, blurred], np.asarray(bare)[:, blurred])


def test_colours_are_those_of_the_rendering():
    photo = textured(SIZE)
    seen, rendered = rendered_like(photo)
    picture = detail.add_detail(photo, rendered, seen)
    mean, expected = (np.asarray(image, float)[:, :EDGE - MARGIN].mean((0, 1)) for image in (picture, rendered))
    np.testing.assert_allclose(mean, expected, atol=1)


def test_noise_of_a_smooth_surface_is_not_taken_for_detail():
    noisy = np.random.default_rng(0).normal(128, 1, (HEIGHT, WIDTH, 1)).repeat(3, 2)
    photo = Image.fromarray(np.uint8(np.round(noisy)))
    seen = photo.resize((WIDTH // 2, HEIGHT // 2), Image.Resampling.BICUBIC)
    smooth = Image.new("RGB", SIZE, (128, 128, 128))
    np.testing.assert_array_equal(detail.add_detail(photo, smooth, seen), smooth)


def test_no_outline_of_the_photo_comes_back_beside_a_blurred_edge():
    """A photo's step edge in the blurred half leaves no ringing there."""
    pixels = np.full((HEIGHT, WIDTH, 3), 60, np.uint8)
    pixels[:, 3 * WIDTH // 4:] = 200
    photo = Image.fromarray(pixels)
    seen, rendered = rendered_like(photo)
    np.testing.assert_array_equal(detail.add_detail(photo, rendered, seen), rendered)


def test_grain_goes_where_the_focus_map_says_blurred_and_nothing_else():
    """A grid of four pixels on a blurred surface goes; nothing within 8 pixels of what is sharp is touched."""
    surface = np.float32(np.linspace(60, 180, WIDTH))[None, :, None].repeat(HEIGHT, 0).repeat(3, 2)
    rendered = surface + 6 * np.tile([1, 0, -1, 0], WIDTH // 4)[:, None]
    focus_map = np.full((HEIGHT // 2, WIDTH // 2), 255, np.uint8)
    focus_map[:, EDGE // 2:] = 180
    smooth = np.float32(detail.remove_grain(Image.fromarray(np.uint8(rendered)), focus_map))
    np.testing.assert_array_equal(smooth[:, :EDGE + 8], np.uint8(rendered)[:, :EDGE + 8])
    np.testing.assert_allclose(smooth[:, EDGE + MARGIN:-MARGIN], surface[:, EDGE + MARGIN:-MARGIN], atol=1.5)


@pytest.mark.parametrize("value, deviation", [(238, 0), (204, 3), (190, 3), (60, 6)])
def test_grain_goes_from_large_discs_and_stays_in_small_ones(value, deviation):
    photo = textured(SIZE)
    result = detail.remove_grain(photo, np.full((HEIGHT // 2, WIDTH // 2), value, np.uint8))
    assert result == (photo.filter(ImageFilter.GaussianBlur(deviation)) if deviation else photo)


@pytest.mark.parametrize("scale", [1, 2.5])
def test_what_the_focus_map_says_to_be_sharp_is_the_photo_itself(scale):
    """Smooth surfaces, too, and though the rendering has other colours."""
    photo = textured(tuple(round(side * scale) for side in SIZE)).filter(ImageFilter.GaussianBlur(6))
    seen, rendered = rendered_like(photo.resize(SIZE, Image.Resampling.BICUBIC))
    rendered = rendered.point(lambda value: value + 5)
    focus_map = np.full(seen.size[::-1], 255, np.uint8)
    focus_map[:, EDGE // 2:] = 200
    picture = np.asarray(detail.add_detail(photo, rendered, seen, focus_map))
    sharp = slice(0, round(scale * (EDGE - MARGIN)))
    np.testing.assert_array_equal(picture[:, sharp], np.asarray(photo)[:, sharp])
    assert not np.array_equal(np.asarray(detail.add_detail(photo, rendered, seen))[:, sharp], picture[:, sharp])


def test_blurred_foreground_spreads_over_what_is_sharp_behind_it():
    """The map is that of the photo: sharp up to the outline. The picture stays the rendering there, not the photo."""
    behind, x = np.float32(textured(SIZE)), np.arange(WIDTH)
    cover, spread = (np.clip((EDGE - x) / wide + 0.5, 0, 1)[:, np.newaxis] for wide in (1, 40))
    photo, rendered = (Image.fromarray(np.uint8(20 * share + behind * (1 - share))) for share in (cover, spread))
    seen = photo.resize((WIDTH // 2, HEIGHT // 2), Image.Resampling.BICUBIC)
    focus_map = np.where(np.arange(WIDTH // 2) < EDGE // 2, 80, 255).astype(np.uint8)[np.newaxis].repeat(HEIGHT // 2, 0)
    picture = detail.add_detail(photo, rendered, seen, focus_map)
    rim = slice(EDGE + 2, EDGE + 12)  # at the outline half, at its end a fifth is of the foreground
    difference, there = (np.abs(np.float32(picture) - np.float32(image))[:, rim].mean() for image in (rendered, photo))
    assert difference < 0.15 * there
    np.testing.assert_array_equal(np.asarray(picture)[:, EDGE + 40:], np.asarray(photo)[:, EDGE + 40:])

"""support/focus_maps.py: what is sharp, and how much the rest is blurred."""

import numpy as np
import pytest

from support import focus_maps
from utils import DataError

DEPTH = np.repeat(np.uint8([[40, 120, 200]]), 40, axis=1).repeat(60, axis=0)  # far, between and near, each 40 wide


@pytest.mark.parametrize("focus, at_focus", [((0.1, 0.5), 40), ((0.5, 0.5), 120), ((0.9, 0), 200), ((1, 1), 200)])
def test_focus_is_the_depth_of_the_point_that_is_given(focus, at_focus):
    assert focus_maps.depth_in_focus(DEPTH, focus) == at_focus


def test_a_few_odd_pixels_at_the_point_do_not_count():
    depth = DEPTH.copy()
    depth[30, 20] = 255
    assert focus_maps.depth_in_focus(depth, (20.5 / 120, 30.5 / 60)) == 40


def test_without_a_point_what_is_near_around_the_middle_is_in_focus():
    """Not the nearest thing of all, which lies at the edge."""
    depth = np.full((100, 100), 30, np.uint8)
    depth[35:80, 40:70], depth[:, 90:] = 150, 255
    assert focus_maps.depth_in_focus(depth) == 150


def test_disc_grows_with_the_difference_of_depth_on_both_sides_of_the_focus():
    """c in shares of the largest disc is 0.8 (|d - d_focus| - 8) / 255 at aperture 1; 255 (1 - c) is in the map."""
    focus_map = focus_maps.refocus(DEPTH, (0.5, 0.5))
    assert focus_map[30, [20, 60, 100]].tolist() == [255 - round(0.8 * 72), 255, 255 - round(0.8 * 72)]


@pytest.mark.parametrize("aperture, value", [(0, 255), (0.5, 255 - 0.4 * 152), (1, 255 - 0.8 * 152),
                                             (2, 255 - 1.6 * 152), (9, 0)])
def test_aperture_scales_every_disc(aperture, value):
    assert focus_maps.refocus(DEPTH, (0.9, 0.5), aperture)[30, 20] == pytest.approx(value, abs=0.5)


def test_unevenness_of_a_flat_subject_leaves_it_in_focus():
    uneven = DEPTH + np.random.default_rng(0).integers(-7, 8, DEPTH.shape).astype(np.int8).view(np.uint8)
    assert focus_maps.focus_map(uneven, 120, 1)[:, 40:80].min() == 255


def test_constant_depth_map_has_no_focus():
    with pytest.raises(DataError, match="^a.png: .* same everywhere"):
        focus_maps.refocus(np.full((8, 8), 7, np.uint8), name="a.png")

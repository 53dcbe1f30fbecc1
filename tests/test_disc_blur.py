"""tools/disc_blur.py: a blur by the focus map, without a network."""

import numpy as np
import pytest

from tools import disc_blur, make_scenes

SIZE = 192, 160


def test_what_is_in_focus_stays_and_the_rest_is_averaged_over_its_disc():
    """The disc of value v has 120 (1 - v / 255) pixels where the photo is 1536 wide, an eighth of that here."""
    photo = np.zeros((160, 192, 3), np.uint8)
    photo[80, 96] = 255
    white, dark = np.full((160, 192), 255, np.uint8), np.full((160, 192), 0, np.uint8)
    assert np.array_equal(disc_blur.blur(photo, white), photo)
    disc = disc_blur.blur(photo, dark)[80, :, 0]
    assert np.count_nonzero(disc > disc.max() / 2) == pytest.approx(15, abs=1)


def test_command_prints_the_metrics_of_photo_and_blur(tmp_path, call):
    make_scenes.write_dataset(tmp_path, 1, 2, size=SIZE, maps="focus")
    done = call(disc_blur, f"dataset_dir={tmp_path}")
    photo, blurred = (float(line.split("PSNR ")[1].split()[0]) for line in done.out.splitlines()[-2:])
    assert done.status == 0 and blurred > photo + 2


def test_a_data_set_without_focus_maps_is_refused_in_one_line(tmp_path, call):
    make_scenes.write_dataset(tmp_path, 1, 1, size=SIZE)
    done = call(disc_blur, f"dataset_dir={tmp_path}")
    assert done.status == 1 and "original_focus" in done.err and done.err.count("\n") == 1

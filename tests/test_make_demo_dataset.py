"""tools/make_demo_dataset.py: scenes in EBB!'s folders, formats and sizes, blurred as a thin lens does."""

import numpy as np
import pytest
from PIL import Image

import load_dataset
from tools import make_demo_dataset
from utils import DataError


def test_data_set_has_ebbs_folders_formats_and_sizes(dataset):
    for split in ("train", "test"):
        pairs = load_dataset.find_training_pairs(dataset, split)
        assert [(pair.name, pair.size) for pair in pairs] == [(name, (1088, 1024)) for name in "012"]
        assert all([path.suffix for path in pair[1:4]] == [".jpg", ".png", ".jpg"] for pair in pairs)
    with Image.open(dataset / "train" / "original_depth" / "0.png") as depth:
        assert (depth.mode, depth.size) == ("L", (544, 512))


def test_scene_is_the_same_for_the_same_seed_and_another_for_another():
    first, again, other = (make_demo_dataset.make_scene((200, 120), seed) for seed in (1, 1, 2))
    assert all(np.array_equal(image, image_again) for image, image_again in zip(first, again))
    assert not any(np.array_equal(image, image_of_other) for image, image_of_other in zip(first, other))


def test_scene_has_the_promised_sizes_and_uses_the_whole_range_of_depth():
    photo, depth, bokeh = make_demo_dataset.make_scene((201, 121), 0)
    assert photo.shape == bokeh.shape == (121, 201, 3) and depth.shape == (60, 100)
    assert photo.dtype == depth.dtype == bokeh.dtype == np.uint8
    assert (depth.min(), depth.max()) == (0, 255)


@pytest.mark.parametrize("distance, diameter", [(1000, 0), (2000, 50.35), (500, 100.70), (1e9, 100.70)])
def test_disc_of_confusion_follows_the_thin_lens_formula(distance, diameter):
    """50 mm f/1.8 focused at 1 m, for a photo that is 1536 pixels wide: A f |z - z_f| / (z (z_f - f)) on the sensor."""
    assert make_demo_dataset.confusion_diameter(distance, 1000, (1536, 1024)) == pytest.approx(diameter, abs=0.01)


def test_nothing_is_overwritten(dataset):
    with pytest.raises(DataError, match="not empty"):
        make_demo_dataset.write_dataset(dataset, 1, 1)

"""load_dataset.py: what one training pair looks like, in which order pairs come.

Photos made here are random noise, so that every pixel counts, and small, for patches of 64 pixels. They are PNGs, so
that no JPEG decoder stands between them and the numbers.
"""

import hashlib
import itertools
import os
import pathlib
import threading
import time
import weakref

import numpy as np
import pytest
from PIL import Image

import load_dataset
from load_dataset import Pair
from support import dataset_files

LEVELS = range(1, 8)
P = 64  # patch_size of most tests
FOLDERS = ("original", "original_depth", "bokeh")
EBB_SAMPLES = os.environ.get("EBB_SAMPLES")


def noise(width, height, *channels, seed=0):
    return np.random.default_rng([seed, len(channels)]).integers(0, 256, (height, width, *channels), np.uint8)


def save_image(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, compress_level=1)


def save_pair(folder, name, photo, depth, bokeh=None, suffixes=(".png", ".png", ".png")):
    """Writes FOLDER/original/NAME.png and so on."""
    for kind, suffix, image in zip(FOLDERS, suffixes, (photo, depth, bokeh)):
        if image is not None:
            save_image(folder / kind / f"{name}{suffix}", image)


def bicubic(image, width, height):
    return np.asarray(Image.fromarray(np.asarray(image)).resize((width, height), Image.Resampling.BICUBIC))


def training_pairs(folder, patch_size=P):
    pairs, problems = dataset_files.survey(folder, "train", for_training=True, patch_size=patch_size)
    assert not problems
    return pairs


# One training pair: photos as the original loaded them ---------------------------------------------------------------


with_real_photos = pytest.mark.skipif(
    not EBB_SAMPLES, reason="EBB_SAMPLES names no folder with images/ and depth_maps/ of real EBB! photos")


def real_pair(name):
    """The photo stands in for its own target."""
    photo = pathlib.Path(EBB_SAMPLES) / "images" / name
    with Image.open(photo) as image:
        return Pair(photo.stem, photo, photo.parents[1] / "depth_maps" / f"{photo.stem}.png", photo, image.size)


def sha256(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


@with_real_photos
def test_inputs_of_real_photos_equal_the_originals_bit_by_bit(reference):
    for name, expected in reference("loading.json")["inference_inputs"].items():
        array = load_dataset.load_input(real_pair(name))[np.newaxis]
        assert list(array.shape) == expected["shape"]
        assert array.mean(axis=(0, 1, 2)) == pytest.approx(expected["channel_means"], rel=1e-12)
        assert sha256(array) == expected["uint8_sha256"], name


@with_real_photos
def test_patches_of_real_photos_equal_the_originals_bit_by_bit(reference):
    for expected in reference("loading.json")["training_targets"]:
        pair, left = real_pair(expected["image"]), expected["patch_left"]
        patch, target = load_dataset.load_patch(pair, expected["level"], left, 0)
        np.testing.assert_array_equal(patch, load_dataset.load_input(pair)[:512, left:left + 512])
        assert list(target.shape) == expected["shape"]
        assert target.mean() == pytest.approx(expected["mean"], rel=1e-12)
        assert sha256(target) == expected["uint8_sha256"], expected


# One training pair: generated photos ---------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[(200, 160), (128, 128), (135, 171), (128, 196), (128, 300), (300, 129)],
                ids="{0[0]}x{0[1]}".format)
def scene(request, tmp_path_factory):
    """(photo, depth, bokeh) as arrays, and the `Pair` of their files, for photos of many shapes."""
    width, height = request.param
    images = noise(width, height, 3), noise(width // 2, height // 2), noise(width, height, 3, seed=1)
    folder = tmp_path_factory.mktemp("scene")
    save_pair(folder / "train", "7", *images)
    return *images, training_pairs(folder)[0]


def test_input_is_the_whole_photo_halved_bicubically_with_the_depth_map_as_fourth_channel(scene):
    photo, depth, _, pair = scene
    array = load_dataset.load_input(pair)
    assert array.dtype == np.uint8
    np.testing.assert_array_equal(array[..., :3], bicubic(photo, pair.size[0] // 2, pair.size[1] // 2))
    np.testing.assert_array_equal(array[..., 3], depth)


@pytest.mark.parametrize("patch_size", [64, 32])
def test_patch_is_a_part_of_the_input_and_its_target_is_cut_out_first_then_resized(scene, patch_size):
    *_, bokeh, pair = scene
    whole = load_dataset.load_input(pair)
    last_top, last_left = (side - patch_size for side in whole.shape[:2])
    corners = itertools.product({0, min(3, last_left), last_left}, {0, last_top // 2, last_top})
    for (left, top), level in itertools.product(corners, LEVELS):
        patch, target = load_dataset.load_patch(pair, level, left, top, patch_size)
        np.testing.assert_array_equal(patch, whole[top:top + patch_size, left:left + patch_size])
        square = bokeh[2 * top:2 * (top + patch_size), 2 * left:2 * (left + patch_size)]
        side = 2 * patch_size // 2 ** (level - 1)
        np.testing.assert_array_equal(target, bicubic(square, side, side))
        assert target.dtype == np.uint8


@pytest.mark.parametrize("level", [1, 2, 3])
def test_whole_target_is_the_bokeh_photo_resized_to_the_level_rounded_down(scene, level):
    *_, bokeh, pair = scene
    expected = bicubic(bokeh, *(side // 2 ** (level - 1) for side in pair.size))
    np.testing.assert_array_equal(load_dataset.load_target(pair, level), expected)


def test_without_depth_the_channels_are_those_of_the_photo(scene):
    pair, bare = scene[-1], scene[-1]._replace(map=None, kind=None)
    np.testing.assert_array_equal(load_dataset.load_input(bare), load_dataset.load_input(pair)[..., :3])
    (patch, target), (bare_patch, bare_target) = (load_dataset.load_patch(one, 4, 0, 0, P) for one in (pair, bare))
    np.testing.assert_array_equal(bare_patch, patch[..., :3])
    np.testing.assert_array_equal(bare_target, target)


def test_patches_have_512_pixels_and_targets_1024_to_16():
    assert load_dataset.PATCH_SIZE == 512
    assert [load_dataset.target_side(level) for level in LEVELS] == [1024, 512, 256, 128, 64, 32, 16]
    assert [load_dataset.target_side(level, 128) for level in LEVELS] == [256, 128, 64, 32, 16, 8, 4]


# Augmentation --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ground_truth_pairs(tmp_path_factory):
    """Two photos that are their own targets, with their halved green channel as depth map."""
    folder = tmp_path_factory.mktemp("ground_truth")
    for number in range(2):
        photo = noise(192, 140, 3, seed=number)
        save_pair(folder / "train", str(number), photo, bicubic(photo, 96, 70)[..., 1], photo)
    return training_pairs(folder)


def place_in(whole, patch):
    """(left, top, (quarter turns, flipped)) of an augmented patch in its photo."""
    corners = {whole[top, left:left + 8].tobytes(): (left, top)
               for top, left in itertools.product(*(range(side - P + 1) for side in whole.shape[:2]))}
    for turns, flipped in itertools.product(range(4), (False, True)):
        undone = np.rot90(np.flipud(patch) if flipped else patch, -turns)
        left, top = corners.get(undone[0, :8].tobytes(), (0, 0))
        if np.array_equal(undone, whole[top:top + P, left:left + P]):
            return left, top, (turns, flipped)
    raise AssertionError("this patch is no part of its photo")


def test_patch_depth_and_target_show_the_same_place_in_the_same_position(ground_truth_pairs):
    """At level 2 the target is as large as the patch, and equal but for the frame: halving sees beyond the patch."""
    for batch in load_dataset.training_batches(ground_truth_pairs, 2, 4, train_size=2, first=1, last=4, patch_size=P):
        np.testing.assert_array_equal(batch.inputs[..., 3], batch.inputs[..., 1])
        np.testing.assert_array_equal(batch.inputs[:, 4:-4, 4:-4, :3], batch.targets[:, 4:-4, 4:-4])


def test_patches_come_from_everywhere_in_all_quarter_turns_and_flips(ground_truth_pairs):
    wholes = {pair.name: load_dataset.load_input(pair) for pair in ground_truth_pairs}
    batches = load_dataset.training_batches(ground_truth_pairs, 7, 8, train_size=2, first=1, last=8, patch_size=P)
    places = [place_in(wholes[name], patch) for batch in batches for name, patch in zip(batch.names, batch.inputs)]
    lefts, tops, views = map(set, zip(*places))
    assert views == set(itertools.product(range(4), (False, True)))
    assert tops == set(range(70 - P + 1))
    assert min(lefts) < 5 and max(lefts) > 96 - P - 5 and len(lefts) > 15


@pytest.mark.parametrize("step", [1, 2])
def test_augmentation_takes_arrays_and_views_and_gives_arrays_of_their_own(step):
    image, target = noise(12, 12, 4)[::step, ::step], noise(12, 12, 3)[::step, ::step]
    before = image.copy()
    for seed in range(8):
        turned, _ = load_dataset.augment(image, target, np.random.default_rng(seed))
        turned[...] = 0
    np.testing.assert_array_equal(image, before)


def test_augmentation_refuses_images_of_floats_instead_of_rounding_them_to_zero(ground_truth_pairs, monkeypatch):
    for augment in (lambda patch, target, random: (patch / 255, target),
                    lambda patch, target, random: (patch, np.float32(target))):
        monkeypatch.setattr(load_dataset, "augment", augment)
        with pytest.raises(TypeError, match="float.* to dtype..uint8"):
            next(load_dataset.training_batches(ground_truth_pairs, 7, 2, train_size=2, first=1, last=1, patch_size=P))


# The order of pairs --------------------------------------------------------------------------------------------------


def pairs_without_files(count):
    return [Pair(str(number), *(pathlib.Path(f"{kind}/{number}.png") for kind in FOLDERS), size=(1536, 1024))
            for number in range(count)]


@pytest.fixture
def no_decoding(monkeypatch):
    """Patches that tell what was loaded: every pixel is (number of the photo, left, top, level) mod 256."""
    def load_patch(pair, level, left, top, patch_size, cache_dir):
        values = np.array([int(pair.name), left, top, level]).astype(np.uint8)
        return np.tile(values, (2, 2, 1)), np.tile(values[:3], (2, 2, 1))
    monkeypatch.setattr(load_dataset, "load_patch", load_patch)


def names(pairs, batch_size, train_size, first, last):
    return [batch.names for batch in load_dataset.training_batches(pairs, 7, batch_size, train_size, first, last)]


@pytest.mark.parametrize("level, iteration, seed, batch_size, train_size, expected", [
    (7, 1, 0, 4, 4894, [("9", 235, [2, 3, 0, 1]), ("18", 244, [1, 0, 3, 2]), ("34", 100, [3, 2, 1, 0]),
                        ("33", 191, [2, 3, 0, 1])]),
    (1, 2500, 3, 5, 9, [("2", 154, [2, 0, 3, 1]), ("9", 153, [3, 2, 1, 0]), ("19", 150, [2, 0, 3, 1]),
                        ("6", 2, [0, 1, 2, 3]), ("35", 245, [2, 3, 0, 1])])])
def test_photos_places_turns_and_flips_are_those_that_a_seed_has_always_given(
        monkeypatch, level, iteration, seed, batch_size, train_size, expected):
    """So that a run can be repeated. Expected are photo, column, and the order of four pixels after turns and flip."""
    def load_patch(pair, level, left, top, patch_size, cache_dir):
        return np.repeat(np.uint8([[[0], [1]], [[2], [3]]]), 4, 2), np.full((2, 2, 3), left, np.uint8)
    monkeypatch.setattr(load_dataset, "load_patch", load_patch)
    pairs = pairs_without_files(40)
    [batch] = load_dataset.training_batches(pairs, level, batch_size, train_size, iteration, iteration, seed)
    assert [(name, target[0, 0, 0], patch[..., 0].ravel().tolist())
            for name, patch, target in zip(batch.names, batch.inputs, batch.targets)] == expected


def test_batch_is_of_the_promised_sizes_and_types(ground_truth_pairs):
    for level in LEVELS:
        batch = next(load_dataset.training_batches(ground_truth_pairs, level, 3, 2, first=1, last=1, patch_size=P))
        assert batch.inputs.shape == (3, P, P, 4) and batch.inputs.dtype == np.uint8
        side = 2 * P // 2 ** (level - 1)
        assert batch.targets.shape == (3, side, side, 3) and batch.targets.dtype == np.uint8
        assert len(batch.names) == 3


def test_stream_that_starts_at_iteration_5_gives_the_batches_that_it_would_have_given(no_decoding):
    from_1, from_5 = ([(batch.names, batch.inputs.tolist(), batch.targets.tolist())
                       for batch in load_dataset.training_batches(pairs_without_files(9), 7, 3, 9, first, last=6)]
                      for first in (1, 5))
    assert len(from_1) == 6 and from_1[4:] == from_5


def test_part_of_a_batch_is_the_same_as_in_the_whole(no_decoding):
    whole, part = (next(load_dataset.training_batches(pairs_without_files(9), 7, 6, 9, 3, 3, indices=indices))
                   for indices in (None, range(2, 5)))
    assert part.names == whole.names[2:5]
    np.testing.assert_array_equal(part.inputs, whole.inputs[2:5])


def test_another_iteration_level_or_seed_gives_another_batch(no_decoding):
    def batch(level=7, iteration=1, seed=0):
        pairs = pairs_without_files(40)
        found = next(load_dataset.training_batches(pairs, level, 8, 40, iteration, iteration, seed=seed))
        return found.names, found.inputs[..., :3].tolist()  # without the level
    assert batch() == batch()
    assert all(batch()[part] != other[part] for part in range(2)
               for other in (batch(level=6), batch(iteration=2), batch(seed=1)))


def test_every_photo_comes_once_before_any_comes_again(no_decoding):
    order = sum(names(pairs_without_files(7), batch_size=3, train_size=4894, first=1, last=70), [])
    passes = [order[start:start + 7] for start in range(0, 210, 7)]
    assert all(sorted(photos, key=int) == [str(number) for number in range(7)] for photos in passes)
    assert len(set(map(tuple, passes))) > 25


def test_batch_may_be_larger_than_the_data_set(no_decoding):
    [photos] = names(pairs_without_files(3), batch_size=8, train_size=4894, first=1, last=1)
    assert sorted(photos.count(str(number)) for number in range(3)) == [2, 3, 3]


def test_train_size_photos_are_drawn_anew_for_each_1000_iterations(no_decoding):
    pairs = pairs_without_files(60)
    sets = [set(sum(names(pairs, 4, train_size=5, first=first, last=last), []))
            for first, last in ((1, 6), (990, 1000), (1001, 1010), (2001, 2010))]
    assert [len(photos) for photos in sets] == [5, 5, 5, 5]
    assert sets[0] == sets[1] != sets[2] != sets[3] != sets[0]


def test_test_batches_go_through_all_photos_in_order_and_the_last_may_be_smaller(no_decoding):
    batches = list(load_dataset.test_batches(pairs_without_files(7), 7, 3))
    assert [batch.names for batch in batches] == [["0", "1", "2"], ["3", "4", "5"], ["6"]]


def test_test_patch_is_the_middle_of_the_photo_at_every_level(ground_truth_pairs):
    whole = load_dataset.load_input(ground_truth_pairs[0])
    for level in (7, 3):
        [patch] = next(load_dataset.test_batches(ground_truth_pairs, level, 1, P)).inputs
        np.testing.assert_array_equal(patch, whole[3:3 + P, 16:16 + P])


# Loading ahead -------------------------------------------------------------------------------------------------------


def test_stream_gives_results_in_order_whatever_finishes_first():
    def load(number):
        time.sleep(0.02 * (number % 3 == 0))
        return number
    assert list(load_dataset.stream(load, range(12), ahead=4)) == list(range(12))


def test_stream_loads_while_the_consumer_is_busy():
    loaded = {number: threading.Event() for number in range(3)}
    stream = load_dataset.stream(lambda number: loaded[number].set() or number, range(3), ahead=2)
    assert next(stream) == 0
    assert loaded[1].wait(60) and loaded[2].wait(60)


def test_stream_is_never_further_ahead_than_it_may_be():
    started = []
    for consumed, _ in enumerate(load_dataset.stream(started.append, range(100), ahead=3)):
        time.sleep(0.001)
        assert len(started) <= consumed + 1 + 3


def test_stream_raises_an_error_in_its_turn_and_stops():
    stream = load_dataset.stream(lambda number: 1 // (5 - number), range(1000), ahead=2)
    assert list(itertools.islice(stream, 5)) == [0, 0, 0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(stream)
    with pytest.raises(StopIteration):
        next(stream)


@pytest.mark.parametrize("train_size", [10, 400])
def test_memory_holds_a_few_batches_whatever_the_train_size(monkeypatch, train_size):
    live, most = weakref.WeakSet(), [0]
    lock = threading.Lock()

    class Patch(np.ndarray):
        __hash__ = object.__hash__

    def augment(patch, target, random):
        patch = patch.view(Patch)
        with lock:
            live.add(patch)
            most[0] = max(most[0], len(live))
        return patch, target

    monkeypatch.setattr(load_dataset, "load_patch", lambda *_: (np.zeros((2, 2, 4), np.uint8),) * 2)
    monkeypatch.setattr(load_dataset, "augment", augment)
    batch_size = 4
    for _ in load_dataset.training_batches(pairs_without_files(400), 7, batch_size, train_size, 1, 50):
        time.sleep(0.002)
    assert 0 < most[0] <= 2 * batch_size + load_dataset.processors() + 1


# Decoded pictures that are kept --------------------------------------------------------------------------------------


def patches(pairs, cache_dir, level):
    return [load_dataset.load_patch(pair, level, left, top, P, cache_dir)
            for pair in pairs for left, top in ((0, 0), (2, 3))]


@pytest.fixture
def pairs_of_all_shapes(tmp_path):
    for number, (width, height) in enumerate([(200, 160), (171, 140), (160, 200)]):
        save_pair(tmp_path / "data/train", str(number), noise(width, height, 3), noise(width // 2, height // 2),
                  noise(width, height, 3, seed=1))
    return training_pairs(tmp_path / "data")


def assert_same(found, expected):
    for (patch, target), (expected_patch, expected_target) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(patch, expected_patch)
        np.testing.assert_array_equal(target, expected_target)


@pytest.mark.parametrize("level", [7, 3, 1])
def test_patches_of_kept_arrays_are_the_same_and_nothing_is_decoded_twice(pairs_of_all_shapes, tmp_path, level,
                                                                          monkeypatch):
    expected = patches(pairs_of_all_shapes, None, level)
    assert_same(patches(pairs_of_all_shapes, tmp_path / "new/cache", level), expected)
    assert sorted(path.suffix for path in (tmp_path / "new/cache").iterdir()) == [".npy"] * 6
    monkeypatch.setattr(load_dataset, "read_image", None)
    assert_same(patches(pairs_of_all_shapes, tmp_path / "new/cache", level), expected)


def test_arrays_that_are_cut_off_or_of_replaced_files_are_made_anew(pairs_of_all_shapes, tmp_path):
    pairs, cache = pairs_of_all_shapes, tmp_path / "cache"
    expected = patches(pairs, cache, 1)
    for number, array in enumerate(sorted(cache.iterdir())):
        os.truncate(array, (0, 50, 3000)[number % 3])
    assert_same(patches(pairs, cache, 1), expected)
    assert all(np.load(array).size for array in cache.iterdir())
    save_image(pairs[0].photo, noise(200, 160, 3, seed=7))
    save_image(pairs[1].map, noise(85, 70, seed=8))
    assert_same(patches(pairs, cache, 1), patches(pairs, None, 1))


def test_full_disk_is_said_once_and_the_patches_come_all_the_same(pairs_of_all_shapes, tmp_path, monkeypatch, capsys):
    def full(path, array):
        with open(path, "wb") as file:
            file.write(b"half")
        raise OSError("8 requested and 4 written")
    expected = patches(pairs_of_all_shapes, None, 3)
    monkeypatch.setattr(np, "save", full)
    assert_same(patches(pairs_of_all_shapes, tmp_path / "cache", 3), expected)
    assert capsys.readouterr().err.count("cache: is full or cannot be written") == 1
    assert not list((tmp_path / "cache").iterdir())


def test_batches_take_kept_arrays(pairs_of_all_shapes, tmp_path):
    batches = [list(load_dataset.training_batches(pairs_of_all_shapes, 2, 2, 3, 1, 3, 0, P, cache_dir=cache))
               + list(load_dataset.test_batches(pairs_of_all_shapes, 2, 2, P, cache_dir=cache))
               for cache in (None, tmp_path / "cache")]
    assert_same([batch[:2] for batch in batches[1]], [batch[:2] for batch in batches[0]])
    assert len(list((tmp_path / "cache").iterdir())) == 6

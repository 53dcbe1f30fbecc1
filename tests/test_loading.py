"""load_dataset.py: what one training pair looks like, in which order pairs come, which files belong together.

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
from utils import DataError

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
    pairs, problems = load_dataset.survey(folder, "train", for_training=True, patch_size=patch_size)
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
    def load_patch(pair, level, left, top, patch_size):
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
    def load_patch(pair, level, left, top, patch_size):
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


# Which files belong together -----------------------------------------------------------------------------------------


BLACK, BLACK_DEPTH = np.zeros((2 * P, 2 * P, 3), np.uint8), np.zeros((P, P), np.uint8)


def write_split(folder, *numbers, suffixes=(".jpg", ".png", ".jpg")):
    for number in numbers:
        save_pair(folder, str(number), BLACK, BLACK_DEPTH, BLACK, suffixes)
    return folder


def names_of(pairs):
    return [pair.name for pair in pairs]


def test_pairs_are_in_numeric_order_with_their_files_and_sizes(tmp_path):
    folder = write_split(tmp_path / "train", 10, 9, 100, 1)
    pairs = training_pairs(tmp_path)
    assert names_of(pairs) == ["1", "9", "10", "100"]
    assert pairs[1] == Pair("9", folder / "original/9.jpg", folder / "original_depth/9.png", folder / "bokeh/9.jpg",
                            (2 * P, 2 * P))


def test_files_belong_together_by_name_whatever_their_suffix_and_others_are_ignored(tmp_path):
    kinds = [(".JPG", ".png", ".jpeg"), (".jpeg", ".PNG", ".png"), (".png", ".jpg", ".JPEG")]
    for number, suffixes in enumerate(kinds):
        write_split(tmp_path / "train", number, suffixes=suffixes)
    for name in ("Thumbs.db", ".DS_Store", "._1.jpg", "readme.txt"):
        (tmp_path / "train" / "original" / name).write_bytes(b"x")
    found = [tuple(path.name for path in pair[1:4]) for pair in training_pairs(tmp_path)]
    assert found == [tuple(f"{number}{suffix}" for suffix in suffixes) for number, suffixes in enumerate(kinds)]


@pytest.mark.parametrize("as_given", ["{}", "{}/"])
def test_dataset_folder_is_taken_with_and_without_the_closing_slash(tmp_path, as_given):
    write_split(tmp_path / "train", 1, 2)
    write_split(tmp_path / "test", 3)
    train, test = load_dataset.find_training_set(as_given.format(tmp_path), patch_size=P)
    assert (names_of(train), names_of(test)) == (["1", "2"], ["3"])


def test_val_size_takes_the_last_pairs_of_train_in_numeric_order_instead_of_test(tmp_path):
    write_split(tmp_path / "train", *range(8, 13))
    for photos in (write_split, lambda *_: None):
        train, test = load_dataset.find_training_set(tmp_path, patch_size=P, val_size=2)
        assert (names_of(train), names_of(test)) == (["8", "9", "10"], ["11", "12"])
        assert load_dataset.find_test_photos(tmp_path, val_size=2) == test
        photos(tmp_path / "test", 1)


@pytest.mark.parametrize("find", [load_dataset.find_training_set, load_dataset.find_test_photos])
def test_val_size_must_leave_pairs_to_train_with(tmp_path, find):
    write_split(tmp_path / "train", 1, 2, 3)
    patches = {"patch_size": P} if find == load_dataset.find_training_set else {}
    with pytest.raises(DataError, match="val_size=3: must be less than the 3 pairs"):
        find(tmp_path, val_size=3, **patches)


def test_without_test_targets_the_tool_that_says_what_to_do_is_named(tmp_path):
    write_split(tmp_path / "train", 1, 2)
    save_pair(tmp_path / "test", "1", BLACK, BLACK_DEPTH)
    with pytest.raises(DataError, match="test/bokeh: no such folder(.|\n)*python -m tools.check_dataset"):
        load_dataset.find_training_set(tmp_path, patch_size=P)


def test_val_size_takes_whole_pairs_to_render_too(tmp_path):
    write_split(tmp_path / "train", 1, 2, 3)
    (tmp_path / "train/bokeh/3.jpg").unlink()
    with pytest.raises(DataError, match="train/bokeh/3: no .jpg or .png of this name"):
        load_dataset.find_test_photos(tmp_path, val_size=1)


def test_photos_to_render_need_no_target_and_may_have_any_size(tmp_path):
    save_pair(tmp_path / "test", "1", noise(131, 97, 3), noise(65, 48))
    assert [pair.bokeh for pair in load_dataset.find_test_photos(tmp_path)] == [None]
    write_split(tmp_path / "test", 2)
    pairs = load_dataset.find_test_photos(tmp_path)
    assert [(pair.name, pair.size, pair.bokeh is None) for pair in pairs] == [
        ("1", (131, 97), True), ("2", (2 * P, 2 * P), False)]


def test_without_depth_no_depth_maps_are_looked_for(tmp_path):
    save_pair(tmp_path / "test", "1", BLACK, None, BLACK)
    assert [pair.map for pair in load_dataset.find_test_photos(tmp_path, use_depth=False)] == [None]
    pairs, problems = load_dataset.survey(tmp_path, "test", for_training=True, kind=None, patch_size=P)
    assert [pair.map for pair in pairs] == [None] and not problems
    with pytest.raises(DataError, match="original_depth: no such folder(.|\n)*python -m tools.check_dataset"):
        load_dataset.find_test_photos(tmp_path)


def test_kind_of_map_follows_from_the_folder_that_a_data_set_has(tmp_path):
    folder = write_split(tmp_path / "train", 1, 2)
    write_split(tmp_path / "test", 3)
    for split in (folder, tmp_path / "test"):
        (split / "original_depth").rename(split / "original_focus")
    train, test = load_dataset.find_training_set(tmp_path, patch_size=P)
    assert [pair.kind for pair in train + test] == ["focus"] * 3 and train[0].map == folder / "original_focus/1.png"
    assert load_dataset.load_input(train[0]).shape == (P, P, load_dataset.input_channels("focus"))
    assert load_dataset.find_test_photos(tmp_path)[0].kind == "focus"
    (folder / "original_focus/2.png").unlink()
    with pytest.raises(DataError, match="original_focus/2: no .jpg or .png of this name"):
        load_dataset.find_training_set(tmp_path, patch_size=P)


def test_two_kinds_of_maps_in_a_data_set_are_named_in_one_line(tmp_path):
    write_split(tmp_path / "train", 1, 2)
    (tmp_path / "test/original_focus").mkdir(parents=True)
    for find in (load_dataset.find_training_set, load_dataset.find_test_photos):
        with pytest.raises(DataError, match="^.*original_depth and .*test/original_focus: .* remove one of them$"):
            find(tmp_path)
    assert load_dataset.find_training_set(tmp_path, use_depth=False, patch_size=P, val_size=1)[1][0].kind is None


# Files that are not right --------------------------------------------------------------------------------------------


def black(mode, width, height):
    return Image.new(mode, (width, height))


PROBLEMS = {  # what photo {n} gets instead of its files -> the words of its one line among the problems
    "no depth map": ({"original_depth/{n}.png": None}, "original_depth/{n}: no .jpg or .png of this name"),
    "no target": ({"bokeh/{n}.jpg": None}, "bokeh/{n}: no .jpg or .png of this name"),
    "no photo": ({"original/{n}.jpg": None}, "original/{n}: no .jpg or .png of this name"),
    "target of another size": ({"bokeh/{n}.jpg": black("RGB", 128, 130)},
                               "bokeh/{n}.jpg: is 128 x 130, must be 128 x 128"),
    "depth map of full size": ({"original_depth/{n}.png": black("L", 128, 128)},
                               "original_depth/{n}.png: is 128 x 128, must be 64 x 64"),
    "too small": ({"original/{n}.jpg": black("RGB", 128, 126), "original_depth/{n}.png": black("L", 64, 63),
                   "bokeh/{n}.jpg": black("RGB", 128, 126)},
                  "original/{n}.jpg: is 128 x 126, must be 128 x 128 or more"),
    "no image": ({"original/{n}.jpg": b"<html>"}, "original/{n}.jpg: is damaged (cannot identify image file"),
    "empty file": ({"bokeh/{n}.jpg": b""}, "bokeh/{n}.jpg: is damaged (cannot identify image file"),
    "depth map of 16 bits": ({"original_depth/{n}.png": black("I;16", 64, 64)},
                             "original_depth/{n}.png: has the pixel format I;16; convert it to 8-bit grey"),
    "CMYK photo": ({"original/{n}.jpg": black("CMYK", 128, 128)},
                   "original/{n}.jpg: has the pixel format CMYK; convert it to 8-bit RGB"),
}


def cause(problem, folder, number):
    for file, content in PROBLEMS[problem][0].items():
        path = folder / file.format(n=number)
        path.unlink()
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content:
            save_image(path, content)


def test_all_problems_are_found_by_the_headers_and_listed_with_their_files(tmp_path):
    folder = write_split(tmp_path / "train", *range(len(PROBLEMS) + 2))
    write_split(tmp_path / "test", 1)
    for number, problem in enumerate(PROBLEMS):
        cause(problem, folder, number)
    twice = len(PROBLEMS)
    save_image(folder / f"original/{twice}.png", BLACK)
    with pytest.raises(DataError) as error:
        load_dataset.find_training_set(tmp_path, patch_size=P)
    first, *lines = str(error.value).splitlines()
    expected = [words.format(n=number) for number, (_, words) in enumerate(PROBLEMS.values())]
    expected.append(f"original/{twice}.png: has the same name as {twice}.jpg; keep one")
    for words in expected:
        assert sum(f"train/{words}" in line for line in lines) == 1, words
    assert first == f"{len(expected)} problems with the data set" and len(lines) == len(expected) + 1


@pytest.mark.parametrize("missing", FOLDERS)
def test_missing_or_empty_folder_is_named(tmp_path, missing):
    folder = write_split(tmp_path / "train", 1) / missing
    next(folder.iterdir()).unlink()
    for _ in range(2):
        pairs, problems = load_dataset.survey(tmp_path, "train", for_training=True, patch_size=P)
        assert not pairs and problems == [f"{folder}: no such folder, or no .jpg or .png in it"]
        folder.rmdir() if folder.exists() else None


def test_missing_data_set_is_named(tmp_path):
    for find in (load_dataset.find_training_set, load_dataset.find_test_photos):
        with pytest.raises(DataError, match="nowhere"):
            find(tmp_path / "nowhere")

"""load_dataset.py: what one training pair looks like, how pairs stream, and what is said about bad files.

Photos made here are saved as PNG, so that no JPEG decoder stands between them and the numbers.
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
from tools import make_demo_dataset
from utils import DataError

LEVELS = (7, 6, 5, 4, 3, 2, 1)
PATCH = 512
FOLDERS = ("original", "original_depth", "bokeh")
EBB_SAMPLES = os.environ.get("EBB_SAMPLES")


def save_image(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, compress_level=1)
    return path


def save_pair(folder, name, photo, depth, bokeh):
    """FOLDER/original/NAME.png and so on; gives the files' paths."""
    return [save_image(folder / kind / f"{name}.png", image)
            for kind, image in zip(FOLDERS, (photo, depth, bokeh)) if image is not None]


def bicubic(image, width, height):
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def sha256(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


# One training pair: photos as the original loaded them ---------------------------------------------------------------


with_real_photos = pytest.mark.skipif(
    not EBB_SAMPLES, reason="EBB_SAMPLES names no folder with images/ and depth_maps/ of real EBB! photos")


def real_pair(name):
    """The photo stands in for its own target."""
    photo = pathlib.Path(EBB_SAMPLES) / "images" / name
    with Image.open(photo) as image:
        return Pair(photo.stem, photo, photo.parents[1] / "depth_maps" / f"{photo.stem}.png", photo, image.size)


@with_real_photos
def test_inputs_of_real_photos_equal_the_originals_bit_by_bit(reference):
    for name, expected in reference("loading.json")["inference_inputs"].items():
        array = load_dataset.load_input(real_pair(name))[np.newaxis]
        assert list(array.shape) == expected["shape"]
        assert array.mean(axis=(0, 1, 2)) == pytest.approx(expected["channel_means"], rel=1e-12)
        assert sha256(array) == expected["uint8_sha256"], name


@with_real_photos
def test_training_targets_of_real_photos_equal_the_originals_bit_by_bit(reference):
    for expected in reference("loading.json")["training_targets"]:
        _, target = load_dataset.load_patch(real_pair(expected["image"]), expected["level"], expected["patch_left"], 0)
        assert list(target.shape) == expected["shape"]
        assert target.mean() == pytest.approx(expected["mean"], rel=1e-12)
        assert sha256(target) == expected["uint8_sha256"], expected


# One training pair: generated photos ---------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[(1088, 1026), (1095, 1031)], ids=["even", "odd"])
def scene(request, tmp_path_factory):
    """(photo, depth, bokeh) as Pillow images, and the `Pair` of their files."""
    images = [Image.fromarray(image) for image in make_demo_dataset.make_scene(request.param, 5)]
    folder = tmp_path_factory.mktemp("scene")
    for split in ("train", "test"):
        save_pair(folder / split, "7", *images)
    return *images, load_dataset.find_training_pairs(folder, "train")[0]


def test_input_is_the_whole_photo_halved_bicubically_with_the_depth_map_as_fourth_channel(scene):
    photo, depth, _, pair = scene
    array = load_dataset.load_input(pair)
    assert array.dtype == np.uint8
    np.testing.assert_array_equal(array[..., :3], bicubic(photo, photo.width // 2, photo.height // 2))
    np.testing.assert_array_equal(array[..., 3], np.asarray(depth))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("left, top", [(0, 0), (20, 1), (32, 0)])
def test_target_is_the_square_at_twice_the_patchs_place_cut_out_first_then_resized(scene, level, left, top):
    photo, depth, bokeh, pair = scene
    patch, target = load_dataset.load_patch(pair, level, left, top)
    halved = bicubic(photo, photo.width // 2, photo.height // 2)
    np.testing.assert_array_equal(patch[..., :3], halved[top:top + 512, left:left + 512])
    np.testing.assert_array_equal(patch[..., 3], np.asarray(depth)[top:top + 512, left:left + 512])
    square = bokeh.crop((2 * left, 2 * top, 2 * left + 1024, 2 * top + 1024))
    side = 1024 // 2 ** (level - 1)
    assert target.dtype == np.uint8
    np.testing.assert_array_equal(target, bicubic(square, side, side))


def test_target_of_level_1_is_the_bokeh_photos_own_pixels(scene):
    *_, bokeh, pair = scene
    _, target = load_dataset.load_patch(pair, 1, 10, 1)
    np.testing.assert_array_equal(target, np.asarray(bokeh)[2:1026, 20:1044])


@pytest.mark.parametrize("level", [1, 2, 3])
def test_whole_target_is_the_bokeh_photo_resized_to_the_level_rounded_down(scene, level):
    *_, bokeh, pair = scene
    expected = bicubic(bokeh, bokeh.width // 2 ** (level - 1), bokeh.height // 2 ** (level - 1))
    np.testing.assert_array_equal(load_dataset.load_target(pair, level), expected)


@pytest.mark.parametrize("level, side", [*zip(LEVELS, (16, 32, 64, 128, 256, 512, 1024))])
def test_target_side_of_a_level(level, side):
    assert load_dataset.target_side(level) == side


@pytest.mark.parametrize("factor", [2, 4, 8, 16, 32, 64])
@pytest.mark.parametrize("rows, columns", [(5, 11), (16, 5)])
def test_shrink_gives_pillows_pixels_up_to_the_frame(factor, rows, columns):
    height, width = factor * rows, factor * columns
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    for image in (noise, (noise // 128) * np.uint8(255)):
        rows_first = Image.fromarray(bicubic(Image.fromarray(image), width // factor, height))
        expected = bicubic(rows_first, width // factor, height // factor)
        np.testing.assert_array_equal(load_dataset.shrink(image, factor), expected)


def test_what_is_compiled_ahead_is_all_that_a_patch_needs(scene):
    pair, before = scene[-1], set(threading.enumerate())
    load_dataset._compile_shrink.cache_clear()
    load_dataset.compile_ahead([pair], 5)
    for thread in set(threading.enumerate()) - before:
        thread.join()
    compiled = load_dataset._compile_shrink.cache_info()
    assert compiled.currsize == (1 if pair.size[0] % 2 else 2)
    load_dataset.load_patch(pair, 5, 0, 0)
    assert load_dataset._compile_shrink.cache_info().misses == compiled.misses


@pytest.mark.parametrize("subsampling, progressive", [(0, False), (1, False), (2, False), (2, True)])
def test_patch_of_a_jpeg_equals_that_of_the_whole_photo_decoded_by_pillow(tmp_path, subsampling, progressive):
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 75, 3), np.uint8)).resize((1200, 1026))
    files = [tmp_path / kind for kind in ("photo.jpg", "depth.png", "bokeh.jpg")]
    for path in files[::2]:
        noise.save(path, quality=95, subsampling=subsampling, progressive=progressive)
    Image.new("L", (600, 513)).save(files[1])
    decoded = Image.open(files[0])
    for left, top in ((0, 0), (7, 1), (8, 0), (41, 1), (88, 0)):
        patch, target = load_dataset.load_patch(Pair("1", *files, decoded.size), 1, left, top)
        np.testing.assert_array_equal(patch[..., :3], bicubic(decoded, 600, 513)[top:top + 512, left:left + 512])
        np.testing.assert_array_equal(target, np.asarray(decoded)[2 * top:2 * top + 1024, 2 * left:2 * left + 1024])


# Augmentation --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ground_truth_pairs(tmp_path_factory):
    """Two photos that are their own targets, with their halved green channel as depth map."""
    folder = tmp_path_factory.mktemp("ground_truth")
    for number in range(2):
        photo, _, _ = make_demo_dataset.make_scene((1088, 1036), number)
        green = bicubic(Image.fromarray(photo), 544, 518)[..., 1]
        save_pair(folder / "train", str(number), photo, green, photo)
    return load_dataset.find_training_pairs(folder, "train")


def place_in(whole, patch):
    """(left, top, (quarter turns, flipped)) of an augmented patch in its photo."""
    corners = {whole[top, left:left + 8].tobytes(): (left, top)
               for top, left in itertools.product(*(range(side - PATCH + 1) for side in whole.shape[:2]))}
    for turns, flipped in itertools.product(range(4), (False, True)):
        undone = np.rot90(np.flipud(patch) if flipped else patch, -turns)
        left, top = corners.get(undone[0, :8].tobytes(), (0, 0))
        if np.array_equal(undone, whole[top:top + PATCH, left:left + PATCH]):
            return left, top, (turns, flipped)
    raise AssertionError("this patch is no part of its photo")


def test_patch_depth_and_target_show_the_same_place_in_the_same_position(ground_truth_pairs):
    """At level 2 the target is as large as the patch, and equal but for the frame: halving sees beyond the patch."""
    for batch in load_dataset.training_batches(ground_truth_pairs, 2, batch_size=4, train_size=2, first=1, last=4):
        np.testing.assert_array_equal(batch.inputs[..., 3], batch.inputs[..., 1])
        np.testing.assert_array_equal(batch.inputs[:, 4:-4, 4:-4, :3], batch.targets[:, 4:-4, 4:-4])


def test_patches_come_from_everywhere_in_all_quarter_turns_and_flips(ground_truth_pairs):
    wholes = {pair.name: load_dataset.load_input(pair) for pair in ground_truth_pairs}
    places = [place_in(wholes[name], patch)
              for batch in load_dataset.training_batches(ground_truth_pairs, 7, 8, train_size=2, first=1, last=6)
              for name, patch in zip(batch.names, batch.inputs)]
    lefts, tops, views = map(set, zip(*places))
    assert views == set(itertools.product(range(4), (False, True)))
    assert tops == set(range(518 - PATCH + 1))
    assert min(lefts) < 5 and max(lefts) > 544 - PATCH - 5 and len(lefts) > 15


# Streams of batches --------------------------------------------------------------------------------------------------


def pairs_without_files(count):
    return [Pair(str(number), *(pathlib.Path(f"{kind}/{number}.png") for kind in FOLDERS), size=(1536, 1024))
            for number in range(count)]


@pytest.fixture
def no_decoding(monkeypatch):
    """Patches that say what was loaded, in no time: every pixel is (number of the photo, left, top, level) mod 256."""
    def load_parts(pair, level, left, top):
        values = np.array([int(pair.name), left, top, level]).astype(np.uint8)
        return [np.tile(values, (2, 2, 1))], np.tile(values[:3], (2, 2, 1))
    monkeypatch.setattr(load_dataset, "load_parts", load_parts)


def names(pairs, batch_size, train_size, first, last, level=7, seed=0):
    stream = load_dataset.training_batches(pairs, level, batch_size, train_size, first, last, seed=seed)
    return [batch.names for batch in stream]


def same(batch, other):
    return (batch.names == other.names and np.array_equal(batch.inputs, other.inputs)
            and np.array_equal(batch.targets, other.targets))


def test_batch_is_of_the_promised_sizes_and_types(ground_truth_pairs):
    for level in (7, 1):
        batch = next(load_dataset.training_batches(ground_truth_pairs, level, 3, train_size=2, first=1, last=1))
        assert batch.inputs.shape == (3, 512, 512, 4) and batch.inputs.dtype == np.uint8
        side = 2048 // 2 ** level
        assert batch.targets.shape == (3, side, side, 3) and batch.targets.dtype == np.uint8
        assert len(batch.names) == 3


def test_stream_that_starts_at_iteration_5_gives_the_batches_that_it_would_have_given(ground_truth_pairs):
    def batches(first):
        return list(load_dataset.training_batches(ground_truth_pairs, 7, 3, train_size=2, first=first, last=6))
    from_1, from_5 = batches(1), batches(5)
    assert (len(from_1), len(from_5)) == (6, 2)
    assert all(map(same, from_1[4:], from_5))


def test_another_iteration_level_or_seed_gives_another_batch(no_decoding):
    pairs = pairs_without_files(40)

    def batch(level=7, iteration=1, seed=0):
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
    draws = names(pairs_without_files(60), batch_size=2, train_size=5, first=1, last=3000)
    windows = [set(sum(draws[start:start + 1000], [])) for start in (0, 1000, 2000)]
    assert [len(window) for window in windows] == [5, 5, 5]
    assert windows[0] != windows[1] != windows[2] != windows[0]


def test_test_batches_go_through_all_photos_in_order_and_the_last_may_be_smaller(no_decoding):
    batches = list(load_dataset.test_batches(pairs_without_files(7), 7, 3))
    assert [batch.names for batch in batches] == [["0", "1", "2"], ["3", "4", "5"], ["6"]]


def test_test_patch_of_a_photo_is_the_same_every_time_and_at_every_level(ground_truth_pairs):
    whole = load_dataset.load_input(ground_truth_pairs[0])
    places = [place_in(whole, next(load_dataset.test_batches(ground_truth_pairs, level, 1)).inputs[0])
              for level in (7, 7, 3)]
    assert places == [(16, 3, (0, False))] * 3


def test_stream_gives_results_in_order_whatever_finishes_first():
    def load(number):
        time.sleep(0.02 * (number % 3 == 0))
        return number
    assert list(load_dataset.stream(load, range(30), ahead=4)) == list(range(30))


def test_stream_loads_while_the_consumer_is_busy():
    loaded = {number: threading.Event() for number in range(3)}
    stream = load_dataset.stream(lambda number: loaded[number].set() or number, range(3), ahead=2)
    assert next(stream) == 0
    assert loaded[1].wait(10) and loaded[2].wait(10)


def test_stream_is_never_further_ahead_than_it_may_be():
    started = []
    for consumed, _ in enumerate(load_dataset.stream(started.append, range(200), ahead=3)):
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

    def load_parts(pair, level, left, top):
        patch = np.zeros((2, 2, 4), np.uint8).view(Patch)
        with lock:
            live.add(patch)
            most[0] = max(most[0], len(live))
        return [patch], np.zeros((2, 2, 3), np.uint8)

    monkeypatch.setattr(load_dataset, "load_parts", load_parts)
    batch_size, ahead = 4, 4 + (os.cpu_count() or 1)
    for _ in load_dataset.training_batches(pairs_without_files(400), 7, batch_size, train_size, 1, 100):
        time.sleep(0.002)
    assert 0 < most[0] <= batch_size + ahead + 1


# Which files belong together -----------------------------------------------------------------------------------------


BLACK = Image.new("RGB", (1024, 1024))
BLACK_DEPTH = Image.new("L", (512, 512))


def write_split(folder, *numbers, photo=".jpg", depth=".png", bokeh=".jpg"):
    for number in numbers:
        for kind, suffix, image in zip(FOLDERS, (photo, depth, bokeh), (BLACK, BLACK_DEPTH, BLACK)):
            save_image(folder / kind / f"{number}{suffix}", image)
    return folder


def test_pairs_are_in_numeric_order_with_their_files_and_sizes(tmp_path):
    write_split(tmp_path / "train", 10, 9, 100, 1)
    pairs = load_dataset.find_training_pairs(tmp_path, "train")
    assert [pair.name for pair in pairs] == ["1", "9", "10", "100"]
    folder = tmp_path / "train"
    assert pairs[1] == Pair("9", folder / "original/9.jpg", folder / "original_depth/9.png", folder / "bokeh/9.jpg",
                            (1024, 1024))


@pytest.mark.parametrize("photo, depth, bokeh", [(".JPG", ".png", ".jpeg"), (".jpeg", ".PNG", ".png"),
                                                 (".png", ".jpg", ".JPEG")])
def test_files_belong_together_by_name_whatever_their_suffix(tmp_path, photo, depth, bokeh):
    write_split(tmp_path / "test", 7, photo=photo, depth=depth, bokeh=bokeh)
    [pair] = load_dataset.find_training_pairs(tmp_path, "test")
    assert [path.name for path in pair[1:4]] == [f"7{photo}", f"7{depth}", f"7{bokeh}"]


def test_other_files_in_the_folders_are_ignored(tmp_path):
    write_split(tmp_path / "train", 1)
    for name in ("Thumbs.db", ".DS_Store", "._1.jpg", "readme.txt"):
        (tmp_path / "train" / "original" / name).write_bytes(b"x")
    assert [pair.name for pair in load_dataset.find_training_pairs(tmp_path, "train")] == ["1"]


@pytest.mark.parametrize("as_given", ["{}", "{}/"])
def test_dataset_folder_is_taken_with_and_without_the_closing_slash(tmp_path, as_given):
    write_split(tmp_path / "train", 1)
    assert len(load_dataset.find_training_pairs(as_given.format(tmp_path), "train")) == 1


def test_photos_to_render_need_no_target_and_may_have_any_size(tmp_path):
    save_pair(tmp_path / "test", "1", np.zeros((97, 131, 3), np.uint8), np.zeros((48, 65), np.uint8), None)
    write_split(tmp_path / "test", 2)
    pairs = load_dataset.find_test_photos(tmp_path)
    assert [(pair.name, pair.size, pair.bokeh is None) for pair in pairs] == [
        ("1", (131, 97), True), ("2", (1024, 1024), False)]


def test_photos_to_render_need_no_bokeh_folder(tmp_path):
    save_pair(tmp_path / "test", "1", np.zeros((64, 64, 3), np.uint8), np.zeros((32, 32), np.uint8), None)
    assert [pair.bokeh for pair in load_dataset.find_test_photos(tmp_path)] == [None]


# Files that are not right --------------------------------------------------------------------------------------------


def black(mode, width, height):
    return Image.new(mode, (width, height))


PROBLEMS = {  # what photo {n} gets instead of its files -> the file and the words that this is to be listed with
    "no depth map": ({"original_depth/{n}.png": None}, "original_depth/{n}", "missing"),
    "no target": ({"bokeh/{n}.jpg": None}, "bokeh/{n}", "missing"),
    "no photo": ({"original/{n}.jpg": None}, "original/{n}", "missing"),
    "target of another size": ({"bokeh/{n}.jpg": black("RGB", 1024, 1040)}, "bokeh/{n}.jpg", "1024 x 1040"),
    "depth map of full size": ({"original_depth/{n}.png": black("L", 1024, 1024)}, "original_depth/{n}.png",
                               "512 x 512"),
    "too small": ({"original/{n}.jpg": black("RGB", 1024, 1022), "original_depth/{n}.png": black("L", 512, 511),
                   "bokeh/{n}.jpg": black("RGB", 1024, 1022)}, "original/{n}.jpg", "1024 x 1022"),
    "no image": ({"original/{n}.jpg": b"<html>"}, "original/{n}.jpg", "readable"),
    "empty file": ({"bokeh/{n}.jpg": b""}, "bokeh/{n}.jpg", "readable"),
    "depth map of 16 bits": ({"original_depth/{n}.png": black("I;16", 512, 512)}, "original_depth/{n}.png", "8-bit"),
    "CMYK photo": ({"original/{n}.jpg": black("CMYK", 1024, 1024)}, "original/{n}.jpg", "CMYK"),
}


def cause(problem, folder, number):
    for file, content in PROBLEMS[problem][0].items():
        path = folder / file.format(n=number)
        path.unlink()
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content:
            save_image(path, content)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_problem_is_found_by_the_header_and_listed_with_its_file(tmp_path, problem):
    folder = write_split(tmp_path / "train", 1, 2)
    cause(problem, folder, 1)
    with pytest.raises(DataError) as error:
        load_dataset.find_training_pairs(tmp_path, "train")
    _, file, words = PROBLEMS[problem]
    lines = [line for line in str(error.value).splitlines() if f"train/{file.format(n=1)}" in line]
    assert len(lines) == 1 and words in lines[0]
    assert "2.jpg" not in str(error.value) and "2.png" not in str(error.value)


def test_all_problems_are_listed_at_once(tmp_path):
    folder = write_split(tmp_path / "train", *range(len(PROBLEMS) + 1))
    for number, problem in enumerate(PROBLEMS):
        cause(problem, folder, number)
    with pytest.raises(DataError) as error:
        load_dataset.find_training_pairs(tmp_path, "train")
    for number, (_, file, words) in enumerate(PROBLEMS.values()):
        assert any(file.format(n=number) in line and words in line for line in str(error.value).splitlines())
    assert f"{len(PROBLEMS)} problems" in str(error.value).splitlines()[0]


def test_two_photos_of_one_name_are_listed(tmp_path):
    write_split(tmp_path / "train", 1, 2)
    save_image(tmp_path / "train/original/2.png", BLACK)
    with pytest.raises(DataError, match=r"2\.jpg.*2\.png|2\.png.*2\.jpg"):
        load_dataset.find_training_pairs(tmp_path, "train")


@pytest.mark.parametrize("missing", FOLDERS)
def test_missing_folder_is_named(tmp_path, missing):
    folder = write_split(tmp_path / "train", 1)
    (folder / missing / next((folder / missing).iterdir())).unlink()
    (folder / missing).rmdir()
    with pytest.raises(DataError, match=f"train/{missing}"):
        load_dataset.find_training_pairs(tmp_path, "train")


def test_missing_data_set_is_named(tmp_path):
    for find in (lambda: load_dataset.find_training_pairs(tmp_path / "nowhere", "train"),
                 lambda: load_dataset.find_test_photos(tmp_path / "nowhere")):
        with pytest.raises(DataError, match="nowhere"):
            find()


def test_empty_folder_is_named(tmp_path):
    for kind in FOLDERS:
        (tmp_path / "train" / kind).mkdir(parents=True)
    with pytest.raises(DataError, match="train/original"):
        load_dataset.find_training_pairs(tmp_path, "train")


@pytest.mark.parametrize("kind, name", [("original", "1.jpg"), ("original_depth", "1.png"), ("bokeh", "1.jpg")])
def test_file_that_is_damaged_behind_its_header_is_named_when_it_is_read(tmp_path, kind, name):
    folder = write_split(tmp_path / "train", 1)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (1024, 1024), np.uint8))
    path = folder / kind / name
    save_image(path, noise.resize((512, 512)) if kind == "original_depth" else noise)
    path.write_bytes(path.read_bytes()[:20_000])
    [pair] = load_dataset.find_training_pairs(tmp_path, "train")
    with pytest.raises(DataError) as error:
        load_dataset.load_patch(pair, 7, 0, 0)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(DataError, match=name):
        next(load_dataset.test_batches([pair], 7, 1))

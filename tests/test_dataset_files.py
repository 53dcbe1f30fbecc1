"""support/dataset_files.py: which files belong together, and what is wrong with those that do not."""

import numpy as np
import pytest
from PIL import Image
from test_loading import FOLDERS, P, noise, save_image, save_pair, training_pairs

import load_dataset
from load_dataset import Pair
from support import dataset_files
from utils import DataError

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


@pytest.mark.parametrize("name", ["1.jfif", "1.mpo", "1.webp", "1.HEIC", "1.bmp", "1.pfm", "1.exr"])
def test_pictures_of_other_formats_are_left_out_with_the_reason(tmp_path, name):
    (tmp_path / name).touch()
    assert dataset_files.images_by_name(tmp_path) == (
        {}, {tmp_path / name: "is of a format that is not read here; save it as JPEG or PNG"})


@pytest.mark.parametrize("as_given", ["{}", "{}/"])
def test_dataset_folder_is_taken_with_and_without_the_closing_slash(tmp_path, as_given):
    write_split(tmp_path / "train", 1, 2)
    write_split(tmp_path / "test", 3)
    train, test = dataset_files.find_training_set(as_given.format(tmp_path), patch_size=P)
    assert (names_of(train), names_of(test)) == (["1", "2"], ["3"])


def test_val_size_takes_the_last_pairs_of_train_in_numeric_order_instead_of_test(tmp_path):
    write_split(tmp_path / "train", *range(8, 13))
    for photos in (write_split, lambda *_: None):
        train, test = dataset_files.find_training_set(tmp_path, patch_size=P, val_size=2)
        assert (names_of(train), names_of(test)) == (["8", "9", "10"], ["11", "12"])
        assert dataset_files.find_test_photos(tmp_path, val_size=2) == test
        photos(tmp_path / "test", 1)


@pytest.mark.parametrize("find", [dataset_files.find_training_set, dataset_files.find_test_photos])
def test_val_size_must_leave_pairs_to_train_with(tmp_path, find):
    write_split(tmp_path / "train", 1, 2, 3)
    patches = {"patch_size": P} if find == dataset_files.find_training_set else {}
    with pytest.raises(DataError, match="val_size=3: must be less than the 3 pairs"):
        find(tmp_path, val_size=3, **patches)


def test_without_test_targets_the_tool_that_says_what_to_do_is_named(tmp_path):
    write_split(tmp_path / "train", 1, 2)
    save_pair(tmp_path / "test", "1", BLACK, BLACK_DEPTH)
    with pytest.raises(DataError, match="test/bokeh: no such folder(.|\n)*python -m tools.check_dataset"):
        dataset_files.find_training_set(tmp_path, patch_size=P)


def test_val_size_takes_whole_pairs_to_render_too(tmp_path):
    write_split(tmp_path / "train", 1, 2, 3)
    (tmp_path / "train/bokeh/3.jpg").unlink()
    with pytest.raises(DataError, match="train/bokeh/3: no .jpg or .png of this name"):
        dataset_files.find_test_photos(tmp_path, val_size=1)


def test_photos_to_render_need_no_target_and_may_have_any_size(tmp_path):
    save_pair(tmp_path / "test", "1", noise(131, 97, 3), noise(65, 48))
    assert [pair.bokeh for pair in dataset_files.find_test_photos(tmp_path)] == [None]
    write_split(tmp_path / "test", 2)
    pairs = dataset_files.find_test_photos(tmp_path)
    assert [(pair.name, pair.size, pair.bokeh is None) for pair in pairs] == [
        ("1", (131, 97), True), ("2", (2 * P, 2 * P), False)]


def test_without_depth_no_depth_maps_are_looked_for(tmp_path):
    save_pair(tmp_path / "test", "1", BLACK, None, BLACK)
    assert [pair.map for pair in dataset_files.find_test_photos(tmp_path, use_depth=False)] == [None]
    pairs, problems = dataset_files.survey(tmp_path, "test", for_training=True, kind=None, patch_size=P)
    assert [pair.map for pair in pairs] == [None] and not problems
    with pytest.raises(DataError, match="original_depth: no such folder(.|\n)*python -m tools.check_dataset"):
        dataset_files.find_test_photos(tmp_path)


def test_kind_of_map_follows_from_the_folder_that_a_data_set_has(tmp_path):
    folder = write_split(tmp_path / "train", 1, 2)
    write_split(tmp_path / "test", 3)
    for split in (folder, tmp_path / "test"):
        (split / "original_depth").rename(split / "original_focus")
    train, test = dataset_files.find_training_set(tmp_path, patch_size=P)
    assert [pair.kind for pair in train + test] == ["focus"] * 3 and train[0].map == folder / "original_focus/1.png"
    assert load_dataset.load_input(train[0]).shape == (P, P, load_dataset.input_channels("focus"))
    assert dataset_files.find_test_photos(tmp_path)[0].kind == "focus"
    (folder / "original_focus/2.png").unlink()
    with pytest.raises(DataError, match="original_focus/2: no .jpg or .png of this name"):
        dataset_files.find_training_set(tmp_path, patch_size=P)


def test_two_kinds_of_maps_in_a_data_set_are_named_in_one_line(tmp_path):
    write_split(tmp_path / "train", 1, 2)
    (tmp_path / "test/original_focus").mkdir(parents=True)
    for find in (dataset_files.find_training_set, dataset_files.find_test_photos):
        with pytest.raises(DataError, match="^.*original_depth and .*test/original_focus: .* remove one of them$"):
            find(tmp_path)
    assert dataset_files.find_training_set(tmp_path, use_depth=False, patch_size=P, val_size=1)[1][0].kind is None


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
        dataset_files.find_training_set(tmp_path, patch_size=P)
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
        pairs, problems = dataset_files.survey(tmp_path, "train", for_training=True, patch_size=P)
        assert not pairs and problems == [f"{folder}: no such folder, or no .jpg or .png in it"]
        folder.rmdir() if folder.exists() else None


def test_missing_data_set_is_named(tmp_path):
    for find in (dataset_files.find_training_set, dataset_files.find_test_photos):
        with pytest.raises(DataError, match="nowhere"):
            find(tmp_path / "nowhere")

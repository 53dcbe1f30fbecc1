"""tools/check_dataset.py: every damage is found before a training, every file counted, every next command named."""

import os
import pathlib
import re
import shutil
import subprocess
import types

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from test_readme import README, python_commands

import test_model
import train_model
from support import dataset_files
from tools import check_dataset, make_depth_maps, make_scenes, plot_logs
from utils import DataError

SIZE = 512, 384


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A data set of six training and two test photos, for patches of 192 pixels. Read it only."""
    folder = tmp_path_factory.mktemp("sound")
    for seed, (split, number) in enumerate([*(("train", number) for number in range(6)), ("test", 0), ("test", 1)]):
        spots = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), np.uint8)
        photo = Image.fromarray(spots).resize(SIZE, Image.Resampling.BICUBIC)
        tones = np.random.default_rng([seed]).integers(0, 200, (3, 4), np.uint8) + np.uint8([[0], [20], [55]])
        depth = Image.fromarray(tones).resize((SIZE[0] // 2, SIZE[1] // 2))
        for file, image in (("original/{}.jpg", photo), ("original_depth/{}.png", depth), ("bokeh/{}.jpg", photo)):
            path = folder / split / file.format(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path, quality=95)
    return folder


@pytest.fixture
def check(sound, tmp_path, monkeypatch, call):
    """check("use_depth=false", ...) checks the folder data/, a copy to damage: a `Call`."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(sound, tmp_path / "data")

    def run(*arguments, patch_size=192):
        return call(check_dataset, "dataset_dir=data", f"patch_size={patch_size}", *arguments)
    return run


def test_sound_files_are_counted(check):
    done = check()
    assert (done.status, done.err) == (0, "")
    assert done.out == ("train: 6 photos, 6 depth maps, 6 targets\n"
                        "Preview: results/depth_maps.jpg shows 0.jpg, 2.jpg, 4.jpg beside their depth maps: near must "
                        "be bright\ntest: 2 photos, 2 depth maps, 2 targets\nAll files are sound.\n"
                        "Then: python train_model.py level=7 dataset_dir=data patch_size=192\n")


def test_every_kind_of_damage_is_found(check, tmp_path):
    train = tmp_path / "data/train"
    photo = train / "original/0.jpg"
    photo.write_bytes(photo.read_bytes()[:-500])
    shutil.copy(train / "bokeh/3.jpg", train / "bokeh/1.jpg")
    half = (train / "bokeh/2.jpg").read_bytes()
    (train / "bokeh/2.jpg").write_bytes(half[:len(half) // 4].ljust(len(half), b"\0"))
    (train / "original_depth/3.png").unlink()
    (train / "bokeh/4.jpg").write_text("not an image")
    depth = bytearray((train / "original_depth/5.png").read_bytes())
    depth[len(depth) // 2] ^= 1
    (train / "original_depth/5.png").write_bytes(depth)
    (tmp_path / "data/test/bokeh/1.jpg").unlink()
    done = check()
    errors = done.err.splitlines()
    for pattern in (r"original/0\.jpg: is damaged \(.*truncated",
                    r"bokeh/1\.jpg: does not show the scene of .*original/1\.jpg",
                    r"bokeh/2\.jpg: (is damaged|does not show the scene)",
                    r"original_depth/3: no \.jpg or \.png of this name",
                    r"bokeh/4\.jpg: is damaged", r"original_depth/5\.png: is damaged",
                    r"test/bokeh/1: no \.jpg or \.png of this name"):
        assert sum(bool(re.search(pattern, error)) for error in errors) == 1, pattern
    assert len(errors) == 7 and done.status == 1
    assert done.out.splitlines()[-4:] == [
        "Problems to repair: 7", "Missing depth maps: 1. This makes them:",
        "  python -m tools.make_depth_maps model=depth_anything_v2_small dataset_dir=data",
        "Then: python -m tools.check_dataset dataset_dir=data patch_size=192"]


def side_by_side(photo, depth):
    """What Depth Anything's own program writes by default, at the size of a depth map."""
    both = np.hstack([photo.convert("L").resize(SIZE), depth.resize(SIZE)])
    return Image.fromarray(both).resize(depth.size, Image.Resampling.BICUBIC)


NO_DEPTH_MAPS = {  # what the line says of it, and how it is made of a photo and its depth map
    "has nearly one tone, 128 to 128 of 0 to 255": lambda photo, depth: Image.new("L", depth.size, 128),
    "has nearly one tone, 0 to 1 of 0 to 255": lambda photo, depth: depth.point(lambda value: value // 200),
    "shows in its left half the photo": side_by_side,
    "is the photo": lambda photo, depth: photo.convert("L").resize(depth.size),
    "is in colours": lambda photo, depth: Image.merge("RGB", [depth, depth.point(lambda value: 255 - value), depth])}


@pytest.mark.parametrize("reason", NO_DEPTH_MAPS)
def test_picture_that_is_no_depth_map_is_named(check, reason):
    paths = "data/train/original/3.jpg", "data/train/original_depth/3.png"
    NO_DEPTH_MAPS[reason](*map(Image.open, paths)).save(paths[1])
    done = check()
    assert done.status == 1 and done.err.count("\n") == 1
    assert done.err.startswith(f"error: data/train/original_depth/3.png: {reason}")


def test_what_is_no_file_is_named_and_not_waited_for(check):
    pathlib.Path("data/train/original/3.jpg").unlink()
    os.mkfifo("data/train/original/3.jpg")
    done = check()
    assert done.status == 1 and "original/3.jpg" in done.err


def test_inverted_depth_maps_are_said_where_they_are_many(tmp_path, call, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_scenes.write_dataset("data", train_count=12, test_count=1, size=(192, 160))
    for path in pathlib.Path("data/train/original_depth").iterdir():  # as if all stood on the ground
        depth = np.float32(Image.open(path)) / 4 + np.linspace(0, 190, 80)[:, np.newaxis]
        Image.fromarray(np.uint8(depth)).save(path)
    check = check_dataset, "dataset_dir=data", "patch_size=64"
    assert call(*check)[::2] == (0, "")
    for path in pathlib.Path("data/train/original_depth").iterdir():
        Image.open(path).point(lambda value: 255 - value).save(path)
    done = call(*check)
    assert done.status == 0 and done.err == (
        "warning: data/train: most depth maps are darker below, where things are nearer in most photos; bright must be "
        "near: look at results/depth_maps.jpg\n")


def test_slopes_tell_inverted_maps_beyond_chance_alone():
    slopes = np.array([87, 53, 78, 118, 82, 52, -16, 58])  # of eight photos of EBB!
    assert check_dataset.seem_inverted(-slopes) and not check_dataset.seem_inverted(slopes)
    assert not check_dataset.seem_inverted(-slopes[:7]) and not check_dataset.seem_inverted([])
    assert not check_dataset.seem_inverted(slopes - slopes.mean() - 5)
    tone = np.repeat(np.uint8([[10], [0], [30]]), 5, axis=0)
    assert check_dataset.slope_of(Image.fromarray(tone)) == 20


def test_three_photos_are_shown_beside_their_depth_maps(check):
    check()
    width, height = make_depth_maps.PREVIEW_SIZE
    assert Image.open("results/depth_maps.jpg").size == (2 * width, 3 * height)
    assert check("use_depth=false").status == 0


def test_too_large_val_size_gets_one_that_works(check):
    done = check("val_size=6")
    assert done.status == 1 and "data/train: has 6 sound pairs, val_size=6 needs more" in done.err
    assert done.out.splitlines()[-2:] == [
        "train/ has only 6 targets: val_size=1 takes the last pairs of train/ instead",
        "Then: python -m tools.check_dataset dataset_dir=data patch_size=192 val_size=1"]
    assert check("val_size=1").status == 0


def test_photos_smaller_than_two_patches_are_named(check):
    done = check(patch_size=224)
    assert done.status == 1 and done.err.count("is 512 x 384, must be 448 x 448 or more") == 8


def test_test_photos_without_targets_can_be_rendered(check):
    shutil.rmtree("data/test/bokeh")
    done = check()
    assert done.status == 0
    assert done.out.splitlines()[-2:] == [
        "test/ has no targets to measure on: val_size=1 takes the last pairs of train/ instead",
        "Then: python train_model.py level=7 dataset_dir=data patch_size=192 val_size=1"]


def test_without_depth_maps(check):
    for split in ("train", "test"):
        shutil.rmtree(f"data/{split}/original_depth")
    done = check()
    assert done.status == 1 and done.err.count("\n") == 2
    assert "train: 6 photos, 0 depth maps, 6 targets\n" in done.out
    assert done.out.splitlines()[-4:] == [
        "Problems to repair: 2", "Missing depth maps: 8. This makes them:",
        "  python -m tools.make_depth_maps model=depth_anything_v2_small dataset_dir=data",
        "Then: python -m tools.check_dataset dataset_dir=data patch_size=192"]
    done = check("use_depth=false")
    assert done.status == 0
    assert done.out.endswith("Then: python train_model.py level=7 dataset_dir=data patch_size=192 use_depth=false\n")


def test_val_size_takes_the_last_pairs_of_train_instead_of_test(check):
    shutil.rmtree("data/test")
    done = check("val_size=2")
    assert done.status == 0 and done.out.endswith(
        "Then: python train_model.py level=7 dataset_dir=data patch_size=192 val_size=2\n")


@pytest.mark.parametrize("name", ["", "nowhere"])
def test_folder_that_is_empty_or_missing_holds_no_photos(tmp_path, call, name):
    done = call(check_dataset, f"dataset_dir={tmp_path / name}")
    assert done.status == 1 and done.out.splitlines()[-1].startswith("No photos found: ")
    assert f"error: {tmp_path / name}/train/original: no such folder, or no .jpg or .png in it" in done.err


def test_pairs_enough_get_the_split_of_papers(tmp_path):
    for kind in ("original", "bokeh"):
        (tmp_path / "train" / kind).mkdir(parents=True)
        for number in range(300):
            (tmp_path / "train" / kind / f"{number}.jpg").touch()
    settings = types.SimpleNamespace(dataset_dir=tmp_path, val_size=0, use_depth=False)
    problems = [f"{tmp_path}/test/original: no such folder"]
    *_, last = check_dataset.next_steps(["use_depth=false"], settings, ("train", "test"), problems)
    assert last == "Then: python -m tools.check_dataset use_depth=false val_size=294"


LAYOUTS = {  # how a data set may come out of its archives: where the folders of data/train and data/test are
    "too deep": ("EBB/train/{0}", "EBB/test/{0}"),
    "other names": ("Training/{0}", "Validation/{0}"),
    "too deep with other names": ("a b/EBB!/TrainingData/{0}", "a b/EBB!/test_photos/{0}"),
    "each in its own": ("train/train/{0}", "test/EBB/Validation/{0}"),
    "without a split": ("{0}", "Test/{0}"),
    "only train is wrong": ("EBB/1/{0}", "test/{0}"),
    "capitals": ("Train/{1}", "Test/{1}"),
    "test photos alone": ("Training/{0}", "ValidationBokehFree")}


@pytest.mark.parametrize("name", LAYOUTS)
def test_commands_that_repair_the_folders_of_an_extracted_data_set_are_named(check, tmp_path, name):
    (tmp_path / "data").rename(tmp_path / "sound")
    for split, place in zip(("train", "test"), LAYOUTS[name]):
        for kind in ("original", "original_depth", "bokeh") if "{" in place else ["original"]:
            target = tmp_path / "data" / place.format(kind, kind.title())
            target.parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "sound" / split / kind).rename(target)
    done = check()
    lines = done.out.splitlines()
    assert done.status == 1 and lines[-1] == "Then: python -m tools.check_dataset dataset_dir=data patch_size=192"
    commands = lines[lines.index("Folders have other names or lie elsewhere. This moves them:") + 1:-1]
    assert commands[0].startswith("  mkdir -p data/") and all(line.startswith("  mv ") for line in commands[1:])
    subprocess.run("set -e\n" + "\n".join(commands), shell=True, check=True)
    done = check("use_depth=false") if name == "test photos alone" else check()
    assert (done.status, done.err) == (0, "")
    assert "train: 6 photos" in done.out and "test: 2 photos" in done.out and "This moves" not in done.out


def test_training_on_such_a_folder_names_this_tool(tmp_path):
    with pytest.raises(DataError, match="python -m tools.check_dataset, with the same dataset_dir="):
        dataset_files.find_training_set(tmp_path / "my data")


def test_endings_in_capitals_and_png_targets_are_as_good(check, tmp_path):
    for path in (tmp_path / "data").glob("*/original/*.jpg"):
        path.rename(path.with_suffix(".JPG"))
    for path in list((tmp_path / "data").glob("*/bokeh/*.jpg")):
        Image.open(path).save(path.with_suffix(".PNG"))
        path.unlink()
    done = check()
    assert (done.status, done.err) == (0, "") and "train: 6 photos, 6 depth maps, 6 targets\n" in done.out
    train, test = dataset_files.find_training_set("data", patch_size=192)
    assert (len(train), len(test), train[0].photo.name, train[0].bokeh.name) == (6, 2, "0.JPG", "0.PNG")


def test_resemblance_is_that_of_colours_seen_from_far():
    random = np.random.default_rng(0)
    scene, other = (Image.fromarray(random.integers(0, 256, (6, 8, 3), np.uint8)).resize(SIZE) for _ in range(2))
    grey, darker = Image.new("RGB", SIZE, "grey"), scene.point(lambda value: value // 2)
    assert check_dataset.resemblance(scene, darker) > 0.95
    assert abs(check_dataset.resemblance(scene, other)) < check_dataset.MIN_RESEMBLANCE
    assert check_dataset.resemblance(scene, grey) == 1 and check_dataset.resemblance(grey, grey) == 1


# From the download to numbers ----------------------------------------------------------------------------------------


SMALL = {"model=depth_anything_v2_small": "model=depth.keras", "val_size=294": "val_size=4",
         "batch_size=50": "batch_size=2"}
QUICK_LEVEL_7 = "width=0.125", "patch_size=64", "num_train_iters=2", "eval_step=2", "vgg_dir=none"


def readme_command(module, *needed):
    """Returns the arguments of the first command in the README that calls this module with these, made small."""
    words = next(words for words in python_commands(README)
                 if module in (words[0], words[1 % len(words)]) and {*needed} <= {*words})
    return [SMALL.get(word, word) for word in words if "=" in word]


def write_download(folder):
    """Writes what EBB!'s archive may hold: no depth maps, no targets of the test photos, its own folder names."""
    make_scenes.write_dataset(folder / "made", train_count=20, test_count=4, size=(320, 256))
    for source, target in (("train/original", "Training/original"), ("train/bokeh", "Training/bokeh"),
                           ("test/original", "ValidationBokehFree")):
        (folder / "ebb_dataset/EBB" / target).parent.mkdir(parents=True, exist_ok=True)
        (folder / "made" / source).rename(folder / "ebb_dataset/EBB" / target)
    shutil.rmtree(folder / "made")


def write_depth_network(path):
    """Writes a stand-in for a depth network: of any size, it gives the green channel without its detail."""
    convolution = tf.keras.layers.Conv2D(1, 1, use_bias=False)
    network = tf.keras.Sequential([tf.keras.Input([None, None, 3]), convolution,
                                   *(tf.keras.layers.AveragePooling2D(32, 1, "same") for _ in range(2))])
    convolution.set_weights([np.float32([0, 1, 0]).reshape(1, 1, 3, 1)])
    network.save(path)


def test_download_comes_to_a_trained_level_and_its_metrics_by_the_commands_of_the_readme_alone(workplace, call):
    write_download(workplace)
    write_depth_network(workplace / "depth.keras")
    check = readme_command("tools.check_dataset", "dataset_dir=ebb_dataset/")

    lines = call(check_dataset, *check).out.splitlines()
    subprocess.run("\n".join(line for line in lines if line.startswith(("  mkdir ", "  mv "))), shell=True, check=True)
    made = call(make_depth_maps, *readme_command("tools.make_depth_maps", "dataset_dir=ebb_dataset/"))
    assert made.status == 0 and "Depth maps: 24 made" in made.out
    checked = call(check_dataset, *check, "patch_size=64")
    assert checked.status == 0 and "train: 20 photos, 20 depth maps, 20 targets\n" in checked.out
    assert checked.out.splitlines()[-1].endswith("level=7 dataset_dir=ebb_dataset/ patch_size=64 val_size=4")

    trained = call(train_model, *readme_command("train_model.py", "level=7"), *QUICK_LEVEL_7)
    assert trained.status == 0 and "Data: 16 training and 4 test photos in ebb_dataset/" in trained.out
    assert "Level 7: iteration 2, training " in call(plot_logs, *readme_command("tools.plot_logs")).out
    rendered = call(test_model, *readme_command("test_model.py", "val_size=294"), "level=7")
    assert rendered.status == 0 and "4/4 " in rendered.out

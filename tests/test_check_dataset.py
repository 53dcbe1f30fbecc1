"""tools/check_dataset.py: every damage is found before a training, every file counted."""

import re
import shutil

import numpy as np
import pytest
from PIL import Image

from tools import check_dataset

SIZE = 512, 384


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A data set of six training and two test photos, for patches of 192 pixels. Read it only."""
    folder = tmp_path_factory.mktemp("sound")
    for seed, (split, number) in enumerate([*(("train", number) for number in range(6)), ("test", 0), ("test", 1)]):
        spots = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), np.uint8)
        photo = Image.fromarray(spots).resize(SIZE, Image.Resampling.BICUBIC)
        depth = photo.convert("L").resize((SIZE[0] // 2, SIZE[1] // 2))
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


def test_sound_files_are_counted_by_their_size(check):
    done = check()
    assert (done.status, done.err) == (0, "")
    assert done.out == ("train: 6 complete pairs\n  6 of 512 x 384\ntest: 2 complete pairs\n  2 of 512 x 384\n"
                        "All files are sound.\n")


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
    assert len(errors) == 7 and done.out.endswith("7 problems found\n") and done.status == 1


def test_photos_smaller_than_two_patches_are_named(check):
    done = check(patch_size=224)
    assert done.status == 1 and done.err.count("is 512 x 384, must be 448 x 448 or more") == 8


def test_test_photos_without_targets_can_be_rendered(check):
    shutil.rmtree("data/test/bokeh")
    done = check()
    assert done.status == 0
    assert "test: no bokeh/, so its photos can be rendered but not measured; val_size=294" in done.out


def test_without_depth_maps(check):
    for split in ("train", "test"):
        shutil.rmtree(f"data/{split}/original_depth")
    assert check().status == 1
    assert check("use_depth=false").status == 0


def test_val_size_takes_the_last_pairs_of_train_instead_of_test(check):
    shutil.rmtree("data/test")
    done = check("val_size=2")
    assert done.status == 0 and "test: the last 2 pairs of train/, from 4 on" in done.out
    done = check("val_size=6")
    assert done.status == 1 and "error: val_size=6: must be less than the 6 pairs" in done.err


def test_empty_folder_has_nothing_to_render(tmp_path, call):
    done = call(check_dataset, f"dataset_dir={tmp_path}")
    assert done.status == 1 and "rendered" not in done.out
    assert f"error: {tmp_path}/train/original: no such folder, or no .jpg or .png in it" in done.err
    done = call(check_dataset, f"dataset_dir={tmp_path / 'nowhere'}")
    assert (done.status, done.err) == (1, f"error: {tmp_path / 'nowhere'}: no such folder\n")


def test_resemblance_is_that_of_colours_seen_from_far():
    random = np.random.default_rng(0)
    scene, other = (Image.fromarray(random.integers(0, 256, (6, 8, 3), np.uint8)).resize(SIZE) for _ in range(2))
    grey, darker = Image.new("RGB", SIZE, "grey"), scene.point(lambda value: value // 2)
    assert check_dataset.resemblance(scene, darker) > 0.95
    assert abs(check_dataset.resemblance(scene, other)) < check_dataset.MIN_RESEMBLANCE
    assert check_dataset.resemblance(scene, grey) == 0 and check_dataset.resemblance(grey, grey) == 1

"""Hundreds of mutated files: each is reported, or decodes to what the photo was."""

import io
import os
import random
import re
import shutil
import zlib

import numpy as np
import pytest
from PIL import Image

import load_dataset
import utils
from tools import check_dataset, make_demo_dataset

MUTATIONS = 500


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A data set of one training photo and one test photo, and the patches that it gives."""
    folder = tmp_path_factory.mktemp("sound") / "ebb_dataset"
    make_demo_dataset.write_dataset(folder, 1, 1, size=(1024, 1024))
    pair, = load_dataset.find_training_pairs(folder, "train")
    return folder, load_dataset.load_patch(pair, 4, 0, 0)


def png(mode, size, colour=90):
    stream = io.BytesIO()
    Image.new(mode, size, colour).save(stream, "PNG")
    return stream.getvalue()


def jpeg(mode, size):
    stream = io.BytesIO()
    Image.new(mode, size).save(stream, "JPEG")
    return stream.getvalue()


def animation(size):
    stream = io.BytesIO()
    frames = [Image.new("L", size, shade) for shade in (0, 99)]
    frames[0].save(stream, "PNG", save_all=True, append_images=frames[1:])
    return stream.getvalue()


def huge_png():
    header = b"IHDR" + (60000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4, "big") + header + zlib.crc32(header).to_bytes(4, "big")


def flip_bits(content, chance):
    content = bytearray(content)
    for _ in range(chance.choice((1, 1, 3, 30))):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    return bytes(content)


KINDS = {
    "truncated": lambda content, chance: content[:chance.randrange(len(content))],
    "bits flipped": flip_bits,
    "zero bytes long": lambda content, chance: b"",
    "zeros": lambda content, chance: bytes(len(content)),
    "zeros from somewhere on": lambda content, chance: content[:(at := chance.randrange(len(content)))].ljust(
        len(content), b"\0"),
    "noise": lambda content, chance: chance.randbytes(2000),
    "text": lambda content, chance: b"<html>404 not found</html>",
    "a GIF": lambda content, chance: b"GIF89a" + content[6:],
    "huge": lambda content, chance: huge_png(),
    "one pixel": lambda content, chance: png("RGB", (1, 1)),
    "CMYK": lambda content, chance: jpeg("CMYK", (1024, 1024)),
    "16 bits": lambda content, chance: png("I;16", (512, 512)),
    "animated": lambda content, chance: animation((512, 512)),
    "of another size": lambda content, chance: png("RGB", (chance.randrange(1, 3000), 1024)),
}


def test_mutated_files_are_reported_or_harmless(sound, tmp_path):
    folder, (patch, target) = sound
    chance = random.Random(0)
    reported = dict.fromkeys(KINDS, 0)
    accepted = []
    shutil.copytree(folder, tmp_path / "data")
    files = [tmp_path / "data/train/original/0.jpg", tmp_path / "data/train/original_depth/0.png",
             tmp_path / "data/train/bokeh/0.jpg"]
    contents = {file: file.read_bytes() for file in files}
    sound_pair, = load_dataset.find_training_pairs(tmp_path / "data", "train")
    for number in range(MUTATIONS):
        kind = chance.choice(list(KINDS))
        file = chance.choice(files)
        file.write_bytes(KINDS[kind](contents[file], chance))
        problems = load_dataset.survey(tmp_path / "data", "train", for_training=True)[1]
        assert not problems or any(str(file) in problem for problem in problems)
        try:  # whatever the header told: the file may go bad after it was checked
            mutated = load_dataset.load_patch(sound_pair, 4, 0, 0)
            accepted.append((kind, file.parent.name, np.abs(mutated[0].astype(int) - patch).mean(),
                             np.abs(mutated[1].astype(int) - target).mean()))
        except utils.DataError as error:
            assert "\n" not in str(error) and str(file.name) in str(error)
            reported[kind] += 1
        file.write_bytes(contents[file])
    assert sum(reported.values()) + len(accepted) == MUTATIONS
    for kind, where, patch_change, target_change in accepted:
        assert kind in ("bits flipped", "truncated", "zeros from somewhere on"), kind
        if kind != "bits flipped" or where == "original_depth":
            assert patch_change == target_change == 0, (kind, where)
        else:  # a JPEG has no checksum: what still resembles its partner from far passes
            assert patch_change < 80 and target_change < 80, (kind, where)


@pytest.mark.parametrize("kind", ["original/0.jpg", "original_depth/0.png", "bokeh/0.jpg"])
def test_a_file_that_goes_bad_after_it_was_read_is_found_at_its_next_reading(sound, tmp_path, kind):
    shutil.copytree(sound[0], tmp_path / "data")
    pair, = load_dataset.find_training_pairs(tmp_path / "data", "train")
    load_dataset.load_patch(pair, 7, 0, 0)
    file = tmp_path / "data/train" / kind
    content, status = file.read_bytes(), file.stat()
    file.write_bytes(content[:len(content) // 2] + bytes(len(content) - len(content) // 2))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(utils.DataError, match=re.escape(f"train/{kind}")):
        load_dataset.load_patch(pair, 7, 0, 0)
    file.write_bytes(content)
    load_dataset.load_patch(pair, 7, 0, 0)


def test_a_symlink_loop_and_a_folder_in_place_of_a_photo_are_reported(sound, tmp_path):
    shutil.copytree(sound[0], tmp_path / "data")
    photo = tmp_path / "data/train/original/0.jpg"
    photo.unlink()
    os.symlink(photo, photo)
    (tmp_path / "data/train/bokeh/0.jpg").unlink()
    (tmp_path / "data/train/bokeh/0.jpg").mkdir()
    problems = load_dataset.survey(tmp_path / "data", "train", for_training=True)[1]
    assert sorted(re.sub(r".*data/train/(.*?): .*", r"\1", problem) for problem in problems) == [
        "bokeh/0.jpg", "original/0.jpg"]


def test_check_dataset_finds_every_kind_of_damage_and_counts_sizes(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    make_demo_dataset.write_dataset("data", 6, 2, size=(1056, 1024))
    sound = call(check_dataset, "dataset_dir=data")
    assert sound.status == 0 and sound.err == ""
    assert "train: 6 complete pairs\n  6 of 1056 x 1024" in sound.out and "test: 2 complete pairs" in sound.out
    assert sound.out.endswith("All files are sound.\n")

    train = tmp_path / "data/train"
    (train / "original/0.jpg").write_bytes((train / "original/0.jpg").read_bytes()[:-500])
    shutil.copy(train / "bokeh/2.jpg", train / "bokeh/1.jpg")
    (train / "original_depth/3.png").unlink()
    (train / "bokeh/4.jpg").write_text("not an image")
    Image.new("L", (99, 99)).save(train / "original_depth/5.png")
    (tmp_path / "data/test/bokeh/1.jpg").unlink()
    broken = call(check_dataset, "dataset_dir=data")
    assert broken.status == 1
    errors = broken.err.splitlines()
    for pattern in (r"original/0\.jpg: is damaged \(.*truncated",
                    r"bokeh/1\.jpg: does not show the scene of .*original/1\.jpg",
                    r"original_depth/3\.png: is missing", r"bokeh/4\.jpg: is not a readable JPEG or PNG",
                    r"original_depth/5\.png: is 99 x 99, half of .* is 528 x 512",
                    r"test/bokeh/1\.jpg: is missing"):
        assert sum(bool(re.search(pattern, error)) for error in errors) == 1, pattern
    assert len(errors) == 6 and broken.out.endswith("6 problems found\n")


def test_a_folder_that_is_no_data_set_is_reported(tmp_path, call):
    done = call(check_dataset, f"dataset_dir={tmp_path / 'nowhere'}")
    assert done.status == 1 and len(done.err.splitlines()) == 1
    assert done.err == f"error: {tmp_path / 'nowhere'}: no such folder\n"


def test_a_test_split_without_targets_is_no_problem_for_check_dataset(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    make_demo_dataset.write_dataset("data", 1, 1, size=(1024, 1024))
    shutil.rmtree("data/test/bokeh")
    done = call(check_dataset, "dataset_dir=data")
    assert done.status == 0 and "test: there is no bokeh/" in done.out

"""Damaged files of a data set: each is named, and training goes on without it."""

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
from support import dataset_files
from utils import DataError

P = 64  # patch_size
MUTATIONS = 400
FILES = ("original/0.jpg", "original_depth/0.png", "bokeh/0.jpg")


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A data set of four training photos. Read it only."""
    folder = tmp_path_factory.mktemp("sound")
    for number in range(4):
        spots = Image.fromarray(np.random.default_rng(number).integers(0, 256, (8, 10, 3), np.uint8))
        photo = spots.resize((160, 128), Image.Resampling.BICUBIC)
        depth = photo.convert("L").resize((80, 64))
        for file, image in (("original/{}.jpg", photo), ("original_depth/{}.png", depth), ("bokeh/{}.jpg", photo)):
            path = folder / "train" / file.format(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path, quality=95)
    return folder


@pytest.fixture
def data(sound, tmp_path):
    """A copy of it to damage, and its pairs."""
    shutil.copytree(sound, tmp_path / "data")
    return tmp_path / "data", survey(tmp_path / "data")[0]


def survey(folder):
    return dataset_files.survey(folder, "train", for_training=True, patch_size=P)


def load_patch(pair):
    return load_dataset.load_patch(pair, 4, 3, 0, P)


def batches(pairs, first=1, last=8):
    return list(load_dataset.training_batches(pairs, 7, 2, 99, first, last, patch_size=P))


def image_file(kind, mode, size):
    stream = io.BytesIO()
    Image.new(mode, size, 90 if mode == "L" else None).save(stream, kind)
    return stream.getvalue()


def huge_png():
    header = b"IHDR" + (60000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4, "big") + header + zlib.crc32(header).to_bytes(4, "big")


def flip_bits(content, chance):
    content = bytearray(content)
    for _ in range(chance.choice((1, 1, 3, 30))):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    return bytes(content)


def zeros_from_somewhere_on(content, chance):
    return content[:chance.randrange(len(content))].ljust(len(content), b"\0")


KINDS = {
    "truncated": lambda content, chance: content[:chance.randrange(len(content))],
    "bits flipped": flip_bits,
    "zeros from somewhere on": zeros_from_somewhere_on,
    "zeros": lambda content, chance: bytes(len(content)),
    "zero bytes long": lambda content, chance: b"",
    "noise": lambda content, chance: chance.randbytes(2000),
    "text": lambda content, chance: b"<html>404 not found</html>",
    "a GIF": lambda content, chance: b"GIF89a" + content[6:],
    "huge": lambda content, chance: huge_png(),
    "CMYK": lambda content, chance: image_file("JPEG", "CMYK", (160, 128)),
    "16 bits": lambda content, chance: image_file("PNG", "I;16", (80, 64)),
    "of another size": lambda content, chance: image_file("PNG", "RGB", (chance.randrange(1, 80), 128)),
}
UNNOTICED = ("truncated", "bits flipped", "zeros from somewhere on")  # at times: a JPEG has no checksum


def test_mutated_files_are_named_in_one_line_or_decode_to_a_patch(data):
    """Whatever the header told: a file may go bad after it was checked."""
    folder, [pair, *_] = data
    patch, target = load_patch(pair)
    chance = random.Random(0)
    for number in range(MUTATIONS):
        kind, file = list(KINDS)[number % len(KINDS)], folder / "train" / FILES[number % len(FILES)]
        content = file.read_bytes()
        file.write_bytes(KINDS[kind](content, chance))
        assert all(str(file) in problem for problem in survey(folder)[1])
        try:
            mutated = load_patch(pair)
            assert kind in UNNOTICED and [array.shape for array in mutated] == [patch.shape, target.shape]
            np.testing.assert_array_equal(mutated[0][..., 3], patch[..., 3], f"a PNG has checksums ({kind})")
        except DataError as error:
            assert str(error).startswith(f"{file}: ") and "\n" not in str(error)
        file.write_bytes(content)


def test_flipped_bit_in_a_png_is_noticed_wherever_it_changes_the_picture(data):
    _, [pair, *_] = data
    content, depth = pair.map.read_bytes(), np.asarray(load_dataset.read_image(pair.map, "L"))
    for position in range(0, len(content), 7):
        pair.map.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1:])
        try:
            np.testing.assert_array_equal(load_dataset.read_image(pair.map, "L"), depth)
        except DataError as error:
            assert str(error).startswith(f"{pair.map}: ")


@pytest.mark.parametrize("kind", FILES)
def test_damaged_photo_is_named_once_and_the_next_one_takes_its_place(data, capsys, kind):
    folder, pairs = data
    file = folder / "train" / kind
    expected = batches(pairs[1:2] + pairs[1:])  # as if the next photo were there twice
    file.write_bytes(file.read_bytes()[:-300])
    found = batches(pairs)
    for batch, other in zip(found, expected):
        assert batch.names == other.names
        np.testing.assert_array_equal(batch.inputs, other.inputs)
        np.testing.assert_array_equal(batch.targets, other.targets)
    assert re.fullmatch(rf"warning: {re.escape(str(file))}: is damaged \(.*\); it is left out from now on "
                        r"\(1 damaged so far\)\n", capsys.readouterr().err)
    assert batches(pairs, first=8)[0].names == found[-1].names


def test_damaged_test_photo_is_left_out(data, capsys):
    folder, pairs = data
    (folder / "train/bokeh/1.jpg").write_bytes(b"")
    assert [batch.names for batch in load_dataset.test_batches(pairs, 7, 2, P)] == [["0", "2"], ["3"]]
    assert capsys.readouterr().err.count("bokeh/1.jpg: is damaged") == 1


def test_second_damaged_photo_of_few_stops_the_training(data):
    folder, pairs = data
    for number in (1, 3):
        (folder / f"train/original/{number}.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="2 photos are damaged, too many to go on: python -m tools.check_dataset"):
        batches(pairs)


@pytest.mark.parametrize("count, tolerated", [(1, 1), (199, 1), (200, 2), (4894, 48)])
def test_one_percent_of_the_photos_may_be_damaged(sound, count, tolerated, capsys):
    pair, damaged = survey(sound)[0][0], load_dataset.DamagedPhotos(count)
    for number in range(tolerated):
        damaged.add(pair._replace(name=f"{number}"), DataError(f"{number} is damaged"))
        damaged.add(pair._replace(name="0"), DataError("0 is damaged"))
    assert capsys.readouterr().err.count("\n") == tolerated
    with pytest.raises(DataError, match=f"{tolerated + 1} photos are damaged, too many"):
        damaged.add(pair._replace(name="last"), DataError("it is damaged"))


def test_symlink_loop_and_folder_in_place_of_a_photo_are_named(data):
    folder, _ = data
    photo, bokeh = folder / "train/original/0.jpg", folder / "train/bokeh/0.jpg"
    photo.unlink()
    os.symlink(photo, photo)
    bokeh.unlink()
    bokeh.mkdir()
    pairs, problems = survey(folder)
    assert len(pairs) == 3
    assert [re.sub(r".*/train/(.*?): .*", r"\1", problem) for problem in problems] == ["bokeh/0.jpg", "original/0.jpg"]

"""tools/make_depth_maps.py: every photo gets its depth map once; the user's own maps and pictures stay.

The networks here copy one channel of the photo, so that its depth map is known: that channel.
"""

import errno
import json
import pathlib
import shlex
import shutil

import numpy as np
import pytest
from depth_network_files import expected_map, read_map, smooth_photo
from PIL import Image

import load_dataset
import utils
from support import dataset_files, devices
from tools import make_depth_maps


@pytest.fixture
def photos(tmp_path):
    """photos({"1": (193, 127)}) writes such PNGs to my photos/ and gives the folder."""
    def write(sizes):
        for seed, (name, size) in enumerate(sizes.items()):
            utils.write_image(tmp_path / "my photos" / f"{name}.png", smooth_photo(size, seed))
        return tmp_path / "my photos"
    return write


@pytest.fixture
def make(call, network_file, photos, tmp_path):
    """make("copy.tflite", ...) makes depth maps of my photos/ in depth/."""
    def run(name, *arguments):
        return call(make_depth_maps, f"model={network_file(name)}", f"images_dir={tmp_path / 'my photos'}",
                    f"depth_dir={tmp_path / 'depth'}", *arguments)
    return run


def maps_in(folder):
    """The names of the depth maps in a folder, which holds a note of their settings as well."""
    return {path.name for path in folder.iterdir()} - {make_depth_maps.NOTE}


# The depth maps ------------------------------------------------------------------------------------------------------


def test_photo_that_is_turned_by_exif_gets_an_upright_map(photos, make, tmp_path):
    upright = smooth_photo((120, 160))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    folder = photos({})
    folder.mkdir()
    stored = Image.fromarray(upright).transpose(Image.Transpose.ROTATE_90)
    stored.save(folder / "1.jpg", quality=95, subsampling=0, exif=exif)
    assert make("copy.tflite").status == 0
    np.testing.assert_allclose(read_map(tmp_path / "depth" / "1.png"), expected_map(upright), rtol=0, atol=6)


def test_output_depth_makes_the_negative_of_output_inverse(photos, make, tmp_path):
    photos({"1": (193, 127)})
    make("copy.tflite")
    inverse = read_map(tmp_path / "depth" / "1.png")
    assert make("copy.tflite", "output=depth", "replace=true").status == 0
    np.testing.assert_allclose(read_map(tmp_path / "depth" / "1.png"), 255 - inverse, rtol=0, atol=1)


# Many photos ---------------------------------------------------------------------------------------------------------


def test_existing_maps_are_kept_and_counted_whatever_they_are(photos, make, tmp_path):
    photos({"1": (64, 64), "2": (64, 64), "3": (64, 64)})
    (tmp_path / "depth").mkdir()
    (tmp_path / "depth" / "1.png").write_bytes(b"the user's own")
    (tmp_path / "depth" / "2.npy").write_bytes(b"the user's own as well")
    done = make("copy.tflite")
    assert done.status == 0 and "1 made, 2 kept" in done.out and "it is not known what made" in done.out
    assert (tmp_path / "depth" / "1.png").read_bytes() == b"the user's own"
    assert maps_in(tmp_path / "depth") == {"1.png", "2.npy", "3.png"}


def test_maps_of_other_settings_are_said_and_replaced_where_that_is_asked_for(photos, make, tmp_path):
    photos({"1": (193, 127), "2": (193, 127)})
    assert make("copy.tflite").status == 0
    inverse = read_map(tmp_path / "depth" / "1.png")
    (tmp_path / "depth" / "2.png").rename(tmp_path / "depth" / "2.webp")  # of any ending
    refused = make("copy.tflite", "output=depth")
    assert refused.status == 2 and refused.err == (
        f"error: {tmp_path / 'depth'}: holds depth maps that were made with output=inverse; replace=true makes them "
        "anew\n")
    assert make("copy.keras").status == 2  # another network
    assert make("two_channels.tflite", "output=depth", "replace=true").status == 1  # no depth network
    assert maps_in(tmp_path / "depth") == {"1.png", "2.webp"}
    done = make("copy.tflite", "output=depth", "replace=true")
    assert done.status == 0 and "2 made, 0 kept" in done.out and maps_in(tmp_path / "depth") == {"1.png", "2.png"}
    np.testing.assert_allclose(read_map(tmp_path / "depth" / "1.png"), 255 - inverse, rtol=0, atol=1)
    assert "0 made, 2 kept" in make("copy.tflite", "output=depth").out


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"model": "cut'])
def test_damaged_note_beside_the_maps_is_one_line(photos, make, tmp_path, text):
    photos({"1": (64, 64)})
    make("copy.tflite")
    (tmp_path / "depth" / make_depth_maps.NOTE).write_text(text)
    done = make("copy.tflite")
    assert done.status == 1 and done.err.count("\n") == 1 and "depth_maps.json: is damaged; replace=true" in done.err
    assert make("copy.tflite", "replace=true").status == 0


def test_known_name_takes_its_network_and_its_preset(photos, call, network_file, workplace):
    folder = photos({"1": (193, 127)})
    (workplace / "models/depth").mkdir()
    shutil.copy(network_file("depth_anything_v2_small.onnx"), "models/depth")
    done = call(make_depth_maps, "model=depth_anything_v2_small", f"images_dir={folder}", "depth_dir=depth")
    assert (done.status, done.err) == (0, "")
    note = json.loads(pathlib.Path("depth", make_depth_maps.NOTE).read_text())
    assert (note["model"], note["mean"], note["size"]) == ("depth_anything_v2_small", [0.485, 0.456, 0.406], [518, 518])


def test_empty_file_is_no_map(photos, make, tmp_path):
    photos({"1": (64, 64)})
    (tmp_path / "depth").mkdir()
    (tmp_path / "depth" / "1.png").touch()
    assert "1 made, 0 kept" in make("copy.tflite").out and read_map(tmp_path / "depth" / "1.png").shape == (32, 32)


def test_name_that_is_not_utf_8_is_as_good(photos, make, tmp_path):
    folder = photos({"1": (64, 64)})
    (folder / "1.png").rename(folder / "caf\udce9.png")  # Latin-1
    done = make("copy.tflite")
    assert done.status == 0 and maps_in(tmp_path / "depth") == {"caf\udce9.png"}


@pytest.mark.parametrize("function, file", [("write_bytes", "1.png"), ("write_text", make_depth_maps.NOTE)])
def test_full_disk_is_named_with_the_file(photos, make, tmp_path, monkeypatch, function, file):
    photos({"1": (64, 64)})

    def write(path, data, **options):
        raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(pathlib.Path, function, write)
    done = make("copy.tflite")
    assert done.status == 1 and done.err == (
        f"error: [Errno 28] No space left on device: '{tmp_path / 'depth' / file}'\n")


def test_photos_that_are_left_out_are_named(photos, make, tmp_path):
    folder = photos({"1": (64, 64)})
    (folder / "old.bmp").touch()
    (folder / "gone.png").symlink_to("nowhere.png")
    done = make("copy.tflite")
    assert done.status == 0 and maps_in(tmp_path / "depth") == {"1.png"}
    assert f"{folder / 'old.bmp'}: is of a format" in done.err and f"{folder / 'gone.png'}: is no file" in done.err


@pytest.mark.parametrize("error, status", [(OSError(28, "No space left on device"), 1), (KeyboardInterrupt(), 130)])
def test_run_that_was_cut_short_leaves_whole_maps_and_goes_on_there(photos, make, tmp_path, monkeypatch, error, status):
    photos({str(number): (64, 64) for number in range(6)})
    write_image, written = utils.write_image, []

    def write_a_few(path, image):
        if len(written) == 3:
            raise error
        written.append(path)
        write_image(path, image)
    monkeypatch.setattr(utils, "write_image", write_a_few)
    done = make("copy.tflite")
    assert done.status == status and "Traceback" not in done.err
    assert "No space left" in done.err or status == 130
    monkeypatch.setattr(utils, "write_image", write_image)
    there = {path: path.stat().st_mtime_ns for path in (tmp_path / "depth").glob("*.png")}
    assert set(there) == set(written)
    again = make("copy.tflite")
    assert again.status == 0 and "3 made, 3 kept" in again.out
    assert {path: path.stat().st_mtime_ns for path in there} == there


def test_nothing_to_do_needs_no_tensorflow(photos, make, tmp_path, monkeypatch):
    photos({"1": (64, 64)})
    make("copy.tflite")
    monkeypatch.setattr(devices, "start_tensorflow", lambda *_: pytest.fail("asked for TensorFlow"))
    assert "0 made, 1 kept" in make("copy.tflite").out


def test_unreadable_photo_is_named_and_the_others_are_done(photos, make, tmp_path):
    folder = photos({"1": (64, 64), "2": (64, 64), "3": (64, 64)})
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:200])
    (folder / "4.jpg").write_text("not a photo")
    done = make("copy.tflite")
    assert done.status == 1
    for name, reason in {"2.png": "damaged", "4.jpg": "4.jpg"}.items():
        [line] = [line for line in done.err.splitlines() if str(folder / name) in line]
        assert line.startswith("error: ") and reason in line
    assert "2 made, 0 kept, 2 photos failed" in done.out
    assert maps_in(tmp_path / "depth") == {"1.png", "3.png"}


def test_single_photo_will_do(photos, network_file, call, tmp_path):
    folder = photos({"1": (64, 64), "2": (64, 64)})
    done = call(make_depth_maps, f"model={network_file('copy.tflite')}", f"images_dir={folder / '2.png'}",
                f"depth_dir={tmp_path / 'depth'}")
    assert done.status == 0 and maps_in(tmp_path / "depth") == {"2.png"}


# A data set ----------------------------------------------------------------------------------------------------------


def test_data_set_gets_maps_that_testing_accepts(network_file, call, tmp_path):
    for split, name in (("train", "1"), ("train", "2"), ("test", "1")):
        utils.write_image(tmp_path / split / "original" / f"{name}.jpg", smooth_photo((131, 97)))
    done = call(make_depth_maps, f"model={network_file('copy')}", f"dataset_dir={tmp_path}")
    assert (done.status, done.err) == (0, "")
    assert maps_in(tmp_path / "train" / "original_depth") == {"1.png", "2.png"}
    [pair] = dataset_files.find_test_photos(tmp_path)
    assert load_dataset.load_input(pair).shape == (48, 65, 4)


def test_map_lies_as_training_reads_the_photo_which_does_not_turn_it(network_file, call, tmp_path):
    stored = smooth_photo((160, 120))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    (tmp_path / "test" / "original").mkdir(parents=True)
    Image.fromarray(stored).save(tmp_path / "test" / "original" / "1.jpg", quality=95, subsampling=0, exif=exif)
    assert call(make_depth_maps, f"model={network_file('copy')}", f"dataset_dir={tmp_path}").status == 0
    [pair] = dataset_files.find_test_photos(tmp_path)
    np.testing.assert_allclose(load_dataset.load_input(pair)[..., 3], expected_map(stored), rtol=0, atol=6)


@pytest.mark.parametrize("photo, reason", [(None, "train/original"), ("test/original/1.txt", "no photo")])
def test_data_set_without_photos_is_one_line(network_file, call, tmp_path, photo, reason):
    if photo:
        utils.write_image(tmp_path / "1.png", smooth_photo((64, 64)))
        (tmp_path / photo).parent.mkdir(parents=True)
        (tmp_path / "1.png").rename(tmp_path / photo)
    done = call(make_depth_maps, f"model={network_file('copy')}", f"dataset_dir={tmp_path}")
    assert done.status == 1 and done.err.startswith("error: ") and done.err.count("\n") == 1 and reason in done.err


# The preview ---------------------------------------------------------------------------------------------------------


def test_preview_shows_a_handful_of_photos_beside_their_maps(photos, make, tmp_path):
    photos({str(number): (480, 320) for number in range(7)})
    done = make("copy.tflite", f"preview={tmp_path / 'sheets' / 'sheet.png'}")
    assert (done.status, done.err) == (0, "") and "shows 0.png, 2.png, 4.png, 6.png beside" in done.out
    with Image.open(tmp_path / "sheets" / "sheet.png") as image:
        sheet = np.float64(image)
    width, height = make_depth_maps.PREVIEW_SIZE
    assert sheet.shape == (4 * height, 2 * width, 3)
    for row, number in zip(np.split(sheet, 4), (0, 2, 4, 6)):
        middle = row[(height - 320) // 2:][:320]
        photo = np.asarray(Image.open(tmp_path / "my photos" / f"{number}.png"))
        np.testing.assert_allclose(middle[:, :width], photo, rtol=0, atol=1)
        depth = Image.open(tmp_path / "depth" / f"{number}.png").resize((480, 320), Image.Resampling.BICUBIC)
        np.testing.assert_allclose(middle[:, width:, 0], depth, rtol=0, atol=1)


def test_preview_leaves_out_photos_that_failed_and_shows_maps_that_were_there(photos, make, tmp_path):
    folder = photos({"1": (64, 64)})
    make("copy.tflite")
    (folder / "2.jpg").write_text("not a photo")
    done = make("copy.tflite", f"preview={tmp_path / 'sheet.jpg'}")
    assert done.status == 1 and "2.jpg" in done.err and "shows 1.png beside" in done.out
    assert Image.open(tmp_path / "sheet.jpg").height == make_depth_maps.PREVIEW_SIZE[1]


def test_preview_is_replaced_by_the_next(photos, make, tmp_path):
    photos({"1": (64, 64)})
    for name in ("sheet.png", "sheet.jpg"):
        assert make("copy.tflite", f"preview={tmp_path / name}", "replace=true").status == 0
        first = (tmp_path / name).read_bytes()
        assert make("copy.tflite", f"preview={tmp_path / name}", "replace=true", "output=depth").status == 0
        assert (tmp_path / name).read_bytes() != first


def test_preview_overwrites_nothing_else(photos, make, tmp_path):
    photos({"1": (64, 64)})
    (tmp_path / "holiday.jpg").write_bytes(b"dear")
    done = make("copy.tflite", f"preview={tmp_path / 'holiday.jpg'}")
    assert done.status == 2 and "holiday.jpg: must be a new file" in done.err and not (tmp_path / "depth").exists()
    assert (tmp_path / "holiday.jpg").read_bytes() == b"dear"


# The command line ----------------------------------------------------------------------------------------------------

WRONG_CALLS = {  # the arguments, and what the one line has to say
    "model=m": ["images_dir", "dataset_dir"],
    "model=m images_dir=p": ["images_dir: ", "depth_dir="],
    "model=m depth_dir=d": ["depth_dir: ", "images_dir="],
    "model=m dataset_dir=e depth_dir=d": ["dataset_dir", "depth_dir"],
    "model=m dataset_dir=e images_dir=p": ["dataset_dir", "images_dir"],
    "model=m images_dir=p depth_dir=d mean=0.5": ["mean=0.5", "3 numbers"],
    "model=m images_dir=p depth_dir=d mean=a,b,c": ["mean=a,b,c", "3 numbers"],
    "model=m images_dir=p depth_dir=d range=0,1,2": ["range=0,1,2", "2 numbers"],
    "model=m images_dir=p depth_dir=d output=near": ["output=near", "inverse, depth, distance or log_depth"],
    "model=m images_dir=p depth_dir=d preset=midas": ["preset=midas", "midas_v21_small", "megadepth"],
    "model=m images_dir=p depth_dir=d size=0": ["size=0", "1 or more"],
    "model=m images_dir=p depth_dir=d preview=sheet": ["preview=sheet", ".png or .jpg"],
}


@pytest.mark.parametrize("wrong_call", WRONG_CALLS)
def test_wrong_call_is_answered_with_one_line(call, tmp_path, monkeypatch, wrong_call):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(devices, "start_tensorflow", lambda *_: pytest.fail("asked for TensorFlow"))
    done = call(make_depth_maps, *shlex.split(wrong_call))
    assert (done.status, done.out, done.err.count("\n")) == (2, "", 1)
    assert [word for word in WRONG_CALLS[wrong_call] if word not in done.err] == []
    assert list(tmp_path.iterdir()) == []


def test_photos_and_maps_are_not_mixed_up(photos, network_file, call):
    folder = photos({"1": (64, 64)})
    done = call(make_depth_maps, f"model={network_file('copy.tflite')}", f"images_dir={folder}", f"depth_dir={folder}")
    assert done.status == 2 and done.err.startswith(f"error: depth_dir={folder}: holds the photos")
    assert [path.name for path in folder.iterdir()] == ["1.png"]


def test_process_is_quiet_and_imports_no_tensorflow_before_it_needs_it(photos, network_file, run_python, tmp_path):
    folder = photos({"1": (64, 64), "2": (66, 200)})
    arguments = [f"model={network_file('free.tflite')}", f"images_dir={folder}", f"depth_dir={tmp_path / 'depth'}"]
    done = run_python(f"""if True:
        import sys
        from support import scripts
        from tools import make_depth_maps
        sys.argv = ["make_depth_maps", "model=m"]
        assert scripts.run(make_depth_maps.main) == 2 and "tensorflow" not in sys.modules
        sys.argv[1:] = {arguments}
        sys.exit(scripts.run(make_depth_maps.main))
        """, cwd=tmp_path)
    assert done.status == 0
    lines = [line for line in done.err.splitlines() if not line.startswith("INFO")]  # TFLite names its CPU kernels
    assert len(lines) == 1 and "images_dir: write images_dir" in lines[0]
    assert len(done.out.splitlines()) == 3 and "2 made, 0 kept" in done.out

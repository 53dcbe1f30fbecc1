"""tools/make_scenes.py: scenes in EBB!'s folders, formats and sizes, blurred as a thin lens does."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import scipy.ndimage
from conftest import REPOSITORY
from PIL import Image

from support import dataset_files
from tools import make_scenes, scene_textures, thin_lens
from tools.thin_lens import Layer, Lens, confusion_diameter, expose
from utils import DataError

SIZE = 240, 160
FOCUS = 1000.0
LENS = Lens(FOCUS)


def layer(rgba, distance, left=0, top=0):
    return Layer(np.float32(rgba), left, top, distance, 1 / distance)


def flat(light, size=SIZE, margin=0):
    """An opaque layer of one brightness that fills the photo."""
    planes = np.full((4, size[1] + 2 * margin, size[0] + 2 * margin), light)
    planes[3] = 1
    return planes


def distance_of_disc(diameter, size=SIZE):
    """The distance behind the focus from which a point becomes a disc of that diameter."""
    return FOCUS / (1 - diameter / confusion_diameter(np.inf, LENS, size))


# Files ---------------------------------------------------------------------------------------------------------------


def test_data_set_has_ebbs_folders_formats_and_sizes(tmp_path):
    make_scenes.write_dataset(tmp_path, 1, 1, size=(1025, 1024))
    pairs = dataset_files.find_training_set(tmp_path)[0] + dataset_files.find_test_photos(tmp_path)
    assert [(pair.name, pair.size) for pair in pairs] == 2 * [("0", (1025, 1024))]
    assert all([path.suffix for path in pair[1:4]] == [".jpg", ".png", ".jpg"] for pair in pairs)
    with Image.open(tmp_path / "train" / "original_depth" / "0.png") as depth:
        assert (depth.mode, depth.size) == ("L", (512, 512))


def test_scenes_are_the_same_in_one_process_and_in_several(tmp_path, monkeypatch):
    make_scenes.write_dataset(tmp_path / "one", 1, 1, size=(96, 64), seed=3)
    monkeypatch.setattr(make_scenes, "MAX_SCENES_HERE", 1)
    make_scenes.write_dataset(tmp_path / "several", 1, 1, size=(96, 64), seed=3)
    one, several = ([(path.relative_to(folder), path.read_bytes()) for path in sorted(folder.rglob("*.*"))]
                    for folder in (tmp_path / "one", tmp_path / "several"))
    assert one == several and len(one) == 6


def test_scenes_that_are_there_are_kept_and_missing_ones_are_added(tmp_path):
    """The folder of EBB!'s own photos, too, loses nothing to a mistaken dataset_dir."""
    photos = tmp_path / "train" / "original"
    photos.mkdir(parents=True)
    (photos / "0.png").write_bytes(b"a photo")
    assert make_scenes.write_dataset(tmp_path, 2, 1, size=(64, 64)) == 2
    made = (photos / "1.jpg").read_bytes()
    assert made != (tmp_path / "test" / "original" / "0.jpg").read_bytes()
    assert make_scenes.write_dataset(tmp_path, 3, 1, size=(64, 64), seed=1) == 1
    assert sorted(path.name for path in photos.iterdir()) == ["0.png", "1.jpg", "2.jpg"]
    assert (photos / "0.png").read_bytes() == b"a photo" and (photos / "1.jpg").read_bytes() == made


def test_a_killed_process_is_named_and_the_same_command_goes_on(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(make_scenes, "MAX_SCENES_HERE", 1)
        patch.setattr(make_scenes, "_write_scene", be_killed)
        with pytest.raises(DataError, match="died.*the same command"):
            make_scenes.write_dataset(tmp_path, 1, 1, size=(64, 64))
    assert (tmp_path / "begun").exists()
    assert make_scenes.write_dataset(tmp_path, 1, 1, size=(64, 64)) == 2


def be_killed(scene):
    (scene[0].parent / "begun").touch()
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(not os.path.exists("/proc/thread-self/children"), reason="needs Linux to find the workers")
def test_no_process_outlives_the_command_when_that_is_killed(tmp_path):
    arguments = f"dataset_dir={tmp_path}", "train_count=500"
    command = subprocess.Popen([sys.executable, "-m", "tools.make_scenes", *arguments], cwd=REPOSITORY,
                               stdout=subprocess.DEVNULL)
    while not list(tmp_path.glob("train/original/*.jpg")):
        time.sleep(0.1)
        assert command.poll() is None
    with open(f"/proc/{command.pid}/task/{command.pid}/children") as children:
        workers = children.read().split()
    command.kill()
    command.wait()
    assert workers
    for _ in range(100):
        if not any(map(is_running, workers)):
            return
        time.sleep(0.1)
    pytest.fail("workers are left after 10 s")


def is_running(process):
    try:
        with open(f"/proc/{process}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_command_prints_how_many_scenes_it_made(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(make_scenes, "make_scene", lambda *_: [np.zeros((8, 8, 3), np.uint8)] * 3)
    make_scenes.main([f"dataset_dir={tmp_path}", "train_count=2", "test_count=1"])
    assert capsys.readouterr().out == f"3 new scenes in {tmp_path}\n"


@pytest.mark.parametrize("name, complaint", [("a.txt", "photos: no photo"), ("a.jpg", "a.jpg: ")])
def test_a_folder_without_a_readable_photo_is_named(tmp_path, name, complaint):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / name).write_bytes(b"text")
    with pytest.raises(DataError, match=complaint):
        make_scenes.write_dataset(tmp_path / "data", 4, 0, size=(64, 64), photos_dir=tmp_path / "photos")


def test_own_photos_become_textures(tmp_path, monkeypatch):
    """Photos that are all of one red make the scenes redder than any that are made without."""
    Image.new("RGB", (80, 60), (255, 0, 0)).save(tmp_path / "red.png")
    monkeypatch.setattr(scene_textures, "PHOTO_SHARE", 1)

    def redness(photos):
        return np.mean([make_scenes.make_scene((96, 64), seed, photos)[0] @ [1, -0.5, -0.5] for seed in range(2)])
    assert redness([tmp_path / "red.png"]) > redness(()) + 20


def test_making_scenes_leaves_tensorflow_alone():
    code = "import sys; from tools import make_scenes; make_scenes.make_scene((64, 64), 0); assert 'tensorflow' not in "
    subprocess.run([sys.executable, "-c", code + "sys.modules"], check=True)


# Scenes --------------------------------------------------------------------------------------------------------------


def test_scene_is_the_same_for_the_same_seed_and_another_for_another():
    first, again, other = (make_scenes.make_scene((200, 120), seed) for seed in (1, 1, 2))
    assert all(np.array_equal(image, image_again) for image, image_again in zip(first, again))
    assert not any(np.array_equal(image, image_of_other) for image, image_of_other in zip(first, other))


@pytest.mark.parametrize("size", [(64, 64), (201, 121)])
def test_scene_has_the_promised_sizes_and_uses_the_whole_range_of_depth(size):
    photo, depth, bokeh = make_scenes.make_scene(size, 0)
    assert photo.shape == bokeh.shape == (*size[::-1], 3) and depth.shape == (size[1] // 2, size[0] // 2)
    assert photo.dtype == depth.dtype == bokeh.dtype == np.uint8
    assert (depth.min(), depth.max()) == (0, 255)


def test_subject_stays_and_background_loses_its_detail():
    """Where only the layers in focus are seen, photo and bokeh agree. Where only the backdrop is seen, they do not."""
    size, sharp, blurred = (480, 320), [], []
    for seed in range(4):
        layers, focus = make_scenes._make_layers(size, (), np.random.default_rng(seed))
        photo, bokeh = (expose(layers, at, size).mean(axis=0) for at in (None, Lens(focus)))
        index = seen_layers(layers, size)
        subjects = [number for number, one in enumerate(layers) if one.distance == focus]
        in_focus, behind = (scipy.ndimage.binary_erosion(mask, iterations=14)
                            for mask in (np.isin(index, subjects), index == 0))
        sharp.append(np.abs(photo - bokeh)[in_focus])
        blurred.append([detail(image)[behind].mean() for image in (photo, bokeh) if behind.any()])
    sharp, blurred = np.concatenate(sharp), np.mean([pair for pair in blurred if pair], axis=0)
    assert len(sharp) > 10000 and np.mean(sharp > 1e-5) < 0.1  # but for what is blurred before the subject
    assert blurred[1] < 0.15 * blurred[0]


def seen_layers(layers, size):
    """The index of the nearest layer that covers each pixel."""
    index = np.zeros(size[::-1], int)
    for number, one in enumerate(layers):
        (below,), rgba = thin_lens.overlap(index[np.newaxis], one.rgba, one.left, one.top)
        below[rgba[3] > 0.01] = number
    return index


def detail(image):
    return np.abs(image - scipy.ndimage.uniform_filter(image, 3))


def test_depth_map_is_bright_where_something_is_near():
    """Also under the worst noise, misplacement and gamma: a near square in the middle of a far background."""
    near = layer(np.ones((4, 80, 80)), FOCUS, left=80, top=40)
    for seed in range(6):
        depth = make_scenes.depth_map([layer(flat(0.5), 10000), near], SIZE, np.random.default_rng(seed))
        assert depth[30:50, 50:70].min() > 150 > depth[:, :30].max()


def test_depth_maps_are_as_soft_and_uneven_as_those_of_photos():
    """Means over eight maps of EBB! photos: 18% of the area is flat, 7% black; slopes per pixel."""
    found = []
    for seed in range(8):
        random = np.random.default_rng(seed)
        layers, _ = make_scenes._make_layers((1536, 1024), (), random)
        depth = make_scenes.depth_map(layers, (1536, 1024), random) / 255
        slope = np.hypot(*np.gradient(scipy.ndimage.gaussian_filter(depth, 0.7)))
        found.append([np.mean(slope < 0.001), np.mean(depth < 0.1), *np.percentile(slope, [50, 90, 98])])
    flat, black, *slopes = np.mean(found, axis=0)
    assert 0.1 < flat < 0.3 and 0.03 < black < 0.12
    np.testing.assert_allclose(slopes, [0.0022, 0.0069, 0.0235], rtol=0.4)


# Focus maps ----------------------------------------------------------------------------------------------------------


def test_focus_map_says_the_disc_of_each_pixel():
    """255 in focus, and 255 (1 - c / 120) where the disc has c pixels of a photo that is 1536 wide."""
    size, lens = (1536, 1024), Lens(FOCUS, 0.5)
    near = layer(np.ones((4, 600, 600)), FOCUS, left=400, top=200)
    expected = 255 * (1 - confusion_diameter(8000, lens, size) / 120)
    for seed in range(4):
        random = np.random.default_rng(seed)
        focus_map = make_scenes.focus_map([layer(flat(0.5, size), 8000), near], lens, size, random)
        assert focus_map.shape == (512, 768) and focus_map.dtype == np.uint8
        assert focus_map[130:370, 230:470].min() > 240
        assert np.abs(focus_map[:, :150] - expected).max() < 12


def test_closed_aperture_leaves_everything_sharp_and_the_focus_map_white():
    layers = [layer(flat(0.5), 8000), layer(np.ones((4, 60, 60)), FOCUS, left=40, top=20)]
    closed = Lens(FOCUS, 0.0)
    assert np.all(make_scenes.focus_map(layers, closed, SIZE, np.random.default_rng(0)) == 255)
    assert np.array_equal(expose(layers, closed, SIZE), expose(layers, None, SIZE))


def test_lens_varies_in_training_scenes_with_focus_maps():
    """Closed, wide open, and from a tenth to one and a half; focused on the subject, behind it, on the background."""
    near = 1 / np.linspace(800, 8000, 100).reshape(10, 10)
    random = np.random.default_rng(0)
    lenses = [make_scenes._choose_lens(near, 1000, SIZE, random) for _ in range(400)]
    closed, opened = ([lens for lens in lenses if bool(lens.aperture) == is_open] for is_open in (False, True))
    apertures, focuses = zip(*((lens.aperture, lens.focus) for lens in opened))
    assert 0.02 < len(closed) / len(lenses) < 0.1
    assert 0.4 < np.mean(np.equal(apertures, 1)) < 0.6  # few are limited by the largest disc
    others = [aperture for aperture in apertures if aperture != 1]
    assert 0.1 <= min(others) < 0.13 and 1.1 < max(others) <= 1.5 and 0.3 < np.median(others) < 0.5
    assert 0.5 < np.mean(np.equal(focuses, 1000)) < 0.7 and 0.1 < np.mean(np.equal(focuses, 8000)) < 0.2
    discs = [confusion_diameter(1 / near, lens, SIZE).max() for lens in opened]
    assert max(discs) <= 120 * 240 / 1536 + 1e-6  # what a focus map can say


def test_a_night_is_dark_with_lights_of_3_to_14_pixels():
    backdrop = np.full((4, 400, 600), 0.5, np.float32)
    backdrop[3] = 1
    make_scenes._turn_to_night(backdrop, np.random.default_rng(0))
    brightness = backdrop[:3].mean(axis=0)
    lights, count = scipy.ndimage.label(brightness > 1)
    assert np.median(brightness) < 0.11 and np.all(backdrop[3] == 1) and count >= 3
    assert 3 < 2 * np.sqrt(np.bincount(lights.ravel())[1:].mean() / np.pi) < 14


@pytest.mark.parametrize("varied", [True, False])
def test_only_scenes_with_a_varied_lens_can_be_nights(monkeypatch, varied):
    photos = []
    for share in (0, 1):
        monkeypatch.setattr(make_scenes, "NIGHT_SHARE", share)
        photos.append(make_scenes.make_scene((192, 128), [1, 0, 3], (), "focus", varied)[0])
    assert np.array_equal(*photos) != varied


def test_focus_maps_of_test_scenes_belong_to_the_same_photos_and_targets_as_depth_maps(tmp_path):
    for maps in ("depth", "focus"):
        make_scenes.write_dataset(tmp_path / maps, 1, 1, size=(192, 128), seed=5, maps=maps)
    for kind in ("original", "bokeh"):
        depth, focus = (tmp_path / maps / "test" / kind / "0.jpg" for maps in ("depth", "focus"))
        assert depth.read_bytes() == focus.read_bytes()
    assert not (tmp_path / "focus" / "test" / "original_depth").exists()
    assert (tmp_path / "focus" / "test" / "original_focus" / "0.png").exists()


# The camera ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distance, diameter", [(1000, 0), (2000, 50.35), (500, 100.70), (1e9, 100.70)])
def test_disc_of_confusion_follows_the_thin_lens_formula(distance, diameter):
    """50 mm f/1.8 focused at 1 m, for a photo that is 1536 pixels wide: A f |z - z_f| / (z (z_f - f)) on the sensor."""
    assert confusion_diameter(distance, Lens(1000), (1536, 1024)) == pytest.approx(diameter, abs=0.01)


@pytest.mark.parametrize("light, value", [(0, 0), (0.002, 7), (0.2140, 127.5), (0.5, 188), (1, 255), (40, 255)])
def test_light_is_encoded_as_srgb(light, value):
    """IEC 61966-2-1: 1.055 light^(1 / 2.4) - 0.055 above 0.0031308, 12.92 light below."""
    assert thin_lens.develop(np.full((3, 1, 1), light, np.float32)) == pytest.approx(value, abs=0.51)


@pytest.mark.parametrize("diameter", [2.0, 13, 15, 27, 29, 60])
def test_highlight_becomes_a_disc_of_the_right_size_and_keeps_its_energy(diameter):
    """Of a point of light on black; its disc is computed at half the size from 14 pixels on, at a quarter from 28.

    A disc's second moment along an axis is its diameter squared / 16.
    """
    point = np.zeros((4, 160, 240))
    point[:3, 80, 120], point[3] = 1000, 1
    light = expose([layer(point, distance_of_disc(diameter))], LENS, SIZE)[0]
    assert light.sum() == pytest.approx(1000, rel=1e-4)
    x, share = np.arange(240), light.sum(axis=0) / light.sum()
    centre = (x * share).sum()
    assert centre == pytest.approx(120, abs=0.01 if diameter < 14 else 0.51 if diameter < 28 else 1.51)
    assert 4 * np.sqrt(((x - centre) ** 2 * share).sum()) == pytest.approx(diameter, abs=1)


def test_sharp_object_keeps_its_edge_before_a_blurred_background():
    """No light of the object gets into the background, and the background's does not get over the object."""
    stripes = flat(0, margin=40)
    stripes[:3, :, ::2] = 1
    behind = layer(stripes, distance_of_disc(12), left=-40, top=-40)
    light = expose([behind, layer(flat(0.2, (100, 80)), FOCUS, left=70, top=40)], LENS, SIZE)[0]
    assert np.all(light[40:120, 70:170] == np.float32(0.2))
    light[40:120, 70:170] = 0.5
    assert np.abs(light - 0.5).max() < 0.1


def test_blurred_foreground_spreads_over_what_is_behind_it():
    """Half of the light at its edge is the background's, and beyond the disc's radius all of it."""
    before = layer(np.stack([np.zeros((160, 120))] * 3 + [np.ones((160, 120))]), FOCUS * 0.9)
    radius = confusion_diameter(FOCUS * 0.9, LENS, SIZE) / 2
    row = expose([layer(flat(1.0), FOCUS), before], LENS, SIZE)[0, 80]
    beyond = int(120 + radius + 3)
    assert row[119:121].mean() == pytest.approx(0.5, abs=0.03)
    assert row[beyond:].min() == pytest.approx(1, abs=1e-5) and row[30:int(119 - radius - 3)].max() < 1e-5


@pytest.mark.parametrize("seed", range(3))
def test_slanted_plane_has_no_seams_and_rises_to_the_subjects_distance(seed, monkeypatch):
    """Of one colour all over, its bands cannot be told apart, but for the blurred edge at its far end."""
    monkeypatch.setattr(make_scenes, "lit", lambda image, _: np.float32(flat(0.5, image.reduce(2).size)))
    bands = make_scenes._make_plane(SIZE, 60, LENS, 5000, np.random.default_rng(seed))
    distances = [band.distance for band in bands]
    assert np.all(np.diff(distances) < 0) and distances[0] > 3500 and distances[-1] < 1.3 * FOCUS
    light = expose(bands, LENS, SIZE)[0]
    assert np.mean(light > 0.499) > 0.2 and light.max() < 0.5001
    profile = light[60] if light.std(axis=0).max() < 1e-3 else light[:, 120]
    assert np.all(np.diff(profile) > -1e-4)  # rises once, from nothing to the plane

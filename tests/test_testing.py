"""test_model.py: every test photo is rendered at its size, and measured where it has a target.

The network is small here in one thing only: the photos. They are PNG, so that every number can be computed again.
"""

import collections
import csv
import functools
import itertools
import os
import re
import shutil
import sys
import threading
import time
import types

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import model
import test_model
import utils
from tools import make_demo_dataset

PHOTOS = {  # name: (width, height), with a target?
    "1": ((256, 320), True),
    "2": ((250, 241), True),  # no multiples of 64, no even height
    "3": ((131, 97), True),  # too small for MS-SSIM
    "10": ((70, 72), True),  # too small for SSIM as well
    "11": ((64, 64), True),  # nothing is left between the borders
    "12": ((65, 128), False)}
PLACES = {"PSNR": 2, "SSIM": 4, "MS-SSIM": 4}  # after the decimal point, as printed


def write_photos(folder, photos):
    for seed, (name, (size, has_target)) in enumerate(photos.items()):
        images = dict(zip(("original", "original_depth", "bokeh"), make_demo_dataset.make_scene(size, seed)))
        for kind, image in images.items():
            if has_target or kind != "bokeh":
                utils.write_image(folder / "test" / kind / f"{name}.png", image)


@pytest.fixture(scope="module", autouse=True)
def network_built_once(pynet_to_train):
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(model, "build_pynet", lambda *_, **__: pynet_to_train)
        yield


@pytest.fixture(scope="module")
def weights(seed_1_weights):
    """Seed 1, but red and blue are driven beyond [0, 1], so that clipping counts."""
    *_, last_bias = seed_1_weights
    return seed_1_weights | {last_bias: np.array([1.3, 0, -1.3], np.float32)}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, weights):
    folder = tmp_path_factory.mktemp("checkpoint")
    tf.raw_ops.SaveV2(prefix=str(folder / "weights"), tensor_names=list(weights), tensors=list(weights.values()),
                      shape_and_slices=[""] * len(weights))
    yield folder / "weights"
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory, checkpoint, link_checkpoint, call):
    """whole_run(level) evaluates the photos (levels 2 and 4: the first three) once. Gives the folder and the `Call`."""
    @functools.cache
    def run(level):
        folder = tmp_path_factory.mktemp(f"level_{level}")
        with pytest.MonkeyPatch.context() as patches:
            patches.chdir(folder)
            photos = PHOTOS if level in (1, 7) else {name: PHOTOS[name] for name in "123"}
            write_photos(folder / "ebb_dataset", photos)
            link_checkpoint(checkpoint, utils.checkpoint_prefix(level, 10))
            done = call(test_model, f"level={level}")
            shutil.rmtree(utils.MODELS)
            return folder, done
    return run


@pytest.fixture
def place_with(workplace, checkpoint, link_checkpoint):
    """place_with("3", ...) is a place to work with these photos, and with iterations 9 and 10 of levels 7 and 3."""
    def prepare(*names):
        write_photos(workplace / "ebb_dataset", {name: PHOTOS[name] for name in names})
        for level in (7, 3):
            for iteration in (9, 10):
                link_checkpoint(checkpoint, utils.checkpoint_prefix(level, iteration))
        return workplace
    return prepare


@pytest.fixture(scope="module")
def expected_output(pynet_to_train, weights):
    """expected_output(folder, name, level): what the network makes of a photo, clipped, float32 (height, width, 3)."""
    @functools.cache
    def render(folder, name, level=1):
        for variable, value in weights.items():
            pynet_to_train.variables[variable].assign(value)
        photo, depth = (Image.open(folder / "ebb_dataset" / "test" / kind / f"{name}.png")
                        for kind in ("original", "original_depth"))
        width, height = photo.size
        image = np.dstack([photo.resize((width // 2, height // 2), Image.Resampling.BICUBIC), depth])
        below, right = (-(-side // 64) * 32 - side // 2 for side in (height, width))
        image = np.pad(image, [(0, below), (0, right), (0, 0)], "reflect")
        output = model.network_for_level(pynet_to_train, level)(np.float32(image[np.newaxis]) / 255)
        return np.clip(output[0, :height >> (level - 1), :width >> (level - 1)], 0, 1)
    return render


def target_of(folder, name, level=1):
    photo = Image.open(folder / f"ebb_dataset/test/bokeh/{name}.png")
    size = tuple(side >> (level - 1) for side in photo.size)
    return np.float32(photo.resize(size, Image.Resampling.BICUBIC)) / 255


def printed_metrics(line):
    return {name: float(value) for name, value in re.findall(r"([A-Z-]*(?:PSNR|SSIM)) (-?[\d.]+)", line)}


def line_of(out, name):
    [line] = [line for line in out.splitlines() if f"/{name}_level_" in line]
    return line


def rendered(folder, name, ending):
    with Image.open(folder / "results" / "full-resolution" / f"{name}{ending}") as image:
        return np.asarray(image)


def pictures_in(folder):
    return [path.name for path in (folder / "results" / "full-resolution").glob("*.png")]


# Pictures ------------------------------------------------------------------------------------------------------------


def test_every_photo_is_rendered_at_its_size(whole_run):
    folder, done = whole_run(1)
    assert (done.status, done.err) == (0, "")
    for name, (size, _) in PHOTOS.items():
        assert rendered(folder, name, "_level_1_iteration_10.png").shape == (size[1], size[0], 3)
    assert len(pictures_in(folder)) == len(PHOTOS)


@pytest.mark.parametrize("name", ["1", "2"])
def test_picture_is_the_networks_output_clipped_and_rounded(whole_run, expected_output, name):
    folder, _ = whole_run(1)
    expected = expected_output(folder, name)
    assert np.mean(expected == 1) > 0.02 and np.mean(expected == 0) > 0.02
    np.testing.assert_allclose(rendered(folder, name, "_level_1_iteration_10.png"), 255 * expected, rtol=0, atol=0.51)


@pytest.mark.parametrize("level, sizes", [(2, {"2": (125, 120), "3": (65, 48)}), (4, {"2": (31, 30), "3": (16, 12)}),
                                          (7, {"1": (4, 5), "2": (3, 3), "3": (2, 1)})])
def test_picture_of_an_upper_level_has_the_photos_size_halved_for_each_level(whole_run, level, sizes):
    folder, done = whole_run(level)
    assert done.status == 0
    for name, (width, height) in sizes.items():
        assert rendered(folder, name, f"_level_{level}_iteration_10.png").shape == (height, width, 3)


# Metrics -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["1", "2"])
def test_metrics_are_tf_images_on_the_clipped_output_without_32_pixels_on_every_side(whole_run, expected_output, name):
    folder, done = whole_run(1)
    output, target = (image[32:-32, 32:-32] for image in (expected_output(folder, name), target_of(folder, name)))
    expected = {"PSNR": tf.image.psnr(output, target, 1), "SSIM": tf.image.ssim(tf.constant(output), target, 1),
                "MS-SSIM": tf.image.ssim_multiscale(output[np.newaxis], target[np.newaxis], 1)[0]}
    assert printed_metrics(line_of(done.out, name)) == {
        name: pytest.approx(float(value), abs=0.6 * 0.1 ** PLACES[name]) for name, value in expected.items()}


def test_metrics_of_level_2_are_measured_on_the_target_at_half_size(whole_run, expected_output):
    folder, done = whole_run(2)
    output, target = (image[32:-32, 32:-32] for image in (expected_output(folder, "1", 2), target_of(folder, "1", 2)))
    assert printed_metrics(line_of(done.out, "1")) == {
        "PSNR": pytest.approx(float(tf.image.psnr(output, target, 1)), abs=0.006),
        "SSIM": pytest.approx(float(tf.image.ssim(tf.constant(output), target, 1)), abs=0.00006)}


def test_means_are_over_the_photos_that_could_be_measured(whole_run):
    out = whole_run(1)[1].out
    found = [printed_metrics(line_of(out, name)) for name in PHOTOS]
    [mean] = [line for line in out.splitlines() if line.startswith("mean")]
    for name, places in PLACES.items():
        values = [metrics[name] for metrics in found if name in metrics]
        assert printed_metrics(mean)[name] == pytest.approx(np.mean(values), abs=1.1 * 0.1 ** places)


def test_metrics_that_a_photo_is_too_small_for_are_named(whole_run):
    out = whole_run(1)[1].out
    measured = {name: set(printed_metrics(line_of(out, name))) for name in ("2", "3", "10", "11")}
    assert measured == {"2": {"PSNR", "SSIM", "MS-SSIM"}, "3": {"PSNR", "SSIM"}, "10": {"PSNR"}, "11": set()}
    assert "MS-SSIM too small" in line_of(out, "3") and " SSIM too small" in line_of(out, "10")
    assert "PSNR too small" in line_of(out, "11") and "nan" not in out.lower()


def test_photo_without_a_target_is_rendered_only(whole_run):
    out = whole_run(1)[1].out
    assert printed_metrics(line_of(out, "12")) == {} and "too small" not in line_of(out, "12")


@pytest.mark.parametrize("level", [4, 7])
def test_levels_4_to_7_render_without_metrics_and_say_why(whole_run, level):
    _, done = whole_run(level)
    assert done.status == 0 and printed_metrics(done.out) == {}
    assert re.search(rf"Level {level} .*1/{2 ** (level - 1)} .*too small", done.out)


def test_photos_are_rendered_in_numeric_order(whole_run):
    assert re.findall(r"/(\d+)_level_7", whole_run(7)[1].out) == list(PHOTOS)


# Which weights -------------------------------------------------------------------------------------------------------


def test_restore_iter_takes_another_iteration_than_the_last(place_with, call):
    folder = place_with("3")
    done = call(test_model, "level=7", "restore_iter=9")
    assert str(utils.checkpoint_prefix(7, 9)) in done.out
    assert pictures_in(folder) == ["3_level_7_iteration_9.png"]


def test_released_weights_are_used_with_orig(place_with, call, seed_1_checkpoint, link_checkpoint):
    folder = place_with("3")
    link_checkpoint(seed_1_checkpoint, utils.ORIGINAL / "pynet_bokeh_level_0")
    assert call(test_model, "orig=true", "level=7").status == 0
    assert pictures_in(folder) == ["3_level_7_orig.png"]


def test_without_a_checkpoint_the_command_that_makes_one_is_named(place_with, call):
    place_with("3")
    done = call(test_model, "level=4")
    assert done.status == 1
    assert re.fullmatch(r"error: .*level 4.*python train_model\.py level=4.*\n", done.err)


def test_damaged_checkpoint_is_named_in_one_line(place_with, call):
    place_with("3")
    for suffix in (".index", ".data-00000-of-00001"):
        (utils.MODELS / f"pynet_level_7_iteration_11.ckpt{suffix}").write_bytes(b"damaged")
    done = call(test_model, "level=7")
    assert done.status == 1
    assert re.fullmatch(r"error: models/pynet_level_7_iteration_11\.ckpt.*damaged.*\n", done.err)


# Photos that are not right -------------------------------------------------------------------------------------------


def test_damaged_photos_are_named_the_others_are_rendered_and_the_status_is_1(place_with, call):
    damaged = {"2": "original", "3": "original_depth", "10": "bokeh"}
    folder = place_with("1", *damaged, "12")
    for name, kind in damaged.items():
        path = folder / "ebb_dataset" / "test" / kind / f"{name}.png"
        path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
    done = call(test_model, "level=3")
    assert done.status == 1
    assert all(f"test/{kind}/{name}.png" in done.err for name, kind in damaged.items())
    pictures = set(pictures_in(folder))
    assert {"1_level_3_iteration_10.png", "12_level_3_iteration_10.png"} <= pictures
    assert rendered(folder, "1", "_level_3_iteration_10.png").shape == (80, 64, 3)


def test_photo_smaller_than_a_pixel_of_the_level_is_named_and_the_others_are_rendered(place_with, call):
    folder = place_with("3")
    write_photos(folder / "ebb_dataset", {"2": ((64, 62), True)})
    done = call(test_model, "level=7")
    assert done.status == 1 and "test/original/2.png" in done.err and "Traceback" not in done.err
    assert pictures_in(folder) == ["3_level_7_iteration_10.png"]


def test_missing_depth_map_is_told_before_tensorflow_is_asked(place_with, call, monkeypatch):
    folder = place_with("2", "3")
    (folder / "ebb_dataset/test/original_depth/2.png").unlink()
    monkeypatch.setattr(utils, "start_tensorflow", lambda *_: pytest.fail("asked for TensorFlow"))
    done = call(test_model, "level=7")
    assert done.status == 1 and "original_depth/2" in done.err


# Overlap, and what stops a run ---------------------------------------------------------------------------------------


@pytest.fixture
def overlapped():
    """overlapped(count, read, render, finish): the finished numbers of a run over `count` photos, each its number."""
    def run(count, read=lambda number: None, render=lambda number: None, finish=lambda number: None):
        def read_scene(number):
            read(number)
            return test_model.Scene(number, None, None, {})

        def render_scene(number, _):
            render(number)
            return number

        def finish_scene(number, _, image):
            finish(number)
            return number, image

        return list(test_model.render_overlapped(range(count), read_scene, render_scene, finish_scene))
    return run


def test_reading_and_finishing_go_on_while_the_network_computes(overlapped):
    started = {name: [threading.Event() for _ in range(5)] for name in ("read", "finish")}
    seen = []

    def render(number):
        later, before = min(number + 1, 4), max(number - 1, 0)
        seen.append(started["read"][later].wait(10) and (number == 0 or started["finish"][before].wait(10)))

    assert overlapped(5, lambda number: started["read"][number].set(), render,
                      lambda number: started["finish"][number].set()) == [(number, number) for number in range(5)]
    assert seen == 5 * [True]


def test_few_photos_wait_before_and_after_the_network_however_many_there_are(overlapped):
    counts = collections.Counter()
    most = collections.Counter()

    def step(name, later=None):
        def count(number):
            counts[name] += 1
            most[name] = max(most[name], counts[name] - counts[later])
        return count

    def finish(number):
        time.sleep(0.005)
        counts["finished"] += 1

    overlapped(40, step("read", "rendered"), step("rendered", "finished"), finish)
    assert most["read"] <= test_model.READ_AHEAD + 2 and most["rendered"] <= test_model.FINISH_BEHIND + 2


def test_photo_goes_through_the_network_once_and_results_come_in_order(overlapped):
    rendered = []
    delays = np.random.default_rng(0).uniform(0, 0.01, 20)
    done = overlapped(20, lambda number: time.sleep(delays[number]), rendered.append,
                      lambda number: time.sleep(delays[19 - number]))
    assert rendered == list(range(20)) and done == [(number, number) for number in range(20)]


def test_picture_that_cannot_be_written_is_named_and_the_status_is_1(place_with, call, monkeypatch):
    folder = place_with("2", "3")
    write = utils.write_image

    def full_for_one(path, *arguments):
        if path.name.startswith(".2_"):
            raise OSError(28, "No space left on device")
        write(path, *arguments)

    monkeypatch.setattr(utils, "write_image", full_for_one)
    done = call(test_model, "level=7")
    assert done.status == 1 and pictures_in(folder) == ["3_level_7_iteration_10.png"]
    assert done.err.startswith("error: results/full-resolution/2_level_7_iteration_10.png: it or its small pictures "
                               "could not be written (No space left on device)\n")


def test_page_that_cannot_be_written_is_named_and_the_status_is_1(place_with, call):
    folder = place_with("3")
    (folder / "results/full-resolution/index.html").mkdir(parents=True)
    done = call(test_model, "level=7")
    assert done.status == 1 and pictures_in(folder) == ["3_level_7_iteration_10.png"]
    assert done.err.startswith("error: results/full-resolution/index.html: could not be written (")
    assert done.err.count("\n") == 1 and not list((folder / "results").rglob(".*"))


def test_ctrl_c_leaves_whole_pictures_and_the_page_of_what_was_rendered(place_with, call, monkeypatch):
    folder = place_with("2", "3", "10")
    make_renderer = test_model.make_renderer

    def stopped_at_the_third(network, level):
        render, calls = make_renderer(network, level), itertools.count(1)

        def render_or_stop(*arguments):
            if next(calls) == 3:
                raise KeyboardInterrupt
            return render(*arguments)
        return render_or_stop

    monkeypatch.setattr(test_model, "make_renderer", stopped_at_the_third)
    done = call(test_model, "level=7")
    assert done.status == 130 and "Traceback" not in done.err
    page = (folder / "results/full-resolution/index.html").read_text()
    assert "1 of 3 photos" in page and sorted(pictures_in(folder)) == [f"{name}_level_7_iteration_10.png" for name in "23"]
    assert not [path for path in (folder / "results").rglob(".*")]


def test_page_and_table_show_what_was_printed(whole_run):
    folder, done = whole_run(1)
    with open(folder / "results/full-resolution/metrics.csv", newline="") as table:
        rows = {row["photo"]: row for row in csv.DictReader(table)}
    assert list(rows) == list(PHOTOS)
    for name in PHOTOS:
        written = {metric: round(float(rows[name][metric]), PLACES[metric]) for metric in PLACES if rows[name][metric]}
        assert written == printed_metrics(line_of(done.out, name))
    page = (folder / "results/full-resolution/index.html").read_text()
    assert page.count("<article") == len(PHOTOS) and str(utils.checkpoint_prefix(1, 10)) in page


# The device ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def tensorflow_with_a_gpu(monkeypatch):
    """A TensorFlow that sees one GPU, and notes what is done to it."""
    gpu = types.SimpleNamespace(name="/physical_device:GPU:0")
    done = types.SimpleNamespace(visible=[gpu], grows=[])
    experimental = types.SimpleNamespace(set_memory_growth=lambda device, grow: done.grows.append((device, grow)),
                                         get_device_details=lambda _: {"device_name": "Test GPU"})
    config = types.SimpleNamespace(
        list_physical_devices=lambda kind=None: [gpu], experimental=experimental,
        set_visible_devices=lambda devices, kind: kind == "GPU" and setattr(done, "visible", devices))
    monkeypatch.setitem(sys.modules, "tensorflow", types.SimpleNamespace(config=config))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    return done


def test_use_gpu_false_hides_the_gpu(tensorflow_with_a_gpu, capfd):
    utils.start_tensorflow(use_gpu=False)
    assert tensorflow_with_a_gpu.visible == [] and os.environ["CUDA_VISIBLE_DEVICES"] == "-1"
    assert "CPU" in capfd.readouterr().out


def test_gpu_is_used_otherwise_and_its_memory_taken_as_needed(tensorflow_with_a_gpu, capfd):
    utils.start_tensorflow()
    assert len(tensorflow_with_a_gpu.visible) == 1 and os.environ["CUDA_VISIBLE_DEVICES"] == "0"
    assert [grow for _, grow in tensorflow_with_a_gpu.grows] == [True]
    assert "Test GPU" in capfd.readouterr().out


def test_use_gpu_reaches_tensorflow(place_with, call, monkeypatch):
    place_with("3")
    asked = []
    monkeypatch.setattr(utils, "start_tensorflow", lambda use_gpu, precision: asked.append(use_gpu))
    for arguments in ([], ["use_gpu=false"]):
        assert call(test_model, "level=7", *arguments).status == 0
    assert asked == [True, False]


def test_released_weights_render_and_measure_in_a_process_of_their_own(place_with, seed_1_checkpoint, link_checkpoint,
                                                                       run_script):
    folder = place_with("2")
    link_checkpoint(seed_1_checkpoint, utils.ORIGINAL / "pynet_bokeh_level_0")
    done = run_script("test_model.py", "orig=true", "use_gpu=false", cwd=folder)
    assert (done.status, done.err) == (0, "")
    assert set(printed_metrics(line_of(done.out, "2"))) == {"PSNR", "SSIM", "MS-SSIM"}
    assert rendered(folder, "2", "_level_1_orig.png").shape == (241, 250, 3)

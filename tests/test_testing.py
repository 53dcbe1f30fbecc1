"""test_model.py: every photo is rendered at its size, measured where it has a target, and shown on a page.

The photos are PNG, so that every number can be computed again. The network is the small one of conftest.py.
"""

import collections
import csv
import functools
import json
import os
import re
import shutil
import signal
import sys
import threading
import time
import types

import numpy as np
import pytest
import tensorflow as tf
from conftest import LOCAL_SMALL, newest_result
from PIL import Image, ImageFilter

import load_dataset
import model
import test_model
import utils
from support import checkpoints, devices, renderer, results_page, training_log

PHOTOS = {  # name: (width, height), with a target?
    "1": ((256, 320), True),
    "2": ((250, 241), True),  # no multiples of 64, no even height
    "3": ((131, 97), True),  # too small for MS-SSIM
    "10": ((70, 72), True),  # too small for SSIM as well
    "11": ((64, 64), True),  # nothing is left between the borders
    "12": ((65, 128), False)}
PLACES = {"PSNR": 2, "SSIM": 4, "MS-SSIM": 4}  # after the decimal point, as printed


def write_photos(photos, split="test"):
    """Writes photos of random spots, and as targets the same out of focus."""
    for seed, (name, (size, has_target)) in enumerate(photos.items()):
        spots = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 9, 3), np.uint8))
        photo = spots.resize(size, Image.Resampling.BICUBIC)
        images = {"original": photo, "original_depth": photo.convert("L").resize((size[0] // 2, size[1] // 2))}
        for kind, image in (images | {"bokeh": photo.filter(ImageFilter.BoxBlur(4))} if has_target else images).items():
            utils.write_image(f"ebb_dataset/{split}/{kind}/{name}.png", np.asarray(image))


@pytest.fixture(scope="module", autouse=True)
def network(small_pynet, small_checkpoint):  # which is saved before the network is changed
    """The shared network, built once. Red and blue are driven beyond [0, 1], so that clipping counts."""
    *_, last_bias = small_pynet.variables.values()
    before = last_bias.numpy()
    last_bias.assign([1.3, 0, -1.3])
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(model, "build_pynet", lambda **_: small_pynet)
        yield small_pynet
    last_bias.assign(before)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, network):
    prefix = tmp_path_factory.mktemp("checkpoint") / "weights"
    checkpoints.save_checkpoint(network.variables, prefix)
    return prefix


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory, checkpoint, link_checkpoint, call):
    """whole_run(level) evaluates the photos once. Gives the folder and the `Call`."""
    @functools.cache
    def run(level):
        folder = tmp_path_factory.mktemp(f"level_{level}")
        with pytest.MonkeyPatch.context() as patches:
            patches.chdir(folder)
            write_photos(PHOTOS)
            link_checkpoint(checkpoint, checkpoints.checkpoint_prefix(level, 10))
            return folder, call(test_model, f"level={level}")
    return run


@pytest.fixture
def place_with(workplace, checkpoint, link_checkpoint):
    """place_with("3", ...) is a place to work with these test photos, and with iterations 9 and 10 of level 7."""
    def prepare(*names):
        write_photos({name: PHOTOS[name] for name in names})
        for iteration in (9, 10):
            link_checkpoint(checkpoint, checkpoints.checkpoint_prefix(7, iteration))
    return prepare


@pytest.fixture
def white_network(monkeypatch):
    """A renderer that gives white images without any network, for what is the same with any."""
    def make_renderer(network, level):
        return lambda photo, size: np.ones((size[1] >> (level - 1), size[0] >> (level - 1), 3), np.float32)
    monkeypatch.setattr(renderer, "make_renderer", make_renderer)


@pytest.fixture(scope="module")
def expected_output(network, whole_run):
    """expected_output(name): what level 1 makes of a photo, clipped, float32 (height, width, 3)."""
    @functools.cache
    def render(name):
        folder, _ = whole_run(1)
        photo, depth = (Image.open(folder / f"ebb_dataset/test/{kind}/{name}.png")
                        for kind in ("original", "original_depth"))
        width, height = photo.size
        image = np.dstack([photo.resize((width // 2, height // 2), Image.Resampling.BICUBIC), depth])
        below, right = (-(-side // 64) * 32 - side // 2 for side in (height, width))
        image = np.pad(image, [(0, below), (0, right), (0, 0)], "reflect")
        output = model.network_for_level(network, 1)(np.float32(image[np.newaxis]) / 255)
        return np.clip(output[0, :height, :width], 0, 1)
    return render


def printed_metrics(line):
    return {name: float(value) for name, value in re.findall(r"([A-Z-]*(?:PSNR|SSIM)) (-?[\d.]+)", line)}


def line_of(out, name):
    [line] = [line for line in out.splitlines() if f"/{name}_level_" in line]
    return line


def size_of(picture):
    with Image.open(picture) as image:
        return image.size


def pictures():
    return sorted(path.name for path in utils.FULL_RESOLUTION.glob("*/*.png"))


# Pictures ------------------------------------------------------------------------------------------------------------


def test_every_photo_is_rendered_at_its_size_in_numeric_order(whole_run):
    folder, done = whole_run(1)
    assert (done.status, done.err) == (0, "")
    assert re.findall(r"/(\d+)_level_1_iteration_10.png", done.out) == list(PHOTOS)
    for name, (size, _) in PHOTOS.items():
        assert size_of(newest_result(f"{name}_level_1_iteration_10.png", folder)) == size


@pytest.mark.parametrize("name", ["1", "2"])
def test_picture_is_the_networks_output_clipped_and_rounded(whole_run, expected_output, name):
    folder, _ = whole_run(1)
    expected = expected_output(name)
    assert np.mean(expected == 1) > 0.02 and np.mean(expected == 0) > 0.02
    with Image.open(newest_result(f"{name}_level_1_iteration_10.png", folder)) as picture:
        np.testing.assert_allclose(picture, 255 * expected, rtol=0, atol=0.51)


def test_picture_of_an_upper_level_has_the_photos_size_halved_for_each_level(whole_run):
    folder, done = whole_run(7)
    assert done.status == 0
    for name, size in {"1": (4, 5), "2": (3, 3), "3": (2, 1)}.items():
        assert size_of(newest_result(f"{name}_level_7_iteration_10.png", folder)) == size


def test_a_run_of_the_same_inputs_and_settings_replaces_itself_any_other_has_its_own_folder(
        place_with, call, white_network, checkpoint, link_checkpoint):
    place_with("3")
    write_photos({"2": PHOTOS["2"], "3": PHOTOS["3"]}, "train")
    shutil.copytree("ebb_dataset", "other/ebb_dataset")
    link_checkpoint(checkpoint, checkpoints.checkpoint_prefix(6, 10))
    calls = [["level=7"], ["level=7", "precision=bfloat16"], ["level=7", "val_size=1"], ["level=7", "restore_iter=9"],
             ["level=7", "dataset_dir=other/ebb_dataset"], ["level=6"],
             ["level=7", "images_dir=ebb_dataset/test/original", "depth_dir=ebb_dataset/test/original_depth"],
             ["level=7", "images_dir=ebb_dataset/test/original", "depth_dir=ebb_dataset/test/original_depth",
              "max_side=100"]]
    for arguments in calls:
        assert call(test_model, *arguments).status == 0
    runs = sorted(utils.FULL_RESOLUTION.glob("*/"))
    assert len(runs) == len(calls)
    assert call(test_model, "level=7", "dataset_dir=./ebb_dataset").status == 0
    assert sorted(utils.FULL_RESOLUTION.glob("*/")) == runs
    page = (utils.FULL_RESOLUTION / "index.html").read_text()
    assert all(f"{run.name}/index.html" in page for run in runs)


def test_new_weights_under_an_old_name_get_a_folder_of_their_own(place_with, call, white_network, network):
    place_with("3")
    assert call(test_model, "level=7").status == 0
    for suffix in checkpoints.SUFFIXES:
        os.remove(f"{checkpoints.checkpoint_prefix(7, 10)}{suffix}")
    values = {name: tf.Variable(variable + 1) for name, variable in network.variables.items()}
    checkpoints.save_checkpoint(values, checkpoints.checkpoint_prefix(7, 10))
    assert call(test_model, "level=7").status == 0
    assert pictures() == 2 * ["3_level_7_iteration_10.png"]


def test_out_is_where_the_run_is_written(place_with, call, white_network):
    place_with("3")
    assert call(test_model, "level=7", "out=mine/there").status == 0
    assert {"3_level_7_iteration_10.png", "index.html", "metrics.csv", "settings.json"} <= set(os.listdir("mine/there"))
    assert "All runs" not in open("mine/there/index.html").read() and not pictures()


def test_out_is_not_where_the_photos_are(place_with, call):
    place_with("3")
    done = call(test_model, "level=7", "images_dir=ebb_dataset/test/original", "out=./ebb_dataset/test/original/")
    assert done.status == 2 and "out=./ebb_dataset/test/original/: is where the photos" in done.err


# Metrics -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["1", "2"])
def test_metrics_are_tf_images_on_the_clipped_output_without_32_pixels_on_every_side(whole_run, expected_output, name):
    folder, done = whole_run(1)
    with Image.open(folder / f"ebb_dataset/test/bokeh/{name}.png") as bokeh:
        target = np.float32(bokeh)[32:-32, 32:-32] / 255
    output = expected_output(name)[32:-32, 32:-32]
    expected = {"PSNR": tf.image.psnr(output, target, 1), "SSIM": tf.image.ssim(tf.constant(output), target, 1),
                "MS-SSIM": tf.image.ssim_multiscale(output[np.newaxis], target[np.newaxis], 1)[0]}
    assert printed_metrics(line_of(done.out, name)) == {
        name: pytest.approx(float(value), abs=0.6 * 0.1 ** PLACES[name]) for name, value in expected.items()}


def test_metrics_of_level_3_are_measured_on_the_target_at_a_quarter_of_its_size(place_with, call, white_network,
                                                                                checkpoint, link_checkpoint):
    place_with()
    write_photos({"1": ((320, 400), True)})
    link_checkpoint(checkpoint, checkpoints.checkpoint_prefix(3, 1))
    with Image.open("ebb_dataset/test/bokeh/1.png") as bokeh:
        target = np.float32(bokeh.resize((80, 100), Image.Resampling.BICUBIC))[32:-32, 32:-32] / 255
    found = printed_metrics(line_of(call(test_model, "level=3").out, "1"))
    assert found["PSNR"] == pytest.approx(-10 * np.log10(np.mean((1 - target) ** 2)), abs=0.006)
    assert set(found) == {"PSNR", "SSIM"}


def test_a_perfect_match_has_an_infinite_psnr_and_ssims_of_1():
    target = 255 * np.random.default_rng(0).integers(0, 2, (256, 256, 3), np.uint8)  # without rounding
    found = test_model.measure(np.float32(target) / 255, target)
    assert results_page.metrics_text(found) == "PSNR inf dB, SSIM 1.0000, MS-SSIM 1.0000"


def test_metrics_that_a_photo_is_too_small_for_are_named(whole_run):
    out = whole_run(1)[1].out
    measured = {name: set(printed_metrics(line_of(out, name))) for name in ("2", "3", "10", "11")}
    assert measured == {"2": {"PSNR", "SSIM", "MS-SSIM"}, "3": {"PSNR", "SSIM"}, "10": {"PSNR"}, "11": set()}
    assert line_of(out, "10").endswith(" dB, SSIM photo too small, MS-SSIM photo too small")


def test_photo_without_a_target_is_rendered_only(whole_run):
    out = whole_run(1)[1].out
    assert printed_metrics(line_of(out, "12")) == {} and "too small" not in line_of(out, "12")


def test_levels_4_to_7_render_without_metrics_and_say_why(whole_run):
    _, done = whole_run(7)
    assert done.status == 0 and printed_metrics(done.out) == {}
    assert re.search(r"Level 7 .*1/64 .*too small", done.out)
    assert test_model.LEVELS_WITH_METRICS == (1, 2, 3)


def test_page_table_and_means_are_of_what_was_printed(whole_run):
    folder, done = whole_run(1)
    with open(newest_result("metrics.csv", folder), newline="") as table:
        rows = {row["photo"]: row for row in csv.DictReader(table)}
    mean_row = rows.pop("mean")
    assert list(rows) == list(PHOTOS)
    for name in PHOTOS:
        written = {metric: round(float(rows[name][metric]), PLACES[metric]) for metric in PLACES if rows[name][metric]}
        assert written == printed_metrics(line_of(done.out, name))
    means = {metric: np.mean([float(row[metric]) for row in rows.values() if row[metric]]) for metric in PLACES}
    [mean] = [line for line in done.out.splitlines() if line.startswith("Mean: ")]
    assert printed_metrics(mean) == {name: pytest.approx(means[name], abs=0.6 * 0.1 ** PLACES[name]) for name in PLACES}
    assert {name: float(mean_row[name]) for name in PLACES} == pytest.approx(means, rel=1e-5)
    about = json.loads(newest_result("settings.json", folder).read_text())
    assert about["means"] == pytest.approx(means, rel=1e-5) and about["settings"]["precision"] == "float32"
    page = newest_result("index.html", folder).read_text()
    assert page.count("<article") == len(PHOTOS) and str(checkpoints.checkpoint_prefix(1, 10)) in page


@pytest.mark.parametrize("arguments, curve", [
    ([], "test_ebb_dataset_float32"), (["dataset_dir=other.d/"], "test_other.d_float32"),
    (["val_size=1", "precision=bfloat16"], "test_ebb_dataset_val_1_bfloat16"), (["small=true"], None),
    (["detail=true"], None)])
def test_means_get_a_curve_for_each_data_set_and_precision(place_with, call, white_network, small_checkpoint,
                                                           link_checkpoint, monkeypatch, arguments, curve):
    place_with("3")
    write_photos({"2": PHOTOS["2"], "3": PHOTOS["3"]}, "train")
    shutil.copytree("ebb_dataset", "other.d")
    for prefix in (utils.SMALL, checkpoints.checkpoint_prefix(1, 10)):
        link_checkpoint(small_checkpoint, prefix)
    written = []
    monkeypatch.setattr(training_log, "write_test_means", lambda *arguments: written.append(arguments[:3]))
    assert call(test_model, *arguments).status == 0
    assert [(*where, name[:-len("-12345678")]) for *where, name in written] == ([(1, 10, curve)] if curve else [])


# Which weights, which photos -----------------------------------------------------------------------------------------


def test_restore_iter_takes_another_iteration_than_the_last(place_with, call, white_network):
    place_with("3")
    done = call(test_model, "level=7", "restore_iter=9")
    assert str(checkpoints.checkpoint_prefix(7, 9)) in done.out and pictures() == ["3_level_7_iteration_9.png"]


@pytest.mark.parametrize("kind, prefix", [("orig", utils.ORIGINAL), ("small", LOCAL_SMALL)])
def test_released_and_small_weights(place_with, call, white_network, checkpoint, link_checkpoint, kind, prefix):
    place_with("3")
    link_checkpoint(checkpoint, prefix)
    done = call(test_model, f"{kind}=true", "level=7")
    assert str(prefix) in done.out and pictures() == [f"3_level_7_{kind}.png"]


def test_small_network_comes_with_the_scripts_whatever_folder_they_are_called_from(place_with, run_script):
    place_with("2")
    done = run_script("test_model.py", "small=true", "level=7", "use_gpu=false", cwd=".")
    assert (done.status, done.err) == (0, "") and "Data: 1 photo of ebb_dataset/\n" in done.out
    assert size_of(newest_result("2_level_7_small.png")) == (3, 3)


def test_without_own_weights_the_training_and_the_other_weights_are_named(place_with, call):
    place_with("3")
    done = call(test_model, "level=4", "images_dir=ebb_dataset/test/original")
    assert done.status == 1 and done.err.count("\n") == 1
    assert re.match(r"error: models/ holds no checkpoint of level 4.*python train_model\.py level=4 batch_size=14\); "
                    "orig=true .*small=true", done.err)


def test_empty_data_set_is_answered_with_the_argument_for_own_photos(workplace, call, checkpoint, link_checkpoint):
    os.mkdir("ebb_dataset")
    link_checkpoint(checkpoint, utils.ORIGINAL)
    done = call(test_model, "orig=true")
    assert done.status == 1
    assert re.fullmatch("error: ebb_dataset/: no such folder, or no photos in test/; images_dir=FOLDER .*\n", done.err)


def test_val_size_takes_the_last_pairs_of_train(place_with, call, white_network):
    place_with("1")
    write_photos(dict.fromkeys(("2", "9", "10"), PHOTOS["11"]), "train")
    assert call(test_model, "level=7", "val_size=2").status == 0
    assert pictures() == ["10_level_7_iteration_10.png", "9_level_7_iteration_10.png"]


@pytest.mark.parametrize("arguments, rendered, says", [
    ([], ["10", "9"], "out: val_size=2, as in training"), (["val_size=2"], ["10", "9"], ""),
    (["val_size=1"], ["10"], "err: warning: val_size=1: level 7 was trained with val_size=2\n"),
    (["val_size=3"], ["10", "4", "9"], "err: trained with val_size=2, and has seen some of these photos"),
    (["dataset_dir=other"], ["10", "2", "4", "9"], ""), (["small=true"], ["1"], "")])
def test_val_size_is_that_of_the_training_on_the_same_data_set(place_with, call, white_network, checkpoint,
                                                               link_checkpoint, arguments, rendered, says):
    place_with("1")
    write_photos(dict.fromkeys(("2", "9", "10", "4"), PHOTOS["11"]), "train")
    shutil.copytree("ebb_dataset/train", "other/test")
    link_checkpoint(checkpoint, LOCAL_SMALL)
    training_log.card_path(7).write_text(json.dumps({"settings": {"val_size": 2, "dataset_dir": "./ebb_dataset"}}))
    done = call(test_model, "level=7", *arguments)
    assert done.status == 0, done.err
    assert [name.split("_")[0] for name in pictures()] == rendered
    assert says.partition(": ")[2] in (done.out if says.startswith("out") else done.err)
    assert "val_size" not in done.err or says.startswith("err")


def test_without_targets_val_size_is_named(place_with, call, white_network, checkpoint, link_checkpoint):
    place_with("12")
    link_checkpoint(checkpoint, checkpoints.checkpoint_prefix(3, 1))
    assert "No metrics: ebb_dataset/ has no targets in test/bokeh/; val_size=N " in call(test_model, "level=3").out


def test_network_is_built_as_the_checkpoint_says(place_with, call, monkeypatch, network):
    place_with("3")
    built = []
    monkeypatch.setattr(model, "build_pynet", lambda **arguments: built.append(arguments) or network)
    assert call(test_model, "level=7", "precision=bfloat16").status == 0
    assert built == [{"seed": None, "precision": "bfloat16", "channels": 4, "width_multiplier": 0.125}]


def test_damaged_checkpoint_is_named_in_one_line(place_with, call):
    place_with("3")
    for suffix in checkpoints.SUFFIXES:
        (utils.MODELS / f"pynet_level_7_iteration_11.ckpt{suffix}").write_bytes(b"damaged")
    done = call(test_model, "level=7")
    assert done.status == 1
    assert re.fullmatch(r"error: models/pynet_level_7_iteration_11\.ckpt.*damaged.*\n", done.err)


@pytest.mark.parametrize("use_gpu, says", [(True, "Computing on Test GPU\n"), (False, "Computing on the CPU\n")])
def test_gpus_memory_is_taken_as_needed_and_use_gpu_false_hides_it(monkeypatch, capsys, use_gpu, says):
    gpu, grows = types.SimpleNamespace(name="GPU:0"), []
    experimental = types.SimpleNamespace(set_memory_growth=lambda *arguments: grows.append(arguments),
                                         get_device_details=lambda _: {"device_name": "Test GPU"})
    visible = []
    config = types.SimpleNamespace(list_physical_devices=lambda kind=None: [gpu], experimental=experimental,
                                   set_visible_devices=lambda *arguments: visible.append(arguments))
    keras = types.SimpleNamespace(config=types.SimpleNamespace(set_image_data_format=str, set_floatx=str))
    monkeypatch.setitem(sys.modules, "tensorflow", types.SimpleNamespace(config=config, keras=keras))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    devices.start_tensorflow(use_gpu)
    assert grows == ([(gpu, True)] if use_gpu else []) and capsys.readouterr().out == says
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ("0" if use_gpu else "-1")
    assert visible == [([gpu] if use_gpu else [], "GPU")]


def test_use_gpu_and_precision_reach_tensorflow(place_with, call, monkeypatch, white_network):
    place_with("3")
    asked = []
    monkeypatch.setattr(devices, "start_tensorflow", lambda *arguments: asked.append(arguments))
    for arguments in ([], ["use_gpu=false", "precision=float16"]):
        assert call(test_model, "level=7", *arguments).status == 0
    assert asked == [(True, "float32"), (False, "float16")]


# What goes wrong -----------------------------------------------------------------------------------------------------


def test_damaged_photos_are_named_the_others_are_rendered_and_the_status_is_1(place_with, call, white_network,
                                                                              checkpoint, link_checkpoint):
    damaged = {"2": "original", "3": "original_depth", "10": "bokeh"}
    place_with("1", *damaged, "12")
    link_checkpoint(checkpoint, checkpoints.checkpoint_prefix(3, 10))
    for name, kind in damaged.items():
        with open(f"ebb_dataset/test/{kind}/{name}.png", "rb+") as file:
            file.truncate(file.seek(0, 2) // 2)
    done = call(test_model, "level=3")
    assert done.status == 1 and pictures() == ["12_level_3_iteration_10.png", "1_level_3_iteration_10.png"]
    assert all(f"test/{kind}/{name}.png" in done.err for name, kind in damaged.items())
    assert done.err.endswith("error: 3 of 5 photos could not be rendered\n")


def test_missing_depth_map_is_told_before_the_network_is_built(place_with, call, monkeypatch):
    place_with("3")
    os.remove("ebb_dataset/test/original_depth/3.png")
    monkeypatch.setattr(model, "build_pynet", lambda **_: pytest.fail("built the network"))
    done = call(test_model, "level=7")
    assert done.status == 1 and "original_depth" in done.err


def test_picture_that_cannot_be_written_is_named(place_with, call, white_network, monkeypatch):
    place_with("2", "3")
    write = utils.write_image

    def full_for_one(path, *arguments):
        if path.name.startswith("2_"):
            raise OSError(28, "No space left on device")
        write(path, *arguments)

    monkeypatch.setattr(utils, "write_image", full_for_one)
    done = call(test_model, "level=7")
    assert done.status == 1 and pictures() == ["3_level_7_iteration_10.png"]
    assert re.match(r"error: results/full-resolution/\S*/2_level_7_iteration_10\.png: it or its small pictures "
                    r"could not be written \(No space left on device\)\n", done.err)


def test_page_that_cannot_be_written_is_named_and_the_status_is_1(place_with, call, white_network):
    place_with("3")
    (utils.FULL_RESOLUTION / "index.html").mkdir(parents=True)
    done = call(test_model, "level=7")
    assert done.status == 1 and pictures() == ["3_level_7_iteration_10.png"]
    assert re.fullmatch("error: results/full-resolution/.*index.html.*\n", done.err)


def test_ctrl_c_leaves_whole_pictures_and_the_page_of_what_was_rendered(place_with, call, monkeypatch):
    place_with("2", "3", "10")
    def stopped_at_the_third(network, level):
        def render(photo, size):
            if size == PHOTOS["10"][0]:
                raise KeyboardInterrupt
            return np.ones((4, 4, 3), np.float32)
        return render

    monkeypatch.setattr(renderer, "make_renderer", stopped_at_the_third)
    done = call(test_model, "level=7")
    assert done.status == 130 and "Traceback" not in done.err
    assert "2 of 3 photos" in newest_result("index.html").read_text()
    assert pictures() == [f"{name}_level_7_iteration_10.png" for name in "23"]
    assert not list(utils.FULL_RESOLUTION.rglob(".*"))


def test_sigterm_writes_the_page_of_what_was_rendered(place_with, call, monkeypatch):
    place_with("2", "3", "10")
    told = threading.Event()

    def told_to_stop(network, level):  # while one photo is in the network, one waits for it, and one has not begun
        def render(photo, size):
            if not told.is_set():
                told.set()
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.5)
            return np.ones((4, 4, 3), np.float32)
        return render

    monkeypatch.setattr(renderer, "make_renderer", told_to_stop)
    before = signal.getsignal(signal.SIGTERM)
    try:
        done = call(test_model, "level=7")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert done.status == 128 + signal.SIGTERM
    assert re.search("[12] of 3 photos", newest_result("index.html").read_text())


def test_unexpected_exception_of_one_photo_is_named_and_the_others_are_rendered(place_with, call, white_network,
                                                                                monkeypatch):
    place_with("2", "3")
    load = load_dataset.load_input
    monkeypatch.setattr(load_dataset, "load_input", lambda pair: [][1] if pair.name == "2" else load(pair))
    done = call(test_model, "level=7")
    assert done.status == 1 and pictures() == ["3_level_7_iteration_10.png"]
    assert done.err.startswith("error: ebb_dataset/test/original/2.png: IndexError: list index out of range\n")


def test_picture_that_is_not_finite_is_named_and_not_written(place_with, call, monkeypatch):
    place_with("2")
    picture = np.full((4, 4, 3), np.nan, np.float32)
    monkeypatch.setattr(renderer, "make_renderer", lambda *_: lambda photo, size: picture)
    done = call(test_model, "level=7")
    assert done.status == 1 and not pictures()
    assert done.err.startswith("error: ebb_dataset/test/original/2.png: its picture is not finite; ")


# Overlap -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def rendered_in_steps(place_with, call, monkeypatch):
    """rendered_in_steps(render) renders five photos with render(index, done) in place of the network.

    done["read", index] and done["written", index] are events.
    """
    def run(render):
        place_with()
        write_photos({str(index): PHOTOS["11"] for index in range(5)})
        done = collections.defaultdict(threading.Event)
        write = results_page.write_thumbnails

        def read_index(pair):
            done["read", int(pair.name)].set()
            return np.full((32, 32, 4), int(pair.name), np.uint8)

        def render_index(photo, size):
            render(int(photo[0, 0, 0]), done)
            return np.ones((1, 1, 3), np.float32)

        def write_index(path, photo, *others):
            done["written", int(photo[0, 0, 0])].set()
            return write(path, photo, *others)

        monkeypatch.setattr(load_dataset, "load_input", read_index)
        monkeypatch.setattr(renderer, "make_renderer", lambda *_: render_index)
        monkeypatch.setattr(results_page, "write_thumbnails", write_index)
        return call(test_model, "level=7")
    return run


def test_the_next_photo_is_read_and_the_last_one_written_while_the_network_computes(rendered_in_steps):
    """However the two threads take turns: while one is in the network, the other comes to wait for it with a photo."""
    rendered, seen = [], []

    def render(index, done):
        rendered.append(index)
        others = [other for other in range(5) if other not in rendered]
        deadline = time.monotonic() + 60
        while others and not any(done["read", other].is_set() for other in others) and time.monotonic() < deadline:
            time.sleep(0.01)
        seen.append(all(done["written", earlier].is_set() for earlier in rendered[:-2])
                    and (not others or any(done["read", other].is_set() for other in others)))

    assert rendered_in_steps(render).status == 0 and seen == [True] * 5


def test_photos_go_through_the_network_once_and_one_at_a_time_and_only_two_are_in_memory(rendered_in_steps):
    running, rendered, most = threading.Lock(), [], []

    def render(index, done):
        assert running.acquire(blocking=False)
        most.append(sum(done["read", other].is_set() and not done["written", other].is_set() for other in range(5)))
        rendered.append(index)
        running.release()

    out = rendered_in_steps(render).out
    assert sorted(rendered) == list(range(5)) and max(most) <= 2
    assert re.findall(r"/(\d)_level_7", out) == list("01234")

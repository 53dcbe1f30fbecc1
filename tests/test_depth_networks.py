"""support/depth_networks.py: any monocular depth network makes 8-bit maps of half the photo's size, bright = near."""

import math
import os
import shutil
import sys

import keras
import numpy as np
import pytest
from depth_network_files import displacement, expected_map, smooth_photo
from PIL import Image

from support import depth_networks, devices
from support.depth_networks import Network, Preset
from utils import DataError

PLAIN, MIDAS, DEPTH_ANYTHING, MEGADEPTH = (
    depth_networks.PRESETS[name] for name in ("none", "midas_v21_small", "depth_anything_v2", "megadepth"))

FITTING = {  # name: (preset, largest difference in grey levels)
    "copy.tflite": (PLAIN, 4), "free.tflite": (PLAIN, 4), "nchw.tflite": (PLAIN, 4), "uint8.tflite": (PLAIN, 6),
    "int8.tflite": (Preset(range=(-1, 1)), 6), "whole_numbers.tflite": (PLAIN, 4),
    "copy": (PLAIN, 4), "rank_3": (PLAIN, 4), "nchw": (PLAIN, 4), "copy.keras": (PLAIN, 4), "free.h5": (PLAIN, 4),
    "copy.onnx": (PLAIN, 4), "nhwc.onnx": (PLAIN, 4), "free.onnx": (PLAIN, 4),
    "all_free.onnx": (Preset(size=(96, 96)), 4), "rank_3.onnx": (PLAIN, 4), "half.onnx": (PLAIN, 4),
    "whole_numbers.onnx": (PLAIN, 4), "sides_of_14.onnx": (DEPTH_ANYTHING, 4), "free_nhwc.onnx": (MIDAS, 4),
    "negative_logarithm.onnx": (MEGADEPTH, 4), "views.onnx": (PLAIN, 4), "with_confidence.onnx": (PLAIN, 4)}
NOT_FITTING = {  # name: what its one line has to say
    "two_channels.tflite": "64, 96, 2)", "two_channels.keras": "64, 96, 2)", "classes": "(1, 5)",
    "two_outputs": "gives a (1, 64, 96, 1), b (1, 64, 96, 1); output_name=NAME must choose one of them",
    "rgbd.tflite": "64, 96, 4)", "batch_of_4": "(4, 64, 96, 3)", "no_signature": "serving_default",
    "two_channels.onnx": "2, 64, 96)", "two_inputs.onnx": "other", "empty.onnx": "(1, 1, 0, 96)",
    "huge.onnx": "100000 x 100000 pixels; at most 4 million"}


# The depth map -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FITTING)
def test_network_that_copies_a_channel_reproduces_it_in_size_scale_direction_and_place(network_file, name):
    photo, (preset, tolerance) = smooth_photo((193, 127)), FITTING[name]
    found = depth_networks.open_network(network_file(name), preset)(Image.fromarray(photo), "a photo")
    expected = expected_map(photo)
    assert found.dtype == np.uint8 and found.shape == (63, 96)
    np.testing.assert_allclose(np.float64(found), expected, rtol=0, atol=tolerance)
    assert np.abs(displacement(found, expected)).max() < 0.1


@pytest.mark.parametrize("name", ["sharpen", "sharpen.tflite"])
def test_network_gives_the_same_map_in_another_format_within_a_grey_level(network_file, name):
    networks = [depth_networks.open_network(network_file(each), MIDAS) for each in (name, "sharpen.onnx")]
    for seed, size in enumerate([(193, 127), (640, 480)]):
        photo = Image.fromarray(smooth_photo(size, seed))
        maps = [np.float64(make_depth_map(photo, "a photo")) for make_depth_map in networks]
        assert np.ptp(maps[0]) == 255
        np.testing.assert_allclose(*maps, rtol=0, atol=1)


def test_displacement_is_measured_to_a_tenth_of_a_pixel():
    photo = smooth_photo((198, 134))
    moved = expected_map(photo[2:, 4:])  # 2 pixels to the left and 1 up, at half size
    assert displacement(moved, expected_map(photo[:-2, :-4])) == pytest.approx([-2, -1], abs=0.3)
    assert displacement(expected_map(photo[:, 1:-1]), expected_map(photo[:, :-2])) == pytest.approx([-0.5, 0], abs=0.1)


@pytest.mark.parametrize("name", ["copy.tflite", "free.tflite", "free.onnx"])
def test_tiny_and_narrow_photos_get_maps_too(network_file, name):
    make_depth_map = depth_networks.open_network(network_file(name), PLAIN)
    for width, height in ((2, 2), (3, 401), (401, 3)):
        depth = make_depth_map(Image.fromarray(smooth_photo((width, height))), "a photo")
        assert depth.shape == (height // 2 or 1, width // 2 or 1)


@pytest.mark.parametrize("output_name, channel", [("a", 0), ("b", 1)])
def test_output_name_chooses_among_several_outputs(network_file, output_name, channel):
    photo = smooth_photo((193, 127))
    found = depth_networks.open_network(network_file("two_outputs"), PLAIN, output_name)(Image.fromarray(photo), "")
    np.testing.assert_allclose(np.float64(found), expected_map(photo, channel), rtol=0, atol=4)


def test_known_name_opens_the_file_in_models_depth_with_its_preset(network_file, workplace):
    (workplace / "models/depth").mkdir()
    shutil.copy(network_file("depth_anything_v2_small.onnx"), "models/depth")
    photo = smooth_photo((193, 127))
    found = depth_networks.open_network("depth_anything_v2_small")(Image.fromarray(photo), "a photo")
    np.testing.assert_allclose(np.float64(found), expected_map(photo), rtol=0, atol=4)


def test_unknown_output_name_is_answered_with_those_that_there_are(network_file):
    with pytest.raises(DataError, match=r"gives a \(1, 64, 96, 1\), b .*output_name=NAME must choose one of them"):
        depth_networks.open_network(network_file("two_outputs"), PLAIN, "c")


def test_depth_inverts_the_output_and_distance_takes_its_reciprocal():
    distance = np.float32([[1, 2], [4, 8]])
    np.testing.assert_allclose(depth_networks.OUTPUTS["inverse"](distance), distance)
    np.testing.assert_allclose(depth_networks.OUTPUTS["depth"](distance), -distance)
    np.testing.assert_allclose(depth_networks.OUTPUTS["distance"](distance), [[1, 0.5], [0.25, 0.125]])


def test_log_depth_becomes_the_reciprocal_of_depth():
    values = np.float32([[0, math.log(2)], [math.log(4), -1]])
    np.testing.assert_allclose(depth_networks.OUTPUTS["log_depth"](values), [[1, 0.5], [0.25, math.e]], rtol=1e-6)


def test_scaling_ignores_scale_offset_and_odd_pixels():
    values = np.float32(np.linspace(3, 4, 10000).reshape(100, 100))
    plain = depth_networks.depth_map(values, (200, 200))
    assert plain[0, 0] == 0 and plain[-1, -1] == 255
    assert plain[50, 0] == pytest.approx(255 * (0.5 - 0.01) / 0.98, abs=1)  # 1st to 99th percentile
    np.testing.assert_allclose(depth_networks.depth_map(-7000 + 1000 * values, (200, 200)), np.float64(plain), atol=1)
    values[::20, ::20] = 1e6
    odd = depth_networks.depth_map(values, (200, 200))
    assert np.median(np.abs(np.float64(odd) - plain)) <= 2


@pytest.mark.parametrize("value", [0, 5, -1e-30, 1e30])
def test_constant_output_becomes_a_constant_map(value):
    constant = depth_networks.depth_map(np.full((8, 8), value, np.float32), (21, 12))
    assert constant.shape == (6, 10) and np.ptp(constant) == 0


# What the network is given -------------------------------------------------------------------------------------------

COLOUR = (255, 51, 102)  # 1, 0.2, 0.4


@pytest.mark.parametrize("network, preset, expected", [
    (Network(None, (1, 4, 6, 3), np.float32), PLAIN, [1, 0.2, 0.4]),
    (Network(None, (1, 4, 6, 3), np.float32), PLAIN._replace(range=(-1, 1)), [1, -0.6, -0.2]),
    (Network(None, (1, 4, 6, 3), np.float32), PLAIN._replace(range=(0, 255), mean=(5, 1, 2), std=(1, 2, 4)),
     [250, 25, 25]),
    (Network(None, (1, 4, 6, 3), np.float32), MIDAS,
     [(1 - 0.485) / 0.229, (0.2 - 0.456) / 0.224, (0.4 - 0.406) / 0.225]),
    (Network(None, (1, 4, 6, 3), np.float32), MEGADEPTH, [1, 0.2, 0.4]),
    (Network(None, (1, 4, 6, 3), np.uint8), PLAIN, COLOUR),
    (Network(None, (1, 4, 6, 3), np.int8), PLAIN._replace(range=(-128, 127)), [127, -77, -26]),
    (Network(None, (1, 4, 6, 3), np.uint8, (1 / 255, 0)), PLAIN, COLOUR),
    (Network(None, (1, 4, 6, 3), np.int8, (0.02, 3)), MIDAS, [round(2.24890 / 0.02 + 3), round(-1.14286 / 0.02 + 3),
                                                              round(-0.02667 / 0.02 + 3)]),
    (Network(None, (1, 4, 6, 3), np.int8, (0.001, 0)), PLAIN, [127, 127, 127])])
def test_pixels_are_normalised_and_quantised_as_the_network_wants_them(network, preset, expected):
    batch = depth_networks.prepare(Image.new("RGB", (12, 8), COLOUR), "a photo", network, preset)
    assert batch.shape == (1, 4, 6, 3) and batch.dtype == network.dtype
    np.testing.assert_allclose(batch[0, 2, 3], expected, rtol=1e-5)
    channels_first = depth_networks.prepare(Image.new("RGB", (12, 8), COLOUR), "a photo",
                                            network._replace(shape=(1, 3, 4, 6)), preset)
    np.testing.assert_array_equal(channels_first, batch.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("photo, expected", [
    ((4000, 3000), {"none": (384, 512), "midas_v21_small": (192, 256), "depth_anything_v2": (518, 686)}),
    ((3000, 4000), {"none": (512, 384), "midas_v21_small": (256, 192), "depth_anything_v2": (686, 518)}),
    ((1536, 1024), {"none": (352, 512), "midas_v21_small": (160, 256), "depth_anything_v2": (518, 784)}),
    ((65, 4001), {"none": (512, 32), "midas_v21_small": (256, 32)})])
def test_network_of_free_size_gets_what_its_preset_says(photo, expected):
    free = Network(None, (None, 3, None, None), np.float32)
    for name, size in (expected | {"megadepth": (384, 512)}).items():
        preset = depth_networks.PRESETS.get(name, PLAIN)
        assert depth_networks.input_size(free, photo, preset) == size
        assert depth_networks.input_size(free._replace(shape=(1, 3, None, 256)), photo, preset) == (size[0], 256)
        assert depth_networks.input_size(free._replace(shape=(1, 64, 96, 3)), photo, preset) == (64, 96)


@pytest.mark.parametrize("preset, shape", [
    (PLAIN, (352, 512)), (Preset(size=(100, 100)), (64, 96)), (Preset(size=(100, 100), multiple=7), (70, 98)),
    (MEGADEPTH, (384, 512)), (DEPTH_ANYTHING._replace(multiple=10), (520, 780))])
def test_size_is_the_longer_side_rounded_to_whole_multiples(preset, shape):
    network = Network(None, (None, 3, None, None), np.float32)
    assert depth_networks.input_size(network, (300, 200), preset) == shape


def test_input_of_a_very_long_photo_is_limited():
    network = Network(None, (None, 3, None, None), np.float32)
    for photo, size in {(4000, 8): (14, 2072), (8, 4000): (2072, 14), (4000, 900): (462, 2072)}.items():
        assert depth_networks.input_size(network, photo, DEPTH_ANYTHING) == size


# Where it computes ---------------------------------------------------------------------------------------------------


def test_onnx_needs_no_tensorflow(network_file, monkeypatch, capsys):
    monkeypatch.setattr(devices, "start_tensorflow", lambda *_: pytest.fail("asked for TensorFlow"))
    depth_networks.open_network(network_file("copy.onnx"), PLAIN)
    assert capsys.readouterr().out == ("onnxruntime computes with CPUExecutionProvider\n"
                                       f"Network: {network_file('copy.onnx')}, takes (1, 3, 64, 96) float32\n")


def test_onnx_computes_on_the_gpu_where_onnxruntime_can(network_file, monkeypatch):
    path = network_file("copy.onnx")
    import onnxruntime
    asked, session = [], onnxruntime.InferenceSession
    available = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda path, options, providers:
                        asked.append(providers) or session(path, options, ["CPUExecutionProvider"]))
    depth_networks.open_network(path, PLAIN)
    assert asked == [["CUDAExecutionProvider", "CPUExecutionProvider"]]


def test_missing_onnxruntime_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "depth.onnx").write_text("any")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(DataError, match="pip install onnxruntime"):
        depth_networks.open_network(tmp_path / "depth.onnx", PLAIN)


# Networks that do not fit --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NOT_FITTING)
def test_network_that_does_not_fit_is_one_line(network_file, name):
    with pytest.raises(DataError) as error:
        depth_networks.open_network(network_file(name), PLAIN)
    assert str(error.value).startswith(f"{network_file(name)}: ") and NOT_FITTING[name] in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name, preset", [("logarithm.tflite", PLAIN), ("copy.tflite", Preset(output="distance"))])
def test_output_that_is_no_depth_is_an_error_that_names_the_photo(network_file, name, preset):
    make_depth_map = depth_networks.open_network(network_file(name), preset)
    with pytest.raises(DataError, match="^black.png: the network gives NaN or infinite values"):
        make_depth_map(Image.new("RGB", (64, 64)), "black.png")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux")
def test_full_stdout_does_not_make_the_network_a_bad_one(network_file, monkeypatch):
    path = network_file("copy.onnx")
    with open("/dev/full", "w", buffering=1) as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert depth_networks.load_network(path).shape == (1, 3, 64, 96)
        monkeypatch.undo()
        with pytest.raises(OSError):
            full.flush()  # what it holds; closing it would raise that once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())


@pytest.mark.parametrize("output", [np.array([[["near", "far"]]]), [{"near": 1.0}], np.ones((1, 8, 8), np.complex64)])
def test_output_that_is_no_numbers_is_one_line(output):
    network = depth_networks.Network(lambda batch: {"label": output}, (1, 64, 96, 3), np.float32)
    with pytest.raises(DataError, match="^a.png: the network gives label .*a depth network gives one channel"):
        depth_networks.inverse_depth(Image.new("RGB", (64, 64)), "a.png", network, PLAIN)


@pytest.mark.parametrize("name", ["text.onnx", "text.keras", "text.h5", "text", "photo.png", "empty", "none"])
def test_file_that_is_no_network_is_one_line(tmp_path, name):
    path = tmp_path / name
    if name in ("empty", "text"):
        path.mkdir()
    if name != "none" and name != "empty":
        (path / "saved_model.pb" if name == "text" else path).write_text("not a network")
    with pytest.raises(DataError) as error:
        depth_networks.open_network(path, PLAIN)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


def test_tflite_file_that_is_cut_off_anywhere_is_one_line(network_file, run_python, tmp_path):
    whole = network_file("sharpen.tflite").read_bytes()
    done = run_python(f"""if True:
        import pathlib
        from support import depth_networks
        from utils import DataError
        whole = pathlib.Path({str(network_file("sharpen.tflite"))!r}).read_bytes()
        for length in range(0, len(whole), 64):
            pathlib.Path("cut.tflite").write_bytes(whole[:length])
            try:
                depth_networks.open_network("cut.tflite", depth_networks.Preset())
            except DataError as error:
                print(error)
        """, cwd=tmp_path)
    lines = [line for line in done.out.splitlines() if line.startswith("cut.tflite: cannot be loaded (")]
    assert done.status == 0 and len(lines) == math.ceil(len(whole) / 64)


@pytest.mark.parametrize("name", ["copy.keras", "free.h5"])
def test_keras_that_runs_the_code_in_a_file_reads_none(network_file, monkeypatch, name):
    monkeypatch.setattr(keras, "__version__", "3.11.2")
    with pytest.raises(DataError, match=r"Keras 3\.11\.2 may run code in such a file: pip install 'keras>=3\.11\.3'"):
        depth_networks.open_network(network_file(name), PLAIN)

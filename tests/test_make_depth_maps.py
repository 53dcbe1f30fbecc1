"""tools/make_depth_maps.py: any monocular depth network makes 8-bit maps of half the photo's size, bright = near.

The networks here copy one channel of the photo, so that its depth map is known: that channel.
"""

import functools
import math
import shlex
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import load_dataset
import utils
from support import devices
from tools import make_depth_maps
from tools.make_depth_maps import Network, Preset

HEIGHT, WIDTH = 64, 96  # of the networks' inputs where they are fixed
GREEN = 1  # the channel that is copied
MIDAS = make_depth_maps.PRESETS["midas_v21_small"]
PLAIN = Preset()
WHOLE_IMAGE = [1, HEIGHT, WIDTH, 3]

FITTING = {  # name: (arguments, largest difference in grey levels)
    "copy.tflite": ([], 4), "free.tflite": ([], 4), "nchw.tflite": ([], 4), "uint8.tflite": ([], 6),
    "int8.tflite": (["range=-1,1"], 6), "whole_numbers.tflite": ([], 4),
    "copy": ([], 4), "rank_3": ([], 4), "nchw": ([], 4), "copy.keras": ([], 4), "free.h5": ([], 4),
    "copy.onnx": ([], 4), "nhwc.onnx": ([], 4), "free.onnx": ([], 4), "all_free.onnx": (["size=96"], 4),
    "rank_3.onnx": ([], 4), "half.onnx": ([], 4), "whole_numbers.onnx": ([], 4),
    "sides_of_14.onnx": (["preset=depth_anything_v2"], 4), "free_nhwc.onnx": (["preset=midas_v21_small"], 4),
    "negative_logarithm.onnx": (["preset=megadepth"], 4)}
NOT_FITTING = {  # name: what its one line has to say
    "two_channels.tflite": "64, 96, 2)", "two_channels.keras": "64, 96, 2)", "classes": "(1, 5)",
    "two_outputs": "64, 96, 1), (1, ", "rgbd.tflite": "64, 96, 4)", "batch_of_4": "(4, 64, 96, 3)",
    "no_signature": "serving_default", "two_channels.onnx": "2, 64, 96)", "two_inputs.onnx": "other"}


# Networks ------------------------------------------------------------------------------------------------------------


def copy_channel(batch, axis=-1):
    return tf.gather(tf.cast(batch, tf.float32), [GREEN], axis=axis)


def convolve(batch):  # the same, by an operation that can be quantised
    return tf.nn.conv2d(batch, tf.reshape(tf.one_hot(GREEN, 3), [1, 1, 3, 1]), 1, "SAME")


SHARPEN = np.float32(np.random.default_rng(0).uniform(-0.2, 0.4, (3, 3, 3, 1)))  # any kernel


def first_two(batch):
    return batch[..., :2]


FUNCTIONS = {  # what a network computes, and the shapes of its inputs
    "copy": (copy_channel, WHOLE_IMAGE),
    "free": (copy_channel, [None, None, None, 3]),
    "nchw": (functools.partial(copy_channel, axis=1), [1, 3, HEIGHT, WIDTH]),
    "rank_3": (lambda batch: copy_channel(batch)[..., 0], [None, HEIGHT, WIDTH, 3]),
    "whole_numbers": (copy_channel, WHOLE_IMAGE, tf.uint8),
    "sharpen": (lambda batch: tf.nn.relu(tf.nn.conv2d(batch, SHARPEN, 1, "SAME")), WHOLE_IMAGE),
    "uint8": (convolve, WHOLE_IMAGE), "int8": (convolve, WHOLE_IMAGE),
    "logarithm": (lambda batch: tf.math.log(copy_channel(batch)), WHOLE_IMAGE),
    "two_channels": (first_two, WHOLE_IMAGE),
    "classes": (lambda batch: tf.ones([1, 5]) * tf.reduce_mean(batch), WHOLE_IMAGE),
    "two_outputs": (lambda batch: {"a": batch[..., :1], "b": batch[..., 1:2]}, WHOLE_IMAGE),
    "rgbd": (lambda batch: batch[..., 3:], [1, HEIGHT, WIDTH, 4]),
    "batch_of_4": (copy_channel, [4, HEIGHT, WIDTH, 3]),
}
KERAS_FUNCTIONS = {"copy": (1, WHOLE_IMAGE), "free": (1, [None, None, None, 3]), "two_channels": (2, WHOLE_IMAGE)}


@pytest.fixture(scope="module")
def network_file(tmp_path_factory):
    """network_file("copy.tflite") is the path of that network; without an ending it is a SavedModel."""
    folder = tmp_path_factory.mktemp("networks")

    @functools.cache
    def write(name):
        path = folder / name
        {".tflite": write_tflite, "": write_saved_model, ".keras": write_keras, ".h5": write_keras,
         ".onnx": write_onnx}[path.suffix](path)
        return path
    return write


def concrete_function(name):
    module = tf.Module()
    if name == "no_signature":
        return module, None
    function, *shapes = FUNCTIONS[name]
    dtype = next((item for item in shapes if isinstance(item, tf.DType)), tf.float32)
    module.call = tf.function(function, autograph=False, input_signature=[
        tf.TensorSpec(shape, dtype) for shape in shapes if not isinstance(shape, tf.DType)])
    return module, module.call.get_concrete_function()


def write_saved_model(path):
    module, function = concrete_function(path.name)
    tf.saved_model.save(module, str(path), signatures=function)


def write_tflite(path):
    module, function = concrete_function(path.stem)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], module)
    if path.stem in ("uint8", "int8"):
        low = {"uint8": 0, "int8": -1}[path.stem]
        random = np.random.default_rng(0)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([np.float32(random.uniform(low, 1, WHOLE_IMAGE))] for _ in range(5))
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.dtypes.as_dtype(path.stem)
    path.write_bytes(converter.convert())


def write_keras(path):
    maps, shape = KERAS_FUNCTIONS[path.stem]
    convolution = tf.keras.layers.Conv2D(maps, 1, use_bias=False)
    keras_model = tf.keras.Sequential([tf.keras.Input(shape[1:]), convolution])
    convolution.set_weights([np.eye(3, dtype=np.float32)[GREEN:GREEN + 1, :, np.newaxis].repeat(maps, -1)[np.newaxis]])
    keras_model.save(path)


CHANNELS_FIRST = [1, 3, HEIGHT, WIDTH]
ONNX_NETWORKS = {  # what is computed, as (operation, its other inputs, its attributes), and the input's shape and type
    "copy": ([("Gather", [[GREEN]], {"axis": 1})], CHANNELS_FIRST),
    "nhwc": ([("Gather", [[GREEN]], {"axis": 3})], WHOLE_IMAGE),
    "free": ([("Gather", [[GREEN]], {"axis": 1})], ["batch", 3, "height", "width"]),
    "free_nhwc": ([("Gather", [[GREEN]], {"axis": 3})], [1, "height", "width", 3]),
    "all_free": ([("Gather", [[GREEN]], {"axis": 1})], ["batch", "channels", "height", "width"]),
    "rank_3": ([("Gather", [GREEN], {"axis": 1})], CHANNELS_FIRST),
    "half": ([("Gather", [[GREEN]], {"axis": 1})], CHANNELS_FIRST, np.float16),
    "whole_numbers": ([("Gather", [[GREEN]], {"axis": 1})], CHANNELS_FIRST, np.uint8),
    "sides_of_14": ([("Gather", [[GREEN]], {"axis": 1}), ("SpaceToDepth", [], {"blocksize": 14}),  # as a transformer
                     ("DepthToSpace", [], {"blocksize": 14})], ["batch", 3, "height", "width"]),
    "negative_logarithm": ([("Gather", [[GREEN]], {"axis": 1}), ("Log", [], {}), ("Neg", [], {})],
                           ["batch", 3, "height", "width"]),
    "sharpen": ([("Conv", [SHARPEN.transpose(3, 2, 0, 1)], {"pads": [1, 1, 1, 1]}), ("Relu", [], {})], CHANNELS_FIRST),
    "two_channels": ([("Gather", [[0, 1]], {"axis": 1})], CHANNELS_FIRST),
    "two_inputs": ([("Gather", [[GREEN]], {"axis": 1}), ("Add", ["other"], {})], CHANNELS_FIRST),
}


def write_onnx(path):
    onnx = pytest.importorskip("onnx", reason="the tests make ONNX networks: pip install onnx onnxruntime")
    pytest.importorskip("onnxruntime", reason="reads ONNX networks: pip install onnx onnxruntime")
    operations, shape, dtype = (*ONNX_NETWORKS[path.stem], np.float32)[:3]
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes, constants, inputs, name = [], [], [onnx.helper.make_tensor_value_info("photo", kind, shape)], "photo"
    for index, (operation, others, attributes) in enumerate(operations):
        names = [other if isinstance(other, str) else f"constant{index}" for other in others]
        constants += [onnx.numpy_helper.from_array(np.asarray(other), f"constant{index}") for other in others
                      if not isinstance(other, str)]
        inputs += [onnx.helper.make_tensor_value_info(other, kind, None) for other in others if isinstance(other, str)]
        nodes.append(onnx.helper.make_node(operation, [name, *names], [f"result{index}"], **attributes))
        name = f"result{index}"
    outputs = [onnx.helper.make_tensor_value_info(name, kind, None)]
    graph = onnx.helper.make_graph(nodes, "network", inputs, outputs, constants)
    opset = onnx.helper.make_opsetid("", 13)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), path)


# Photos --------------------------------------------------------------------------------------------------------------


def smooth_photo(size, seed=0):
    """A photo of soft waves, different in each channel, uint8 (height, width, 3)."""
    random = np.random.default_rng(seed)
    width, height = size
    y, x = np.mgrid[:height, :width] / max(size)

    def wave():
        across, down = random.uniform(0.5, 2.5, 2)
        return np.sin(2 * np.pi * (across * x + down * y) + random.uniform(0, 6))
    return utils.to_uint8(0.5 + np.dstack([wave() + wave() + wave() for _ in range(3)]) / 7)


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


def read_map(path):
    with Image.open(path) as image:
        assert (image.format, image.mode) == ("PNG", "L")
        return np.float64(image)


def expected_map(photo, channel=GREEN):
    """The channel at half size, from its 1st to its 99th percentile."""
    image = Image.fromarray(photo[..., channel])
    half = np.float64(image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC))
    low, high = np.percentile(half, (1, 99))
    return 255 * np.clip((half - low) / (high - low), 0, 1)


def displacement(image, reference):
    """How far `image` lies to the right of `reference` and below it, in pixels: least squares on the gradients."""
    inside = np.s_[2:-2, 2:-2]
    slopes = np.stack([-part[inside].ravel() for part in np.gradient(reference)[::-1]], axis=1)
    return np.linalg.lstsq(slopes, (image - reference)[inside].ravel(), rcond=None)[0]


# The depth map -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FITTING)
def test_network_that_copies_a_channel_reproduces_it_in_size_scale_direction_and_place(photos, make, tmp_path, name):
    folder = photos({"1": (193, 127)})
    arguments, tolerance = FITTING[name]
    done = make(name, *arguments)
    assert (done.status, done.err) == (0, "")
    found, expected = read_map(tmp_path / "depth" / "1.png"), expected_map(np.asarray(Image.open(folder / "1.png")))
    assert found.shape == (63, 96)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
    assert np.abs(displacement(found, expected)).max() < 0.1


@pytest.mark.parametrize("name", ["sharpen", "sharpen.tflite"])
def test_network_gives_the_same_map_in_another_format_within_a_grey_level(photos, make, tmp_path, name):
    photos({"1": (193, 127), "2": (640, 480)})
    maps = []
    for each in (name, "sharpen.onnx"):
        assert make(each, "preset=midas_v21_small").status == 0
        maps.append([read_map(tmp_path / "depth" / f"{photo}.png") for photo in (1, 2)])
        for photo in (1, 2):
            (tmp_path / "depth" / f"{photo}.png").unlink()
    for old, new in zip(*maps):
        assert np.ptp(old) == 255
        np.testing.assert_allclose(new, old, rtol=0, atol=1)


def test_displacement_is_measured_to_a_tenth_of_a_pixel():
    photo = smooth_photo((198, 134))
    moved = expected_map(photo[2:, 4:])  # 2 pixels to the left and 1 up, at half size
    assert displacement(moved, expected_map(photo[:-2, :-4])) == pytest.approx([-2, -1], abs=0.3)
    assert displacement(expected_map(photo[:, 1:-1]), expected_map(photo[:, :-2])) == pytest.approx([-0.5, 0], abs=0.1)


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


@pytest.mark.parametrize("name", ["copy.tflite", "free.tflite", "free.onnx"])
def test_tiny_and_narrow_photos_get_maps_too(photos, make, tmp_path, name):
    sizes = {"1": (2, 2), "2": (3, 401), "3": (401, 3)}
    photos(sizes)
    assert make(name).status == 0
    for photo, (width, height) in sizes.items():
        assert read_map(tmp_path / "depth" / f"{photo}.png").shape == (height // 2, width // 2)


def test_depth_inverts_the_output_and_distance_takes_its_reciprocal():
    distance = np.float32([[1, 2], [4, 8]])
    np.testing.assert_allclose(make_depth_maps.OUTPUTS["inverse"](distance), distance)
    np.testing.assert_allclose(make_depth_maps.OUTPUTS["depth"](distance), -distance)
    np.testing.assert_allclose(make_depth_maps.OUTPUTS["distance"](distance), [[1, 0.5], [0.25, 0.125]])


def test_log_depth_becomes_the_reciprocal_of_depth():
    values = np.float32([[0, math.log(2)], [math.log(4), -1]])
    np.testing.assert_allclose(make_depth_maps.OUTPUTS["log_depth"](values), [[1, 0.5], [0.25, math.e]], rtol=1e-6)


def test_output_depth_makes_the_negative_of_output_inverse(photos, make, tmp_path):
    photos({"1": (193, 127)})
    make("copy.tflite")
    inverse = read_map(tmp_path / "depth" / "1.png")
    (tmp_path / "depth" / "1.png").unlink()
    assert make("copy.tflite", "output=depth").status == 0
    np.testing.assert_allclose(read_map(tmp_path / "depth" / "1.png"), 255 - inverse, rtol=0, atol=1)


def test_scaling_ignores_scale_offset_and_odd_pixels():
    values = np.float32(np.linspace(3, 4, 10000).reshape(100, 100))
    plain = make_depth_maps.depth_map(values, (200, 200))
    assert plain[0, 0] == 0 and plain[-1, -1] == 255
    assert plain[50, 0] == pytest.approx(255 * (0.5 - 0.01) / 0.98, abs=1)  # 1st to 99th percentile
    np.testing.assert_allclose(make_depth_maps.depth_map(-7000 + 1000 * values, (200, 200)), np.float64(plain), atol=1)
    values[::20, ::20] = 1e6
    odd = make_depth_maps.depth_map(values, (200, 200))
    assert np.median(np.abs(np.float64(odd) - plain)) <= 2


@pytest.mark.parametrize("value", [0, 5, -1e-30, 1e30])
def test_constant_output_becomes_a_constant_map(value):
    constant = make_depth_maps.depth_map(np.full((8, 8), value, np.float32), (21, 12))
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
    (Network(None, (1, 4, 6, 3), np.float32), make_depth_maps.PRESETS["megadepth"], [1, 0.2, 0.4]),
    (Network(None, (1, 4, 6, 3), np.uint8), PLAIN, COLOUR),
    (Network(None, (1, 4, 6, 3), np.int8), PLAIN._replace(range=(-128, 127)), [127, -77, -26]),
    (Network(None, (1, 4, 6, 3), np.uint8, (1 / 255, 0)), PLAIN, COLOUR),
    (Network(None, (1, 4, 6, 3), np.int8, (0.02, 3)), MIDAS, [round(2.24890 / 0.02 + 3), round(-1.14286 / 0.02 + 3),
                                                              round(-0.02667 / 0.02 + 3)]),
    (Network(None, (1, 4, 6, 3), np.int8, (0.001, 0)), PLAIN, [127, 127, 127])])
def test_pixels_are_normalised_and_quantised_as_the_network_wants_them(network, preset, expected):
    batch = make_depth_maps.prepare(Image.new("RGB", (12, 8), COLOUR), network, preset)
    assert batch.shape == (1, 4, 6, 3) and batch.dtype == network.dtype
    np.testing.assert_allclose(batch[0, 2, 3], expected, rtol=1e-5)
    channels_first = make_depth_maps.prepare(Image.new("RGB", (12, 8), COLOUR), network._replace(shape=(1, 3, 4, 6)),
                                             preset)
    np.testing.assert_array_equal(channels_first, batch.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("photo, expected", [
    ((4000, 3000), {"none": (384, 512), "midas_v21_small": (192, 256), "depth_anything_v2": (518, 686)}),
    ((3000, 4000), {"none": (512, 384), "midas_v21_small": (256, 192), "depth_anything_v2": (686, 518)}),
    ((1536, 1024), {"none": (352, 512), "midas_v21_small": (160, 256), "depth_anything_v2": (518, 784)}),
    ((65, 4001), {"none": (512, 32), "midas_v21_small": (256, 32)})])
def test_network_of_free_size_gets_what_its_preset_says(photo, expected):
    free = Network(None, (None, 3, None, None), np.float32)
    for name, size in (expected | {"megadepth": (384, 512)}).items():
        preset = make_depth_maps.PRESETS.get(name, PLAIN)
        assert make_depth_maps.input_size(free, photo, preset) == size
        assert make_depth_maps.input_size(free._replace(shape=(1, 3, None, 256)), photo, preset) == (size[0], 256)
        assert make_depth_maps.input_size(free._replace(shape=(1, 64, 96, 3)), photo, preset) == (64, 96)


@pytest.mark.parametrize("arguments, shape", [
    ([], (1, 3, 352, 512)), (["size=100"], (1, 3, 64, 96)), (["size=100", "multiple=7"], (1, 3, 70, 98)),
    (["preset=megadepth"], (1, 3, 384, 512)), (["preset=depth_anything_v2", "multiple=10"], (1, 3, 520, 780)),
    (["preset=megadepth", "size=256"], (1, 3, 160, 256)),
    (["preset=depth_anything_v2", "size=280"], (1, 3, 182, 280))])
def test_size_is_the_longer_side_rounded_to_whole_multiples(photos, make, monkeypatch, arguments, shape):
    photos({"1": (300, 200)})
    given, prepare = [], make_depth_maps.prepare
    monkeypatch.setattr(make_depth_maps, "prepare", lambda *args: given.append(prepare(*args)) or given[-1])
    assert make("free.onnx", *arguments).status == 0
    assert given[-1].shape == shape


# Many photos ---------------------------------------------------------------------------------------------------------


def test_existing_maps_are_kept_and_counted_whatever_they_are(photos, make, tmp_path):
    photos({"1": (64, 64), "2": (64, 64), "3": (64, 64)})
    (tmp_path / "depth").mkdir()
    (tmp_path / "depth" / "1.png").write_bytes(b"the user's own")
    (tmp_path / "depth" / "2.npy").write_bytes(b"the user's own as well")
    done = make("copy.tflite")
    assert done.status == 0 and "1 made, 2 kept" in done.out
    assert (tmp_path / "depth" / "1.png").read_bytes() == b"the user's own"
    assert {path.name for path in (tmp_path / "depth").iterdir()} == {"1.png", "2.npy", "3.png"}


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
    there = {path: path.stat().st_mtime_ns for path in (tmp_path / "depth").iterdir()}
    assert set(there) == set(written)
    again = make("copy.tflite")
    assert again.status == 0 and "3 made, 3 kept" in again.out
    assert {path: path.stat().st_mtime_ns for path in there} == there


def test_nothing_to_do_needs_no_tensorflow(photos, make, tmp_path, monkeypatch):
    photos({"1": (64, 64)})
    make("copy.tflite")
    monkeypatch.setattr(devices, "start_tensorflow", lambda *_: pytest.fail("asked for TensorFlow"))
    assert "0 made, 1 kept" in make("copy.tflite").out


def test_onnx_needs_no_tensorflow(photos, make, monkeypatch):
    photos({"1": (64, 64)})
    monkeypatch.setattr(devices, "start_tensorflow", lambda *_: pytest.fail("asked for TensorFlow"))
    done = make("copy.onnx")
    assert done.status == 0 and "takes (1, 3, 64, 96) float32\n" in done.out
    assert "onnxruntime computes with CPUExecutionProvider\n" in done.out


def test_onnx_computes_on_the_gpu_where_onnxruntime_can(photos, make, network_file, monkeypatch):
    photos({"1": (64, 64)})
    network_file("copy.onnx")
    import onnxruntime
    asked, session = [], onnxruntime.InferenceSession
    available = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda path, options, providers:
                        asked.append(providers) or session(path, options, ["CPUExecutionProvider"]))
    assert make("copy.onnx").status == 0
    assert asked == [["CUDAExecutionProvider", "CPUExecutionProvider"]]


def test_missing_onnxruntime_is_one_line(photos, call, tmp_path, monkeypatch):
    folder = photos({"1": (64, 64)})
    (tmp_path / "depth.onnx").write_text("any")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    done = call(make_depth_maps, f"model={tmp_path / 'depth.onnx'}", f"images_dir={folder}",
                f"depth_dir={tmp_path / 'depth'}")
    assert done.status == 1 and done.err.count("\n") == 1 and "pip install onnxruntime" in done.err


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
    assert {path.name for path in (tmp_path / "depth").iterdir()} == {"1.png", "3.png"}


@pytest.mark.parametrize("name, arguments, reason", [("logarithm.tflite", [], "infinite"),
                                                     ("copy.tflite", ["output=distance"], "infinite")])
def test_output_that_is_no_depth_is_an_error_that_names_the_photo(photos, make, tmp_path, name, arguments, reason):
    folder = photos({"1": (64, 64)})
    utils.write_image(folder / "black.png", np.zeros((64, 64, 3), np.uint8))
    done = make(name, *arguments)
    assert done.status == 1 and f"error: {folder / 'black.png'}: " in done.err and reason in done.err
    assert {path.name for path in (tmp_path / "depth").iterdir()} == {"1.png"}


def test_single_photo_will_do(photos, network_file, call, tmp_path):
    folder = photos({"1": (64, 64), "2": (64, 64)})
    done = call(make_depth_maps, f"model={network_file('copy.tflite')}", f"images_dir={folder / '2.png'}",
                f"depth_dir={tmp_path / 'depth'}")
    assert done.status == 0 and [path.name for path in (tmp_path / "depth").iterdir()] == ["2.png"]


# A data set ----------------------------------------------------------------------------------------------------------


def test_data_set_gets_maps_that_testing_accepts(network_file, call, tmp_path):
    for split, name in (("train", "1"), ("train", "2"), ("test", "1")):
        utils.write_image(tmp_path / split / "original" / f"{name}.jpg", smooth_photo((131, 97)))
    done = call(make_depth_maps, f"model={network_file('copy')}", f"dataset_dir={tmp_path}")
    assert (done.status, done.err) == (0, "")
    assert len(list((tmp_path / "train" / "original_depth").iterdir())) == 2
    [pair] = load_dataset.find_test_photos(tmp_path)
    assert load_dataset.load_input(pair).shape == (48, 65, 4)


def test_map_lies_as_training_reads_the_photo_which_does_not_turn_it(network_file, call, tmp_path):
    stored = smooth_photo((160, 120))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    (tmp_path / "test" / "original").mkdir(parents=True)
    Image.fromarray(stored).save(tmp_path / "test" / "original" / "1.jpg", quality=95, subsampling=0, exif=exif)
    assert call(make_depth_maps, f"model={network_file('copy')}", f"dataset_dir={tmp_path}").status == 0
    [pair] = load_dataset.find_test_photos(tmp_path)
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


def test_preview_overwrites_nothing(photos, make, tmp_path):
    photos({"1": (64, 64)})
    (tmp_path / "holiday.jpg").write_bytes(b"dear")
    done = make("copy.tflite", f"preview={tmp_path / 'holiday.jpg'}")
    assert done.status == 2 and "holiday.jpg: must be a new file" in done.err and not (tmp_path / "depth").exists()
    assert (tmp_path / "holiday.jpg").read_bytes() == b"dear"


# Networks that do not fit --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NOT_FITTING)
def test_network_that_does_not_fit_is_one_line(photos, make, network_file, tmp_path, name):
    photos({"1": (64, 64)})
    done = make(name)
    assert done.status == 1 and done.err.count("\n") == 1
    assert done.err.startswith(f"error: {network_file(name)}: ") and NOT_FITTING[name] in done.err
    assert list((tmp_path / "depth").iterdir()) == []


@pytest.mark.parametrize("name", ["cut.tflite", "text.onnx", "text.keras", "text.h5", "text", "photo.png", "empty",
                                  "none"])
def test_file_that_is_no_network_is_one_line(photos, call, network_file, tmp_path, name):
    photos({"1": (64, 64)})
    path = tmp_path / name
    if name == "text.onnx":
        pytest.importorskip("onnxruntime", reason="reads ONNX networks: pip install onnxruntime")
    if name == "cut.tflite":
        path.write_bytes(network_file("copy.tflite").read_bytes()[:300])
    elif name == "empty":
        path.mkdir()
    elif name == "text":
        path.mkdir()
        (path / "saved_model.pb").write_text("not a network")
    elif name != "none":
        path.write_text("not a network")
    done = call(make_depth_maps, f"model={path}", f"images_dir={tmp_path / 'my photos'}",
                f"depth_dir={tmp_path / 'depth'}")
    assert done.status == 1 and done.err.count("\n") == 1
    assert done.err.startswith(f"error: {path}: ") and "Traceback" not in done.err


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
        import sys, utils
        from tools import make_depth_maps
        sys.argv = ["make_depth_maps", "model=m"]
        assert utils.run(make_depth_maps.main) == 2 and "tensorflow" not in sys.modules
        sys.argv[1:] = {arguments}
        sys.exit(utils.run(make_depth_maps.main))
        """, cwd=tmp_path)
    assert done.status == 0
    lines = [line for line in done.err.splitlines() if not line.startswith("INFO")]  # TFLite names its CPU kernels
    assert len(lines) == 1 and "images_dir: write either" in lines[0]
    assert len(done.out.splitlines()) == 3 and "2 made, 0 kept" in done.out

"""tools/export_model.py: what is exported computes what the network does, where this repository is not.

All exports are of a network of an eighth of the paper's width, whose weights stand in models/small/.
"""

import functools
import importlib.util
import os
import pathlib
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import model
import utils
from support import checkpoints
from tools import export_model

EXPORTS = {  # name of the file: level, arguments
    "pynet": (7, []),
    "pynet.keras": (6, ["height=50", "width=70"]),
    "pynet.tflite": (1, ["height=50", "width=70"]),
    "half.tflite": (7, ["precision=float16", "height=64", "width=96"]),
    "pynet.onnx": (1, []),
}
ONNX_PACKAGES = [package for package in ("tf2onnx", "onnxruntime") if importlib.util.find_spec(package) is None]
WRITTEN = [name for name in EXPORTS if not (name.endswith(".onnx") and ONNX_PACKAGES)]  # the others are skipped
NAMES = [pytest.param(name, marks=[] if name in WRITTEN else pytest.mark.skip(f"needs {ONNX_PACKAGES}"))
         for name in EXPORTS]
SHAPES = {  # images, height and width of the photos that each is tried with
    "pynet": [(1, 64, 96), (2, 90, 33)],
    "pynet.keras": [(1, 50, 70)],
    "pynet.tflite": [(1, 50, 70)],
    "half.tflite": [(1, 64, 96)],
    "pynet.onnx": [(1, 64, 96), (2, 90, 33)],
}
LOADING = """
import importlib.util, sys
import numpy as np, tensorflow as tf

def load(name):  # as in the README
    if name.endswith(".keras"):
        model = tf.keras.models.load_model(name)
        return lambda photo, depth: model({"photo": photo, "depth": depth})["image"]
    if name.endswith(".tflite"):
        return tf.lite.Interpreter(name).get_signature_runner()
    if name.endswith(".onnx"):
        import onnxruntime
        session = onnxruntime.InferenceSession(name)
        return lambda photo, depth: session.run(["image"], {"photo": photo, "depth": depth})[0]
    return tf.saved_model.load(name).signatures["serving_default"]

assert importlib.util.find_spec("model") is None and importlib.util.find_spec("utils") is None
for name, photos in np.load("photos.npy", allow_pickle=True).item().items():
    render = load(name)
    for index, photo in enumerate(photos):
        image = render(photo=photo[..., :3], depth=photo[..., 3:])
        np.save(f"{name}_{index}.npy", image["image"] if isinstance(image, dict) else image)
"""


@pytest.fixture(scope="module")
def small_pynet():
    return model.build_pynet(seed=1, width_multiplier=0.125, kernel_start="he")


@pytest.fixture(scope="module", autouse=True)
def networks_built_once(small_pynet):
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(model, "build_pynet", functools.cache(model.build_pynet))
        yield


@pytest.fixture(scope="module")
def small_checkpoint(small_pynet, tmp_path_factory):
    """The prefix of its weights."""
    prefix = tmp_path_factory.mktemp("weights") / "small"
    checkpoints.save_checkpoint(small_pynet.variables, prefix)
    return prefix


@pytest.fixture(scope="module")
def photos():
    """{name of the export: [float32 (images, height, width, 4), ...]}"""
    return {name: [np.float32([export_model.trial_photo(height, width)] * images) for images, height, width in shapes]
            for name, shapes in SHAPES.items() if name in WRITTEN}


@pytest.fixture(scope="module")
def exported(module_workplace, small_checkpoint, link_checkpoint, call):
    """{name: Call}: all of them, written to the current folder."""
    link_checkpoint(small_checkpoint, utils.SMALL)
    return {name: call(export_model, "small=true", f"level={level}", f"out={name}", *arguments)
            for name, (level, arguments) in EXPORTS.items() if name in WRITTEN}


@pytest.fixture(scope="module")
def rendered(exported, photos, module_workplace):
    """{name: [images, ...]}, by a process that does not find this repository."""
    assert [done.status for done in exported.values()] == [0] * len(exported), exported
    np.save("photos.npy", photos, allow_pickle=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    subprocess.run([sys.executable, "-I", "-c", LOADING], env=environment, check=True, timeout=300)
    return {name: [np.load(f"{name}_{index}.npy") for index in range(len(photos[name]))] for name in photos}


@pytest.fixture
def weights(workplace, small_checkpoint, link_checkpoint):
    """A workplace with them."""
    link_checkpoint(small_checkpoint, utils.SMALL)
    return workplace


def render(pynet, level, photos):
    """The images that the network gives for (images, height, width, 4), which are padded here."""
    height, width = photos.shape[1:3]
    padded = np.pad(photos, [(0, 0), (0, -height % 32), (0, -width % 32), (0, 0)], "reflect")
    images = model.network_for_level(pynet, level)(padded / 255)
    return np.clip(images[:, :(2 * height) >> (level - 1), :(2 * width) >> (level - 1)], 0, 1)


# What is exported ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_export_computes_what_the_network_does_without_this_repository(name, small_pynet, photos, rendered):
    for photo, found in zip(photos[name], rendered[name], strict=True):
        expected = render(small_pynet, EXPORTS[name][0], photo)
        assert found.shape == expected.shape and found.dtype == np.float32 and np.std(expected) > 1e-3
        np.testing.assert_allclose(found, expected, rtol=0, atol=3e-3 if name == "half.tflite" else 2e-5)


@pytest.mark.parametrize("name", ["pynet.tflite", "half.tflite"])
def test_tflite_has_built_in_operations_on_at_most_four_axes(exported, name):
    kernels = tf.lite.experimental.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = tf.lite.Interpreter(name, experimental_op_resolver_type=kernels)
    names = {operation["op_name"] for operation in interpreter._get_ops_details()}
    assert "CONV_2D" in names and "RSQRT" in names
    assert not [name for name in names if "flex" in name.lower() or "custom" in name.lower() or "VARIABLE" in name]
    assert max(len(tensor["shape"]) for tensor in interpreter.get_tensor_details()) == 4
    assert ("MIRROR_PAD" in names) == (name == "pynet.tflite")  # which alone is of no multiple of 32


def test_float16_takes_two_bytes_for_a_weight(exported, small_pynet):
    weights = model.network_for_level(small_pynet, 7).count_params()
    assert 2 < os.path.getsize("half.tflite") / weights < 2.5


@pytest.mark.parametrize("name", NAMES)
def test_difference_to_the_network_is_printed(exported, name):
    done = exported[name]
    assert done.status == 0 and "use_gpu" not in done.out
    [(difference, psnr)] = re.findall(r"largest difference from the network (\S+), PSNR (\S+) dB", done.out)
    assert float(difference) < (3e-3 if name == "half.tflite" else 2e-5) and float(psnr) > 50
    assert re.search(rf"^{name}: level {EXPORTS[name][0]} as ", done.out, re.MULTILINE)


def test_nothing_else_is_left(exported, module_workplace):
    left = {path.name for path in module_workplace.iterdir() if path.suffix != ".npy"}
    assert left == {"models", *WRITTEN}


# What is not exported ------------------------------------------------------------------------------------------------


def test_export_that_differs_from_the_network_is_not_written(weights, call, monkeypatch):
    monkeypatch.setattr(export_model, "write", lambda *_: None)
    monkeypatch.setattr(export_model, "load", lambda *_: lambda photo, depth: np.full((1, 2, 3, 3), np.nan))
    done = call(export_model, "small=true", "level=7", "out=here/pynet.keras", "height=64", "width=96")
    assert (done.status, done.err.count("\n")) == (1, 1) and done.err.startswith("error: here/pynet.keras: not written")
    assert os.listdir("here") == []


@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
def test_what_exists_is_not_overwritten(weights, call, kind):
    out = weights / "pynet"
    make = {"file": lambda: out.write_text("mine"), "folder": out.mkdir, "dangling link": lambda: out.symlink_to("no")}
    make[kind]()
    done = call(export_model, "small=true", f"out={out}")
    assert done.status == 1 and "exists" in done.err and done.err.count("\n") == 1
    assert out.is_symlink() or out.is_dir() or out.read_text() == "mine"


@pytest.mark.parametrize("error, status", [
    (OSError(28, "No space left on device"), 1), (KeyboardInterrupt(), 130),
    (tf.errors.ResourceExhaustedError(None, None, "pynet; No space left on device"), 1)])
def test_full_disk_and_ctrl_c_leave_nothing(weights, call, monkeypatch, error, status):
    def write(_, __, path):
        path.write_bytes(b"half")
        raise error
    monkeypatch.setattr(export_model, "write", write)
    done = call(export_model, "small=true", "level=7", "out=pynet")
    assert done.status == status and (status == 130 or re.fullmatch(r"error: pynet: .*No space left.*\n", done.err))
    assert os.listdir() == ["models"]


def test_sigterm_leaves_nothing(weights, call, monkeypatch):
    def write(_, __, path):
        path.write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGTERM)
    monkeypatch.setattr(export_model, "write", write)
    monkeypatch.setattr(export_model, "compare", lambda *_: None)
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        assert call(export_model, "small=true", "level=7", "out=pynet").status == 130
    finally:
        signal.signal(signal.SIGTERM, before)
    assert os.listdir() == ["models"]


def test_network_without_depth_maps_is_one_line(workplace, call):
    utils.SMALL.parent.mkdir()
    checkpoints.save_checkpoint({model.FIRST_KERNEL: tf.Variable(tf.zeros([3, 3, 12, 32]))}, utils.SMALL)
    done = call(export_model, "small=true", "out=pynet")
    assert done.status == 1 and "without depth maps" in done.err and done.err.count("\n") == 1


@pytest.mark.parametrize("package", ["tf2onnx", "onnxruntime"])
def test_missing_package_is_one_line(workplace, call, monkeypatch, package):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find("pytest"))
    done = call(export_model, "small=true", "out=pynet.onnx")
    assert (done.status, done.err) == (1, f"error: {package} is missing: pip install tf2onnx onnxruntime\n")


def test_missing_checkpoint_is_one_line(workplace, call):
    done = call(export_model, "level=3", "out=pynet")
    assert done.status == 1 and "no checkpoint of level 3" in done.err and done.err.count("\n") == 1
    assert not (workplace / "pynet").exists()


# Arguments -----------------------------------------------------------------------------------------------------------

WRONG_CALLS = {  # the arguments, and what the one line has to say
    "level=1": ["out", "missing"],
    "out=x.tflite format=keras height=64 width=64": ["out=x.tflite", ".keras"],
    "out=x format=tflite height=64 width=64": ["out=x", ".tflite"],
    "out=x.keras format=onnx": ["out=x.keras", ".onnx"],
    "out=x.tflite": ["height, width", "tflite"],
    "out=x.keras width=64": ["height", "keras"],
    "out=x height=64 width=64": ["any size"],
    "out=x.onnx height=64 width=64": ["any size"],
    "out=x.onnx precision=float16": ["precision=float16", "tflite"],
    "out=x.tflite height=31 width=64": ["height=31"],
    "out=x precision=float16": ["precision=float16", "tflite"],
    "out=x orig=true restore_iter=3": ["restore_iter", "orig"],
    "out=x orig=true small=true": ["small", "orig"],
}


@pytest.mark.parametrize("wrong_call", WRONG_CALLS)
def test_wrong_call_is_answered_with_one_line(workplace, call, wrong_call):
    done = call(export_model, *wrong_call.split())
    assert done.status == 2 and done.err.count("\n") == 1
    assert [word for word in WRONG_CALLS[wrong_call] if word not in done.err] == []


@pytest.mark.parametrize("out, expected", [("x", "saved_model"), ("x.TFLite", "tflite"), ("my.net/x.keras", "keras"),
                                           ("x.onnx", "onnx")])
def test_format_follows_the_ending(out, expected):
    assert export_model.find_format(None, pathlib.Path(out)) == expected
    assert export_model.find_format(expected, pathlib.Path(out)) == expected


def test_help_lists_the_words(call):
    text = call(export_model, "help").out
    assert "saved_model, tflite, keras or onnx" in text and "float32 or float16" in text

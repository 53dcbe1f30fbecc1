"""tools/export_model.py: what is exported computes what the network does, where this repository is not."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import model
import utils
from test_model import pad_by_reflection
from tools import export_model

EXPORTS = {  # name of the file: level, arguments
    "pynet": (7, []),
    "pynet.keras": (1, ["format=keras"]),
    "pynet.tflite": (7, ["format=tflite", "height=50", "width=70"]),
    "half.tflite": (7, ["format=tflite", "precision=float16"]),
}
SIZES = {  # height and width of the photos that each is tried with
    "pynet": [(64, 96), (90, 33)],
    "pynet.keras": [(64, 96), (50, 70)],
    "pynet.tflite": [(50, 70)],
    "half.tflite": [(64, 96), (90, 33)],
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
    return tf.saved_model.load(name).signatures["serving_default"]

assert importlib.util.find_spec("model") is None and importlib.util.find_spec("utils") is None
for name, photos in np.load("photos.npy", allow_pickle=True).item().items():
    render = load(name)
    for place, photo in enumerate(photos):
        photo = np.float32(photo)[np.newaxis]
        image = render(photo=photo[..., :3], depth=photo[..., 3:])
        np.save(f"{name}_{place}.npy", (image["image"] if isinstance(image, dict) else image)[0])
"""


@pytest.fixture(scope="module", autouse=True)
def network_built_once(pynet):
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(model, "build_pynet", lambda *_, **__: pynet)
        patches.setattr(utils, "start_tensorflow", lambda use_gpu: tf)
        patches.setattr(utils, "restore_checkpoint", lambda *_: None)  # the network has these weights
        yield


@pytest.fixture(scope="module")
def photos():
    """{name of the export: [uint8 (height, width, 4), ...]}"""
    return {name: [export_model.trial_photo(*size) for size in sizes] for name, sizes in SIZES.items()}


@pytest.fixture(scope="module")
def exported(module_workplace, seed_1_checkpoint, link_checkpoint, call):
    """{name: Call}: all of them, written to the current folder."""
    link_checkpoint(seed_1_checkpoint, utils.ORIGINAL / "pynet_bokeh_level_0")
    return {name: call(export_model, "orig=true", f"level={level}", f"out={name}", *arguments)
            for name, (level, arguments) in EXPORTS.items()}


@pytest.fixture(scope="module")
def rendered(exported, photos, module_workplace):
    """{name: [image, ...]}, by a process that does not find this repository."""
    np.save("photos.npy", photos, allow_pickle=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    subprocess.run([sys.executable, "-I", "-c", LOADING], env=environment, check=True, timeout=300)
    return {name: [np.load(f"{name}_{place}.npy") for place in range(len(photos[name]))] for name in photos}


@pytest.fixture(scope="module")
def expected(pynet, photos):
    """{name: [image, ...]}, by the network."""
    return {name: [render(pynet, EXPORTS[name][0], photo) for photo in photos[name]] for name in photos}


def render(pynet, level, photo):
    height, width = photo.shape[:2]
    padded = pad_by_reflection(photo, *(-(-side // 32) * 32 for side in (height, width)))
    image = model.network_for_level(pynet, level)(np.float32(padded[np.newaxis]) / 255)[0]
    return np.clip(image[:(2 * height) >> (level - 1), :(2 * width) >> (level - 1)], 0, 1)


@pytest.fixture
def released_weights(workplace, seed_1_checkpoint, link_checkpoint):
    """A workplace with them."""
    link_checkpoint(seed_1_checkpoint, utils.ORIGINAL / "pynet_bokeh_level_0")
    return workplace


# What is exported ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXPORTS)
def test_export_computes_what_the_network_does_without_this_repository(name, rendered, expected):
    for found, wanted in zip(rendered[name], expected[name], strict=True):
        assert found.shape == wanted.shape and found.dtype == np.float32
        np.testing.assert_allclose(found, wanted, rtol=0, atol=3e-3 if name == "half.tflite" else 2e-5)


def test_saved_model_takes_several_images(exported, photos, rendered):
    both = np.float32([photos["pynet"][1]] * 2)
    images = export_model.load("pynet", "saved_model")(both[..., :3], both[..., 3:])
    assert len(images) == 2
    np.testing.assert_allclose(images[1], rendered["pynet"][1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["pynet.tflite", "half.tflite"])
def test_tflite_has_built_in_operations_on_at_most_four_axes(exported, name):
    kernels = tf.lite.experimental.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = tf.lite.Interpreter(name, experimental_op_resolver_type=kernels)
    names = {operation["op_name"] for operation in interpreter._get_ops_details()}
    assert "CONV_2D" in names and "RSQRT" in names
    assert not [name for name in names if "flex" in name.lower() or "custom" in name.lower() or "VARIABLE" in name]
    assert max(len(tensor["shape"]) for tensor in interpreter.get_tensor_details()) == 4


def test_float16_stores_half(exported):
    assert 0.45 < os.path.getsize("half.tflite") / os.path.getsize("pynet.tflite") < 0.55


@pytest.mark.parametrize("name", EXPORTS)
def test_difference_to_the_network_is_printed(exported, name):
    done = exported[name]
    assert done.status == 0
    [(difference, psnr)] = re.findall(r"largest difference to the network (\S+), PSNR (\S+) dB", done.out)
    assert float(difference) < (3e-3 if name == "half.tflite" else 2e-5) and float(psnr) > 50
    assert re.search(rf"^{name}: level {EXPORTS[name][0]} ", done.out, re.MULTILINE)


def test_nothing_else_is_left(exported, module_workplace):
    left = {path.name for path in module_workplace.iterdir()} - {"models", "photos.npy"}
    assert {name for name in left if not name.endswith(".npy")} == set(EXPORTS)


# What is not exported ------------------------------------------------------------------------------------------------


def test_export_that_differs_from_the_network_is_not_written(released_weights, call, monkeypatch):
    monkeypatch.setattr(export_model, "load", lambda *_: lambda photo, depth: np.full((1, 2, 3, 3), np.nan, np.float32))
    done = call(export_model, "orig=true", "level=7", "out=here/pynet.keras", "format=keras")
    assert done.status == 1 and done.err.startswith("error: here/pynet.keras: not written") and done.err.count("\n") == 1
    assert os.listdir("here") == []


def test_weight_beyond_float16_is_told():
    with pytest.raises(utils.DataError, match="70000.*float32"):
        export_model.check_float16([np.float32([1, -70000])])


def test_weight_that_is_not_a_number_is_told():
    with pytest.raises(utils.DataError, match="nan"):
        export_model.check_float16([np.float32([1, np.nan])])


@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
def test_what_exists_is_not_overwritten(released_weights, call, kind):
    out = released_weights / "pynet"
    {"file": lambda: out.write_text("mine"), "folder": out.mkdir, "dangling link": lambda: out.symlink_to("gone")}[kind]()
    done = call(export_model, "orig=true", f"out={out}")
    assert done.status == 1 and "exists" in done.err and done.err.count("\n") == 1
    assert out.is_symlink() or out.is_dir() or out.read_text() == "mine"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"),
                                   tf.errors.ResourceExhaustedError(None, None, "pynet; No space left on device")])
def test_full_disk_leaves_nothing_and_is_told(released_weights, call, monkeypatch, error):
    def write(_, __, path):
        path.write_bytes(b"half")
        raise error
    monkeypatch.setattr(export_model, "write", write)
    done = call(export_model, "orig=true", "level=7", "out=pynet")
    assert done.status == 1 and re.fullmatch(r"error: pynet: .*No space left.*\n", done.err)
    assert os.listdir() == ["models"]


def test_ctrl_c_leaves_nothing(released_weights, call, monkeypatch):
    def write(_, __, path):
        path.mkdir()
        raise KeyboardInterrupt
    monkeypatch.setattr(export_model, "write", write)
    assert call(export_model, "orig=true", "level=7", "out=pynet").status == 130
    assert os.listdir() == ["models"]


@pytest.mark.parametrize("arguments, told", [
    (["format=onnx"], "saved_model, tflite or keras"), (["precision=int8"], "float32 or float16"),
    (["precision=float16"], "tflite"), (["height=64"], "width"), (["height=31", "width=64"], "height=31"),
    (["format=keras"], "keras"), (["orig=true", "restore_iter=3"], "restore_iter"), (["level=8"], "level=8")])
def test_wrong_arguments_are_told_at_once(workplace, call, arguments, told):
    done = call(export_model, "out=pynet", *arguments)
    assert done.status == 2 and told in done.err and done.err.count("\n") == 1


def test_a_network_without_depth_maps_is_not_exported_and_told(workplace, call, monkeypatch):
    monkeypatch.setattr(utils, "find_original", lambda: "prefix")
    monkeypatch.setattr(utils, "takes_depth", lambda prefix: False)
    done = call(export_model, "orig=true", "out=pynet")
    assert done.status == 1 and "without depth maps" in done.err


def test_out_is_obligatory(workplace, call):
    assert "out" in call(export_model).err


def test_missing_checkpoint_is_told(workplace, call):
    done = call(export_model, "level=3", "out=pynet")
    assert done.status == 1 and "no checkpoint of level 3" in done.err
    assert not (workplace / "pynet").exists()

"""vgg.py: the features of VGG-19, read from either layout of the .mat file."""

import hashlib

import numpy as np
import pytest
import scipy.io
import tensorflow as tf
from reference import vgg19_mat

import vgg
from utils import DataError

LAYERS = ("relu1_2", "relu3_4", "relu5_4")
CONVOLUTIONS = {"conv1_1": (3, 64), "conv1_2": (64, 64), "conv2_1": (64, 128), "conv2_2": (128, 128)} | {
    f"conv{block}_{index}": (maps_in if index == 1 else maps, maps)
    for block, maps_in, maps in ((3, 128, 256), (4, 256, 512), (5, 512, 512)) for index in (1, 2, 3, 4)}


@pytest.fixture(scope="module")
def older_vgg19(tmp_path_factory):
    path = tmp_path_factory.mktemp("older") / "imagenet-vgg-verydeep-19.mat"
    vgg19_mat.write_mat(path, 3, "older")
    return vgg.load_vgg19(path)


@pytest.fixture(params=["older", "newer"])
def vgg19_of_both_layouts(request):
    return request.getfixturevalue("older_vgg19" if request.param == "older" else "vgg19")


def write_mat(path, value=1, **shapes):
    """Writes a .mat of the right structure. shapes: of the kernels that are in it, by the names of their layers.

    value: of all weights.
    """
    cells = np.empty((1, len(shapes)), object)
    for index, (name, shape) in enumerate(shapes.items()):
        weights = np.empty((1, 2), object)
        weights[0, 0], weights[0, 1] = np.full(shape, value, np.float32), np.zeros((1, shape[-1]), np.float32)
        cells[0, index] = {"name": name, "type": "conv", "weights": weights}
    scipy.io.savemat(path, {"layers": cells})


# Features ------------------------------------------------------------------------------------------------------------


@pytest.mark.paper
@pytest.mark.parametrize("layer", LAYERS)
def test_features_equal_the_reference_from_both_layouts(vgg19_of_both_layouts, reference, layer):
    expected = reference("vgg_seed3.npz")
    features = vgg.vgg19_features(vgg19_of_both_layouts, expected["image"], layer)
    np.testing.assert_allclose(features, expected[layer], rtol=1e-4, atol=1e-5 * np.abs(expected[layer]).max())


def test_content_loss_is_measured_at_relu5_4(vgg19, reference):
    expected = reference("vgg_seed3.npz")
    assert vgg.CONTENT_LAYER == "relu5_4"
    np.testing.assert_array_equal(vgg.vgg19_features(vgg19, expected["image"]),
                                  vgg.vgg19_features(vgg19, expected["image"], "relu5_4"))


def test_all_16_convolutions_are_read_and_nothing_else(vgg19_of_both_layouts):
    shapes = {name: kernel.shape[2:] for name, (kernel, _) in vgg19_of_both_layouts.items()}
    assert shapes == CONVOLUTIONS and len(shapes) == 16


def test_unknown_layer_is_refused(vgg19):
    with pytest.raises(ValueError, match="relu6_1"):
        vgg.vgg19_features(vgg19, np.zeros((1, 16, 16, 3), np.float32), "relu6_1")


def test_nothing_is_trainable_and_the_gradient_reaches_the_image(vgg19):
    image = tf.Variable(tf.fill((1, 16, 16, 3), 100.0))
    with tf.GradientTape() as tape:
        features = tf.reduce_sum(vgg.vgg19_features(vgg19, image))
    assert [variable.ref() for variable in tape.watched_variables()] == [image.ref()]
    assert np.abs(tape.gradient(features, image)).min() > 0


# Files that are not VGG-19 -------------------------------------------------------------------------------------------


def assert_refused(path, reason=""):
    with pytest.raises(DataError) as error:
        vgg.load_vgg19(path)
    text = str(error.value)
    assert str(path) in text and reason in text and "\n" not in text
    assert "http://www.vlfeat.org/matconvnet/models/imagenet-vgg-verydeep-19.mat" in text


def test_missing_file_is_named_with_where_to_get_it(tmp_path):
    assert_refused(tmp_path / "imagenet-vgg-verydeep-19.mat", "no such file")


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html><html>404 not found</html>", bytes(200_000)],
                         ids=["empty", "web page", "zeros"])
def test_file_that_is_no_mat_is_named_with_where_to_get_the_right_one(tmp_path, content):
    path = tmp_path / "vgg.mat"
    path.write_bytes(content)
    assert_refused(path, "is not MatConvNet's VGG-19")


def test_mat_cut_short_in_a_download_is_refused(tmp_path, vgg_file):
    path = tmp_path / "vgg.mat"
    path.write_bytes(vgg_file.read_bytes()[:-1000])
    assert_refused(path)


def test_mat_without_layers_is_refused(tmp_path):
    path = tmp_path / "vgg.mat"
    scipy.io.savemat(path, {"meta": np.zeros(3)})
    assert_refused(path)


@pytest.mark.parametrize("kernels, named", [
    ({"conv1_1": (3, 3, 3, 64)}, "conv1_2"),
    ({"conv1_1": (3, 3, 3, 64), "conv1_2": (5, 5, 64, 64)}, "conv1_2"),
    ({"conv1_1": (3, 3, 3, 64), "conv1_2": (3, 3, 64, 64)}, "conv2_1")], ids=["missing", "shape", "next is missing"])
def test_first_convolution_that_is_missing_or_of_another_shape_is_named(tmp_path, kernels, named):
    path = tmp_path / "vgg.mat"
    write_mat(path, **kernels)
    assert_refused(path, named)


@pytest.mark.parametrize("value", [0, np.nan, np.inf])
def test_weights_that_are_0_or_not_finite_are_refused(value, tmp_path):
    path = tmp_path / "vgg.mat"
    write_mat(path, value, conv1_1=(3, 3, 3, 64))
    assert_refused(path, "the weights of conv1_1 are 0 or not finite")


def test_a_file_that_is_not_the_known_one_is_read_with_a_warning(vgg_file, capsys, monkeypatch):
    vgg.load_vgg19(vgg_file)
    assert capsys.readouterr().err.startswith(f"warning: {vgg_file}: is not the file of {vgg.DOWNLOAD}; ")
    monkeypatch.setattr(vgg, "SHA256", hashlib.sha256(vgg_file.read_bytes()).hexdigest())
    vgg.load_vgg19(vgg_file)
    assert capsys.readouterr().err == ""

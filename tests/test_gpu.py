"""What only a GPU can show. Skipped, with the reason, where TensorFlow sees none."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def run():
    """Runs code in a process of its own that sees the GPUs, which the other tests hide; gives what it printed."""
    if not shutil.which("nvidia-smi"):
        pytest.skip("no NVIDIA GPU: there is no nvidia-smi")
    visible = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}

    def run_code(code, **options):
        done = subprocess.run([sys.executable, "-c", code], env=visible | {"PYTHONPATH": str(REPOSITORY)}, text=True,
                              capture_output=True, **options)
        assert done.returncode == 0, done.stderr
        return done.stdout

    if run_code("import tensorflow as tf; print(len(tf.config.list_physical_devices('GPU')))").split()[-1] == "0":
        pytest.skip("TensorFlow sees no GPU (it needs tensorflow[and-cuda])")
    return run_code


def test_outputs_on_a_gpu_are_near_those_on_the_cpu(run):
    print(run("""
import numpy as np, tensorflow as tf, model
tf.config.experimental.enable_tensor_float_32_execution(False)
network = model.network_for_level(model.build_pynet(seed=1), 1)
images = np.random.default_rng(0).random((1, 64, 96, 4), np.float32)
with tf.device("CPU"):
    expected = network(images).numpy()
assert np.abs(network(images).numpy() - expected).max() < 1e-4
"""))


def test_layers_and_their_gradients_on_a_gpu_equal_keras(run):
    run(f"""
import sys, tensorflow as tf
sys.path.append({str(REPOSITORY / "tests")!r})
import test_network
tf.config.experimental.enable_tensor_float_32_execution(False)
for images in (1, 3, 9):
    test_network.test_instance_normalisation_and_its_gradients_equal_keras(images, 5, 3)
for activation in (None, "leaky_relu"):
    test_network.test_convolution_and_its_gradients_equal_keras(activation, "float32", 1e-5)
""")


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_level_7_trains_on_a_gpu_in_every_precision(run, precision, dataset, tmp_path):
    printed = run(f"""
import train_model
assert train_model.main(["level=7", "batch_size=4", "micro_batch=2", "precision={precision}", "num_train_iters=3",
                         "vgg_dir=none", "dataset_dir={dataset}"]) == 0
""", cwd=tmp_path)
    assert "Computing on the CPU" not in printed and "step 3 |" in printed


def test_pairs_are_shrunk_to_the_same_pixels_where_there_is_a_gpu(run):
    run("""
import numpy as np, load_dataset
from PIL import Image
image = np.random.default_rng(0).integers(0, 256, (512, 768, 3), np.uint8)
expected = np.asarray(Image.fromarray(image).resize((384, 256), Image.Resampling.BICUBIC))
np.testing.assert_array_equal(load_dataset.shrink(image, 2), expected)
""")

"""What only a GPU can show. Skipped, with the reason, where TensorFlow sees none."""

import os
import shutil
import subprocess
import sys

import pytest
from conftest import QUICK, REPOSITORY


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
    run("""
import numpy as np, tensorflow as tf, model
tf.config.experimental.enable_tensor_float_32_execution(False)
network = model.network_for_level(model.build_pynet(seed=1), 1)
images = np.random.default_rng(0).random((1, 64, 96, 4), np.float32)
with tf.device("CPU"):
    expected = network(images).numpy()
assert np.abs(network(images).numpy() - expected).max() < 1e-4
""")


def test_layers_and_their_gradients_on_a_gpu_equal_keras(run):
    run(f"""
import sys, tensorflow as tf
assert tf.config.list_logical_devices("GPU")
sys.path.append({str(REPOSITORY / "tests")!r})
import test_network
tf.config.experimental.enable_tensor_float_32_execution(False)
for images in (1, 3, 9):
    test_network.test_instance_normalisation_and_its_gradients_equal_keras(images, 5, 3)
for activation in (None, "leaky_relu"):
    test_network.test_convolution_and_its_gradients_equal_keras(activation, "float32", 1e-5)
""")


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_level_7_trains_on_a_gpu_in_every_precision(run, precision, small_dataset, tmp_path):
    arguments = ["level=7", *QUICK, "micro_batch=2", f"precision={precision}", "num_train_iters=3",
                 f"dataset_dir={small_dataset}"]
    arguments[arguments.index("batch_size=1")] = "batch_size=4"
    printed = run(f"""
import train_model
assert train_model.main({arguments}) == 0
""", cwd=tmp_path)
    assert "Computing on the CPU" not in printed and "step 3 |" in printed


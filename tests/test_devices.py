"""train_model.py on the hardware that people have: pieces of a batch, several devices and workers, lower precision."""

import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import time
import types

import numpy as np
import pytest
import tensorflow as tf

import load_dataset
import model
import test_model
import train_model
import utils
from utils import UsageError

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
WITHOUT_GRADIENT = 1e-5  # of the largest gradient norm: biases in front of an instance normalisation, whose gradient is 0


# Division of a batch -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size, devices, micro_batch", [
    (50, 1, None), (50, 1, 1), (50, 1, 7), (50, 1, 99), (50, 8, None), (50, 8, 2), (5, 8, None), (5, 8, 1), (9, 2, 2)])
def test_every_image_of_a_batch_is_computed_once_in_pieces_no_larger_than_micro_batch(size, devices, micro_batch):
    division = train_model.divide_batch(size, micro_batch, types.SimpleNamespace(num_replicas_in_sync=devices))
    assert sorted(image for parts in division.rounds for part in parts for image in part) == list(range(size))
    assert all(len(parts) == devices for parts in division.rounds)
    most = -(-size // devices)
    assert division.largest_piece() == min(micro_batch or most, most)
    assert division.places == range(size)


def test_each_worker_loads_what_its_devices_compute_and_nothing_else():
    strategy = types.SimpleNamespace(num_replicas_in_sync=6)  # three workers with two devices each
    divisions = [train_model.divide_batch(50, 4, strategy, utils.Worker(index, 3)) for index in range(3)]
    assert [image for division in divisions for image in division.places] == list(range(50))
    for index, division in enumerate(divisions):
        computed = {image for parts in division.rounds for part in parts[2 * index:2 * index + 2] for image in part}
        assert computed == set(division.places)


# Pieces of a batch ---------------------------------------------------------------------------------------------------


class AdamThatKeeps(train_model.Adam):
    """Keeps the gradients that it was given last, and moves nothing."""

    def __init__(self, variables):
        self.variables = variables
        self.gradients = [tf.Variable(tf.zeros_like(variable)) for variable in variables]

    def apply(self, gradients, iteration, learning_rate):
        for kept, gradient in zip(self.gradients, gradients, strict=True):
            kept.assign(gradient)


@pytest.fixture(scope="module")
def own_pynet():
    return model.build_pynet(load_dataset.PATCH, load_dataset.PATCH, seed=1)


@pytest.fixture(scope="module")
def small_pynet():
    """With kernels large enough that all of its variables have gradients of similar size."""
    pynet, random = model.build_pynet(64, 64, seed=None), np.random.default_rng(3)
    for variable in pynet.variables.values():
        if len(variable.shape) == 4:
            variable.assign(random.normal(0, np.sqrt(2 / np.prod(variable.shape[:3])), variable.shape))
    return pynet


@pytest.fixture
def trained_pynet(own_pynet, monkeypatch):
    """Trainings take this network, which is built once."""
    monkeypatch.setattr(model, "build_pynet", lambda *_, **__: own_pynet)


def gradients_in_pieces(pynet, level, micro_batch, scale=None):
    """(`Step`, gradients) of a batch of 4 random images of 64 x 64, with targets so bright that no gradients cancel out."""
    network = model.network_for_level(pynet, level)
    adam = AdamThatKeeps(train_model.trained_variables(network))
    step = train_model.make_training_step(network, level, None, adam, 0.0, train_model.divide_batch(4, micro_batch),
                                          scales_loss=scale is not None)
    random, side = np.random.default_rng(2), 128 >> (level - 1)
    inputs = random.integers(0, 256, (4, 64, 64, 4), np.uint8)
    targets = random.integers(200, 256, (4, side, side, 3), np.uint8)
    found = step(inputs, targets, 1, False, scale or 1.0)
    return found, [gradient.numpy() for gradient in adam.gradients]


def test_gradients_are_the_same_in_pieces_of_1_of_2_and_of_the_whole_batch(small_pynet):
    whole, expected = gradients_in_pieces(small_pynet, 5, None)
    norms = [np.linalg.norm(gradient) for gradient in expected]
    for micro_batch in (1, 2):
        found, gradients = gradients_in_pieces(small_pynet, 5, micro_batch)
        assert found.loss == pytest.approx(whole.loss, rel=1e-6)
        compared = 0
        for gradient, other, norm in zip(gradients, expected, norms):
            if norm > WITHOUT_GRADIENT * max(norms):
                assert np.linalg.norm(gradient - other) <= 1e-5 * norm
                compared += 1
        assert compared > len(norms) / 2


# Several devices and workers -----------------------------------------------------------------------------------------


def two_workers(command, tmp_path, **options):
    """Starts a command as two workers on this machine's loopback; gives the two processes."""
    with socket.socket() as first, socket.socket() as second:
        for free in (first, second):
            free.bind(("127.0.0.1", 0))
        addresses = [f"127.0.0.1:{free.getsockname()[1]}" for free in (first, second)]
    processes = []
    for index in range(2):
        config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        environment = os.environ | {"TF_CONFIG": json.dumps(config), "PYTHONUNBUFFERED": "1"}
        outputs = [open(tmp_path / f"worker_{index}.{kind}", "w") for kind in ("out", "err")]
        processes.append(subprocess.Popen([sys.executable, *map(str, command)], env=environment, stdout=outputs[0],
                                          stderr=outputs[1], **options))
    return processes


def output(tmp_path, index, kind="out"):
    return (tmp_path / f"worker_{index}.{kind}").read_text()


def wait_for(processes, seconds):
    """Exit statuses."""
    try:
        return [process.wait(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()


def test_two_devices_and_two_workers_give_the_losses_of_one_device(tmp_path):
    script = REPOSITORY / "tests/train_on_devices.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    losses = json.loads(done.stdout)
    assert wait_for(two_workers([script], tmp_path), 400) == [0, 0], output(tmp_path, 0, "err")
    losses |= {f"worker {index}": json.loads(output(tmp_path, index).splitlines()[-1])["worker"] for index in range(2)}
    expected = losses["one device"]
    assert len(expected) == 10 and expected[-1] < 0.99 * expected[0]
    assert losses.keys() == {"one device", "two devices", "two devices, pieces of 1", "worker 0", "worker 1"}
    for way, found in losses.items():
        assert found == pytest.approx(expected, rel=1e-5), way


@pytest.mark.parametrize("config, expected", [
    ("", (0, 1)), ('{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 1}}', (1, 2)),
    ('{"cluster": {"chief": ["c:1"], "worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 0}}', (1, 3)),
    ('{"cluster": {"chief": ["c:1"], "worker": ["a:1", "b:1"]}, "task": {"type": "chief", "index": "0"}}', (0, 3))])
def test_tf_config_says_which_worker_this_is(config, expected, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", config)
    assert utils.place_among_workers() == expected


@pytest.mark.parametrize("config", [
    "{", "[]", "{}", '{"cluster": {"worker": ["a:1"]}}',
    '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}',
    '{"cluster": {"worker": ["a:1"]}, "task": {"type": "evaluator", "index": 0}}', '{"cluster": 1, "task": 2}'])
def test_a_tf_config_that_makes_no_sense_is_a_wrong_call(config, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", config)
    with pytest.raises(UsageError, match="TF_CONFIG: is to be like"):
        utils.place_among_workers()


def test_workers_train_together_stop_together_and_end_when_one_is_lost(tmp_path, dataset):
    call = [REPOSITORY / "train_model.py", "level=7", "batch_size=2", "eval_step=2", "vgg_dir=none",
            f"dataset_dir={dataset}", "resume=true"]

    def train_until_saved(iteration):
        workers = two_workers([*call, "num_train_iters=5000"], tmp_path, cwd=tmp_path)
        started = time.monotonic()
        while max(saved_iterations(tmp_path)) < iteration and time.monotonic() < started + 200:
            time.sleep(0.2)
        return workers

    workers = train_until_saved(2)
    workers[1].terminate()  # tells the other one
    assert wait_for(workers, 200) == [143, 143], output(tmp_path, 0, "err")
    stopped = int(re.search(r"Stopped after iteration (\d+)", output(tmp_path, 0))[1])
    assert f"Stopped after iteration {stopped} " in output(tmp_path, 1)
    assert "step 2 |" in output(tmp_path, 0) and "step 2 |" not in output(tmp_path, 1)

    workers = train_until_saved(stopped + 2 - stopped % 2)
    workers[1].kill()
    assert wait_for(workers, 200) == [1, -9], output(tmp_path, 0, "err")
    error = output(tmp_path, 0, "err")
    assert f"goes on after iteration {stopped} " in output(tmp_path, 0)
    assert "error: a worker was lost after iteration" in error and "resume=true" in error and "Traceback" not in error

    saved = max(saved_iterations(tmp_path))
    workers = two_workers([*call, f"num_train_iters={saved + 2}"], tmp_path, cwd=tmp_path)
    assert wait_for(workers, 200) == [0, 0], output(tmp_path, 0, "err")
    assert f"goes on after iteration {saved} " in output(tmp_path, 0) and max(saved_iterations(tmp_path)) == saved + 2


def test_a_batch_smaller_than_the_number_of_workers_is_a_wrong_call(monkeypatch, workplace, call):
    config = {"cluster": {"worker": ["a:1", "b:1", "c:1"]}, "task": {"type": "worker", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    done = call(train_model, "level=7", "batch_size=2")
    assert done.status == 2 and "batch_size=2: is less than the 3 workers of TF_CONFIG" in done.err


def test_gradients_that_are_never_finite_end_the_run(monkeypatch, trained_pynet, workplace, dataset, call):
    monkeypatch.setattr(train_model, "make_training_step", lambda *_: lambda *_: train_model.Step(1.0, False, False))
    done = call(train_model, "level=7", "vgg_dir=none", "batch_size=1", "precision=float16", f"dataset_dir={dataset}")
    assert done.status == 1 and "the gradients are not finite, whatever the loss scale" in done.err


def saved_iterations(folder):
    return [0] + [int(file.name.split("_")[-1].split(".")[0]) for file in folder.glob("models/*_iteration_*.ckpt.index")]


# Memory --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def full_memory(monkeypatch, trained_pynet):
    """The device's memory is full in every step."""
    def step(*_):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
    monkeypatch.setattr(train_model, "make_training_step", lambda *_: step)


@pytest.mark.parametrize("arguments, advice", [
    (["batch_size=5"], "with 5 images at a time: try micro_batch=2"),
    (["batch_size=5", "micro_batch=2"], "with 2 images at a time: try micro_batch=1"),
    (["batch_size=5", "micro_batch=1"], "with one image at a time: try precision=bfloat16"),
    (["batch_size=1", "precision=bfloat16"], "a device with more memory is needed")])
def test_full_memory_of_the_device_is_one_line_that_says_what_to_try(arguments, advice, full_memory, workplace, dataset,
                                                                     call):
    done = call(train_model, "level=7", "vgg_dir=none", "num_train_iters=1", f"dataset_dir={dataset}", *arguments)
    assert done.status == 1 and done.err.strip().splitlines()[-1].startswith("error: the device's memory is full at level 7")
    assert advice in done.err


# Precision -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision, tolerance", [("bfloat16", 0.1), ("float16", 0.02)])
def test_lower_precision_has_float32_variables_and_outputs_and_differs_by_its_rounding(precision, tolerance, pynet,
                                                                                       reference):
    other = model.build_pynet(seed=None, precision=precision)
    assert list(other.variables) == list(pynet.variables)
    assert {variable.dtype for variable in other.variables.values()} == {tf.float32}
    for name, variable in other.variables.items():
        variable.assign(pynet.variables[name])
    images = reference("outputs_seed1_64x96.npz")["input"]
    for level in (7, 4, 1):
        expected, found = (model.network_for_level(network, level)(images).numpy() for network in (pynet, other))
        assert found.dtype == np.float32
        assert 0 < np.abs(found - expected).max() < tolerance


def test_normalisation_and_heads_compute_in_float32_and_convolutions_in_bfloat16():
    layers = model.network_for_level(model.build_pynet(64, 64, seed=None, precision="bfloat16"), 1).layers
    computed = {layer.name: layer.compute_dtype for layer in layers}
    del computed["photo_and_depth"]  # the input, which computes nothing
    for name, dtype in computed.items():
        exact = "norm" in name or "head" in name or "tanh" in name or name.startswith("level_1_") or name.endswith("output")
        assert dtype == ("float32" if exact else "bfloat16"), name


def test_the_policy_of_keras_is_as_it_was_after_the_network_is_built():
    import keras
    model.build_pynet(64, 64, seed=None, precision="float16")
    assert keras.config.dtype_policy().name == "float32"


def test_a_scaled_loss_gives_the_same_gradients(small_pynet):
    whole, expected = gradients_in_pieces(small_pynet, 7, None)
    scaled, found = gradients_in_pieces(small_pynet, 7, None, scale=2.0 ** 10)
    assert scaled.loss == pytest.approx(whole.loss, rel=1e-6) and scaled.applied
    for gradient, other in zip(found, expected):
        np.testing.assert_allclose(gradient, other, rtol=1e-4, atol=1e-6 * np.abs(other).max() + 1e-12)


def test_an_update_that_overflows_is_left_out_and_leaves_nothing_behind(small_pynet):
    network = model.network_for_level(small_pynet, 7)
    adam = train_model.Adam(train_model.trained_variables(network))
    step = train_model.make_training_step(network, 7, None, adam, 1e-6, train_model.divide_batch(2), scales_loss=True)
    random = np.random.default_rng(2)
    batch = random.integers(0, 256, (2, 64, 64, 4), np.uint8), random.integers(0, 256, (2, 2, 2, 3), np.uint8)
    before = [variable.numpy() for variable in adam.variables]
    assert not step(*batch, 1, False, 3e38).applied
    for variable, value, moments in zip(adam.variables, before, adam.moments):
        np.testing.assert_array_equal(variable, value)
        assert not any(np.any(moment) for moment in moments)
    assert step(*batch, 1, False, 1024.0).applied
    assert all(np.all(np.isfinite(variable)) for variable in adam.variables)
    assert any(np.any(variable.numpy() != value) for variable, value in zip(adam.variables, before))


@pytest.fixture
def overflowing(monkeypatch, trained_pynet):
    """A training step that overflows above a loss scale of 1000, and notes the scales that it was called with."""
    scales = []

    def step(inputs, targets, iteration, stop, scale):
        scales.append((iteration, scale))
        return train_model.Step(1 / iteration, scale < 1000, False)
    monkeypatch.setattr(train_model, "make_training_step", lambda *_: step)
    return scales


def test_the_loss_scale_halves_until_the_batch_fits_doubles_later_and_is_resumed(overflowing, monkeypatch, workplace,
                                                                                 dataset, call):
    monkeypatch.setattr(train_model, "SCALE_DOUBLES_AFTER", 3)
    arguments = ["level=7", "vgg_dir=none", "batch_size=1", "eval_step=2", f"dataset_dir={dataset}"]
    assert call(train_model, *arguments, "precision=float16", "num_train_iters=2").status == 0
    assert overflowing == [(1, 2.0 ** power) for power in range(15, 8, -1)] + [(2, 512)]
    overflowing.clear()
    assert call(train_model, *arguments, "resume=true", "num_train_iters=4").status == 0
    assert overflowing == [(3, 512), (4, 1024), (4, 512)]


@pytest.mark.parametrize("features, precision, fast", [
    ("flags : fpu avx512f avx512_bf16", "bfloat16", True), ("flags : fpu amx_bf16", "bfloat16", True),
    ("Features : fp asimd bf16", "bfloat16", True), ("flags : fpu avx512f", "bfloat16", False),
    ("flags : fpu avx512_bf16", "float16", False)])
def test_a_precision_that_the_processor_emulates_is_known(features, precision, fast, monkeypatch):
    monkeypatch.setattr(pathlib.Path, "read_text", lambda *_, **__: features)
    assert utils.computes_fast(precision) is fast


@pytest.mark.parametrize("script", [train_model, test_model])
def test_precision_is_one_of_three_words(script):
    for words in ("half", "float64", "16", ""):
        with pytest.raises(UsageError, match="precision=.* float32, bfloat16 or float16"):
            utils.parse_arguments([f"precision={words}"], script.PARAMETERS, script.USAGE)

"""support/updates.py: pieces of a batch, several devices and workers, a scaled loss are the same training."""

import functools
import json
import os
import re
import socket
import subprocess
import sys
import time
import types

import numpy as np
import pytest
import tensorflow as tf
from conftest import QUICK, REPOSITORY

import model
import train_model
from support import updates
from utils import DataError, UsageError

WITHOUT_GRADIENT = 1e-5  # of the largest gradient norm: of biases before an instance normalisation, whose gradient is 0
LONG = 1200  # seconds after which a process is taken to hang, however busy the machine is


# Division of a batch -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size, replicas, micro_batch", [
    (50, 1, None), (50, 1, 1), (50, 1, 7), (50, 1, 99), (50, 8, None), (50, 8, 2), (5, 8, None), (5, 8, 1), (9, 2, 2)])
def test_every_image_of_a_batch_is_computed_once_in_pieces_no_larger_than_micro_batch(size, replicas, micro_batch):
    division = updates.divide_batch(size, micro_batch, types.SimpleNamespace(num_replicas_in_sync=replicas))
    assert sorted(image for pieces in division.rounds for piece in pieces for image in piece) == list(range(size))
    assert all(len(pieces) == replicas for pieces in division.rounds)
    most = -(-size // replicas)
    assert division.largest_piece() == min(micro_batch or most, most)
    assert division.indices == range(size)


def test_each_worker_loads_what_its_replicas_compute_and_nothing_else():
    strategy = types.SimpleNamespace(num_replicas_in_sync=6)  # three workers with two devices each
    divisions = [updates.divide_batch(50, 4, strategy, updates.Worker(index, 3)) for index in range(3)]
    assert [image for division in divisions for image in division.indices] == list(range(50))
    for index, division in enumerate(divisions):
        computed = {image for pieces in division.rounds for piece in pieces[2 * index:2 * index + 2] for image in piece}
        assert computed == set(division.indices)


# The update of one iteration -----------------------------------------------------------------------------------------


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
    """With kernels large enough that all of its variables have gradients of similar size."""
    pynet, random = model.build_pynet(64, 64, seed=None, width_multiplier=0.125), np.random.default_rng(3)
    for variable in pynet.variables.values():
        if len(variable.shape) == 4:
            variable.assign(random.normal(0, np.sqrt(2 / np.prod(variable.shape[:3])), variable.shape))
    return pynet


def step_of(pynet, level, optimizer_class, micro_batch=None, batch=4, **options):
    """(optimizer, training step) of a level."""
    network = model.network_for_level(pynet, level)
    optimizer = optimizer_class(train_model.trained_variables(network))
    update = functools.partial(train_model.differentiate, network, level, None, optimizer.variables)
    return optimizer, updates.make_training_step(update, optimizer, updates.divide_batch(batch, micro_batch), **options)


def gradients_in_pieces(pynet, level, micro_batch, scale=None):
    """(`Step`, gradients) of a batch of 4 random images, with targets so bright that no gradients cancel out."""
    optimizer, step = step_of(pynet, level, AdamThatKeeps, micro_batch, scales_loss=scale is not None)
    random, side = np.random.default_rng(2), 128 >> (level - 1)
    inputs = random.integers(0, 256, (4, 64, 64, 4), np.uint8)
    targets = random.integers(200, 256, (4, side, side, 3), np.uint8)
    found = step(inputs, targets, 1, 0.0, loss_scale=scale or 1.0)
    return found, [gradient.numpy() for gradient in optimizer.gradients]


def test_gradients_are_the_same_in_pieces_of_1_of_2_and_of_the_whole_batch(own_pynet):
    whole, expected = gradients_in_pieces(own_pynet, 5, None)
    norms = [np.linalg.norm(gradient) for gradient in expected]
    for micro_batch in (1, 2):
        found, gradients = gradients_in_pieces(own_pynet, 5, micro_batch)
        assert found.loss == pytest.approx(whole.loss, rel=1e-6)
        compared = 0
        for gradient, other, norm in zip(gradients, expected, norms):
            if norm > WITHOUT_GRADIENT * max(norms):
                assert np.linalg.norm(gradient - other) <= 1e-4 * norm
                compared += 1
        assert compared > len(norms) / 2


def test_a_scaled_loss_gives_the_same_gradients(own_pynet):
    whole, expected = gradients_in_pieces(own_pynet, 7, None)
    scaled, found = gradients_in_pieces(own_pynet, 7, None, scale=2.0 ** 10)
    assert scaled.loss == pytest.approx(whole.loss, rel=1e-6) and scaled.applied
    for gradient, other in zip(found, expected):
        np.testing.assert_allclose(gradient, other, rtol=1e-4, atol=1e-6 * np.abs(other).max() + 1e-7)


def test_an_update_that_overflows_is_left_out_and_leaves_nothing_behind():
    pynet = model.build_pynet(64, 64, seed=1, width_multiplier=0.125)
    adam, step = step_of(pynet, 7, train_model.Adam, batch=2, scales_loss=True)
    random = np.random.default_rng(2)
    batch = random.integers(0, 256, (2, 64, 64, 4), np.uint8), random.integers(0, 256, (2, 2, 2, 3), np.uint8)
    before = [variable.numpy() for variable in adam.variables]
    assert not step(*batch, 1, 1e-6, loss_scale=3e38).applied
    for variable, value, moments in zip(adam.variables, before, adam.moments):
        np.testing.assert_array_equal(variable, value)
        assert not any(np.any(moment) for moment in moments)
    assert step(*batch, 1, 1e-6, loss_scale=1024.0).applied
    assert all(np.all(np.isfinite(variable)) for variable in adam.variables)
    assert any(np.any(variable.numpy() != value) for variable, value in zip(adam.variables, before))


# A scaled loss -------------------------------------------------------------------------------------------------------


def test_an_update_of_float32_is_one_step_and_of_float16_one_with_the_loss_scale(monkeypatch):
    calls = []

    def step(*arguments, loss_scale=None):
        calls.append((*arguments, loss_scale))
        return updates.Step(0.5, True)

    monkeypatch.setattr(updates, "make_training_step", lambda *_: step)
    batch = types.SimpleNamespace(inputs="inputs", targets="targets")
    for scale in (None, updates.LossScale(4.0)):
        assert updates.make_update(None, None, updates.divide_batch(1), scale)(batch, 7, 1e-4) == 0.5
    assert calls == [("inputs", "targets", 7, 1e-4, None), ("inputs", "targets", 7, 1e-4, 4.0)]


def test_the_loss_scale_halves_until_the_batch_fits_and_doubles_later(monkeypatch):
    monkeypatch.setattr(updates, "SCALE_DOUBLES_AFTER", 3)
    scales, scale = [], updates.LossScale()
    for iteration in range(1, 5):
        def overflows_from_1000_on(loss_scale, iteration=iteration):
            scales.append((iteration, loss_scale))
            return updates.Step(0.5, loss_scale < 1000)

        assert updates.take_scaled_step(overflows_from_1000_on, scale, iteration) == 0.5
    assert scales == [(1, 2.0 ** power) for power in range(15, 8, -1)] + [(2, 512), (3, 512), (4, 1024), (4, 512)]
    assert scale == updates.LossScale(512, 1)


def test_gradients_that_are_never_finite_end_the_run():
    with pytest.raises(DataError, match="iteration 1: the gradients are not finite, whatever the loss scale"):
        updates.take_scaled_step(lambda loss_scale: updates.Step(0.5, False), updates.LossScale(), 1)


# Full memory ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings, advice", [
    ({}, "with micro_batch=2 it computes a batch in smaller pieces"),
    ({"micro_batch": 2}, "with micro_batch=1 it computes a batch in smaller pieces"),
    ({"micro_batch": 1}, "a smaller patch_size= takes less")])
def test_full_memory_of_the_device_is_one_line_that_says_what_to_try(settings, advice):
    defaults = {"level": 7, "batch_size": 5, "micro_batch": None, "precision": "float32"}
    error = updates.memory_full(types.SimpleNamespace(**defaults | settings))
    assert re.fullmatch(f"the device's memory is full at level 7: {advice}[^\n]*", str(error))


@pytest.mark.parametrize("error", [
    tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor"),
    tf.errors.AbortedError(None, None, "Operation received an exception:Status: 1, message: could not create a memory"),
    MemoryError()])
def test_full_memory_ends_a_training_with_that_line_wherever_it_happens(
        error, workplace, small_dataset, call, monkeypatch):
    def evaluate(*_):
        raise error

    monkeypatch.setattr(train_model, "evaluate", evaluate)
    done = call(train_model, "level=7", *QUICK, f"dataset_dir={small_dataset}")
    assert done.status == 1
    assert done.err.startswith("error: the device's memory is full at level 7: a smaller patch_size= takes less")


# Several devices and workers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("config, expected", [
    ("", (0, 1)), ('{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 1}}', (1, 2)),
    ('{"cluster": {"chief": ["c:1"], "worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 0}}', (1, 3)),
    ('{"cluster": {"chief": ["c:1"], "worker": ["a:1", "b:1"]}, "task": {"type": "chief", "index": "0"}}', (0, 3))])
def test_tf_config_says_which_worker_this_is(config, expected, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", config)
    assert updates.find_worker() == expected


@pytest.mark.parametrize("config", [
    "{", "[]", '{"cluster": {"worker": ["a:1"]}}',
    '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}',
    '{"cluster": {"worker": ["a:1"]}, "task": {"type": "evaluator", "index": 0}}', '{"cluster": 1, "task": 2}'])
def test_a_tf_config_that_makes_no_sense_is_a_wrong_call(config, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", config)
    with pytest.raises(UsageError, match="TF_CONFIG: must be like"):
        updates.find_worker()


def test_a_batch_smaller_than_the_number_of_workers_is_a_wrong_call(monkeypatch, workplace, call):
    config = {"cluster": {"worker": ["a:1", "b:1", "c:1"]}, "task": {"type": "worker", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    done = call(train_model, "level=7", "batch_size=2")
    assert done.status == 2 and "batch_size=2: is less than the 3 workers of TF_CONFIG" in done.err


def test_workers_that_would_not_train_the_same_are_told_so():
    def gathered(others):
        """A strategy of workers, of which the others have these texts."""
        numbers = []

        def distribute(value_of):
            numbers.append(value_of(None))
            return numbers[-1]

        strategy = types.SimpleNamespace(
            num_replicas_in_sync=2, experimental_distribute_values_from_function=distribute,
            gather=lambda own, axis: tf.concat([own, *others], axis))
        return updates.divide_batch(2, None, strategy, updates.Worker(0, 2)), numbers

    updates.check_agreement(updates.divide_batch(1), "a", 0)
    division, numbers = gathered([])
    updates.check_agreement(division, "a", 0)
    updates.check_agreement(gathered(numbers)[0], "a", 0)
    with pytest.raises(DataError, match="the workers do not have the same arguments, photos and checkpoints"):
        updates.check_agreement(gathered(numbers)[0], "b", 0)
    assert updates.told_to_stop(gathered([[15]])[0], None, 1) == 15, "another worker got a signal"
    assert updates.told_to_stop(gathered([[0]])[0], None, 1) == 0


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


def wait_for(processes):
    """Exit statuses."""
    try:
        return [process.wait(timeout=LONG) for process in processes]
    finally:
        for process in processes:
            process.kill()


def test_two_devices_and_two_workers_give_the_losses_of_one_device(tmp_path):
    script = REPOSITORY / "tests/train_on_devices.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=LONG)
    assert done.returncode == 0, done.stderr
    losses = json.loads(done.stdout)
    assert wait_for(two_workers([script], tmp_path)) == [0, 0], output(tmp_path, 0, "err")
    losses |= {f"worker {index}": json.loads(output(tmp_path, index).splitlines()[-1])["worker"] for index in range(2)}
    expected = losses["one device"]
    assert len(expected) == 10 and expected[-1] < 0.9 * expected[0]
    assert losses.keys() == {"one device", "two devices", "two devices, pieces of 1", "worker 0", "worker 1"}
    for way, found in losses.items():
        assert found == pytest.approx(expected, rel=1e-5), way


def test_workers_train_together_stop_together_and_end_when_one_is_lost(tmp_path, small_dataset):
    call = [REPOSITORY / "train_model.py", "level=7", *(set(QUICK) - {"batch_size=1"}), "batch_size=2", "eval_step=2",
            f"dataset_dir={small_dataset}", "resume=true"]

    def train_until_saved(iteration):
        workers = two_workers([*call, "num_train_iters=1000000"], tmp_path, cwd=tmp_path)
        started = time.monotonic()
        while last_saved(tmp_path) < iteration and time.monotonic() < started + LONG:
            time.sleep(0.1)
        return workers

    workers = train_until_saved(2)
    workers[1].terminate()  # tells the other one
    assert wait_for(workers) == [143, 143], output(tmp_path, 0, "err")
    stopped = int(re.search(r"Stopped after iteration (\d+)", output(tmp_path, 0))[1])
    assert f"Stopped after iteration {stopped} " in output(tmp_path, 1)
    assert "step 2 |" in output(tmp_path, 0) and "step 2 |" not in output(tmp_path, 1)

    workers = train_until_saved(stopped + 2 - stopped % 2)
    workers[1].kill()
    assert wait_for(workers) == [1, -9], output(tmp_path, 0, "err")
    error = output(tmp_path, 0, "err")
    assert f"goes on after iteration {stopped} " in output(tmp_path, 0)
    assert "error: a worker was lost after iteration" in error and "resume=true" in error and "Traceback" not in error

    saved = last_saved(tmp_path)
    workers = two_workers([*call, f"num_train_iters={saved + 2}"], tmp_path, cwd=tmp_path)
    assert wait_for(workers) == [0, 0], output(tmp_path, 0, "err")
    assert f"goes on after iteration {saved} " in output(tmp_path, 0) and last_saved(tmp_path) == saved + 2


def last_saved(folder):
    names = [file.name for file in folder.glob("models/*_iteration_*.ckpt.index")]
    return max([0, *(int(name.split("_")[-1].split(".")[0]) for name in names)])

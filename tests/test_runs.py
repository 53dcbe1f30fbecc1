"""support/runs.py: training runs that are stopped, killed, starved of disk or fed with damaged photos lose nothing.

Runs are those of the script, of the small network; but for the tests that kill or fill, only their update is replaced.
"""

import errno
import functools
import itertools
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import types

import numpy as np
import pytest
import tensorflow as tf
from conftest import QUICK, REPOSITORY

import load_dataset
import model
import train_model
import utils
from support import checkpoints, devices, runs, starts, training_log
from utils import DataError

EVERY_ITERATION = *QUICK, "eval_step=1"


@pytest.fixture(scope="module")
def shared_pynet():
    return model.build_pynet(64, 64, seed=0, width_multiplier=0.125)


@pytest.fixture
def steps(monkeypatch, shared_pynet, fake_update):
    """Replaces the update: steps(function) trains with function(iteration) -> loss instead.

    The rest of the run is real, but that all runs share one PyNET, which takes seconds to build. The update itself is
    what `test_training.py` is about, and together they are tried by the killed runs below.
    """
    monkeypatch.setattr(model, "build_pynet", lambda *_, **__: shared_pynet)
    monkeypatch.setattr(train_model, "make_evaluation_step", evaluation_step)
    return fake_update


def evaluation_step(network, level, vgg19):
    return functools.partial(measure, level)


def measure(level, inputs, targets):
    """Measures the target, which takes less time than the network."""
    targets = train_model.to_unit_range(targets)
    return train_model.metrics(level, targets / 2, targets), targets / 2


def falling(iteration):
    return 1 / iteration


def stops_at(iteration, number=signal.SIGTERM):
    """A training step that gets a signal in an iteration."""
    def step(now):
        if now == iteration:
            os.kill(os.getpid(), number)
        return 1 / now
    return step


@pytest.fixture
def training(workplace, small_dataset, call, steps):
    """training("level=7", ...) trains the small network on small photos: gives a `Call`. Losses are 1 / iteration."""
    steps(falling)
    return lambda *arguments: call(train_model, *arguments, f"dataset_dir={small_dataset}")


def state(level=7):
    return checkpoints.read_notes(checkpoints.resume_prefix(level))


def logged_iterations():
    lines = training_log.LOG.read_text().splitlines()
    return [int(line.split()[1]) for line in lines if line.startswith("step")]


def start_process(*arguments, cwd):
    return subprocess.run([sys.executable, *map(str, arguments)], env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
                          cwd=cwd, capture_output=True, text=True, timeout=3000)


# Stopped and killed --------------------------------------------------------------------------------------------------


def test_a_run_killed_at_5_moments_ends_with_the_bytes_of_one_that_was_never_stopped(tmp_path):
    done = start_process(REPOSITORY / "tests/killed_runs.py", tmp_path, "5", cwd=tmp_path)
    assert re.search(r"^5 kills in \d+ iterations, the last files are the same$", done.stdout, re.MULTILINE), (
        done.stdout + done.stderr)


@pytest.fixture
def terminal():
    """SIGHUP as a terminal leaves it, also where the tests themselves run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129),
                                            (signal.SIGUSR1, 138)])
def test_a_signal_ends_the_iteration_saves_a_state_and_names_the_command_that_continues(
        number, status, terminal, training, steps):
    steps(stops_at(3, number))
    done = training("level=7", *QUICK, "eval_step=2", "num_train_iters=9", "seed=5")
    assert done.status == status
    assert "Stopped after iteration 3 of level 7. " \
           "This goes on after iteration 3: python train_model.py level=7 resume=true" in done.out
    assert state()["run"]["losses"] == [1 / 3]
    assert checkpoints.saved_iterations(7) == [2]

    steps(falling)
    done = training("level=7", "resume=true", "num_train_iters=4")
    assert done.status == 0
    assert "Note: num_train_iters was 9 until iteration 3, and is 4 from now on" in done.out
    assert "goes on after iteration 3 of 4" in done.out
    assert state()["settings"]["seed"] == 5 and state()["settings"]["patch_size"] == 64
    mean = (1 / 3 + 1 / 4) / 2
    assert f"step 4 | training: {mean:.4g}," in done.out
    assert logged_iterations() == [0, 2, 4]


def test_a_closed_terminal_does_not_stop_a_run_under_nohup(training, steps):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        steps(stops_at(1, signal.SIGHUP))
        assert training("level=7", *EVERY_ITERATION, "num_train_iters=2").status == 0
    finally:
        signal.signal(signal.SIGHUP, before)
    assert checkpoints.saved_iterations(7) == [1, 2]


def test_a_second_ctrl_c_stops_at_once(workplace, small_dataset):
    code = ("import os, signal, sys, time, train_model\n"
            "from support import scripts, updates\n"
            "def stubborn(*_):\n"
            "    os.kill(os.getpid(), signal.SIGINT)\n"
            "    os.kill(os.getpid(), signal.SIGINT)\n"
            "    time.sleep(600)\n"
            "updates.make_update = lambda *_: stubborn\n"
            "sys.exit(scripts.run(train_model.main))\n")
    done = start_process("-c", code, "level=7", *EVERY_ITERATION, f"dataset_dir={small_dataset}", cwd=workplace)
    assert done.returncode == -signal.SIGINT
    assert "stopping after this iteration" in done.stderr and "Traceback" not in done.stderr


def test_a_run_that_is_stopped_before_its_first_update_saves_nothing_and_says_so(training, monkeypatch):
    assert training("level=7", *EVERY_ITERATION, "num_train_iters=1").status == 0
    before = state()

    def stopped(*_):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(train_model, "evaluate", stopped)
    done = training("level=7", *EVERY_ITERATION, "num_train_iters=2", "seed=1")
    assert done.status == 143
    assert "Stopped after iteration 0 of level 7. Nothing is saved yet: start it again" in done.out
    assert state() == before and checkpoints.saved_iterations(7) == [1] and not checkpoints.OLDER.exists()


def test_a_run_that_is_stopped_before_its_first_checkpoint_can_be_resumed_and_moves_only_a_state(training, steps):
    assert training("level=7", *EVERY_ITERATION, "num_train_iters=2").status == 0
    steps(stops_at(1))
    done = training("level=7", *QUICK, "eval_step=5", "num_train_iters=5")
    assert done.status == 143
    assert "Note: this run of level 7 starts anew; resume=true would go on after iteration 2" in done.out
    assert "moved the files of earlier runs of level 7 to models/older/" in done.out
    assert state()["run"]["iteration"] == 1 and checkpoints.saved_iterations(7) == [1, 2]
    [folder] = checkpoints.OLDER.iterdir()
    assert checkpoints.read_notes(folder / checkpoints.resume_prefix(7).name)["run"]["iteration"] == 2

    steps(falling)
    done = training("level=7", "resume=true", "num_train_iters=3")
    assert done.status == 0 and re.search("moved .*level 7.* to models/older/", done.out)
    assert state()["run"]["iteration"] == 3 and checkpoints.saved_iterations(7) == [3]
    assert len(list(checkpoints.OLDER.glob("*/*.index"))) == 3


def test_a_run_that_was_stopped_at_what_becomes_its_last_iteration_gets_its_checkpoint(training, steps):
    steps(stops_at(3))
    training("level=7", *QUICK, "eval_step=9", "num_train_iters=9")
    assert checkpoints.saved_iterations(7) == []
    steps(falling)
    done = training("level=7", "resume=true", "num_train_iters=3")
    assert done.status == 0 and "step 3 | training: 0.6111," in done.out
    assert checkpoints.saved_iterations(7) == [3]


# Resumed -------------------------------------------------------------------------------------------------------------


def test_nothing_to_resume_is_said_and_the_level_starts_as_usual(training):
    done = training("level=7", *EVERY_ITERATION, "num_train_iters=1", "resume=true")
    assert done.status == 0
    assert "Nothing to resume" in done.out and "starts from random weights" in done.out


def test_a_level_that_has_its_iterations_or_more_is_left_alone_before_tensorflow_starts(training, monkeypatch):
    training("level=7", *EVERY_ITERATION, "num_train_iters=3")
    log = training_log.LOG.read_text()
    monkeypatch.setattr(devices, "start_tensorflow", lambda **_: pytest.fail("started TensorFlow"))
    for num_train_iters in ([], ["num_train_iters=3"], ["num_train_iters=1"]):
        done = training("level=7", "resume=true", *num_train_iters)
        assert done.status == 0
        assert "Level 7 has 3 iterations; a larger num_train_iters= continues it" in done.out
        assert "goes on" not in done.out and training_log.LOG.read_text() == log


def test_what_differs_from_the_run_that_is_resumed_is_said(training, call, small_dataset, monkeypatch, tmp_path):
    monkeypatch.setattr(training_log, "commit", lambda: "1234")
    training("level=7", *EVERY_ITERATION, "num_train_iters=1")
    unchanged = training("level=7", "resume=true", "num_train_iters=2")
    assert re.findall("Note: (.*)", unchanged.out) == ["num_train_iters was 1 until iteration 1, and is 2 from now on"]

    monkeypatch.setattr(training_log, "commit", lambda: "5678")
    monkeypatch.setitem(train_model.LOSS_WEIGHTS, 7, {"l1": 50.0})
    shutil.copytree(small_dataset, tmp_path / "fewer")
    for path in (tmp_path / "fewer/train").glob("*/2.*"):
        path.unlink()
    done = call(train_model, "level=7", "resume=true", "num_train_iters=3", "batch_size=2", "learning_rate=1e-4",
                f"dataset_dir={tmp_path / 'fewer'}")
    assert done.status == 0
    for text in ("batch_size was 1 until iteration 2, and is 2",
                 "learning_rate was 5e-05 until iteration 2, and is 0.0001",
                 "commit was 1234 until iteration 2, and is 5678",
                 "loss_weights was {'l1': 100.0} until iteration 2, and is {'l1': 50.0}",
                 "the training photos are not those of the run until now (3 photos)"):
        assert f"Note: {text}" in done.out
    assert state()["code"] == {"commit": "5678", "loss_weights": "{'l1': 50.0}"}


@pytest.mark.parametrize("content", ["{", "[]", '{"run": {}}', '{"run": {"x": 2}, "settings": {}, "photos": {}}'])
def test_a_damaged_state_is_one_line(content, workplace, call):
    pathlib.Path(f"{checkpoints.resume_prefix(7)}.json").write_text(content)
    done = call(train_model, "level=7", "resume=true")
    assert done.status == 1
    assert re.fullmatch(r"error: models/pynet_level_7_resume\.ckpt\.json: is damaged.*\n", done.err), done.err


def test_the_state_holds_weights_moments_and_notes_under_tensorflow_1_names(training):
    training("level=7", *EVERY_ITERATION, "num_train_iters=1")
    names = dict(tf.train.list_variables(str(checkpoints.resume_prefix(7))))
    weights = {name for name in names if re.fullmatch(r"generator/Variable(_\d+)?", name)}
    slots = names.keys() - weights
    assert len(weights) == 440 and len(slots) == 2 * (62 - 4)  # levels 7 to 3 leave the first block
    assert {name.removesuffix("/Adam").removesuffix("/Adam_1") for name in slots} <= weights
    assert all(names[name] == names[re.sub("/Adam.*", "", name)] for name in slots)
    notes = json.loads(pathlib.Path(f"{checkpoints.resume_prefix(7)}.json").read_text())
    assert notes["run"] == {"iteration": 1, "evaluated": True, "losses": [], "checkpoints": [1], "name": "run_1",
                            "start": "from random weights", "iterations_above": 0, "loss_scale": 2.0 ** 15,
                            "steps_at_scale": 0}
    assert notes["settings"]["width"] == "0.125" and notes["settings"]["kernel_start"] == "he"
    assert notes["code"].keys() == {"commit", "loss_weights"}


def test_names_that_are_not_valid_utf_8_are_trained_on_and_resumed(training, call, small_dataset):
    folder = os.fsdecode(b"d\xe9ta")
    shutil.copytree(small_dataset, folder)
    for path in pathlib.Path(folder).glob("train/*/2.*"):
        path.rename(path.with_stem(os.fsdecode(b"2\xe9")))
    arguments = "level=7", *EVERY_ITERATION, f"dataset_dir={folder}"
    assert call(train_model, *arguments, "num_train_iters=1").status == 0
    done = call(train_model, "level=7", "resume=true", "num_train_iters=2")
    assert done.status == 0 and "the training photos are not those" not in done.out
    assert r"dataset_dir=d\udce9ta" in training_log.LOG.read_text()


def test_a_resumed_run_that_trains_more_variables_starts_their_moments_at_0_with_a_note(
        training, small_pynet, monkeypatch):
    assert training("level=7", *EVERY_ITERATION, "num_train_iters=1").status == 0
    monkeypatch.setattr(starts, "frozen_layers", lambda *_: ("level_8_",))  # which leaves nothing out
    done = training("level=7", "resume=true", "num_train_iters=2")
    assert done.status == 0, done.err
    assert "resume.ckpt lacks 8 of 124 moments, such as generator/Variable/Adam: they start as in a new" in done.out
    names = dict(tf.train.list_variables(str(checkpoints.resume_prefix(7))))
    assert "generator/Variable/Adam" in names and "generator/Variable_3/Adam_1" in names


# Full disks ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def saves(monkeypatch):
    """saves(1, 3) lets the first and the third save from now on fail as on a full disk."""
    save = tf.raw_ops.SaveV2

    def install(*failing):
        count = [0]

        def full(**arguments):
            count[0] += 1
            if count[0] in failing:
                raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")
            return save(**arguments)

        monkeypatch.setattr(tf.raw_ops, "SaveV2", full)
    return install


@pytest.mark.parametrize("failing, status, kept, iteration_of_state", [
    ((1, 2), 0, [2, 3], 3),  # each iteration saves its weights, then the state
    ((5, 6), 1, [1, 2], 2),
    ((5,), 1, [1, 2], 3),
])
def test_a_save_that_fails_is_tried_again_at_the_next_eval_step_and_the_last_one_decides(
        failing, status, kept, iteration_of_state, training, saves):
    saves(*failing)
    done = training("level=7", *EVERY_ITERATION, "num_train_iters=3")
    assert (done.status, checkpoints.saved_iterations(7)) == (status, kept)
    assert done.err.count("could not be saved (No space left on device") == len(failing)
    assert state()["run"]["iteration"] == iteration_of_state
    assert (f"error: the last save failed; what was saved up to iteration {iteration_of_state} is still there\n"
            in done.err) == bool(status)

    resumed = training("level=7", "resume=true")
    assert resumed.status == 0 and checkpoints.saved_iterations(7)[-1] == 3


def test_a_new_run_moves_what_earlier_ones_left_only_when_it_can_save(training, saves):
    assert training("level=7", *EVERY_ITERATION, "num_train_iters=3").status == 0
    saves(1, 2)
    failed = training("level=7", *EVERY_ITERATION, "num_train_iters=1", "seed=1")
    assert failed.status == 1 and failed.err.endswith("error: the last save failed; nothing of this run was saved\n")
    assert checkpoints.saved_iterations(7) == [1, 2, 3] and state()["settings"]["seed"] == 0
    saves(1, 2)
    done = training("level=7", *EVERY_ITERATION, "num_train_iters=2", "seed=1")
    assert done.status == 0 and checkpoints.saved_iterations(7) == [2] and state()["settings"]["seed"] == 1
    [folder] = checkpoints.OLDER.iterdir()
    assert re.search(rf"moved .*level 7.* to {folder}/", done.out)
    assert len(list(folder.glob("*.index"))) == 3 + 1


def test_a_full_disk_costs_no_good_checkpoint_and_is_said(tmp_path, small_dataset):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=10m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        done = start_process(REPOSITORY / "train_model.py", "level=7", *EVERY_ITERATION, "num_train_iters=3",
                             f"dataset_dir={small_dataset}", cwd=disk)
        assert done.returncode == 1, done.stdout + done.stderr
        assert "warning: that is more than is free" in done.stderr
        assert done.stderr.count("could not be saved") == 4, "weights and state of iterations 2 and 3"
        assert "No space left on device" in done.stderr
        assert "step 3 |" in done.stdout, "the training went on"
        assert "error: the last save failed" in done.stderr and "Traceback" not in done.stderr
        assert sorted(path.name for path in (disk / "models").glob("*ckpt*")) == [
            f"pynet_level_7_{which}.ckpt.{suffix}" for which, suffix in (
                ("iteration_1", "data-00000-of-00001"), ("iteration_1", "index"),
                ("resume", "data-00000-of-00001"), ("resume", "index"), ("resume", "json"))]
        (disk / "models/pynet_level_7_iteration_1.ckpt.data-00000-of-00001").unlink()
        resumed = start_process(REPOSITORY / "train_model.py", "level=7", "resume=true", "num_train_iters=2", cwd=disk)
        assert "goes on after iteration 1 of 2" in resumed.stdout and "step 2 |" in resumed.stdout, resumed.stderr
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


class FullDisk:
    """What sys.stdout is when it leads to a file on a disk that is full."""

    def write(self, _):
        raise OSError(28, "No space left on device")

    def flush(self):
        raise OSError(28, "No space left on device")

    def isatty(self):
        return False


def test_output_to_a_disk_that_becomes_full_does_not_end_the_training(workplace, small_dataset, steps, monkeypatch):
    def fills_the_disk(iteration):
        monkeypatch.setattr(sys, "stdout", FullDisk())
        monkeypatch.setattr(sys, "stderr", FullDisk())
        return 1 / iteration

    steps(fills_the_disk)
    monkeypatch.setattr(utils.ProgressLine, "SECONDS_BETWEEN_UPDATES", {False: 0})
    status = train_model.main(["level=7", *EVERY_ITERATION, "num_train_iters=2", "max_to_keep=1",
                               f"dataset_dir={small_dataset}"])
    monkeypatch.undo()
    assert status == 0
    assert checkpoints.read_notes(workplace / checkpoints.resume_prefix(7))["run"]["checkpoints"] == [2]


def test_a_picture_a_log_line_or_a_curve_that_cannot_be_written_does_not_end_the_training(training, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    for owner, name in ((utils, "write_image"), (training_log, "append_to_log"), (training_log, "write_curves")):
        monkeypatch.setattr(owner, name, full)
    done = training("level=7", *EVERY_ITERATION, "num_train_iters=1")
    assert done.status == 0
    assert done.err.count("warning: [Errno 28] No space left on device; the training goes on") == 1 + 2 * (3 + 1 + 1)
    assert checkpoints.saved_iterations(7) == [1]


def test_the_disk_that_a_level_takes_is_said_first_and_too_little_is_warned_of(training, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=14e6))
    done = training("level=7", *EVERY_ITERATION, "num_train_iters=1")
    assert re.search(r"Disk: up to 1\d MB for checkpoints and state, 14 MB are free", done.out)
    assert "warning" not in done.err
    done = training("level=7", *EVERY_ITERATION, "num_train_iters=2")
    assert "warning: that is more than is free in models/" in done.err


def test_a_folder_that_cannot_be_written_is_found_before_anything_else(workplace, call):
    utils.RESULTS.write_text("in the way")
    done = call(train_model, "level=7", "dataset_dir=nowhere")
    assert done.status == 1
    assert re.fullmatch(r"error: results/: cannot be written \(.*\)\n", done.err)


def test_a_drive_that_holds_no_checkpoints_is_refused_before_anything_else(workplace, call, monkeypatch):
    def fails(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(pathlib.Path, "replace", fails)
    done = call(train_model, "level=7", "dataset_dir=nowhere")
    assert done.status == 1
    assert re.fullmatch(r"error: models/: a checkpoint cannot be saved there \(.*\): train on another disk\n", done.err)


# Which checkpoints are kept ------------------------------------------------------------------------------------------


def test_only_the_newest_checkpoints_of_the_run_are_kept_and_those_of_others_stay(training, link_checkpoint):
    training("level=7", *EVERY_ITERATION, "num_train_iters=2")
    link_checkpoint(checkpoints.checkpoint_prefix(7, 2), checkpoints.checkpoint_prefix(7, 900))
    training("level=7", "resume=true", "num_train_iters=5", "max_to_keep=3")
    assert checkpoints.saved_iterations(7) == [3, 4, 5, 900]


def test_an_older_checkpoint_goes_only_after_the_newer_is_whole(training, monkeypatch):
    removed, remove = [], checkpoints.remove_checkpoint

    def note_and_remove(prefix):
        removed.append((prefix.name, checkpoints.saved_iterations(7)))
        remove(prefix)

    monkeypatch.setattr(checkpoints, "remove_checkpoint", note_and_remove)
    training("level=7", *EVERY_ITERATION, "num_train_iters=3", "max_to_keep=1")
    assert removed[0][0] == "pynet_level_7_trial.ckpt"
    assert removed[1:] == [("pynet_level_7_iteration_1.ckpt", [1, 2]), ("pynet_level_7_iteration_2.ckpt", [2, 3])]


def test_saving_and_looking_for_checkpoints_do_not_disturb_each_other(workplace):
    code = "from support import checkpoints\nwhile True: checkpoints.saved_iterations(7)"
    reader = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(REPOSITORY)})
    try:
        for iteration in range(1, 151):
            prefix = checkpoints.checkpoint_prefix(7, iteration % 3)
            checkpoints.save_checkpoint({"v": tf.Variable(float(iteration))}, prefix)
    finally:
        assert reader.poll() is None, "the reader failed"
        reader.kill()
        reader.wait()
    assert checkpoints.saved_iterations(7) == [0, 1, 2]


def test_a_save_that_another_process_finishes_is_no_failure(workplace, monkeypatch):
    to_disk = checkpoints._to_disk

    def while_another_process_looks(path):
        checkpoints.saved_iterations(7)
        to_disk(path)

    monkeypatch.setattr(checkpoints, "_to_disk", while_another_process_looks)
    prefix = checkpoints.checkpoint_prefix(7, 1)
    for value in (1.0, 2.0):
        checkpoints.save_checkpoint({"v": tf.Variable(value)}, prefix)
    assert tf.train.load_checkpoint(str(prefix)).get_tensor("v") == 2
    assert not list(prefix.parent.glob(".*"))


# Numbers and photos that are not right -------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_stops_the_run_before_it_reaches_a_checkpoint(loss, training, steps):
    steps(lambda iteration: 0.5 if iteration < 3 else loss)
    done = training("level=7", *EVERY_ITERATION, "num_train_iters=5")
    assert done.status == 1
    assert re.search(rf"error: iteration 3: the loss is {loss} \(photos \d\)\. .*learning_rate.*batch_size", done.err)
    assert checkpoints.saved_iterations(7) == [1, 2] and state()["run"]["iteration"] == 2


def test_weights_that_are_not_finite_never_reach_a_checkpoint(training, steps, shared_pynet):
    bias = shared_pynet.variables["generator/Variable_5"]
    start = bias.numpy()

    def poisoned(iteration):
        if iteration == 2:
            bias.assign(bias + np.nan)
        return 0.5

    steps(poisoned)
    done = training("level=7", *EVERY_ITERATION, "num_train_iters=3")
    bias.assign(start)
    assert done.status == 1 and "iteration 2: the weights or moments are no longer finite" in done.err
    assert checkpoints.saved_iterations(7) == [1]


def test_too_many_damaged_photos_end_the_run_with_its_state_saved(training, monkeypatch):
    batches = load_dataset.training_batches

    def damaged_after_2(*arguments):
        yield from itertools.islice(batches(*arguments), 2)
        raise DataError("train/original/0.jpg: is damaged; with it 2 photos are damaged, too many to go on")

    monkeypatch.setattr(load_dataset, "training_batches", damaged_after_2)
    done = training("level=7", *QUICK, "eval_step=9", "num_train_iters=9")
    assert done.status == 1 and done.err.endswith("2 photos are damaged, too many to go on\n")
    assert state()["run"]["iteration"] == 2


def test_a_damaged_test_photo_is_left_out_of_the_metrics_and_all_of_them_are_one_line(
        workplace, small_dataset, call, steps):
    steps(falling)
    shutil.copytree(small_dataset, "damaged")
    arguments = "level=7", *EVERY_ITERATION, "num_train_iters=2", "dataset_dir=damaged", "val_size=1"
    for name in ("original", "bokeh"):  # of the last photo of train/, which is the only test photo
        shutil.copy(f"damaged/train/{name}/1.jpg", f"damaged/train/{name}/10.jpg")
    shutil.copy("damaged/train/original_depth/1.png", "damaged/train/original_depth/10.png")
    photo = pathlib.Path("damaged/train/original/10.jpg")
    photo.write_bytes(photo.read_bytes()[:-500])

    done = call(train_model, *arguments[:-1], "val_size=2")
    assert done.status == 0 and done.err.count("damaged/train/original/10.jpg: is damaged") == 1
    assert [path.name for path in utils.RESULTS.glob("*_iter_2.jpg")] == ["pynet_img_0_level_7_iter_2.jpg"]
    done = call(train_model, *arguments)
    assert done.status == 1 and done.err.splitlines()[-1].startswith("error: all test photos are damaged")


# One run at a time ---------------------------------------------------------------------------------------------------


def test_runs_of_one_level_in_one_folder_exclude_each_other(training):
    with runs.locked_level(7):
        done = training("level=7", *EVERY_ITERATION, "num_train_iters=1")
        assert done.status == 1
        assert done.err == ("error: models/: level 7 is being trained here by another run: wait for it, or train in "
                            "another folder\n")
        with runs.locked_level(6):
            pass
    assert training("level=7", *EVERY_ITERATION, "num_train_iters=1").status == 0


def test_a_killed_run_leaves_no_lock_behind(workplace):
    code = "import os\nfrom support import runs\nwith runs.locked_level(7): os.kill(os.getpid(), 9)"
    assert start_process("-c", code, cwd=workplace).returncode == -signal.SIGKILL
    with runs.locked_level(7):
        pass

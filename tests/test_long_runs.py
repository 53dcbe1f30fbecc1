"""Training runs that are stopped, killed, starved of disk or fed with damaged photos lose nothing."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

import load_dataset
import train_model
import utils

REPOSITORY = pathlib.Path(__file__).parent.parent
SMALL = ("level=7", "batch_size=1", "eval_step=1", "vgg_dir=none")


@pytest.fixture(scope="module")
def photos(dataset, tmp_path_factory):
    """Two training photos and one test photo, to be quick."""
    folder = tmp_path_factory.mktemp("few") / "ebb_dataset"
    for split, names in (("train", "01"), ("test", "0")):
        for kind, suffix in (("original", "jpg"), ("original_depth", "png"), ("bokeh", "jpg")):
            (folder / split / kind).mkdir(parents=True)
            for name in names:
                shutil.copy(dataset / split / kind / f"{name}.{suffix}", folder / split / kind)
    return folder


@pytest.fixture(scope="module")
def shared_pynet():
    import model
    return model.build_pynet(load_dataset.PATCH, load_dataset.PATCH)


@pytest.fixture
def steps(monkeypatch, shared_pynet):
    """Replaces the training step: steps(function) trains with function(network, iteration) -> loss instead.

    The rest of the run is real, but that all runs share one PyNET, which takes seconds to build. The update itself is
    what `test_training.py` is about, and together they are tried by the killed runs below.
    """
    import model
    monkeypatch.setattr(model, "build_pynet", lambda *_, **__: shared_pynet)

    def install(function):
        monkeypatch.setattr(train_model, "make_training_step", lambda network, *_: lambda inputs, targets, iteration, *_: (
            train_model.Step(function(network, iteration), applied=True, stopped=False)))
    return install


def falling(network, iteration):
    return 1 / iteration


def test_a_run_killed_at_5_moments_ends_with_the_bytes_of_one_that_was_never_stopped(tmp_path):
    done = subprocess.run([sys.executable, REPOSITORY / "tests/killed_runs.py", tmp_path, "5"], capture_output=True,
                          text=True, timeout=1500)
    assert done.stdout.endswith("5 kills, the last files are the same\n"), done.stdout + done.stderr
    assert done.stdout.count(".ckpt.writing") >= 1, "hardly a kill was in the middle of a save"


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_iteration_saves_a_state_and_names_the_command_that_continues(
        number, status, workplace, photos, call, steps):
    def stopped(network, iteration):
        if iteration == 3:
            os.kill(os.getpid(), number)
        return 1 / iteration

    steps(stopped)
    done = call(train_model, "level=7", "eval_step=2", "num_train_iters=9", "batch_size=1", "seed=5", "vgg_dir=none",
                f"dataset_dir={photos}")
    assert done.status == status
    assert "Stopped after iteration 3 of level 7. " \
           "This goes on after iteration 3: python train_model.py level=7 resume=true" in done.out
    assert utils.read_notes(utils.resume_prefix(7))["run"]["losses"] == [1 / 3]
    assert utils.saved_iterations(7) == [2]

    steps(falling)
    done = call(train_model, "level=7", "resume=true", "num_train_iters=4")
    assert done.status == 0
    assert "Note: num_train_iters was 9 until iteration 3, and is 4 from now on" in done.out
    assert "goes on after iteration 3 of 4" in done.out
    assert utils.read_notes(utils.resume_prefix(7))["settings"]["seed"] == 5
    mean = (1 / 3 + 1 / 4) / 2
    assert f"step 4 | training: {mean:.4g}," in done.out
    assert [line.split()[1] for line in utils.LOG.read_text().splitlines() if line.startswith("step")] == ["0", "2", "4"]


def test_a_new_run_that_is_stopped_at_once_leaves_the_state_of_the_run_before_it(workplace, photos, call, steps):
    steps(falling)
    call(train_model, *SMALL, "num_train_iters=2", f"dataset_dir={photos}")

    def stopped(network, iteration):
        os.kill(os.getpid(), signal.SIGTERM)
        return 1.0

    steps(stopped)
    done = call(train_model, "level=7", "eval_step=5", "batch_size=1", "vgg_dir=none", f"dataset_dir={photos}")
    assert done.status == 143
    assert "resume=true would go on after iteration 2 of level 7" in done.out
    assert "the state of the run before it is left as it was" in done.out
    assert utils.read_notes(utils.resume_prefix(7))["run"]["iteration"] == 2


def test_a_run_that_was_stopped_at_what_becomes_its_last_iteration_gets_its_checkpoint(workplace, photos, call, steps):
    def stopped(network, iteration):
        if iteration == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return 1.0

    steps(stopped)
    call(train_model, "level=7", "eval_step=9", "num_train_iters=9", "batch_size=1", "vgg_dir=none",
         f"dataset_dir={photos}")
    assert utils.saved_iterations(7) == []
    steps(falling)
    done = call(train_model, "level=7", "resume=true", "num_train_iters=3")
    assert done.status == 0 and "step 3 | training: 1," in done.out
    assert utils.saved_iterations(7) == [3]


@pytest.fixture
def saves(monkeypatch):
    """saves(1, 3) lets the first and the third save of this test fail as on a full disk."""
    def install(*failing):
        import tensorflow as tf
        save, count = tf.raw_ops.SaveV2, [0]

        def full(**arguments):
            count[0] += 1
            if count[0] in failing:
                raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")
            return save(**arguments)

        monkeypatch.setattr(tf.raw_ops, "SaveV2", full)
    return install


@pytest.mark.parametrize("failing, status, kept, state", [
    ((1, 2), 0, [2, 3], 3),  # each iteration saves its weights, then the state
    ((5, 6), 1, [1, 2], 2),
    ((5,), 1, [1, 2], 3),
])
def test_a_save_that_fails_is_tried_again_at_the_next_eval_step_and_the_last_one_decides(
        failing, status, kept, state, workplace, photos, call, steps, saves):
    steps(falling)
    saves(*failing)
    done = call(train_model, *SMALL, "num_train_iters=3", f"dataset_dir={photos}")
    assert (done.status, utils.saved_iterations(7)) == (status, kept)
    assert done.err.count("could not be saved (No space left on device") == len(failing)
    assert utils.read_notes(utils.resume_prefix(7))["run"]["iteration"] == state
    assert ("error: the last save failed" in done.err) == bool(status)

    resumed = call(train_model, "level=7", "resume=true")
    assert resumed.status == 0 and utils.saved_iterations(7)[-1] == 3


class FullDisk:
    """What sys.stdout is when it leads to a file on a disk that is full."""

    def write(self, _):
        raise OSError(28, "No space left on device")

    flush = close = lambda self: self.write("")
    isatty = lambda self: False


def test_output_to_a_disk_that_becomes_full_does_not_end_the_training(workplace, photos, steps, monkeypatch):
    def fills_the_disk(network, iteration):
        monkeypatch.setattr(sys, "stdout", FullDisk())
        monkeypatch.setattr(sys, "stderr", FullDisk())
        return 1 / iteration

    steps(fills_the_disk)
    monkeypatch.setattr(utils.ProgressLine, "SECONDS_BETWEEN_UPDATES", {False: 0})
    status = train_model.main([*SMALL, "num_train_iters=2", "max_to_keep=1", f"dataset_dir={photos}"])
    monkeypatch.undo()
    assert status == 0
    assert utils.read_notes(workplace / utils.resume_prefix(7))["run"]["checkpoints"] == [2]


def test_saving_and_looking_for_checkpoints_do_not_disturb_each_other(workplace):
    import tensorflow as tf
    code = "import utils\nwhile True: utils.saved_iterations(7)"
    reader = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(REPOSITORY)})
    try:
        for iteration in range(1, 301):
            utils.save_checkpoint({"v": tf.Variable(float(iteration))}, utils.checkpoint_prefix(7, iteration % 3))
    finally:
        reader.kill()
        reader.wait()
    assert utils.saved_iterations(7) == [0, 1, 2]


def test_a_second_ctrl_c_stops_at_once(workplace, photos):
    code = ("import os, signal, sys, time, train_model, utils\n"
            "def stubborn(*_):\n"
            "    os.kill(os.getpid(), signal.SIGINT)\n"
            "    os.kill(os.getpid(), signal.SIGINT)\n"
            "    time.sleep(60)\n"
            "train_model.make_training_step = lambda *_: stubborn\n"
            "sys.exit(utils.run(train_model.main))\n")
    done = subprocess.run([sys.executable, "-c", code, *SMALL, "num_train_iters=2", f"dataset_dir={photos}"],
                          env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, timeout=59)
    assert done.returncode == -signal.SIGINT
    assert "stopping after this iteration" in done.stderr and "Traceback" not in done.stderr


def test_nothing_to_resume_is_said_and_the_level_starts_as_usual(workplace, photos, call, steps):
    steps(falling)
    done = call(train_model, *SMALL, "num_train_iters=1", "resume=true", f"dataset_dir={photos}")
    assert done.status == 0
    assert "Nothing to resume" in done.out and "starts from random weights" in done.out
    again = call(train_model, *SMALL, "num_train_iters=1", f"dataset_dir={photos}")
    assert "Note: resume=true would go on after iteration 1 of level 7; this run starts anew" in again.out


def test_a_level_that_has_its_iterations_is_left_alone(workplace, photos, call, steps):
    steps(falling)
    call(train_model, *SMALL, "num_train_iters=2", f"dataset_dir={photos}")
    done = call(train_model, "level=7", "resume=true")
    assert done.status == 0 and "Level 7 has its 2 iterations; num_train_iters=... trains on" in done.out
    assert call(train_model, "level=7", "resume=true", "num_train_iters=1").status == 0
    assert utils.LOG.read_text().count("#") == 1


def test_other_photos_and_other_settings_on_resume_are_said(workplace, photos, dataset, call, steps):
    steps(falling)
    call(train_model, *SMALL, "num_train_iters=1", f"dataset_dir={photos}")
    done = call(train_model, "level=7", "resume=true", "num_train_iters=2", "batch_size=2", "learning_rate=1e-4",
                f"dataset_dir={dataset}")
    assert done.status == 0
    assert "Note: these are not the training photos that the run had until now (2 photos)" in done.out
    for text in ("batch_size was 1 until iteration 1, and is 2", "learning_rate was 5e-05 until iteration 1, and is 0.0001"):
        assert text in done.out


@pytest.mark.parametrize("content", ["{", "[]", '{"run": {}}', '{"run": {"x": 2}, "settings": {}, "photos": {}}'])
def test_a_damaged_state_is_one_line(content, workplace, photos, call):
    pathlib.Path(f"{utils.resume_prefix(7)}.json").write_text(content)
    done = call(train_model, *SMALL, "num_train_iters=1", "resume=true", f"dataset_dir={photos}")
    assert done.status == 1
    assert re.fullmatch(r"error: models/pynet_level_7_resume\.ckpt\.json: is damaged.*\n", done.err), done.err


def test_only_the_newest_checkpoints_of_the_run_are_kept_and_those_of_others_stay(workplace, photos, call, steps):
    steps(falling)
    call(train_model, *SMALL, "num_train_iters=2", f"dataset_dir={photos}")
    for suffix in (".index", ".data-00000-of-00001"):
        shutil.copy(f"{utils.checkpoint_prefix(7, 2)}{suffix}", f"{utils.checkpoint_prefix(7, 900)}{suffix}")
    call(train_model, "level=7", "resume=true", "num_train_iters=5", "max_to_keep=3")
    assert utils.saved_iterations(7) == [3, 4, 5, 900]


def test_an_older_checkpoint_goes_only_after_the_newer_is_whole(workplace, photos, call, steps, monkeypatch):
    steps(falling)
    removed = []

    def remove(prefix):
        removed.append((prefix.name, utils.saved_iterations(7)))
        original(prefix)

    original = utils.remove_checkpoint
    monkeypatch.setattr(utils, "remove_checkpoint", remove)
    call(train_model, *SMALL, "num_train_iters=3", "max_to_keep=1", f"dataset_dir={photos}")
    assert removed == [("pynet_level_7_iteration_1.ckpt", [1, 2]), ("pynet_level_7_iteration_2.ckpt", [2, 3])]


def test_the_disk_that_a_level_takes_is_said_first_and_too_little_is_warned_of(workplace, photos, call, steps, monkeypatch):
    steps(falling)
    monkeypatch.setattr(utils, "free_space", lambda folder: 1e9)
    done = call(train_model, *SMALL, "num_train_iters=1", f"dataset_dir={photos}")
    assert "Disk: up to 0.9 GB, 1.0 GB are free (checkpoints to come: 1 of 190 MB; resumable state: 341 MB" in done.out
    assert "warning" not in done.err
    done = call(train_model, *SMALL, "num_train_iters=2", f"dataset_dir={photos}")
    assert "warning: that is more than is free in models/" in done.err


def test_a_full_disk_costs_no_good_checkpoint_and_is_said(tmp_path, photos):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=650m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        done = subprocess.run(
            [sys.executable, REPOSITORY / "train_model.py", *SMALL, "num_train_iters=3", f"dataset_dir={photos}"],
            cwd=disk, capture_output=True, text=True, timeout=300)
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
        resumed = subprocess.run([sys.executable, REPOSITORY / "train_model.py", "level=7", "resume=true",
                                  "num_train_iters=2"], cwd=disk, capture_output=True, text=True, timeout=300)
        assert "goes on after iteration 1 of 2" in resumed.stdout and "step 2 |" in resumed.stdout, resumed.stderr
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_a_folder_that_cannot_be_written_is_found_before_anything_else(workplace, call):
    utils.RESULTS.write_text("in the way")
    done = call(train_model, *SMALL, "dataset_dir=nowhere")
    assert done.status == 1
    assert re.fullmatch(r"error: results/: cannot be written \(.*\)\n", done.err)


def test_a_picture_or_log_line_that_cannot_be_written_does_not_end_the_training(workplace, photos, call, steps, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    steps(falling)
    monkeypatch.setattr(utils, "write_image", full)
    monkeypatch.setattr(train_model, "append_to_log", full)
    done = call(train_model, *SMALL, "num_train_iters=1", f"dataset_dir={photos}")
    assert done.status == 0
    assert "No space left on device" in done.err
    assert utils.saved_iterations(7) == [1]


@pytest.mark.parametrize("loss", [np.nan, np.inf, -np.inf])
def test_a_loss_that_is_not_finite_stops_the_run_before_it_reaches_a_checkpoint(loss, workplace, photos, call, steps):
    steps(lambda network, iteration: 0.5 if iteration < 3 else loss)
    done = call(train_model, *SMALL, "num_train_iters=5", f"dataset_dir={photos}")
    assert done.status == 1
    assert re.search(rf"error: iteration 3: the loss is {loss} \(photos [01]\)\. .*learning_rate.*batch_size", done.err)
    assert utils.saved_iterations(7) == [1, 2]
    assert utils.read_notes(utils.resume_prefix(7))["run"]["iteration"] == 2


def test_weights_that_are_not_finite_never_reach_a_checkpoint(workplace, photos, call, steps, shared_pynet):
    bias = shared_pynet.variables["generator/Variable_5"]
    start = bias.numpy()

    def poisoned(network, iteration):
        if iteration == 2:
            bias.assign(bias + np.nan)
        return 0.5

    steps(poisoned)
    done = call(train_model, *SMALL, "num_train_iters=3", f"dataset_dir={photos}")
    bias.assign(start)
    assert done.status == 1
    assert "iteration 2: the weights are no longer finite" in done.err
    assert utils.saved_iterations(7) == [1]


def test_a_damaged_photo_is_named_once_and_left_out_two_of_few_stop_the_run(workplace, dataset, call, steps):
    steps(falling)
    shutil.copytree(dataset, "damaged")
    truncate(pathlib.Path("damaged/train/bokeh/1.jpg"))
    arguments = "level=7", "batch_size=1", "vgg_dir=none", "num_train_iters=8", "dataset_dir=damaged"
    done = call(train_model, *arguments)
    assert done.status == 0
    assert done.err.count("damaged/train/bokeh/1.jpg: is damaged") == 1
    assert "it is left out from now on (1 damaged so far)" in done.err

    truncate(pathlib.Path("damaged/train/original/0.jpg"))
    done = call(train_model, *arguments)
    assert done.status == 1
    assert "2 photos are damaged, too many to go on" in done.err and "tools.check_dataset" in done.err


def test_a_damaged_test_photo_is_left_out_of_the_metrics(workplace, dataset, call, steps):
    steps(falling)
    shutil.copytree(dataset, "damaged")
    truncate(pathlib.Path("damaged/test/original/2.jpg"))
    done = call(train_model, *SMALL, "num_train_iters=2", "dataset_dir=damaged")
    assert done.status == 0
    assert done.err.count("damaged/test/original/2.jpg: is damaged") == 1
    assert sorted(path.name for path in utils.RESULTS.glob("*_iter_2.jpg")) == [
        f"pynet_img_{place}_level_7_iter_2.jpg" for place in range(2)]


def test_a_test_set_that_is_damaged_as_a_whole_is_one_line(workplace, photos, call, steps):
    steps(falling)
    shutil.copytree(photos, "damaged")
    truncate(pathlib.Path("damaged/test/original/0.jpg"))
    done = call(train_model, *SMALL, "num_train_iters=1", "dataset_dir=damaged")
    assert done.status == 1
    assert done.err.splitlines()[-1].startswith("error: all test photos are damaged")


def test_what_takes_the_place_of_a_damaged_photo_depends_on_nothing_else(dataset, tmp_path):
    shutil.copytree(dataset, tmp_path / "damaged")
    pairs = load_dataset.find_training_pairs(tmp_path / "damaged", "train")
    truncate(pairs[1].photo)
    once, again = ([batch for batch in load_dataset.training_batches(pairs, 7, 3, 99, first, 4)][-1] for first in (1, 4))
    assert once.names == again.names and "1" not in once.names
    np.testing.assert_array_equal(once.inputs, again.inputs)


def test_runs_of_one_level_in_one_folder_exclude_each_other(workplace, photos, call, steps):
    steps(falling)
    with utils.lock_level(7):
        done = call(train_model, *SMALL, "num_train_iters=1", f"dataset_dir={photos}")
        assert done.status == 1
        assert re.fullmatch(rf"error: models/: level 7 is being trained here by another run "
                            rf"\(process {os.getpid()} on .*\): wait for it, or train in another folder\n", done.err)
        with utils.lock_level(6):
            pass
    assert call(train_model, *SMALL, "num_train_iters=1", f"dataset_dir={photos}").status == 0


def test_a_killed_run_leaves_no_lock_behind(workplace):
    code = "import os, utils; lock = utils.lock_level(7); os.kill(os.getpid(), 9)"
    killed = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(REPOSITORY)})
    assert killed.returncode == -signal.SIGKILL
    utils.lock_level(7).close()


def test_the_state_holds_weights_moments_and_notes_under_tensorflow_1_names(workplace, photos, call, steps):
    import tensorflow as tf
    steps(falling)
    call(train_model, *SMALL, "num_train_iters=1", f"dataset_dir={photos}")
    names = dict(tf.train.list_variables(str(utils.resume_prefix(7))))
    assert len(names) == 440 + 2 * 62
    assert names["generator/Variable_62/Adam_1"] == names["generator/Variable_62/Adam"] == [3, 3, 512, 3]
    notes = json.loads(pathlib.Path(f"{utils.resume_prefix(7)}.json").read_text())
    assert notes["run"] == {"iteration": 1, "evaluated": True, "losses": [], "checkpoints": [1], "name": "run_1",
                            "start": "from random weights", "iterations_above": 0, "loss_scale": 2.0 ** 15,
                            "steps_at_scale": 0}


def truncate(path):
    path.write_bytes(path.read_bytes()[:-2000])

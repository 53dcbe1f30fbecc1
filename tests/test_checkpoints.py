"""support/checkpoints.py: one format for our weights and the released ones, never half a file, and nothing is lost.

Most tests use a network of two variables, for which a checkpoint is written in no time.
"""

import contextlib
import errno
import os
import pathlib
import re
import shutil
import stat

import numpy as np
import pytest
import tensorflow as tf
from conftest import LOCAL_SMALL

import model
import train_model
import utils
from support import checkpoints, experiments, training_log
from utils import DataError

DATA, INDEX = ".data-00000-of-00001", ".index"


def variables(value, shapes=((3, 5), (4,))):
    """{checkpoint name: variable} of a small network, filled with numbers that depend on `value`."""
    names = ["generator/Variable", "generator/Variable_1", "generator/Variable_2"]
    return {name: tf.Variable(np.random.default_rng([value, index]).random(shape, np.float32))
            for index, (name, shape) in enumerate(zip(names, shapes))}


def values_of(some_variables):
    return [variable.numpy().tolist() for variable in some_variables.values()]


def save(value, prefix):
    checkpoints.save_checkpoint(variables(value), prefix)
    return prefix


def assert_restore_fails(prefix, *named, target=None):
    """Restoring is a one-line DataError that names what is given, and changes no variable."""
    target = target or variables(99)
    before = values_of(target)
    with pytest.raises(DataError) as error:
        checkpoints.restore_checkpoint(target, prefix)
    for name in named:
        assert str(name) in str(error.value)
    assert "\n" not in str(error.value)
    assert values_of(target) == before


# The format ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole_checkpoint(seed_1_weights, tmp_path_factory):
    """The prefix of a checkpoint of the paper's 440 variables with the seed-1 weights."""
    folder = tmp_path_factory.mktemp("whole")
    paper = {name: tf.Variable(value) for name, value in seed_1_weights.items()}
    checkpoints.save_checkpoint(paper, folder / "pynet_level_7_iteration_1.ckpt")
    yield folder / "pynet_level_7_iteration_1.ckpt"
    shutil.rmtree(folder)


@pytest.mark.paper
def test_written_file_holds_the_originals_440_names_and_shapes_and_nothing_else(whole_checkpoint, reference):
    written = sorted(path.name for path in whole_checkpoint.parent.iterdir())
    assert written == [whole_checkpoint.name + DATA, whole_checkpoint.name + INDEX]
    stored = tf.train.load_checkpoint(str(whole_checkpoint)).get_variable_to_shape_map()
    assert stored == {row["name"]: [int(n) for n in row["shape"].split("x")] for row in reference("variables.csv")}


@pytest.mark.paper
@pytest.mark.parametrize("kind", ["whole_checkpoint", "seed_1_checkpoint"])
def test_our_checkpoints_and_the_originals_restore_every_value_bit_by_bit(kind, request, seed_1_weights):
    restored = {name: tf.Variable(tf.zeros(value.shape)) for name, value in seed_1_weights.items()}
    checkpoints.restore_checkpoint(restored, request.getfixturevalue(kind))
    for name, value in seed_1_weights.items():
        np.testing.assert_array_equal(restored[name].numpy(), value)


def test_checkpoint_prefix_follows_level_and_iteration():
    assert checkpoints.checkpoint_prefix(7, 1000) == pathlib.Path("models/pynet_level_7_iteration_1000.ckpt")


@pytest.mark.parametrize("folder", ["100% sure", "%d %s %2F", "v1.2.ckpt", "[brackets]", "a*b?", "Gerät 照片 é",
                                    "it's $HOME; #1"])
def test_names_of_folders_do_not_confuse_it(tmp_path, folder, monkeypatch):
    (tmp_path / folder / "models").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / folder)
    save(1, checkpoints.checkpoint_prefix(7, 2))
    prefix, _ = checkpoints.find_checkpoint(7)
    restored = variables(2)
    checkpoints.restore_checkpoint(restored, prefix)
    assert values_of(restored) == values_of(variables(1))


@pytest.mark.parametrize("name", ["[b]", "a*b?", "a\\b", "\udce9"])
def test_tensorflow_reads_paths_that_hold_patterns_or_odd_bytes(name, tmp_path):
    folder = tmp_path / name
    folder.mkdir()
    checkpoints.save_checkpoint(variables(1), tmp_path / "plain")
    for suffix in (DATA, INDEX):
        shutil.copy(f"{tmp_path}/plain{suffix}", f"{folder}/{name}.ckpt{suffix}")
    restored = variables(2)
    checkpoints.restore_checkpoint(restored, folder / f"{name}.ckpt")
    assert values_of(restored) == values_of(variables(1))

    module = tf.Module()
    module.weight = tf.Variable(3.0)
    tf.saved_model.save(module, str(tmp_path / "saved"))
    shutil.copytree(tmp_path / "saved", folder / name)
    assert float(tf.saved_model.load(checkpoints.plain_path(folder / name)).weight) == 3


# What a checkpoint says about its network ----------------------------------------------------------------------------


@pytest.mark.parametrize("channels, width", [(4, 1.0), (3, 1.0), (4, 0.5), (3, 0.25), (4, 0.125)])
def test_depth_maps_and_width_are_read_from_the_first_kernel(channels, width, tmp_path):
    kernel = tf.Variable(tf.zeros((3, 3, 4 * channels, int(32 * width))))
    checkpoints.save_checkpoint({"generator/Variable": kernel}, tmp_path / "a.ckpt")
    found = checkpoints.network_of(tmp_path / "a.ckpt")
    assert found == {"channels": channels, "width_multiplier": width}


def test_the_network_of_a_checkpoint_is_built_by_what_it_says(small_checkpoint, small_pynet):
    pynet = model.build_pynet(seed=None, **checkpoints.network_of(small_checkpoint))
    checkpoints.restore_checkpoint(pynet.variables, small_checkpoint)
    for name, variable in pynet.variables.items():
        np.testing.assert_array_equal(variable, small_pynet.variables[name])


@pytest.mark.parametrize("shape", [(3, 5), (3, 3, 16, 33), (3, 3, 16, 10 ** 6), (3, 3, 16, 0), (3, 3, 10 ** 6, 32)])
def test_what_is_not_a_checkpoint_of_pynet_is_told_so_before_a_network_is_built(shape, tmp_path):
    variable = {"generator/Variable": tf.Variable(tf.zeros(shape, tf.bool))}
    checkpoints.save_checkpoint(variable, tmp_path / "a.ckpt")
    with pytest.raises(DataError, match=rf"a\.ckpt: is not a checkpoint of PyNET .*{re.escape(str(list(shape)))}"):
        checkpoints.network_of(tmp_path / "a.ckpt")


def test_values_of_another_type_are_refused(tmp_path):
    stored = {name: tf.Variable(tf.cast(variable, tf.float64)) for name, variable in variables(1).items()}
    checkpoints.save_checkpoint(stored, tmp_path / "a.ckpt")
    assert_restore_fails(tmp_path / "a.ckpt", "generator/Variable")


def test_a_pipe_in_place_of_a_file_is_not_waited_for(workplace):
    prefix = checkpoints.resume_prefix(7)
    for path in (f"{prefix}.index", f"{prefix}.data-00000-of-00001", f"{prefix}.json", training_log.card_path(7)):
        os.mkfifo(path)
    assert_restore_fails(prefix, "is missing")
    with pytest.raises(DataError, match="resume.ckpt.json: is damaged"):
        experiments.read_state(prefix, train_model.PARAMETERS)
    assert training_log.read_card(7) == {}


# Files that are not right --------------------------------------------------------------------------------------------


def test_missing_variable_is_named(tmp_path):
    prefix = save(1, tmp_path / "a.ckpt")
    assert_restore_fails(prefix, prefix, "generator/Variable_2 is missing", "written by another network",
                         target=variables(2, ((3, 5), (4,), (2, 2))))


def test_the_first_wrong_shape_is_named_with_that_of_the_network(tmp_path):
    prefix = save(1, tmp_path / "a.ckpt")
    assert_restore_fails(prefix, prefix, "generator/Variable_1 is [4], this network's is [6];",
                         target=variables(2, ((3, 5), (6,))))
    assert_restore_fails(prefix, prefix, "generator/Variable is [3, 5], this network's is [3, 6];",
                         "written by another network", target=variables(2, ((3, 6), (6,))))


def test_more_variables_than_needed_do_no_harm(tmp_path):
    prefix = tmp_path / "a.ckpt"
    checkpoints.save_checkpoint(variables(1) | {"global_step": tf.Variable(7)}, prefix)
    restored = variables(2)
    checkpoints.restore_checkpoint(restored, prefix)
    assert values_of(restored) == values_of(variables(1))


@pytest.mark.parametrize("suffix", [DATA, INDEX])
def test_missing_file_is_named(tmp_path, suffix):
    prefix = save(1, tmp_path / "a.ckpt")
    os.unlink(f"{prefix}{suffix}")
    assert_restore_fails(prefix, f"{prefix}{suffix}")


@pytest.mark.parametrize("suffix", [DATA, INDEX])
@pytest.mark.parametrize("damage", [lambda content: b"", lambda content: content[:-1],
                                    lambda content: content[:len(content) // 2],
                                    lambda content: b"<html>404</html>", lambda content: bytes(len(content))],
                         ids=["empty", "last byte missing", "half", "web page", "zeros"])
def test_damaged_file_is_named(tmp_path, suffix, damage):
    prefix = save(1, tmp_path / "a.ckpt")
    file = pathlib.Path(f"{prefix}{suffix}")
    file.write_bytes(damage(file.read_bytes()))
    assert_restore_fails(prefix, prefix)


def test_every_flipped_byte_in_the_data_is_found(tmp_path):
    prefix = save(1, tmp_path / "a.ckpt")
    file = pathlib.Path(f"{prefix}{DATA}")
    whole = file.read_bytes()
    for place in range(len(whole)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1:])
        assert_restore_fails(prefix, prefix)


def test_a_flipped_byte_in_the_index_changes_no_value(tmp_path):
    """Some of its bytes mean nothing; any other makes it unreadable."""
    prefix = save(1, tmp_path / "a.ckpt")
    file = pathlib.Path(f"{prefix}{INDEX}")
    whole = file.read_bytes()
    failed = 0
    for place in range(len(whole)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1:])
        target = variables(99)
        try:
            checkpoints.restore_checkpoint(target, prefix)
            assert values_of(target) == values_of(variables(1)), place
        except DataError as error:
            failed += 1
            assert str(prefix) in str(error) and values_of(target) == values_of(variables(99))
    assert failed > len(whole) / 2


# Which checkpoints there are -----------------------------------------------------------------------------------------


def test_saved_iterations_are_in_numeric_order(workplace):
    for iteration in (9, 1000, 10, 200):
        save(iteration, checkpoints.checkpoint_prefix(7, iteration))
    assert checkpoints.saved_iterations(7) == [9, 10, 200, 1000]


def test_last_saved_is_found_and_any_other_on_demand(workplace):
    for iteration in (9, 10):
        save(iteration, checkpoints.checkpoint_prefix(7, iteration))
    assert checkpoints.find_checkpoint(7) == (checkpoints.checkpoint_prefix(7, 10), 10)
    assert checkpoints.find_checkpoint(7, 9) == (checkpoints.checkpoint_prefix(7, 9), 9)


def test_what_a_kill_left_of_a_save_is_deleted_for_its_level_only(workplace):
    halves = [utils.MODELS / f".pynet_level_{level}_iteration_5.ckpt.123.writing" for level in (7, 6)]
    for half in halves:
        half.mkdir()
    checkpoints.discard_half_saves(utils.MODELS, "pynet_level_7_*")
    assert [half.exists() for half in halves] == [False, True]


def test_a_save_whose_files_cannot_be_moved_to_their_place_is_an_error(workplace, monkeypatch):
    def fails(*_):
        raise OSError("input/output error")

    prefix = checkpoints.checkpoint_prefix(7, 5)
    with monkeypatch.context() as patches, pytest.raises(DataError, match="could not be saved"):
        patches.setattr(pathlib.Path, "replace", fails)
        checkpoints.save_checkpoint({"a": tf.Variable([1.0])}, prefix)
    assert not checkpoints.exists(prefix)
    checkpoints.finish_interrupted_saves(utils.MODELS)  # the next call brings it to its place
    assert checkpoints.exists(prefix)


@pytest.fixture
def poor_drive(monkeypatch):
    """poor_drive() makes models/ one that can neither sync nor rename a folder, and models/older another disk's."""
    fsync, rename = os.fsync, pathlib.Path.rename

    def sync_files(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(handle)

    def rename_files(path, target):
        if path.is_dir():
            raise OSError(errno.EMFILE, "Too many open files")
        if checkpoints.OLDER in target.parents and path.parent != target.parent:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(path, target)

    def install():
        monkeypatch.setattr(os, "fsync", sync_files)
        monkeypatch.setattr(pathlib.Path, "rename", rename_files)
    return install


def test_a_drive_that_can_neither_sync_nor_rename_folders_holds_checkpoints(workplace, poor_drive):
    poor_drive()
    checkpoints.try_to_save(7)
    assert list(utils.MODELS.iterdir()) == []
    for value in (1, 2):
        save(value, checkpoints.checkpoint_prefix(7, 5))
    assert restored_from(5) == values_of(variables(2))
    folder = checkpoints.move_to_older(7, ["_iteration_*.ckpt.*"])
    assert checkpoints.saved_iterations(7) == [] and len(list(folder.iterdir())) == 2
    restored = variables(99)
    checkpoints.restore_checkpoint(restored, folder / checkpoints.checkpoint_prefix(7, 5).name)
    assert values_of(restored) == values_of(variables(2))


def test_foreign_and_half_files_are_no_checkpoints(workplace):
    save(1, checkpoints.checkpoint_prefix(7, 3))
    save(1, checkpoints.checkpoint_prefix(6, 4))
    for name in ("pynet_level_7_iteration_5.ckpt.index", "pynet_level_7_iteration_6.ckpt.data-00000-of-00001",
                 "pynet_level_7_iteration_x.ckpt.index", "pynet_level_7_iteration_7.ckpt.index.partial",
                 "pynet_level_7_iteration_8.meta", "checkpoint", "logs.txt", "xpynet_level_7_iteration_8.ckpt.index"):
        (utils.MODELS / name).touch()
    assert checkpoints.saved_iterations(7) == [3]


def test_folder_of_a_save_in_progress_is_never_counted(workplace):
    writing = utils.MODELS / ".pynet_level_7_iteration_5.ckpt.123.writing"
    writing.mkdir()
    for folder in (writing, utils.MODELS):
        save(1, folder / "pynet_level_7_iteration_3.ckpt")
    save(1, writing / "pynet_level_7_iteration_5.ckpt")
    assert checkpoints.saved_iterations(7) == [3]


def test_without_a_checkpoint_the_command_that_makes_one_is_named(workplace):
    with pytest.raises(DataError, match=r"level 4: .*python train_model\.py level=4 batch_size=14\)"):
        checkpoints.find_checkpoint(4)


def test_iteration_that_was_not_saved_is_answered_with_those_that_were(workplace):
    for iteration in (9, 10):
        save(1, checkpoints.checkpoint_prefix(7, iteration))
    with pytest.raises(DataError, match="iteration_8.*9, 10"):
        checkpoints.find_checkpoint(7, 8)


# The released and the small weights ----------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", [utils.ORIGINAL, LOCAL_SMALL])
def test_weights_that_are_not_ours_are_found_under_their_name_or_named(prefix, workplace):
    with pytest.raises(DataError, match=rf"{prefix.parent}/ holds no .*{prefix.name}\.index"):
        checkpoints.find_published(prefix)
    prefix.parent.mkdir()
    save(1, prefix)
    assert checkpoints.find_published(prefix) == prefix and checkpoints.iteration_of(prefix) is None


# A crash while writing -----------------------------------------------------------------------------------------------


class Crash(BaseException):
    """The power fails: nothing catches this."""


@contextlib.contextmanager
def crash_at(n):
    """Lets the n-th step that changes the disk crash. Gives a list to which each step adds its name.

    A crash in SaveV2 leaves half a data file; any other step has not happened at all.
    """
    steps = []

    def crashing(name, step):
        def call(*args, **kwargs):
            steps.append(name)
            if len(steps) != n:
                return step(*args, **kwargs)
            if name == "SaveV2":
                step(*args, **kwargs)
                os.truncate(f"{kwargs['prefix']}{DATA}", 10)
            raise Crash
        return call

    with pytest.MonkeyPatch.context() as patches:
        for owner in (os, pathlib.Path):
            for name in ("rename", "replace", "unlink", "rmdir", "mkdir"):
                patches.setattr(owner, name, crashing(name, getattr(owner, name)))
        patches.setattr(pathlib.Path, "touch", crashing("touch", pathlib.Path.touch))
        patches.setattr(os, "fsync", crashing("fsync", os.fsync))
        patches.setattr(tf.raw_ops, "SaveV2", crashing("SaveV2", tf.raw_ops.SaveV2))
        yield steps


def crash_points(prepare, **options):
    """Saves value 2 as iteration 10 with a crash at the 1st, 2nd ... step, each time in a fresh models/.

    Yields after each crash, and ends when a save came through.
    """
    for n in range(1, 1000):
        shutil.rmtree(utils.MODELS)
        utils.MODELS.mkdir()
        prepare()
        with crash_at(n) as steps:
            try:
                checkpoints.save_checkpoint(variables(2), checkpoints.checkpoint_prefix(7, 10), **options)
                assert n > 5 and "SaveV2" in steps
                return
            except Crash:
                pass
        yield


def restored_from(iteration):
    restored = variables(99)
    checkpoints.restore_checkpoint(restored, checkpoints.checkpoint_prefix(7, iteration))
    return values_of(restored)


def test_after_a_crash_the_new_checkpoint_is_whole_or_does_not_count(workplace):
    outcomes = set()
    for _ in crash_points(prepare=lambda: save(1, checkpoints.checkpoint_prefix(7, 9))):
        saved = checkpoints.saved_iterations(7)
        assert saved in ([9], [9, 10])
        assert restored_from(9) == values_of(variables(1))
        if 10 in saved:
            assert restored_from(10) == values_of(variables(2))
        outcomes.add(tuple(saved))
    assert outcomes == {(9,), (9, 10)}


def test_after_a_crash_a_checkpoint_of_the_same_name_is_the_old_or_the_new_one_in_whole(workplace):
    outcomes = set()
    for _ in crash_points(prepare=lambda: save(1, checkpoints.checkpoint_prefix(7, 10))):
        assert checkpoints.saved_iterations(7) == [10]
        assert restored_from(10) in (values_of(variables(1)), values_of(variables(2)))
        outcomes.add(str(restored_from(10)))
    assert len(outcomes) == 2


def test_after_a_crash_the_same_checkpoint_can_be_saved_and_nothing_is_left_over(workplace):
    for _ in crash_points(prepare=lambda: save(1, checkpoints.checkpoint_prefix(7, 10))):
        save(3, checkpoints.checkpoint_prefix(7, 10))
        assert restored_from(10) == values_of(variables(3))
        prefix = checkpoints.checkpoint_prefix(7, 10).name
        assert sorted(os.listdir(utils.MODELS)) == [prefix + DATA, prefix + INDEX]


def test_a_save_that_fails_leaves_the_older_checkpoint(workplace, monkeypatch):
    """As on a full disk."""
    save(1, checkpoints.checkpoint_prefix(7, 10))

    def full_disk(**_):
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    with monkeypatch.context() as patches:
        patches.setattr(tf.raw_ops, "SaveV2", full_disk)
        with pytest.raises(DataError, match="No space left"):
            save(2, checkpoints.checkpoint_prefix(7, 10))
    assert checkpoints.saved_iterations(7) == [10]
    assert restored_from(10) == values_of(variables(1))


# What earlier runs left ----------------------------------------------------------------------------------------------


def leave_an_earlier_run():
    for iteration in (5, 8):
        save(1, checkpoints.checkpoint_prefix(7, iteration))
    checkpoints.save_checkpoint(variables(1), checkpoints.resume_prefix(7), {"run": 1})
    (utils.MODELS / "pynet_level_7.json").write_text("card")
    save(1, checkpoints.checkpoint_prefix(6, 5))


ALL_FILES = ["_resume.ckpt.*", "_iteration_*.ckpt.*", ".json"]


def contents(folder):
    """{name: content} of the files in a folder and all below it."""
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_checkpoints_state_and_card_of_a_level_move_to_a_folder_of_that_time_and_other_levels_stay(workplace):
    leave_an_earlier_run()
    before = contents(utils.MODELS)
    folder = checkpoints.move_to_older(7, ALL_FILES)
    assert re.fullmatch(r"models/older/\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", str(folder))
    assert contents(folder) == {name: content for name, content in before.items() if "level_7" in name}
    assert len(contents(folder)) == 2 * 2 + 3 + 1
    assert checkpoints.saved_iterations(6) == [5] and checkpoints.saved_iterations(7) == []
    with pytest.raises(DataError, match=r"no checkpoint of level 7 \(earlier runs are in models/older/\)"):
        checkpoints.find_checkpoint(7)
    assert checkpoints.move_to_older(7, ALL_FILES) is None


@pytest.mark.parametrize("other_disk", [False, True])
def test_a_crash_while_they_are_moved_loses_none_of_their_files(other_disk, workplace, poor_drive):
    if other_disk:
        poor_drive()
    leave_an_earlier_run()
    earlier, outcomes = contents(utils.MODELS), set()
    for _ in crash_points(leave_an_earlier_run, before_replacing=lambda: checkpoints.move_to_older(7, ALL_FILES)):
        outcomes.add(tuple(checkpoints.saved_iterations(7)))
        left = contents(utils.MODELS)
        assert {name: left.get(name) for name in earlier} == earlier
    assert {(5, 8), (), (10,)} <= outcomes

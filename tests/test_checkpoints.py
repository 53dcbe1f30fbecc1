"""utils.py, checkpoints: one format for our weights and the released ones, never half a file.

Most tests use a network of two variables, for which a checkpoint is written in no time.
"""

import contextlib
import os
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf

import utils
from utils import DataError

DATA, INDEX = ".data-00000-of-00001", ".index"


def variables(value, shapes=((3, 5), (4,))):
    """{checkpoint name: variable} of a small network, filled with numbers that depend on `value`."""
    names = ["generator/Variable", "generator/Variable_1", "generator/Variable_2"]
    return {name: tf.Variable(np.random.default_rng([value, place]).random(shape, np.float32))
            for place, (name, shape) in enumerate(zip(names, shapes))}


def values_of(some_variables):
    return [variable.numpy().tolist() for variable in some_variables.values()]


def save(value, prefix):
    utils.save_checkpoint(variables(value), prefix)
    return prefix


def assert_restore_fails(prefix, *named, target=None):
    """Restoring is a one-line DataError that names what is given, and changes no variable."""
    target = target or variables(99)
    before = values_of(target)
    with pytest.raises(DataError) as error:
        utils.restore_checkpoint(target, prefix)
    for name in named:
        assert str(name) in str(error.value)
    assert "\n" not in str(error.value)
    assert values_of(target) == before


# The format ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole_checkpoint(pynet, tmp_path_factory):
    """The prefix of a checkpoint of the whole network with the seed-1 weights."""
    folder = tmp_path_factory.mktemp("whole")
    utils.save_checkpoint(pynet.variables, folder / "pynet_level_7_iteration_1.ckpt")
    yield folder / "pynet_level_7_iteration_1.ckpt"
    shutil.rmtree(folder)


def test_round_trip_of_all_440_variables_is_bit_exact(whole_checkpoint, seed_1_weights):
    restored = {name: tf.Variable(tf.zeros(value.shape)) for name, value in seed_1_weights.items()}
    utils.restore_checkpoint(restored, whole_checkpoint)
    for name, value in seed_1_weights.items():
        np.testing.assert_array_equal(restored[name].numpy(), value)


def test_written_file_holds_the_originals_440_names_and_shapes_and_nothing_else(whole_checkpoint, reference):
    written = sorted(path.name for path in whole_checkpoint.parent.iterdir())
    assert written == [whole_checkpoint.name + DATA, whole_checkpoint.name + INDEX]
    stored = tf.train.load_checkpoint(str(whole_checkpoint)).get_variable_to_shape_map()
    assert stored == {row["name"]: [int(n) for n in row["shape"].split("x")] for row in reference("variables.csv")}


def test_checkpoint_of_the_original_form_restores_every_value(pynet_to_train, seed_1_checkpoint, seed_1_weights):
    for variable in pynet_to_train.variables.values():
        variable.assign(tf.zeros_like(variable))
    utils.restore_checkpoint(pynet_to_train.variables, seed_1_checkpoint)
    for name, value in seed_1_weights.items():
        np.testing.assert_array_equal(pynet_to_train.variables[name].numpy(), value)


def test_checkpoint_prefix_follows_level_and_iteration():
    assert utils.checkpoint_prefix(7, 1000) == pathlib.Path("models/pynet_level_7_iteration_1000.ckpt")


@pytest.mark.parametrize("folder", ["100% sure", "%d %s %2F", "with space", "v1.2.ckpt", "Gerät 照片 é",
                                    "it's $HOME; #1"])
def test_folder_names_do_not_confuse_it(tmp_path, folder):
    (tmp_path / folder).mkdir()
    prefix = save(1, tmp_path / folder / "pynet_level_7_iteration_2.ckpt")
    restored = variables(2)
    utils.restore_checkpoint(restored, prefix)
    assert values_of(restored) == values_of(variables(1))


@pytest.mark.parametrize("folder", ["100% sure", "v1.2.ckpt", "[brackets]", "a*b?", "Gerät 照片 é"])
def test_name_of_the_folder_in_which_the_scripts_run_does_not_confuse_it(tmp_path, folder, monkeypatch):
    (tmp_path / folder / "models").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / folder)
    save(1, utils.checkpoint_prefix(7, 2))
    prefix, _ = utils.find_checkpoint(7)
    restored = variables(2)
    utils.restore_checkpoint(restored, prefix)
    assert values_of(restored) == values_of(variables(1))


# Files that are not right --------------------------------------------------------------------------------------------


def test_missing_variable_is_named(tmp_path):
    prefix = save(1, tmp_path / "a.ckpt")
    assert_restore_fails(prefix, prefix, "generator/Variable_2", target=variables(2, ((3, 5), (4,), (2, 2))))


def test_wrong_shape_is_named_with_both_shapes(tmp_path):
    prefix = save(1, tmp_path / "a.ckpt")
    assert_restore_fails(prefix, prefix, "generator/Variable_1", "[4]", "[6]", target=variables(2, ((3, 5), (6,))))


def test_more_variables_than_needed_do_no_harm(tmp_path):
    prefix = tmp_path / "a.ckpt"
    utils.save_checkpoint(variables(1) | {"global_step": tf.Variable(7)}, prefix)
    restored = variables(2)
    utils.restore_checkpoint(restored, prefix)
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
            utils.restore_checkpoint(target, prefix)
            assert values_of(target) == values_of(variables(1)), place
        except DataError as error:
            failed += 1
            assert str(prefix) in str(error) and values_of(target) == values_of(variables(99))
    assert failed > len(whole) / 2


# Which checkpoints there are -----------------------------------------------------------------------------------------


def test_saved_iterations_are_in_numeric_order(workplace):
    for iteration in (9, 1000, 10, 200):
        save(iteration, utils.checkpoint_prefix(7, iteration))
    assert utils.saved_iterations(7) == [9, 10, 200, 1000]


def test_last_saved_is_found_and_any_other_on_demand(workplace):
    for iteration in (9, 10):
        save(iteration, utils.checkpoint_prefix(7, iteration))
    assert utils.find_checkpoint(7) == (utils.checkpoint_prefix(7, 10), 10)
    assert utils.find_checkpoint(7, 9) == (utils.checkpoint_prefix(7, 9), 9)


def test_foreign_and_half_files_are_no_checkpoints(workplace):
    save(1, utils.checkpoint_prefix(7, 3))
    save(1, utils.checkpoint_prefix(6, 4))
    for name in ("pynet_level_7_iteration_5.ckpt.index", "pynet_level_7_iteration_6.ckpt.data-00000-of-00001",
                 "pynet_level_7_iteration_x.ckpt.index", "pynet_level_7_iteration_7.ckpt.index.partial",
                 "pynet_level_7_iteration_8.meta", "checkpoint", "logs.txt", "xpynet_level_7_iteration_8.ckpt.index"):
        (utils.MODELS / name).touch()
    assert utils.saved_iterations(7) == [3]


def test_folder_of_a_save_in_progress_is_never_counted(workplace):
    writing = utils.MODELS / ".pynet_level_7_iteration_5.ckpt.writing"
    writing.mkdir()
    for folder in (writing, utils.MODELS):
        save(1, folder / "pynet_level_7_iteration_3.ckpt")
    save(1, writing / "pynet_level_7_iteration_5.ckpt")
    assert utils.saved_iterations(7) == [3]


def test_without_a_checkpoint_the_command_that_makes_one_is_named(workplace):
    with pytest.raises(DataError, match=r"level 7.*python train_model\.py level=7"):
        utils.find_checkpoint(7)


def test_iteration_that_was_not_saved_is_answered_with_those_that_were(workplace):
    for iteration in (9, 10):
        save(1, utils.checkpoint_prefix(7, iteration))
    with pytest.raises(DataError, match="iteration_8.*9, 10"):
        utils.find_checkpoint(7, 8)


# The released weights ------------------------------------------------------------------------------------------------


def test_released_weights_are_found_under_their_usual_name(workplace):
    utils.ORIGINAL.mkdir()
    for name in ("pynet_bokeh_level_0", "another"):
        save(1, utils.ORIGINAL / name)
    assert utils.find_original() == utils.ORIGINAL / "pynet_bokeh_level_0"


@pytest.mark.parametrize("name", ["pynet_level_0_iteration_100000.ckpt", "v1.5", "100%"])
def test_released_weights_are_found_under_another_name_when_alone(workplace, name):
    utils.ORIGINAL.mkdir()
    save(1, utils.ORIGINAL / name)
    restored = variables(2)
    utils.restore_checkpoint(restored, utils.find_original())
    assert values_of(restored) == values_of(variables(1))


def test_two_sets_of_released_weights_are_named(workplace):
    utils.ORIGINAL.mkdir()
    for name in ("first", "second"):
        save(1, utils.ORIGINAL / name)
    with pytest.raises(DataError, match="first.*second"):
        utils.find_original()


def test_missing_released_weights_are_answered_with_what_goes_where(workplace):
    with pytest.raises(DataError, match=r"models/original.*pynet_bokeh_level_0\.index"):
        utils.find_original()


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
        patches.setattr(os, "fsync", crashing("fsync", os.fsync))
        patches.setattr(tf.raw_ops, "SaveV2", crashing("SaveV2", tf.raw_ops.SaveV2))
        yield steps


def crash_points(prepare):
    """Saves value 2 as iteration 10 with a crash at the 1st, 2nd ... step, each time in a fresh models/.

    Yields after each crash, and ends when a save came through.
    """
    for n in range(1, 1000):
        shutil.rmtree(utils.MODELS)
        utils.MODELS.mkdir()
        prepare()
        with crash_at(n) as steps:
            try:
                save(2, utils.checkpoint_prefix(7, 10))
                assert n > 5 and "SaveV2" in steps
                return
            except Crash:
                pass
        yield


def restored_from(iteration):
    restored = variables(99)
    utils.restore_checkpoint(restored, utils.checkpoint_prefix(7, iteration))
    return values_of(restored)


def test_after_a_crash_the_new_checkpoint_is_whole_or_does_not_count(workplace):
    outcomes = set()
    for _ in crash_points(prepare=lambda: save(1, utils.checkpoint_prefix(7, 9))):
        saved = utils.saved_iterations(7)
        assert saved in ([9], [9, 10])
        assert restored_from(9) == values_of(variables(1))
        if 10 in saved:
            assert restored_from(10) == values_of(variables(2))
        outcomes.add(tuple(saved))
    assert outcomes == {(9,), (9, 10)}


def test_after_a_crash_a_checkpoint_of_the_same_name_is_the_old_or_the_new_one_in_whole(workplace):
    outcomes = set()
    for _ in crash_points(prepare=lambda: save(1, utils.checkpoint_prefix(7, 10))):
        assert utils.saved_iterations(7) == [10]
        assert restored_from(10) in (values_of(variables(1)), values_of(variables(2)))
        outcomes.add(str(restored_from(10)))
    assert len(outcomes) == 2


def test_after_a_crash_the_same_checkpoint_can_be_saved_and_nothing_is_left_over(workplace):
    for _ in crash_points(prepare=lambda: save(1, utils.checkpoint_prefix(7, 10))):
        save(3, utils.checkpoint_prefix(7, 10))
        assert restored_from(10) == values_of(variables(3))
        prefix = utils.checkpoint_prefix(7, 10).name
        assert sorted(os.listdir(utils.MODELS)) == [prefix + DATA, prefix + INDEX]


def test_a_save_that_fails_leaves_the_older_checkpoint(workplace, monkeypatch):
    """As on a full disk."""
    save(1, utils.checkpoint_prefix(7, 10))

    def full_disk(**_):
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    with monkeypatch.context() as patches:
        patches.setattr(tf.raw_ops, "SaveV2", full_disk)
        with pytest.raises(DataError, match="No space left"):
            save(2, utils.checkpoint_prefix(7, 10))
    assert utils.saved_iterations(7) == [10]
    assert restored_from(10) == values_of(variables(1))

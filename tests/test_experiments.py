"""support/experiments.py: a run is what its state, its checkpoint and the command line say, whatever these hold."""

import json
import pathlib
import re
import shutil
import types

import pytest

import train_model
import utils
from support import checkpoints, experiments, training_log
from utils import DataError

ODD = (None, True, -1, 0, 0.5, 1e300, 1e999, 10 ** 30, "", "x", "/elsewhere", "run_1/../../x", "a\nb\x1b[2J", [], [-1],
       ["x"], {})


@pytest.mark.parametrize("part, name", [
    *(("run", name) for name in experiments.Run().as_notes()),
    *(("settings", parameter.name) for parameter in train_model.PARAMETERS),
    ("run", None), ("settings", None), ("photos", None), ("code", None)])
def test_odd_values_in_a_state_are_one_line_or_what_the_command_line_could_have_given(part, name, workplace):
    prefix = checkpoints.resume_prefix(7)
    for value in ODD:
        notes = {"run": {"iteration": 3}, "settings": {}, "photos": {"count": 1}, "code": {}}
        notes[part] = notes[part] | {name: value} if name else value
        pathlib.Path(f"{prefix}.json").write_text(json.dumps(notes))
        try:
            state = experiments.read_state(prefix, train_model.PARAMETERS)
        except DataError as error:
            assert str(error).startswith(f"{prefix}.json: ")
            continue
        assert re.fullmatch("run_[0-9]+", state.run.name)
        for key, default in experiments.Run().as_notes().items():
            found = state.run.as_notes()[key]
            assert type(found) in (type(default), type(default) if key != "loss_scale" else int)
            assert key == "losses" or min([0, *found] if key == "checkpoints" else [0]) == 0
        arguments = [f"{key}={value}" for key, value in state.settings.items() if value is not None and key != "level"]
        given = utils.parse_arguments(["level=7", *arguments], train_model.PARAMETERS, "")
        assert state.settings.items() <= vars(given).items() | {"level": state.settings.get("level")}.items()


@pytest.mark.parametrize("name, value, problem", [
    ("max_to_keep", 0, "max_to_keep=0: must be 1 or more"), ("width", "2", "width=2: must be 1, 0.5, 0.25 or 0.125"),
    ("learning_rate", -1, "learning_rate=-1: must be from 1e-12 to 1")])
def test_settings_of_a_state_are_checked_as_those_of_the_command_line(name, value, problem, workplace, call):
    notes = {"run": {}, "settings": {name: value}, "photos": {}, "code": {}}
    pathlib.Path(f"{checkpoints.resume_prefix(7)}.json").write_text(json.dumps(notes))
    done = call(train_model, "level=7", "resume=true")
    assert done.status == 1
    assert done.err.startswith(f"error: models/pynet_level_7_resume.ckpt.json: {problem}")
    assert done.err.count("\n") == 1


# Following a checkpoint ----------------------------------------------------------------------------------------------


@pytest.fixture
def complete():
    """complete(prefix, "level=6", ...) gives the settings of a level that starts from a checkpoint."""
    def complete_settings(prefix, *arguments):
        settings = utils.parse_arguments([*arguments, "vgg_dir=none"], train_model.PARAMETERS, "")
        experiments.complete_settings(settings, experiments.Start(experiments.Run(), prefix, None), num_train_iters=1)
        experiments.follow_network(settings, prefix)
        return settings
    return complete_settings


def test_depth_maps_and_width_are_those_of_the_checkpoint_unless_the_command_line_contradicts(
        small_checkpoint, complete):
    settings = complete(small_checkpoint, "level=6")
    assert (settings.use_depth, settings.width, settings.kernel_start) == (True, "0.125", "he")
    for argument in ("use_depth=false", "width=1"):
        name = argument.partition("=")[0]
        with pytest.raises(DataError, match=f"is of a network with {name}=.*; leave {name}= out, or start at level 7"):
            complete(small_checkpoint, "level=6", argument)


def test_test_photos_are_those_of_the_level_above_and_other_ones_are_warned_of(
        workplace, small_checkpoint, link_checkpoint, complete, capsys):
    above = checkpoints.checkpoint_prefix(7, 1)
    link_checkpoint(small_checkpoint, above)
    card = {"evaluations": {"1": {}}, "settings": {"val_size": 1}}
    training_log.card_path(7).write_text(json.dumps(card))
    assert complete(above, "level=6").val_size == 1
    assert capsys.readouterr() == (f"val_size=1, as {above} was trained with\n", "")
    assert complete(above, "level=6", "val_size=2").val_size == 2
    assert capsys.readouterr().err.startswith(f"warning: val_size=2: {above} was trained with val_size=1, ")
    assert complete(above, "level=6", "val_size=1").val_size == 1
    assert complete(small_checkpoint, "level=6", "val_size=2").val_size == 2  # no card says anything
    card["settings"]["dataset_dir"] = "ebb_dataset"
    training_log.card_path(7).write_text(json.dumps(card))
    assert complete(above, "level=6", f"weights={above}", "dataset_dir=scenes").val_size == 0
    assert capsys.readouterr() == ("", "")
    assert complete(above, "level=6", f"weights={above}").val_size == 1  # fine-tuning on the same photos


def test_workers_train_the_same_with_the_same_settings_photos_and_weights_in_whatever_folders(
        small_checkpoint, tmp_path):
    def shared(prefix=small_checkpoint, photos="12", **changed):
        settings = {"level": 6, "batch_size": 4, "vgg_dir": "vgg/", "dataset_dir": "ebb_dataset/", "given": set()}
        pairs = [types.SimpleNamespace(name=name, kind="depth") for name in photos]
        start = experiments.Start(experiments.Run(), prefix, None)
        experiment = experiments.Experiment(types.SimpleNamespace(**settings | changed), start, pairs, [], {})
        return experiment.shared_by_workers()

    copy, other = tmp_path / "copy", tmp_path / "other"
    shutil.copy(f"{small_checkpoint}.index", f"{copy}.index")
    pathlib.Path(f"{other}.index").write_bytes(b"other")
    assert shared(copy, vgg_dir="elsewhere/", dataset_dir="elsewhere/", given={"batch_size"}) == shared()
    for changed in ({"batch_size": 5}, {"level": 7}, {"vgg_dir": "none"}, {"photos": "123"}, {"prefix": other}):
        assert shared(**changed) != shared(), changed

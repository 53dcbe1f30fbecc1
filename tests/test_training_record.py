"""tools/training_record.py: curves on one axis that resumed runs continue, and a card that says where a model comes from."""

import json
import math

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import load_dataset
import model
import test_model
import train_model
import utils
from tools import training_record


def curves(folder):
    """{name: {step: value}} of the scalars, and {name: [steps]} of the pictures."""
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    scalars, pictures = {}, {}
    for name in events.Tags()["tensors"]:
        points = events.Tensors(name)
        if points[0].tensor_proto.dtype == tf.string.as_datatype_enum:
            pictures[name] = [point.step for point in points]
        else:
            scalars[name] = {point.step: float(tf.make_ndarray(point.tensor_proto)) for point in points}
    return scalars, pictures


@pytest.fixture(scope="module")
def shared_pynet():
    return model.build_pynet(load_dataset.PATCH, load_dataset.PATCH)


@pytest.fixture
def training(monkeypatch, workplace, dataset, call, shared_pynet):
    """Trains with losses that are the iteration's number; gives training(arguments) -> result of the call."""
    monkeypatch.setattr(model, "build_pynet", lambda *_, **__: shared_pynet)
    monkeypatch.setattr(train_model, "make_training_step", lambda *_: lambda inputs, targets, iteration, *_: (
        train_model.Step(float(iteration), applied=True, stopped=False)))
    return lambda *arguments: call(train_model, *arguments, "batch_size=1", "vgg_dir=none", f"dataset_dir={dataset}")


def test_curves_of_two_levels_and_a_resumed_run_follow_each_other_on_one_axis(training, monkeypatch):
    monkeypatch.setattr(training_record, "LOSSES_IN_A_POINT", 5)
    assert training("level=7", "eval_step=6", "num_train_iters=12").status == 0
    assert training("level=7", "resume=true", "num_train_iters=15").status == 0
    assert training("level=6", "eval_step=2", "num_train_iters=4").status == 0

    scalars, pictures = curves(training_record.CURVES / "level_7/run_1")
    assert scalars["loss/training"] == {1: 1, 6: 4, 7: 7, 12: 10, 15: 14}
    assert set(scalars["loss/test"]) == set(scalars["test/psnr"]) == {0, 6, 12, 15}
    assert set(scalars["speed/iterations_per_second"]) == set(scalars["speed/seconds_waiting_for_data"]) == {6, 12, 15}
    assert list(scalars["learning_rate"].values()) == pytest.approx([5e-5] * 4)
    assert min(scalars["device_memory_bytes"].values()) > 1e8
    assert pictures == {"input, output, target": [0, 6, 12, 15]}
    scalars, _ = curves(training_record.CURVES / "level_6/run_1")
    assert set(scalars["loss/test"]) == {15, 17, 19} and scalars["loss/training"] == {17: 1.5, 19: 3.5}
    assert "content" not in " ".join(scalars)


def test_a_run_that_starts_anew_has_curves_of_its_own(training):
    for _ in range(2):
        assert training("level=7", "eval_step=1", "num_train_iters=1").status == 0
    assert sorted(path.name for path in (training_record.CURVES / "level_7").iterdir()) == ["run_1", "run_2"]


def test_the_card_says_how_the_model_was_made_and_testing_prints_it(training, call, dataset):
    assert training("level=7", "eval_step=1", "num_train_iters=2", "seed=5").status == 0
    card = json.loads((utils.MODELS / "pynet_level_7.json").read_text())
    assert (card["level"], card["iteration"], card["start"]) == (7, 2, "from random weights")
    assert card["settings"]["seed"] == 5 and card["settings"]["batch_size"] == 1 and "num_train_iters" in card["settings"]
    assert card["photos"]["training"] > 0 and card["photos"]["test"] > 0
    assert set(card["evaluations"]) == {"0", "1", "2"}
    assert set(card["evaluations"]["2"]["metrics"]) == {"loss", "mse", "psnr", "l1"}
    assert card["versions"]["tensorflow"] == tf.__version__ and card["commit"]
    done = call(test_model, "level=7", "restore_iter=1", f"dataset_dir={dataset}")
    [line] = [line for line in done.out.splitlines() if line.startswith("Model card: ")]
    assert "level 7, iteration 1, from random weights" in line and "seed=5" in line and "psnr" in line
    assert "seed=5" in (utils.FULL_RESOLUTION / "index.html").read_text()

    assert training("level=7", "eval_step=1", "num_train_iters=3", "resume=true", "learning_rate=1e-5").status == 0
    assert "learning_rate=5e-05" in training_record.card_text(7, 2)
    assert "learning_rate=1e-05" in training_record.card_text(7, 3)
    assert training("level=7", "eval_step=1", "num_train_iters=1", "seed=6").status == 0
    card = json.loads((utils.MODELS / "pynet_level_7.json").read_text())
    assert card["settings"]["seed"] == 6 and set(card["evaluations"]) == {"0", "1"}


@pytest.mark.parametrize("content", ["{", "[]", "", '{"evaluations": {}}', '{"evaluations": {"1": {}}}',
                                     '{"evaluations": []}'])
def test_a_damaged_card_is_passed_over(workplace, content):
    utils.MODELS.mkdir(exist_ok=True)
    training_record.card_path(3).write_text(content)
    assert training_record.card_text(3, 1) is None


def test_testing_adds_its_means_to_the_curves_of_the_level(workplace):
    utils.MODELS.mkdir(exist_ok=True)
    training_record.write_card(1, 10, {"loss": 1.0}, "run_1", {}, {"training": 1, "test": 1},
                               "from level 2, iteration 5", above=100)
    test_model.record_means(1, 10, {"PSNR": 23.5, "SSIM": 0.5, "MS-SSIM": math.nan})
    scalars, _ = curves(training_record.CURVES / "level_1/test")
    assert scalars == {"full resolution/PSNR": {110: 23.5}, "full resolution/SSIM": {110: 0.5}}


def test_curves_that_cannot_be_written_are_a_data_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(utils.DataError, match="could not be written"):
        training_record.write_curves(tmp_path / "file" / "run", 0, 1, [1.0], {"a": 1.0}, [np.zeros((4, 4, 3), np.uint8)])

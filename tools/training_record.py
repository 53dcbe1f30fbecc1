"""What a training leaves behind to look at: curves for TensorBoard, and a card that says where a model comes from.

    models/tensorboard/level_<L>/run_<N>/    curves and visual crops; a resumed run goes on in the same folder
    models/tensorboard/level_<L>/test/       means of test_model.py
    models/pynet_level_<L>.json              the model card
"""

import datetime
import json
import math
import pathlib
import platform
import resource
import subprocess

import numpy as np
import PIL

import utils
from utils import DataError

CURVES = utils.MODELS / "tensorboard"
LOSSES_IN_A_POINT = 50  # of the training loss; a curve of every single one would be noise


# Curves --------------------------------------------------------------------------------------------------------------


def next_run(level):
    """The name of the curves of a run that starts anew: run_1, run_2 ... One that never came to an update does not count."""
    card = read_card(level) or {}
    try:
        return f"run_{int(card['run'].removeprefix('run_')) + (card['iteration'] > 0)}"
    except (AttributeError, KeyError, TypeError, ValueError):
        return "run_1"


def iterations_above(level, restored):
    """Iterations that the levels above were trained, where the level starts from iteration `restored` of the next one: the
    place of the level's first iteration on the axis of all of them."""
    saved = [utils.saved_iterations(above) for above in range(level + 2, 8)]
    return restored + sum(iterations[-1] for iterations in saved if iterations)


def write_curves(folder, first, iteration, losses, scalars, crops):
    """Adds the points of an evaluation to a run's curves.

    Args:
      folder: of the run, below models/tensorboard/.
      first: place of the level's iteration 0 on the axis of the iterations of all levels.
      iteration: of the level.
      losses: training losses of the iterations up to this one.
      scalars: {name: value} of this iteration; NaN is left out.
      crops: uint8 arrays of one shape, (height, width, 3).

    Raises:
      DataError: they could not be written.
    """
    import tensorflow as tf
    try:
        with tf.summary.create_file_writer(str(folder)).as_default():
            for stop in range(len(losses), 0, -LOSSES_IN_A_POINT):
                part = losses[max(0, stop - LOSSES_IN_A_POINT):stop]
                step = first + iteration - len(losses) + stop
                tf.summary.scalar("loss/training", np.mean(part), step)
            for name, value in scalars.items():
                if not math.isnan(value):
                    tf.summary.scalar(name, value, first + iteration)
            if crops:
                tf.summary.image("input, output, target", np.stack(crops), first + iteration, max_outputs=len(crops))
            tf.summary.flush()
    except tf.errors.OpError as error:
        raise DataError(f"{folder}: could not be written ({str(error).splitlines()[0]})") from None


def device_memory():
    """Most bytes that were taken so far: of the first GPU where there is one, or of this process."""
    import tensorflow as tf
    if tf.config.list_logical_devices("GPU"):
        return tf.config.experimental.get_memory_info("GPU:0")["peak"]
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


# The model card ------------------------------------------------------------------------------------------------------


def card_path(level):
    return utils.MODELS / f"pynet_level_{level}.json"


def write_card(level, iteration, metrics, name, settings, photos, start, above):
    """Writes or replaces the card of a level; DataError where that fails.

    Args:
      iteration, metrics: {name: value} of the newest evaluation; those of earlier ones are kept.
      name: of the run, as `next_run` gave it.
      settings: {name: value} of the run; a resumed one may have other settings than before.
      photos: {"training": count, "test": count}.
      start: in words.
      above: what `iterations_above` gave.
    """
    import tensorflow as tf
    from tensorflow import keras
    earlier = read_card(level) or {}
    evaluations = earlier.get("evaluations", {}) if earlier.get("run") == name else {}
    card = {
        "level": level, "iteration": iteration, "run": name, "start": start, "photos": photos, "iterations_above": above,
        "settings": settings,
        "evaluations": evaluations | {str(iteration): {"metrics": metrics, "settings": settings}},
        "versions": {"python": platform.python_version(), "tensorflow": tf.__version__, "keras": keras.__version__,
                     "numpy": np.__version__, "pillow": PIL.__version__},
        "commit": commit(), "date": datetime.datetime.now().isoformat(timespec="seconds"),
    }
    utils.write_json(card_path(level), card)


def read_card(level):
    """The card of a level as a dictionary; None where there is none that can be read."""
    try:
        card = json.loads(card_path(level).read_text(encoding="utf-8"))
        return card if isinstance(card, dict) else None
    except (OSError, ValueError):
        return None


def card_text(level, iteration):
    """A line about the checkpoint of an iteration; None where the card does not know it."""
    card = read_card(level)
    try:
        evaluation = card["evaluations"][str(iteration)]
        settings = " ".join(f"{name}={value}" for name, value in evaluation["settings"].items())
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in evaluation["metrics"].items())
        return (f"Model card: level {level}, iteration {iteration}, {card['start']}, {card['photos']['training']} training "
                f"photos, {settings}; in training: {metrics}; commit {card['commit']}")
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def commit():
    """The commit of this repository, with "+" where files differ from it; "unknown" where git does not tell."""
    repository = pathlib.Path(__file__).resolve().parent.parent
    try:
        done = subprocess.run(["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"], cwd=repository,
                              capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip() or "unknown"

"""What a training leaves behind to look at: curves for TensorBoard, and a card that says where a model comes from.

    models/tensorboard/level_<L>/run_<N>/    curves and visual crops; a resumed run goes on in the same folder
    models/tensorboard/level_<L>/test/       means of test_model.py
    models/pynet_level_<L>.json              the model card
"""

import datetime
import importlib.metadata
import json
import math
import pathlib
import platform
import resource
import subprocess

import numpy as np

import utils
from utils import DataError

CURVES = utils.MODELS / "tensorboard"
LOSSES_IN_A_POINT = 50  # of the training loss; a curve of every single one would be noise
PACKAGES = ("tensorflow", "keras", "numpy", "pillow")


# Curves --------------------------------------------------------------------------------------------------------------


def next_run(level):
    """The name of the curves of a run that starts anew: run_1, run_2 ..."""
    folder = CURVES / f"level_{level}"
    number = 1
    while (folder / f"run_{number}").exists():
        number += 1
    return f"run_{number}"


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


def write_card(level, iteration, metrics, settings, photos, start, above):
    """Writes or replaces the card of a level; DataError where that fails.

    Args:
      iteration, metrics: {name: value} of the newest evaluation; those of earlier ones are kept.
      settings: {name: value} of the run.
      photos: {"training": count, "test": count}.
      start: in words.
      above: what `iterations_above` gave.
    """
    earlier = read_card(level) or {}
    same_run = earlier.get("settings") == settings and earlier.get("start") == start
    evaluations = earlier.get("evaluations", {}) if same_run else {}
    card = {
        "level": level, "iteration": iteration, "start": start, "settings": settings, "photos": photos,
        "iterations_above": above,
        "evaluations": evaluations | {str(iteration): metrics},
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES} | {"python": platform.python_version()},
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
    card = read_card(level) or {}
    metrics = card.get("evaluations", {}).get(str(iteration))
    if metrics is None:
        return None
    settings = " ".join(f"{name}={value}" for name, value in card["settings"].items())
    known = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
    return (f"Model card: level {level}, iteration {iteration}, {card['start']}, {card['photos']['training']} training photos, "
            f"{settings}; in training: {known}; commit {card['commit']}")


def commit():
    """The commit of this repository, with "+" where files differ from it; "unknown" where git does not tell."""
    repository = pathlib.Path(__file__).resolve().parent.parent
    try:
        done = subprocess.run(["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"], cwd=repository,
                              capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip() or "unknown"

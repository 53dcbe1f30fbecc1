"""What does a training leave to look at? A log, curves for TensorBoard, and a card that says where a model comes from.

    models/logs.txt                          a line for each evaluation
    models/tensorboard/level_<L>/run_<N>/    curves and visual crops; a resumed run goes on in the same folder
    models/tensorboard/level_<L>/<test run>/ means of test_model.py
    models/pynet_level_<L>.json              the model card
"""

import contextlib
import datetime
import fcntl
import json
import math
import os
import pathlib
import platform
import re
import subprocess
import time

import numpy as np
import PIL
from PIL import Image

import load_dataset
import utils
from support import checkpoints, devices
from utils import MODELS, RESULTS, DataError, first_line, printable, say, tf, warn

LOG = MODELS / "logs.txt"
CURVES = MODELS / "tensorboard"
LOGGED_METRICS = ("content", "mse", "psnr", "l1", "ms-ssim")  # in this order; others follow
LOSSES_IN_A_POINT = 50  # of the training loss; a curve of every single one would be noise


def log_line(iteration, losses, test):
    """Returns the line of an evaluation: the mean of the training losses since the last one, and the test metrics."""
    training = f"{np.mean(losses):.4g}" if losses else "-"
    names = [name for name in LOGGED_METRICS if name in test]
    names += [name for name in test if name not in (*names, "loss")]
    terms = ", ".join(f"{name}: {test[name]:.4g}" for name in names)
    return f"step {iteration} | training: {training}, test: {test['loss']:.4g} | {terms}"


def append_to_log(heading, line, end):
    """Adds a line to models/logs.txt, and before it the heading of the run unless the log ends at byte `end`.

    So a line stands below the heading of its own run also where two levels are trained at once. Returns the new end.
    """
    try:
        with open(LOG, "a", encoding="utf-8") as log:
            with contextlib.suppress(OSError):  # a network drive may have no locks
                fcntl.flock(log, fcntl.LOCK_EX)
            lines = [line] if log.seek(0, os.SEEK_END) == end else [heading, line]
            print(*map(printable, filter(None, lines)), sep="\n", file=log, flush=True)
            return log.tell()
    except OSError as error:
        error.filename = str(LOG)  # a full disk names none
        raise


def visual_crop(patch, output, target):
    """Returns input | output | target side by side: uint8 (side, 3 side, 3), side at least that of the input patch.

    Small levels are enlarged pixel by pixel, so that their true resolution shows; the input bicubically.
    """
    side = max(len(patch), len(target))
    parts = Image.fromarray(patch[..., :3]), Image.fromarray(utils.to_uint8(output)), Image.fromarray(target)
    filters = Image.Resampling.BICUBIC, Image.Resampling.NEAREST, Image.Resampling.NEAREST
    return np.hstack([np.asarray(part.resize((side, side), how)) for part, how in zip(parts, filters)])


def next_run(level):
    """Returns the name of the curves of a run that starts anew: run_1, run_2 ..."""
    names = [path.name.removeprefix("run_") for path in (CURVES / f"level_{level}").glob("run_*")]
    return f"run_{max([int(name) for name in names if name.isdecimal()], default=0) + 1}"


def iterations_above(level, restored):
    """Returns how many iterations came before a level that starts from iteration `restored` of the level above."""
    saved = [checkpoints.saved_iterations(above) for above in range(level + 2, 8)]
    return restored + sum(iterations[-1] for iterations in saved if iterations)


def write_curves(level, run, test, crops, scalars):
    """Adds the points of an evaluation to the curves of a `Run`. Raises DataError where they cannot be written.

    test, scalars: {name: value}, test metrics and others; crops: uint8 arrays of one shape, (height, width, 3).
    """
    with _writing(CURVES / f"level_{level}" / run.name):
        for stop in range(len(run.losses), 0, -LOSSES_IN_A_POINT):
            mean = np.mean(run.losses[max(0, stop - LOSSES_IN_A_POINT):stop])
            tf.summary.scalar("loss/training", mean, run.iterations_above + run.iteration - len(run.losses) + stop)
        values = {"loss/test": test["loss"]} | {f"test/{name}": test[name] for name in test if name != "loss"}
        step = run.iterations_above + run.iteration
        for name, value in (values | scalars | {"device_memory_bytes": devices.peak_memory()}).items():
            tf.summary.scalar(name, value, step)
        if crops:
            tf.summary.image("input, output, target", np.stack(crops), step, max_outputs=len(crops))


def write_test_means(level, iteration, run, means):
    """Adds the means of test_model.py to a level's curves. run: name of the curve; NaN is left out. Errors as above."""
    above = read_card(level).get("iterations_above", 0)
    with _writing(CURVES / f"level_{level}" / run):
        for name, value in means.items():
            if not math.isnan(value):
                tf.summary.scalar(f"full resolution/{name}", value, above + iteration)


@contextlib.contextmanager
def _writing(folder):
    try:
        with tf.summary.create_file_writer(str(folder)).as_default():
            yield
            tf.summary.flush()
    except tf.errors.OpError as error:
        raise DataError(f"{folder}: could not be written ({first_line(error)})") from None


def card_path(level):
    """Returns models/pynet_level_<level>.json."""
    return MODELS / f"pynet_level_{level}.json"


def write_card(experiment, test):
    """Writes or replaces the card of a level; the evaluations of the same run before this one are kept.

    experiment: the `experiments.Experiment`; test: {name: value} of its newest evaluation.
    """
    run, level, settings = experiment.run, experiment.settings.level, experiment.kept_settings()
    earlier = read_card(level)
    evaluations = earlier.get("evaluations", {}) if earlier.get("run") == run.name else {}
    card = {
        "level": level, "iteration": run.iteration, "run": run.name, "start": run.start,
        "photos": experiment.counts(), "maps": experiment.map_kind, "iterations_above": run.iterations_above,
        "settings": settings,
        "evaluations": evaluations | {str(run.iteration): {"metrics": test, "settings": settings}},
        **experiment.code,
        "versions": {"python": platform.python_version(), "tensorflow": tf.__version__, "numpy": np.__version__,
                     "pillow": PIL.__version__},
        "date": datetime.datetime.now().isoformat(timespec="seconds"),
    }
    checkpoints.write_json(card_path(level), card)


def read_card(level):
    """Returns the card of a level as a dictionary, which is empty where there is none that can be read."""
    return _read_json(card_path(level))


def _read_json(path):
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return content if isinstance(content, dict) else {}
    except (OSError, RecursionError, ValueError):
        return {}


def card_of(prefix):
    """Returns what is known of a checkpoint, {} for nothing: the card of its level beside it, or PREFIX.json."""
    prefix = pathlib.Path(prefix)
    match = re.search(r"pynet_level_([0-9])_iteration_([0-9]+)\.ckpt$", prefix.name)
    card = _read_json(prefix.with_name(card_path(match[1]).name)) if match else {}
    evaluations = card.get("evaluations")
    known = isinstance(evaluations, dict) and match[2] in evaluations
    return card if known else _read_json(prefix.with_name(f"{prefix.name}.json"))


def map_kind(prefix):
    """Returns which of load_dataset.MAPS a checkpoint's network sees: "depth" where no card tells; None without maps.

    Raises DataError where the checkpoint is damaged or not PyNET's.
    """
    if not checkpoints.takes_maps(checkpoints.network_of(prefix)):
        return None
    kind = card_of(prefix).get("maps")
    return kind if kind in list(load_dataset.MAPS) else "depth"


def settings_of(prefix):
    """Returns {name: value} of the settings that a checkpoint was trained with; {} where no card says so."""
    return _settings_in(card_of(prefix))


def _settings_in(card):
    settings = card.get("settings")
    return settings if isinstance(settings, dict) else {}


def trained_val_size(settings):
    """Returns the val_size that a level was trained with on the data set of the `settings`, None where unknown."""
    trained = _settings_in(read_card(settings.level))
    val_size, folder = trained.get("val_size"), trained.get("dataset_dir")
    same = isinstance(folder, str) and os.path.realpath(folder) == os.path.realpath(settings.dataset_dir)
    return val_size if same and type(val_size) is int and val_size >= 0 else None


def follow_val_size(settings):
    """Tests on the photos that the level's training left out, as its model card says, and warns of another val_size."""
    trained = None if settings.orig or settings.small else trained_val_size(settings)
    if trained is not None and "val_size" not in settings.given:
        settings.val_size = trained
        if trained:
            say(f"val_size={trained}, as in training")
    elif trained not in (None, settings.val_size):
        known = ", and has seen some of these photos" if settings.val_size > trained else ""
        warn(f"val_size={settings.val_size}: level {settings.level} was trained with val_size={trained}{known}")


def takes_maps(settings):
    """Returns whether a network sees depth maps, as far as its card knows: only a checkpoint says it for certain."""
    trained = {} if settings.orig or settings.small else _settings_in(read_card(settings.level))
    return trained.get("use_depth") is not False


def card_rows(level, iteration):
    """Returns {what: text} about the checkpoint of an iteration; {} where the card does not know it."""
    card = read_card(level)
    try:
        evaluation = card["evaluations"][str(iteration)]
        return {"Origin": f"Trained {card['start']}, on {card['photos']['training']} photos, commit {card['commit']}",
                "In training": ", ".join(f"{name} {value:.4g}" for name, value in evaluation["metrics"].items()),
                "Settings": " ".join(f"{name}={value}" for name, value in evaluation["settings"].items())}
    except (AttributeError, KeyError, TypeError, ValueError):
        return {}


def commit():
    """Returns the commit of this repository, with "+" where files differ from it; "unknown" where git does not tell."""
    repository = pathlib.Path(__file__).resolve().parent.parent
    try:
        done = subprocess.run(["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"],
                              cwd=repository, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip() or "unknown"


def write_or_warn(action, *arguments):
    """Calls action(*arguments). Where that cannot write, warns and returns False: the training goes on."""
    try:
        action(*arguments)
        return True
    except (OSError, DataError) as error:
        warn(f"{error}; the training goes on")
        return False


class TrainingLog:
    """Reports the evaluations of an `Experiment`: on the screen, in the log, as pictures and curves, in the card.

    What cannot be written is said. Workers that write nothing report nothing.
    """

    def __init__(self, experiment):
        self.experiment = experiment
        self._restart_clock()
        if experiment.writes:
            run, counts = experiment.run, experiment.counts()
            arguments = " ".join(f"{name}={value}" for name, value in experiment.kept_settings().items())
            start = f"resumed after iteration {run.iteration}" if run.iteration else run.start
            self._heading = (f"# {datetime.datetime.now():%Y-%m-%d %H:%M:%S} | level={experiment.settings.level} "
                             f"{arguments} | {start} | {counts['training']} training, {counts['test']} test photos")
            self._log_end = None
            write_or_warn(self._add_to_log)

    def _add_to_log(self, line=""):
        self._log_end = append_to_log(self._heading, line, self._log_end)

    def _restart_clock(self):
        self._started, self._waited, self._batches = time.monotonic(), 0.0, 0

    def next_batch(self, batches):
        """Returns the next batch, and measures how long that takes."""
        started = time.monotonic()
        batch = next(batches)
        self._waited += time.monotonic() - started
        self._batches += 1
        return batch

    def report(self, test, crops, learning_rate):
        """Reports this iteration's {name: test metric} and visual crops, uint8 arrays of one shape."""
        if not self.experiment.writes:
            return
        run, level = self.experiment.run, self.experiment.settings.level
        scalars = {"learning_rate": learning_rate}
        if self._batches:
            scalars["speed/iterations_per_second"] = self._batches / (time.monotonic() - self._started)
            scalars["speed/seconds_waiting_for_data"] = self._waited
        for index, crop in enumerate(crops):
            path = RESULTS / f"pynet_img_{index}_level_{level}_iter_{run.iteration}.jpg"
            write_or_warn(utils.write_image, path, crop)
        line = log_line(run.iteration, run.losses, test)
        say(line)
        write_or_warn(self._add_to_log, line)
        write_or_warn(write_curves, level, run, test, crops, scalars)
        if run.checkpoints:  # before, the card is that of an earlier run
            write_or_warn(write_card, self.experiment, test)
        self._restart_clock()

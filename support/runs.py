"""How does a run stop and go on? Its state on the disk, resuming, stop signals, the lock, the space."""

import contextlib
import dataclasses
import fcntl
import hashlib
import math
import os
import pathlib
import re
import shutil
import signal
from types import SimpleNamespace
from typing import Any, NamedTuple

from support import checkpoints, training_log, updates
from support.training_log import write_or_warn
from utils import MODELS, RESULTS, DataError, UsageError, parse_stored, prepare_folders, say, tf, warn


@dataclasses.dataclass
class Run:
    """Where a run stands: what resuming it takes besides the weights and Adam's moments."""

    iteration: int = 0  # updates done
    evaluation_due: bool = True  # whether this iteration is to be saved and measured, and is not yet
    losses: list = dataclasses.field(default_factory=list)  # of the iterations since the last evaluation
    scale: updates.LossScale = dataclasses.field(default_factory=updates.LossScale)
    name: str = "run_1"  # of its curves
    start: str = ""  # from what, in words
    iterations_above: int = 0  # that the levels above were trained
    checkpoints: list = dataclasses.field(default_factory=list)  # iterations of those that this run has written

    @classmethod
    def from_notes(cls, notes):
        """Returns the run that `as_notes` described. Raises TypeError on names that it does not know."""
        scale = {name: notes[name] for name in updates.LossScale.__annotations__ if name in notes}
        others = {name: value for name, value in notes.items() if name not in ("evaluated", *scale)}
        return cls(**others, scale=updates.LossScale(**scale), evaluation_due=not notes.get("evaluated", False))

    def as_notes(self):
        """Returns the fields as they stand in the notes of a state."""
        notes = dataclasses.asdict(self)
        scale, due = notes.pop("scale"), notes.pop("evaluation_due")
        return notes | scale | {"evaluated": not due}

    def is_sound(self):
        """Returns whether all values, as read from a file, are of their types and in their ranges."""
        scale = self.scale
        counts = [self.iteration, scale.steps_at_scale, self.iterations_above, *self.checkpoints]
        numbers = [scale.loss_scale, *self.losses]
        return (all(type(count) is int and 0 <= count < 10 ** 18 for count in counts)
                and all(type(number) in (int, float) and math.isfinite(number) for number in numbers)
                and type(self.losses) is type(self.checkpoints) is list
                and scale.loss_scale >= 1 and type(self.start) is str
                and re.fullmatch("run_[0-9]{1,18}", self.name) is not None)

    def count(self, loss, settings):
        """Counts an update."""
        self.iteration += 1
        self.losses.append(loss)
        self.evaluation_due = self.iteration % settings.eval_step == 0 or self.iteration >= settings.num_train_iters


class Start(NamedTuple):
    """Where a level starts: `prefix` of the weights, None for random ones; `resumed`: notes of the state, or None."""

    run: Run
    prefix: Any
    resumed: Any


@dataclasses.dataclass
class Experiment:
    """What a run is. Made once, by `train_model.main`, and handed on whole to all that save, log and compare it."""

    settings: SimpleNamespace  # complete
    start: Start
    train_pairs: list
    test_pairs: list
    code: dict  # {"commit": ..., "loss_weights": ...}
    writes: bool = True  # whether this process writes files; of several workers only the first does

    @property
    def run(self):
        return self.start.run

    @property
    def map_kind(self):
        """Which of load_dataset.MAPS the network sees, None without maps."""
        return self.train_pairs[0].kind if self.train_pairs else None

    def kept_settings(self):
        """Returns {name: value} of the settings that a resumed run takes over: not those that say where to start."""
        return {name: value for name, value in vars(self.settings).items()
                if name not in ("level", "restore_iter", "weights", "resume", "given")}

    def counts(self):
        """Returns how many photos there are."""
        return {"training": len(self.train_pairs), "test": len(self.test_pairs)}

    def photos(self):
        """Tells the training photos from others: returns their number, and a checksum of their names."""
        names = "\n".join(pair.name for pair in self.train_pairs).encode(errors="surrogateescape")
        return {"count": len(self.train_pairs), "names_sha256": hashlib.sha256(names).hexdigest()}

    def shared_by_workers(self):
        """Returns text that is the same for all workers if they train the same; their folders may differ."""
        same = {name: value for name, value in self.kept_settings().items() if not name.endswith("_dir")}
        same["vgg_dir"] = self.settings.vgg_dir.lower() == "none"
        index = pathlib.Path(f"{self.start.prefix}.index")  # has checksums of all weights
        weights = hashlib.sha256(index.read_bytes() if self.start.prefix else b"").digest()
        return repr((self.settings.level, self.run.iteration, same, self.map_kind, self.photos(), weights))

    def check_maps(self):
        """Warns where the weights saw another kind of map than the data set has; DataError, unless by weights=."""
        prefix, settings = self.start.prefix, self.settings
        seen = training_log.map_kind(prefix) if prefix else self.map_kind
        if seen == self.map_kind:
            return
        text = f"{prefix}: was trained with {seen} maps, and {settings.dataset_dir} has {self.map_kind} maps"
        if self.start.resumed or not settings.weights:
            raise DataError(f"{text}: train on maps of one kind, or go on from other weights with weights={prefix}")
        warn(f"{text}: what the map means is learned anew")

    def say_start(self):
        """Prints the number of photos and, where a run goes on, what has changed: settings, photos, loss, commit."""
        settings, counts, before = self.settings, self.counts(), self.start.resumed
        say(f"Data: {counts['training']} training and {counts['test']} test photos in {settings.dataset_dir}")
        if not before:
            return
        say(f"Level {settings.level} goes on after iteration {self.run.iteration} of {settings.num_train_iters} "
            f"({self.start.prefix})")
        was = before.settings | before.code
        for name, value in (self.kept_settings() | self.code).items():
            if was.get(name) != value:
                say(f"Note: {name} was {was.get(name)} until iteration {self.run.iteration}, and is {value} from now "
                    "on")
        if before.photos != self.photos():
            say(f"Note: the training photos are not those of the run until now ({before.photos['count']} photos): it "
                "goes on with the new ones")


@contextlib.contextmanager
def locked_level(level):
    """Makes models/ and results/, locks the level, and tries to save: only one run at a time trains it in this folder.

    The lock is the kernel's and ends with the process, however that ends. Raises DataError where another run holds it,
    or no checkpoint can be saved.
    """
    prepare_folders(MODELS, RESULTS)
    path = MODELS / f".pynet_level_{level}.lock"
    with open(path, "wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{MODELS}/: level {level} is being trained here by another run: wait for it, or train in "
                            "another folder") from None
        except OSError as error:  # a network drive may have no locks
            warn(f"{path}: cannot be locked ({error.strerror}); make sure that no other run trains level {level} here")
        checkpoints.discard_half_saves(MODELS, f"pynet_level_{level}_*")
        checkpoints.try_to_save(level)
        yield


def find_start(settings, parameters):
    """Returns the `Start` of a level, and prints it. `parameters`: the `Parameter`s of the settings of a state."""
    level, prefix = settings.level, checkpoints.resume_prefix(settings.level)
    before = read_state(prefix, parameters)
    if before and settings.resume:
        for name in {"restore_iter", "weights"} & settings.given:
            say(f"Note: {name}={getattr(settings, name)} is not used, since there is a state to resume")
        return Start(before.run, prefix, before)
    if settings.resume:
        say(f"Nothing to resume: {MODELS}/ holds no state of level {level}, so it starts as usual")
    elif before:
        say(f"Note: this run of level {level} starts anew; resume=true would go on after iteration "
            f"{before.run.iteration}")
    run, prefix = Run(name=training_log.next_run(level), start="from random weights"), None
    if settings.weights:
        prefix = pathlib.Path(settings.weights)
        if not checkpoints.exists(prefix):
            raise DataError(f"weights={prefix}: no such checkpoint; it must be {prefix}.index and a .data file, given "
                            "without these endings")
        run.start = f"from all weights of {prefix}"
    elif level < 7:
        prefix, iteration = checkpoints.find_checkpoint(level + 1, settings.restore_iter)
        run.start = f"from level {level + 1}, iteration {iteration}"
        run.iterations_above = training_log.iterations_above(level, iteration)
    say(f"Level {level} starts {run.start}")
    return Start(run, prefix, None)


def is_done(settings, run):
    """Returns whether nothing is left to do. What has become the last iteration must have a checkpoint, and metrics."""
    left = settings.num_train_iters - run.iteration
    if left == 0 and run.iteration not in checkpoints.saved_iterations(settings.level):
        run.evaluation_due = True
    return left < 0 or left == 0 and not run.evaluation_due


def read_state(prefix, parameters):
    """Returns the notes of a resumable state as a namespace, with its `Run`; None without one.

    Its settings are checked as those of the command line are. Raises DataError if anything is damaged.
    """
    try:
        notes = checkpoints.read_notes(prefix)
        if notes is None:
            return None
        state = SimpleNamespace(run=Run.from_notes(notes["run"]), settings=parse_stored(notes["settings"], parameters),
                                photos={"count": 0, **notes["photos"]}, code=dict(notes["code"]))
        if state.run.is_sound():
            return state
        problem = "is damaged or of another version"
    except UsageError as error:
        problem = error
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        problem = "is damaged or of another version"
    raise DataError(f"{prefix}.json: {problem}; without it the level starts anew (delete {prefix}.*)")


def inherited_val_size(settings, prefix):
    """Returns that of the checkpoint to start from, so that no test photo has been trained on, or the one given."""
    inherited = training_log.settings_of(prefix).get("val_size")
    if type(inherited) is not int or inherited == settings.val_size:
        return settings.val_size
    if "val_size" not in settings.given:
        say(f"val_size={inherited}, as {prefix} was trained with")
        return inherited
    warn(f"val_size={settings.val_size}: {prefix} was trained with val_size={inherited}, so perhaps on photos that are "
         "test photos now")
    return settings.val_size


def find_vgg19(settings, terms):
    """Returns the VGG-19 file, or None. `terms` of the loss, a set of names, require it, unless vgg_dir=none."""
    path, wanted = pathlib.Path(settings.vgg_dir), settings.vgg_dir.lower() != "none"
    path = path / "imagenet-vgg-verydeep-19.mat" if path.is_dir() else path
    if wanted and path.is_file():
        return path
    if wanted and terms:
        raise DataError(f"{path}: no such file; level {settings.level} is trained with VGG-19 features (README, "
                        "Downloads), or without them: vgg_dir=none")
    if terms:
        say(f"Note: vgg_dir=none leaves the term {', '.join(terms)} out of the loss of level {settings.level}")
    elif wanted:
        say(f"Note: no {path}, so the content term is not reported; the loss of level {settings.level} is without it")
    return None


def restore_moments(moments, start):
    """Reads {name: tf.Variable} of the optimizer from the state of a `Start`. What this lacks keeps its value.

    So it is where more variables are trained from now on: their moments are 0, as in a new run. A note says so.
    """
    lacking = moments.keys() - checkpoints.stored_names(start.prefix)
    if lacking:
        say(f"Note: {start.prefix} lacks {len(lacking)} of {len(moments)} moments, such as {min(lacking)}: they start "
            "as in a new run")
    checkpoints.restore_checkpoint({name: moments[name] for name in moments if name not in lacking}, start.prefix)


class Saver:
    """Saves a run's weights and its state as far as it can, and says how to go on. Only the first worker writes.

    Args:
      experiment: the `Experiment`.
      published: {name: tf.Variable} of the checkpoints: the whole network.
      state: {name: tf.Variable} of all that resuming takes: what is trained, and the optimizer's moments.
    """

    def __init__(self, experiment, published, state):
        self.experiment, self.published, self.state = experiment, published, state
        self.settings, self.run = experiment.settings, experiment.run
        self.state_iteration = self.run.iteration  # of the state on the disk, 0 while there is none of this run
        self.failed = False  # whether the last save could not be written

    def save_if_due(self):
        """Saves weights and state at an evaluation. DataError if the weights are NaN or infinite."""
        if self.run.iteration:
            self._save(self._write_weights, self._write_state)

    def stop(self):
        """Saves the state, unless that of this iteration is on the disk, and says how to go on. Errors as above."""
        if self.state_iteration != self.run.iteration:
            self._save(self._write_state)
        level = self.settings.level
        how = (f"This goes on after iteration {self.state_iteration}: python train_model.py level={level} resume=true"
               if self.state_iteration else "Nothing is saved yet: start it again")
        say(f"Stopped after iteration {self.run.iteration} of level {level}. {how}")

    def finish(self, signal_number):
        """Ends the run, which a signal may have stopped (else 0). Returns the exit status."""
        if signal_number:
            self.stop()
        if not self.failed:
            return 128 + signal_number if signal_number else 0
        saved = max(self.state_iteration, *self.run.checkpoints, 0)
        warn("the last save failed; " + (f"what was saved up to iteration {saved} is still there" if saved else
                                         "nothing of this run was saved"), kind="error")
        return 1

    def note_evaluation(self):
        """Notes, also on the disk, that the metrics of this iteration are in the log."""
        self.run.losses, self.run.evaluation_due = [], False
        if 0 < self.run.iteration == self.state_iteration and self.experiment.writes:
            path = pathlib.Path(f"{checkpoints.resume_prefix(self.settings.level)}.json")
            write_or_warn(checkpoints.write_json, path, self._notes())

    def next_batch(self, batches, log):
        """Returns the next batch, measured by the log. Saves the state where it cannot be had; errors go on."""
        try:
            return log.next_batch(batches)
        except DataError:  # too many photos are damaged
            self.stop()
            raise

    def check_loss(self, loss, names):
        """Raises DataError on a NaN or infinite loss of the photos `names`, before anything is saved."""
        if not math.isfinite(loss):
            raise self._not_finite(f"the loss is {loss} (photos {', '.join(names)})")

    def _not_finite(self, what):
        return DataError(f"iteration {self.run.iteration}: {what}. Nothing of it was saved. Try a lower learning_rate "
                         "or a larger batch_size; resume=true goes on from the last good state, where there is one")

    def say_disk_space(self):
        """Prints how much disk the checkpoints to come and the state can take, and warns where less is free."""
        if not self.experiment.writes:
            return
        weights, state = (sum(4 * variable.shape.num_elements() for variable in which.values())
                          for which in (self.published, self.state))
        settings, free = self.settings, shutil.disk_usage(MODELS).free
        to_come = math.ceil((settings.num_train_iters - self.run.iteration) / settings.eval_step)
        needed = min(settings.max_to_keep, to_come) * weights + 2 * state  # twice while it is written
        print(f"Disk: up to {needed / 1e6:.0f} MB for checkpoints and state, {free / 1e6:.0f} MB are free")
        if free < needed:
            warn(f"that is more than is free in {MODELS}/: make room, or lower max_to_keep={settings.max_to_keep}")

    def _save(self, *writers):
        variables = (self.published | self.state).values()
        if not all(tf.reduce_all(tf.math.is_finite(variable)) for variable in variables):
            raise self._not_finite("the weights or moments are no longer finite")
        if not self.experiment.writes:
            self.state_iteration = self.run.iteration  # as the first worker has it
        else:
            written = [write_or_warn(write) for write in writers]  # the state also where the weights could not be
            self.failed = not all(written)

    def _write_weights(self):
        run, level = self.run, self.settings.level
        prefix = checkpoints.checkpoint_prefix(level, run.iteration)
        checkpoints.save_checkpoint(self.published, prefix, before_replacing=lambda: (
            self._move_older("_iteration_*.ckpt.*", ".json")))
        say(f"saved {prefix}")
        run.checkpoints = [iteration for iteration in run.checkpoints if iteration != run.iteration] + [run.iteration]
        while len(run.checkpoints) > self.settings.max_to_keep:
            checkpoints.remove_checkpoint(checkpoints.checkpoint_prefix(level, run.checkpoints.pop(0)))

    def _write_state(self):
        """Writes all that resuming takes, in place of the state of an earlier iteration."""
        prefix = checkpoints.resume_prefix(self.settings.level)
        checkpoints.save_checkpoint(self.state, prefix, self._notes(), before_replacing=self._move_older)
        self.state_iteration = self.run.iteration

    def _notes(self):
        experiment = self.experiment
        return {"run": self.run.as_notes(), "maps": experiment.map_kind, "settings": experiment.kept_settings(),
                "photos": experiment.photos(), "code": experiment.code}

    def _move_older(self, *patterns):
        """Moves what earlier runs left until this run has a checkpoint: their files of `patterns`, and their state."""
        if self.run.checkpoints:
            return
        state = () if self.state_iteration else ("_resume.ckpt.*",)
        folder = checkpoints.move_to_older(self.settings.level, [*state, *patterns])
        if folder:
            say(f"moved the files of earlier runs of level {self.settings.level} to {folder}/")


class StopSignals:
    """In use, lets Ctrl-C and the other `NUMBERS` be only noted as `received`; a second Ctrl-C ends it at once."""

    NUMBERS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1  # a closed terminal, SLURM's warning
    received = None

    def __enter__(self):
        self._before = {number: signal.signal(number, self._note) for number in self.NUMBERS
                        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN}  # under nohup
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number, _):
        self.received = number
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        with contextlib.suppress(OSError):  # the terminal may be gone
            os.write(2, b"\nstopping after this iteration (Ctrl-C stops at once)\n")  # print() may be under way

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

from support import checkpoints, devices, training_log
from support.training_log import attempt
from utils import MODELS, RESULTS, DataError, UsageError, parse_stored, prepare_folders, say, tf, warn


@dataclasses.dataclass
class Run:
    """Where a run is: what resuming it takes besides the weights and Adam's moments."""

    iteration: int = 0  # updates done
    evaluated: bool = False  # whether the metrics of this iteration are in the log, where they are due
    losses: list = dataclasses.field(default_factory=list)  # of the iterations since the last evaluation
    loss_scale: float = devices.FIRST_LOSS_SCALE  # of precision=float16
    steps_at_scale: int = 0  # iterations since the loss scale last changed
    name: str = "run_1"  # of its curves
    start: str = ""  # from what, in words
    iterations_above: int = 0  # that the levels above were trained
    checkpoints: list = dataclasses.field(default_factory=list)  # iterations of those that this run has written

    def is_sound(self):
        """Returns whether all values, as read from a file, are of their types and in their ranges."""
        counts = [self.iteration, self.steps_at_scale, self.iterations_above, *self.checkpoints]
        numbers = [self.loss_scale, *self.losses]
        return (all(type(count) is int and 0 <= count < 10 ** 18 for count in counts)
                and all(type(number) in (int, float) and math.isfinite(number) for number in numbers)
                and type(self.losses) is type(self.checkpoints) is list
                and self.loss_scale >= 1 and type(self.evaluated) is bool and type(self.start) is str
                and re.fullmatch("run_[0-9]{1,18}", self.name) is not None)

    def count(self, loss, settings):
        """Counts an update."""
        self.iteration += 1
        self.losses.append(loss)
        self.evaluated = bool(self.iteration % settings.eval_step and self.iteration < settings.num_train_iters)


@contextlib.contextmanager
def prepared_folders(level):
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
    """Returns where a level starts: (run, prefix of its weights or None, notes of the state that is resumed or None).

    Settings that are not on the command line of a resumed run become those that it had. parameters: the `Parameter`s.
    """
    level, prefix = settings.level, checkpoints.resume_prefix(settings.level)
    before = read_state(prefix, parameters)
    if before and settings.resume:
        run = before.run
        for name, value in before.settings.items():
            if name not in settings.given or name == "kernel_start":  # which has had its effect
                setattr(settings, name, value)
        for name in {"restore_iter", "weights"} & settings.given:
            print(f"Note: {name}={getattr(settings, name)} is not used, since there is a state to resume")
        if run.iteration == settings.num_train_iters:  # the last one gets a checkpoint, and metrics
            run.evaluated &= run.iteration in checkpoints.saved_iterations(level)
        if not is_done(settings, run):
            print(f"Level {level} goes on after iteration {run.iteration} of {settings.num_train_iters} ({prefix})")
        return run, prefix, before
    if settings.resume:
        print(f"Nothing to resume: {MODELS}/ holds no state of level {level}, so it starts as usual")
    elif before:
        print(f"Note: this run of level {level} starts anew; resume=true would go on after iteration "
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
    print(f"Level {level} starts {run.start}")
    return run, prefix, None


def is_done(settings, run):
    """Returns whether a run has nothing left to do: no iteration, no checkpoint, no metrics."""
    return run.iteration > settings.num_train_iters or run.iteration == settings.num_train_iters and run.evaluated


def read_state(prefix, parameters):
    """Returns the notes of a resumable state as a namespace, with its `Run`; None without one.

    Its settings are checked as those of the command line are. Raises DataError if anything is damaged.
    """
    try:
        notes = checkpoints.read_notes(prefix)
        if notes is None:
            return None
        state = SimpleNamespace(run=Run(**notes["run"]), settings=parse_stored(notes["settings"], parameters),
                                photos={"count": 0, **notes["photos"]}, code=dict(notes["code"]))
        if state.run.is_sound():
            return state
        problem = "is damaged or of another version"
    except UsageError as error:
        problem = error
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        problem = "is damaged or of another version"
    raise DataError(f"{prefix}.json: {problem}; without it the level starts anew (delete {prefix}.*)")


def note_changes(settings, before, train_pairs, code):
    """Prints what differs from the run that is resumed: settings, photos, loss weights, this repository."""
    was = before.settings | before.code
    for name, value in (inherited(settings) | code).items():
        if was.get(name) != value:
            say(f"Note: {name} was {was.get(name)} until iteration {before.run.iteration}, and is {value} from now "
                  "on")
    if before.photos != fingerprint(train_pairs):
        say(f"Note: the training photos are not those of the run until now ({before.photos['count']} photos): "
              "it goes on with the new ones")


def follow_checkpoint(settings, prefix):
    """Sets `use_depth` and `width` to those of the checkpoint. DataError where the command line says otherwise."""
    network = checkpoints.network_of(prefix)
    found = {"use_depth": checkpoints.takes_maps(network), "width": f"{network['width_multiplier']:g}"}
    for name, value in found.items():
        if name in settings.given and getattr(settings, name) != value:
            raise DataError(f"{prefix}: is of a network with {name}={str(value).lower()}; leave {name}= out, or start "
                            "at level 7 with it, from random weights")
        setattr(settings, name, value)


def find_vgg19(settings):
    """Returns the VGG-19 file, or None: level 1 is trained with it, the levels above only report its content term."""
    if settings.vgg_dir.lower() == "none":
        return None
    path = pathlib.Path(settings.vgg_dir)
    if path.is_dir():
        path = path / "imagenet-vgg-verydeep-19.mat"
    if path.is_file():
        return path
    if settings.level == 1:
        raise DataError(f"{path}: no such file; level 1 is trained with VGG-19 features (README, Downloads), "
                        "or without them: vgg_dir=none")
    print(f"Note: no {path}, so the content term is not reported (only level 1 needs it)")
    return None


def inherited(settings):
    """Returns {name: value} of the settings that a resumed run takes over: all but those that say where to start."""
    return {name: value for name, value in vars(settings).items()
            if name not in ("level", "restore_iter", "weights", "resume", "given")}


def shared_by_workers(settings, run, prefix, train_pairs):
    """Returns text that is the same for all workers if they train the same; their folders may differ."""
    same = {name: value for name, value in inherited(settings).items() if not name.endswith("_dir")}
    same["vgg_dir"] = settings.vgg_dir.lower() == "none"
    start = pathlib.Path(f"{prefix}.index").read_bytes() if prefix else b""  # has checksums of all weights
    return repr((settings.level, run.iteration, same, fingerprint(train_pairs), hashlib.sha256(start).digest()))


def fingerprint(pairs):
    """Tells a list of photos from another: returns their number, and a checksum of their names."""
    names = "\n".join(pair.name for pair in pairs)
    return {"count": len(pairs), "names_sha256": hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()}


class Saver:
    """Saves a run's weights and its state as far as it can, and says how to go on. Only the first worker writes.

    weights: {name: tf.Variable} of the whole network; slots: the optimizer's.
    """

    def __init__(self, settings, worker, run, weights, slots, train_pairs, code):
        self.settings, self.worker, self.run = settings, worker, run
        self.weights, self.state = weights, weights | slots
        self.notes_beside = {"photos": fingerprint(train_pairs), "code": code}
        self.state_iteration = run.iteration  # of the state on the disk, 0 while there is none of this run
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

    def failure(self):
        """Returns what to say in the end where the last save has failed."""
        saved = max(self.state_iteration, *self.run.checkpoints, 0)
        return "the last save failed; " + (f"what was saved up to iteration {saved} is still there" if saved else
                                           "nothing of this run was saved")

    def note_evaluation(self):
        """Notes, also on the disk, that the metrics of this iteration are in the log."""
        self.run.losses, self.run.evaluated = [], True
        if 0 < self.run.iteration == self.state_iteration and not self.worker.index:
            path = pathlib.Path(f"{checkpoints.resume_prefix(self.settings.level)}.json")
            attempt(checkpoints.write_json, path, self._notes())

    def not_finite(self, what):
        """Returns the error that ends a run whose numbers have become NaN or infinite."""
        return DataError(f"iteration {self.run.iteration}: {what}. Nothing of it was saved. Try a lower learning_rate "
                         "or a larger batch_size; resume=true goes on from the last good state, where there is one")

    def say_disk_space(self):
        """Prints how much disk the checkpoints to come and the state can take, and warns where less is free."""
        if self.worker.index:
            return
        weights, state = (sum(4 * variable.shape.num_elements() for variable in which.values())
                          for which in (self.weights, self.state))
        settings, free = self.settings, shutil.disk_usage(MODELS).free
        to_come = math.ceil((settings.num_train_iters - self.run.iteration) / settings.eval_step)
        needed = min(settings.max_to_keep, to_come) * weights + 2 * state  # twice while it is written
        print(f"Disk: up to {needed / 1e6:.0f} MB for checkpoints and state, {free / 1e6:.0f} MB are free")
        if free < needed:
            warn(f"that is more than is free in {MODELS}/: make room, or lower max_to_keep={settings.max_to_keep}")

    def _save(self, *writers):
        if not all(tf.reduce_all(tf.math.is_finite(variable)) for variable in self.weights.values()):
            raise self.not_finite("the weights are no longer finite")
        if self.worker.index:
            self.state_iteration = self.run.iteration  # as the first worker has it
        else:
            written = [attempt(write) for write in writers]  # the state also where the weights could not be
            self.failed = not all(written)

    def _write_weights(self):
        run, level = self.run, self.settings.level
        prefix = checkpoints.checkpoint_prefix(level, run.iteration)
        checkpoints.save_checkpoint(self.weights, prefix, before_replacing=lambda: (
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
        return {"run": dataclasses.asdict(self.run), "settings": inherited(self.settings), **self.notes_beside}

    def _move_older(self, *patterns):
        """Moves what earlier runs left until this run has a checkpoint: their files of `patterns`, and their state."""
        if self.run.checkpoints:
            return
        state = () if self.state_iteration else ("_resume.ckpt.*",)
        folder = checkpoints.move_to_older(self.settings.level, [*state, *patterns])
        if folder:
            say(f"moved the files of earlier runs of level {self.settings.level} to {folder}/")


class StopSignals:
    """While it is in use, Ctrl-C and the other `NUMBERS` are only noted as `received`; a second Ctrl-C stops at once.

    agreed: whether all workers know of it. None leaves before an update has told the others, which would wait for it.
    """

    NUMBERS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1  # a closed terminal, SLURM's warning

    def __init__(self, worker):
        self.received, self.agreed, self._alone = None, False, worker.count == 1

    def __enter__(self):
        self._before = {number: signal.signal(number, self._note) for number in self.NUMBERS
                        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN}  # under nohup
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def hear(self, stopped):
        """Takes note of a step, which tells whether any worker was told to stop."""
        self.agreed = stopped
        if stopped and not self.received:
            self.received = signal.SIGTERM  # another worker was told

    def is_due(self):
        """Returns whether the loop is to end."""
        return bool(self.received and (self._alone or self.agreed))

    def _note(self, number, _):
        self.received = number
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        with contextlib.suppress(OSError):  # the terminal may be gone
            os.write(2, b"\nstopping after this iteration (Ctrl-C stops at once)\n")  # print() may be under way

"""How does a run stop and go on? Saving, stop signals, the lock, the space on the disk."""

import contextlib
import fcntl
import math
import os
import pathlib
import shutil
import signal

from support import checkpoints
from support.training_log import write_or_warn
from utils import MODELS, RESULTS, DataError, prepare_folders, say, tf, warn


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
      experiment: the `experiments.Experiment`.
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

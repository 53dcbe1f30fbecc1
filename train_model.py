"""Trains one level of PyNET: python train_model.py level=N, with N = 7 first, then 6, 5, 4, 3, 2, 1.

Each level starts from the last checkpoint of the level above. A run that was stopped, however it was, goes on with
resume=true as if it had not been. TensorFlow is imported by the functions that need it, so that a mistyped argument or
a missing photo is answered before the seconds which that takes.
"""

import contextlib
import dataclasses
import datetime
import hashlib
import math
import os
import pathlib
import signal
import sys
import time
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

import load_dataset
import utils
from tools import training_record
from utils import DataError, Parameter, UsageError

DEFAULT_ITERATIONS = {7: 5000, 6: 5000, 5: 20000, 4: 20000, 3: 30000, 2: 80000, 1: 100000}  # the paper's schedule
ADAM_BETA_1, ADAM_BETA_2, ADAM_EPSILON = 0.9, 0.999, 1e-8
VISUAL_CROPS = 7
FIRST_LOSS_SCALE, SCALE_DOUBLES_AFTER = 2.0 ** 15, 2000  # section 3.2 of arXiv:1710.03740; it leaves the numbers open
LOGGED_METRICS = ("content", "mse", "psnr", "l1", "ms-ssim")
MS_SSIM_LEVELS = (3, 2, 1)  # the patches of the levels above are too small for its five scales

PARAMETERS = (
    Parameter("level", int, utils.REQUIRED, "level to train: 7 first, then 6 ... 1", 1, 7),
    Parameter("batch_size", int, 50, "images in a batch, of all devices together", 1),
    Parameter("micro_batch", int, None, "images that a device computes at a time: less memory, the same update", 1,
              default_text="its whole part of the batch"),
    Parameter("precision", utils.PRECISIONS, "float32", "of the feature maps; weights, Adam and losses stay float32"),
    Parameter("train_size", int, 4894, "training images drawn at random for each 1000 iterations", 1),
    Parameter("eval_step", int, 1000, "iterations between two checkpoints, with metrics and visual crops", 1),
    Parameter("learning_rate", float, 5e-5, "of Adam", 1e-12, 1),
    Parameter("restore_iter", int, None, "iteration of level N+1 to start from", 1, default_text="last saved"),
    Parameter("num_train_iters", int, None, "iterations to train", 1,
              default_text=", ".join(map(str, DEFAULT_ITERATIONS.values())) + " for levels 7 ... 1"),
    Parameter("vgg_dir", str, "vgg_pretrained/imagenet-vgg-verydeep-19.mat",
              "VGG-19 file for the content loss; none trains level 1 without it"),
    Parameter("dataset_dir", str, "ebb_dataset/", "folder with train/ and test/"),
    Parameter("use_depth", bool, True, "false trains level 7 on photos alone; the levels after it follow it"),
    Parameter("resume", bool, False, "go on where a stopped run of the level was, with its settings"),
    Parameter("seed", int, 0, "of the first weights of level 7, and of the choice of photos and patches", 0,
              2 ** 31 - 1),
    Parameter("max_to_keep", int, 100, "checkpoints of this run to keep, the newest ones", 1),
)
USAGE = "python train_model.py level=N [name=value ...]"


@dataclasses.dataclass
class Run:
    """Where a run is: what resuming it takes besides the weights and Adam's moments."""

    iteration: int = 0  # updates done
    evaluated: bool = False  # whether the metrics of this iteration are in the log, where they are due
    losses: list = dataclasses.field(default_factory=list)  # of the iterations since the last evaluation
    loss_scale: float = FIRST_LOSS_SCALE  # of precision=float16
    steps_at_scale: int = 0  # iterations since the loss scale last changed
    name: str = "run_1"  # of its curves
    start: str = ""  # from what, in words
    iterations_above: int = 0  # that the levels above were trained
    checkpoints: list = dataclasses.field(default_factory=list)  # iterations of those that this run has written


def main(argv):
    """Trains a level as the arguments say. Returns the exit status."""
    settings = utils.parse_arguments(argv, PARAMETERS, USAGE)
    if settings.level == 7 and settings.restore_iter:
        raise UsageError("restore_iter: level 7 is the first to be trained and starts from no other level")
    worker = utils.place_among_workers()
    with prepared_folders(settings.level) if worker.index == 0 else contextlib.nullcontext():
        run, weights, photos_before = find_start(settings)
        if settings.batch_size < worker.count:
            raise UsageError(f"batch_size={settings.batch_size}: is less than the {worker.count} workers of TF_CONFIG")
        if is_done(settings, run):
            print(f"Level {settings.level} has its {settings.num_train_iters} iterations; num_train_iters=... trains on")
            return 0
        vgg_file = find_vgg19(settings)
        follow_checkpoint(settings, weights)
        train_pairs, test_pairs = load_dataset.find_training_set(settings.dataset_dir, settings.use_depth)
        print(f"Data: {len(train_pairs)} training and {len(test_pairs)} test photos in {settings.dataset_dir}")
        if photos_before not in (None, fingerprint(train_pairs)):
            print(f"Note: these are not the training photos that the run had until now ({photos_before['count']} "
                  "photos): it goes on with these")
        utils.start_tensorflow(precision=settings.precision)
        return train(settings, worker, run, weights, vgg_file, train_pairs, test_pairs)


@contextlib.contextmanager
def prepared_folders(level):
    """models/ and results/, with the level locked; only the first of several workers writes there."""
    utils.prepare_folders(utils.MODELS, utils.RESULTS)
    with utils.lock_level(level):
        utils.discard_half_saves(level)
        yield


def find_start(settings):
    """Where the level starts: (run, prefix of its weights or None, fingerprint of the photos it had until now or None).

    Settings that are not on the command line of a resumed run become those that it had.
    """
    level, state = settings.level, utils.resume_prefix(settings.level)
    before = read_state(state)
    if before and settings.resume:
        inherit_settings(settings, before)
        if settings.restore_iter:
            print(f"Note: restore_iter={settings.restore_iter} is not used, since there is a state to resume")
        before.run.start = before.run.start or "from a run of an earlier version"
        print(f"Level {level} goes on after iteration {before.run.iteration} of {settings.num_train_iters} ({state})")
        return before.run, state, before.photos
    if settings.resume:
        print(f"Nothing to resume: {utils.MODELS}/ holds no state of level {level}, so it starts as usual")
    elif before:
        print(f"Note: resume=true would go on after iteration {before.run.iteration} of level {level}; this run starts "
              "anew. Its first checkpoint replaces that state, and checkpoints of the same iterations are replaced too")
    if settings.num_train_iters is None:
        settings.num_train_iters = DEFAULT_ITERATIONS[level]
    name = training_record.next_run(level)
    if level == 7:
        print("Level 7 starts from random weights")
        return Run(name=name, start="from random weights"), None, None
    prefix, iteration = utils.find_checkpoint(level + 1, settings.restore_iter)
    print(f"Level {level} starts from level {level + 1}, iteration {iteration} ({prefix})")
    run = Run(name=name, start=f"from level {level + 1}, iteration {iteration}",
              iterations_above=training_record.iterations_above(level, iteration))
    return run, prefix, None


def is_done(settings, run):
    """Whether a run has nothing left to do: no iteration, no checkpoint, no metrics."""
    if run.iteration == settings.num_train_iters:
        return run.evaluated and run.iteration in utils.saved_iterations(settings.level)
    return run.iteration > settings.num_train_iters


def read_state(prefix):
    """The notes of a resumable state as run, settings and photos; None where there is no state, DataError if damaged."""
    notes = utils.read_notes(prefix)
    if notes is None:
        return None
    try:
        return SimpleNamespace(run=Run(**notes["run"]), settings=dict(notes["settings"]), photos=dict(notes["photos"]))
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{prefix}.json: is damaged; without it the level starts anew (delete {prefix}.*)") from None


def inherit_settings(settings, before):
    """Takes over what the command line leaves open from the run that is resumed, and says what it changes."""
    for name, value in before.settings.items():
        if name not in settings.given:
            setattr(settings, name, value)
        elif getattr(settings, name) != value:
            print(f"Note: {name} was {value} until iteration {before.run.iteration}, "
                  f"and is {getattr(settings, name)} from now on")


def follow_checkpoint(settings, weights):
    """Sets `use_depth` to what the network of the checkpoint takes; DataError where the command line says otherwise."""
    takes_depth = utils.takes_depth(weights) if weights else settings.use_depth
    if "use_depth" in settings.given and settings.use_depth != takes_depth:
        kind = "with" if takes_depth else "without"
        given = str(settings.use_depth).lower()
        raise DataError(f"{weights}: is of a network {kind} depth maps; leave use_depth={given} out, or "
                        "start at level 7 with it")
    settings.use_depth = takes_depth


def find_vgg19(settings):
    """The VGG-19 file to use, or None: level 1 is trained with it, the levels above only report its content term."""
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


def train(settings, worker, run, weights, vgg_file, train_pairs, test_pairs):
    """The story of a level: restore, then iterate; every eval_step save, measure and show. Returns the exit status."""
    level = Level(settings, worker, run, weights, vgg_file, train_pairs, test_pairs)
    level.begin()
    saved = True
    with StopSignals() as stop:
        if run.iteration == settings.num_train_iters and run.iteration not in utils.saved_iterations(settings.level):
            saved, run.evaluated = level.save(level.save_weights, level.save_state), False
        if not run.evaluated:
            level.evaluate(stop)
        batches = load_dataset.training_batches(train_pairs, settings.level, settings.batch_size, settings.train_size,
                                                run.iteration + 1, settings.num_train_iters, settings.seed,
                                                level.division.places)
        progress = utils.ProgressLine(run.iteration, settings.num_train_iters, f"level {settings.level}, iteration")
        while run.iteration < settings.num_train_iters and not level.is_to_stop(stop):
            batch = level.next_batch(batches)
            level.update(batch, stop)
            progress.update(run.iteration, f"loss {run.losses[-1]:.4g}")
            if not run.evaluated:
                progress.clear()
                saved = level.save(level.save_weights, level.save_state)
                level.evaluate(stop)
        batches.close()
        progress.clear()
        if stop.received:
            saved = level.save_for_stop(saved)
            utils.say(f"Stopped after iteration {run.iteration} of level {settings.level}. {level.how_to_go_on()}")
    if not saved:
        utils.say("error: the last save failed; what was saved before is still there", file=sys.stderr)
        return 1
    return 128 + stop.received if stop.received else 0


class Level:
    """A level in training: its network with its moments, what one iteration does, and what is saved and shown.

    Of several workers each has one. They compute and count the same, and only the first one writes.
    """

    def __init__(self, settings, worker, run, weights, vgg_file, train_pairs, test_pairs):
        import model
        import vgg
        self.settings, self.worker, self.run = settings, worker, run
        self.weights, self.train_pairs, self.test_pairs = weights, train_pairs, test_pairs
        strategy = choose_strategy(worker)  # before anything runs, or workers cannot be connected
        load_dataset.compile_ahead(train_pairs, settings.level)
        vgg19 = vgg.load_vgg19(vgg_file) if vgg_file else None  # before the network, because the file may be wrong
        with strategy.scope():
            pynet = model.build_pynet(load_dataset.PATCH, load_dataset.PATCH, None if weights else settings.seed,
                                      settings.precision, settings.use_depth)
            network = model.network_for_level(pynet, settings.level)
            self.adam = Adam(trained_variables(network))
        self.variables = pynet.variables
        self.state = pynet.variables | self.adam.named_moments(pynet.variables)
        if weights:
            utils.restore_checkpoint(self.state if run.iteration else self.variables, weights)
        self.scales_loss = settings.precision == "float16"
        self.division = divide_batch(settings.batch_size, settings.micro_batch, strategy, worker)
        self.training_step = make_training_step(network, settings.level, vgg19, self.adam, settings.learning_rate,
                                                self.division, self.scales_loss)
        self.evaluation_step = make_evaluation_step(network, settings.level, vgg19)
        self.damaged_test_photos = load_dataset.DamagedPhotos(len(test_pairs))
        self.state_iteration = run.iteration  # of the state on the disk, 0 while there is none of this run
        self.stop_agreed, self.clock = False, Clock()

    def next_batch(self, batches):
        """The next batch; where there can be none because too many photos are damaged, the state is saved first."""
        try:
            with self.clock.waiting_for_batch():
                return next(batches)
        except DataError:
            self.save_for_stop(saved=True)
            raise

    def update(self, batch, stop):
        """One iteration. DataError if the loss is NaN or infinite: such a run is lost, its checkpoints must not be."""
        run = self.run
        value, self.stop_agreed = self.take_step(batch, stop)
        run.iteration += 1
        run.losses.append(value)
        run.evaluated = bool(run.iteration % self.settings.eval_step and run.iteration < self.settings.num_train_iters)
        if self.stop_agreed and not stop.received:
            utils.say("another worker was told to stop")
            stop.received = signal.SIGTERM
        if not math.isfinite(value):
            raise self.not_finite(f"the loss is {value} (photos {', '.join(batch.names)})")

    def is_to_stop(self, stop):
        """Whether the loop ends. Of several workers none leaves before an update has told all: they would wait for it."""
        return self.stop_agreed if self.worker.count > 1 else stop.received

    def take_step(self, batch, stop):
        """The update of one iteration: (loss before it, whether any worker was told to stop).

        Where float16 gradients overflow the same batch is computed again with half the loss scale.
        """
        import tensorflow as tf
        run = self.run
        try:
            while True:
                step = self.training_step(batch.inputs, batch.targets, run.iteration + 1, bool(stop.received),
                                          run.loss_scale if self.scales_loss else 1.0)
                if step.applied or not math.isfinite(step.loss):
                    break
                if run.loss_scale <= 1:
                    raise self.not_finite("the gradients are not finite, whatever the loss scale")
                run.loss_scale, run.steps_at_scale = run.loss_scale / 2, 0
        except tf.errors.ResourceExhaustedError:
            raise self.out_of_memory() from None
        except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError) as error:
            if self.worker.count == 1:
                raise
            raise DataError(f"a worker was lost after iteration {run.iteration} ({type(error).__name__}): start all workers "
                            f"again. {self.how_to_go_on()}") from None
        run.steps_at_scale += self.scales_loss
        if run.steps_at_scale == SCALE_DOUBLES_AFTER:
            run.loss_scale, run.steps_at_scale = 2 * run.loss_scale, 0
        return step.loss, step.stopped

    def out_of_memory(self):
        """The error that names what would need less memory."""
        full, images = f"the device's memory is full at level {self.settings.level}", self.division.largest_piece()
        if images > 1:
            return DataError(f"{full} with {images} images at a time: try micro_batch={images // 2}, which is the same "
                             "training in smaller pieces")
        if self.settings.precision == "float32":
            return DataError(f"{full} with one image at a time: try precision=bfloat16 or float16, which takes about half")
        return DataError(f"{full} with one image at a time: a device with more memory is needed, or all of this one's")

    def save(self, *actions):
        """Calls what saves weights or state; False where that fails. DataError if the weights are NaN or infinite."""
        import tensorflow as tf
        if self.worker.index:
            self.state_iteration = self.run.iteration  # as the first worker has it
            return True
        if not all(tf.reduce_all(tf.math.is_finite(variable)) for variable in self.adam.variables):
            raise self.not_finite("the weights are no longer finite")
        return all([attempt(action) for action in actions])

    def save_for_stop(self, saved):
        """Saves what is not on the disk yet, and weights whose saving failed. False where that fails (again).

        The state of an earlier run that this one has not replaced so far is left: this one may be a mistake.
        """
        if self.leaves_earlier_state():
            return True
        missing = [] if saved else [self.save_weights]
        missing += [] if self.is_on_disk() else [self.save_state]
        return self.save(*missing) if missing else True

    def leaves_earlier_state(self):
        """Whether the state on the disk is that of an earlier run of the level."""
        return not self.state_iteration and utils.read_notes(utils.resume_prefix(self.settings.level)) is not None

    def how_to_go_on(self):
        """What to do after a stop."""
        command = f"python train_model.py level={self.settings.level} resume=true"
        if self.leaves_earlier_state():
            return f"It had no checkpoint yet, and the state of the run before it is left as it was. That goes on: {command}"
        if not self.state_iteration:
            return "There is nothing saved yet: start it again"
        return f"This goes on after iteration {self.state_iteration}: {command}"

    def not_finite(self, what):
        """The error that ends a run whose numbers have become NaN or infinite."""
        return DataError(f"iteration {self.run.iteration}: {what}. Nothing of it was saved. Try a lower learning_rate (it "
                         f"is {self.settings.learning_rate:g}) or a larger batch_size (it is {self.settings.batch_size}); "
                         "resume=true goes on from the last good state, where there is one")

    def save_weights(self):
        """Writes the checkpoint of this iteration, then deletes this run's oldest ones beyond max_to_keep."""
        run, level = self.run, self.settings.level
        utils.save_checkpoint(self.variables, utils.checkpoint_prefix(level, run.iteration))
        utils.say(f"saved {utils.checkpoint_prefix(level, run.iteration)}")
        run.checkpoints = [iteration for iteration in run.checkpoints if iteration != run.iteration] + [run.iteration]
        while len(run.checkpoints) > self.settings.max_to_keep:
            utils.remove_checkpoint(utils.checkpoint_prefix(level, run.checkpoints.pop(0)))

    def save_state(self):
        """Writes all that resuming takes: weights, moments and notes. It replaces the state of an earlier iteration."""
        utils.save_checkpoint(self.state, utils.resume_prefix(self.settings.level), self.notes())
        self.state_iteration = self.run.iteration

    def is_on_disk(self):
        """Whether nothing would be lost if the process ended now."""
        return self.state_iteration == self.run.iteration

    def notes(self):
        """What is kept beside the state."""
        return {"run": dataclasses.asdict(self.run), "settings": inherited(self.settings),
                "photos": fingerprint(self.train_pairs)}

    def evaluate(self, stop):
        """Measures the test photos, shows the first few, and adds a line to the log; nothing if it is stopped midway."""
        run = self.run
        if self.worker.index:
            run.losses, run.evaluated = [], True
            return
        speed = self.clock.read()
        test, crops = evaluate_and_show(self.evaluation_step, self.test_pairs, self.damaged_test_photos, self.settings,
                                 run.iteration, self.division.largest_piece(), stop)
        if test is None:
            return
        line = log_line(run.iteration, np.mean(run.losses) if run.losses else math.nan, test)
        utils.say(line)
        attempt(append_to_log, line)
        scalars = {"loss/test": test["loss"]} | {f"test/{name}": test[name] for name in LOGGED_METRICS if name in test}
        scalars |= speed | {"learning_rate": self.settings.learning_rate,
                            "device_memory_bytes": training_record.device_memory()}
        attempt(training_record.write_curves, training_record.CURVES / f"level_{self.settings.level}" / run.name,
                run.iterations_above, run.iteration, run.losses, scalars, crops)
        attempt(training_record.write_card, self.settings.level, run.iteration, test, run.name, inherited(self.settings),
                {"training": len(self.train_pairs), "test": len(self.test_pairs)}, run.start, run.iterations_above)
        self.clock.restart()
        run.losses, run.evaluated = [], True
        if run.iteration and self.is_on_disk():
            attempt(utils.write_notes, utils.resume_prefix(self.settings.level), self.notes())

    def begin(self):
        """What there is to say at the start, and the heading in the log."""
        check_agreement(self.division.strategy, self.worker, self.what_workers_share())
        if self.worker.index == 0:
            self.say_disk_space()
            attempt(append_to_log, heading(self.settings, self.run, self.weights, self.train_pairs, self.test_pairs))

    def what_workers_share(self):
        """Text that is the same for all workers if they train the same; their files may lie in different folders."""
        settings = {name: value for name, value in inherited(self.settings).items() if not name.endswith("_dir")}
        settings["vgg_dir"] = self.settings.vgg_dir.lower() == "none"
        start = pathlib.Path(f"{self.weights}.index").read_bytes() if self.weights else b""  # has checksums of all weights
        return repr((self.settings.level, self.run.iteration, settings, fingerprint(self.train_pairs),
                     hashlib.sha256(start).digest()))

    def say_disk_space(self):
        """Says how much disk the checkpoints of the level can take, and warns where there is less."""
        weights_size, state_size = (sum(4 * variable.shape.num_elements() for variable in which.values())
                                    for which in (self.variables, self.state))
        to_come = math.ceil((self.settings.num_train_iters - self.run.iteration) / self.settings.eval_step)
        count = min(self.settings.max_to_keep, to_come)
        needed, free = count * weights_size + 2 * state_size, utils.free_space(utils.MODELS)
        print(f"Disk: up to {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free (checkpoints to come: {count} of "
              f"{weights_size / 1e6:.0f} MB; resumable state: {state_size / 1e6:.0f} MB, twice while it is written)")
        if free < needed:
            utils.warn(f"that is more than is free in {utils.MODELS}/: make room, or lower max_to_keep "
                       f"(it is {self.settings.max_to_keep})")


def choose_strategy(worker):
    """How devices work together: the workers of TF_CONFIG, or all GPUs of this machine, or the one device there is."""
    import tensorflow as tf
    if worker.count > 1:
        utils.say(f"Worker {worker.index + 1} of {worker.count}, waiting for the others")
        try:
            return tf.distribute.MultiWorkerMirroredStrategy()
        except (tf.errors.OpError, RuntimeError) as error:
            raise DataError(f"TF_CONFIG: the workers could not be connected ({str(error).splitlines()[0]}): see that the "
                            "addresses are right, and that no earlier run still holds this worker's port") from None
    several = len(tf.config.list_logical_devices("GPU")) > 1
    return tf.distribute.MirroredStrategy() if several else tf.distribute.get_strategy()


def check_agreement(strategy, worker, text):
    """DataError unless all workers have the same text, which says what they are about to train."""
    import tensorflow as tf
    if worker.count == 1:
        return
    digest = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
    own = strategy.experimental_distribute_values_from_function(lambda _: tf.constant([digest], tf.int64))
    if len(set(strategy.gather(own, axis=0).numpy())) > 1:
        raise DataError("the workers do not have the same arguments, photos and checkpoints: give all of them the same "
                        "arguments, and copies of (or one shared) models/ and data set")


class Clock:
    """How fast the iterations of this process since `restart` were, and how long they waited for data."""

    def __init__(self):
        self.restart()

    def restart(self):
        self._started, self._waited, self._batches = time.monotonic(), 0.0, 0

    @contextlib.contextmanager
    def waiting_for_batch(self):
        started = time.monotonic()
        yield
        self._waited += time.monotonic() - started
        self._batches += 1

    def read(self):
        """{name: value}; nothing without an iteration."""
        elapsed = time.monotonic() - self._started
        return {"speed/iterations_per_second": self._batches / elapsed,
                "speed/seconds_waiting_for_data": self._waited} if self._batches else {}


class StopSignals:
    """While it is in use, Ctrl-C and SIGTERM are only noted as `received`; a second Ctrl-C stops the process at once."""

    def __enter__(self):
        self.received = None
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number, _):
        self.received = number
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        with contextlib.suppress(OSError):  # the terminal may be gone
            os.write(2, b"\nstopping after this iteration (Ctrl-C stops at once)\n")  # print() may be under way


def attempt(action, *arguments):
    """Calls action(*arguments); where it cannot write that is said, and False returned: training goes on."""
    try:
        action(*arguments)
        return True
    except (OSError, DataError) as error:
        utils.warn(f"{error}; the training goes on")
        return False


def inherited(settings):
    """The settings that a resumed run takes over: all but those that say where to start."""
    return {name: value for name, value in vars(settings).items()
            if name not in ("level", "restore_iter", "resume", "given")}


def fingerprint(pairs):
    """Tells a list of photos from another: their number, and a checksum of their names."""
    names = "\n".join(pair.name for pair in pairs)
    return {"count": len(pairs), "names_sha256": hashlib.sha256(names.encode()).hexdigest()}


# Losses and metrics --------------------------------------------------------------------------------------------------


def loss(level, output, target, vgg19=None):
    """The loss of a level (section 3.3 of arXiv:2006.05698, with the released training's weights).

    Args:
      level: 1-7.
      output, target: float32 (images, height, width, 3), RGB, 0-1.
      vgg19: what `vgg.load_vgg19` returned; None leaves the content term of level 1 out.

    Returns:
      A scalar: 100 L1 for levels 7-2; 10 L1 + 0.1 content + 10 (1 - SSIM) for level 1.
    """
    import tensorflow as tf
    if level > 1:
        return 100 * l1_loss(output, target)
    ssim = tf.reduce_mean(tf.image.ssim(output, target, 1.0))
    content = content_loss(vgg19, output, target) if vgg19 else 0.0
    return 10 * l1_loss(output, target) + 0.1 * content + 10 * (1 - ssim)


def l1_loss(output, target):
    """Mean absolute error."""
    import tensorflow as tf
    return tf.reduce_mean(tf.abs(output - target))


def content_loss(vgg19, output, target):
    """Mean squared difference of the relu5_4 features of RGB images in 0-1 (perceptual loss, arXiv:1603.08155)."""
    import tensorflow as tf
    import vgg
    return tf.reduce_mean(tf.math.squared_difference(
        vgg.vgg19_features(vgg19, 255 * output), vgg.vgg19_features(vgg19, 255 * target)))


def metrics(level, output, target, vgg19=None):
    """{name: scalar}, means over the images: loss, content (with VGG-19), mse, l1, ms-ssim (levels 1-3)."""
    import tensorflow as tf
    found = {"loss": loss(level, output, target, vgg19)}
    if vgg19:
        found["content"] = content_loss(vgg19, output, target)
    found |= {"mse": tf.reduce_mean(tf.math.squared_difference(output, target)), "l1": l1_loss(output, target)}
    if level in MS_SSIM_LEVELS:
        found["ms-ssim"] = tf.reduce_mean(tf.image.ssim_multiscale(output, target, 1.0))
    return found


# One step ------------------------------------------------------------------------------------------------------------


class Adam:
    """Adam (arXiv:1412.6980) as TensorFlow 1 had it: v -= lr sqrt(1 - beta2^t) / (1 - beta1^t) m / (sqrt(s) + epsilon).

    One fused kernel updates a variable with its moments m and s.
    """

    def __init__(self, variables):
        import tensorflow as tf
        self.variables = variables
        self.moments = [tuple(tf.Variable(tf.zeros_like(variable)) for _ in range(2)) for variable in variables]

    def named_moments(self, variables):
        """{name: tf.Variable} of the moments, named after {name: variable} as TensorFlow 1 names them."""
        names = {id(variable): name for name, variable in variables.items()}
        return {names[id(variable)] + suffix: moment for variable, moments in zip(self.variables, self.moments)
                for suffix, moment in zip(("/Adam", "/Adam_1"), moments)}

    def apply(self, gradients, iteration, learning_rate):
        """Updates the variables. `iteration` is t, 1 for the first update."""
        import tensorflow as tf
        t = tf.cast(iteration, tf.float64)
        lr, beta_1, beta_2, epsilon = map(  # once, not for each variable
            tf.constant, (learning_rate, ADAM_BETA_1, ADAM_BETA_2, ADAM_EPSILON))
        beta_1_power, beta_2_power = (tf.cast(tf.pow(tf.constant(beta, tf.float64), t), tf.float32)
                                      for beta in (ADAM_BETA_1, ADAM_BETA_2))
        for variable, (m, s), gradient in zip(self.variables, self.moments, gradients, strict=True):
            tf.raw_ops.ResourceApplyAdam(
                var=variable.handle, m=m.handle, v=s.handle, beta1_power=beta_1_power, beta2_power=beta_2_power,
                lr=lr, beta1=beta_1, beta2=beta_2, epsilon=epsilon, grad=gradient)


def trained_variables(network):
    """The tf.Variables that the output of a network depends on."""
    return [variable.value for variable in network.trainable_variables]


class Division(NamedTuple):
    """How the devices of a strategy share a batch of `size` images.

    rounds: what is computed at a time; in each round a range of images for every device, which may be empty.
    places: the images that this worker loads.
    """

    size: int
    strategy: Any
    rounds: list
    places: range

    def largest_piece(self):
        """Images that a device computes at a time."""
        return max(map(len, self.rounds[0]))


def divide_batch(size, micro_batch=None, strategy=None, worker=utils.ONLY_WORKER):
    """The `Division` of a batch, as even as can be, into pieces of at most `micro_batch` images (None: one piece each)."""
    import tensorflow as tf
    strategy = strategy or tf.distribute.get_strategy()
    devices = strategy.num_replicas_in_sync
    bounds = [size * device // devices for device in range(devices + 1)]
    shares = [range(size)[start:stop] for start, stop in zip(bounds, bounds[1:])]
    largest = max(map(len, shares))
    piece = min(micro_batch or largest, largest)
    rounds = [[share[first:first + piece] for share in shares] for first in range(0, largest, piece)]
    first, last = (devices * index // worker.count for index in (worker.index, worker.index + 1))
    return Division(size, strategy, rounds, range(size)[bounds[first]:bounds[last]])


class Step(NamedTuple):
    """What a training step gives: the loss before its update, whether it was applied, whether any worker is to stop."""

    loss: float
    applied: bool
    stopped: bool


def make_training_step(network, level, vgg19, adam, learning_rate, division, scales_loss=False):
    """Makes the update of one iteration.

    Nothing in the network mixes the images of a batch and every loss is a mean over images, so the gradient of a batch is
    the sum of the gradients of its pieces, each with its share of the images.

    Args:
      network: of the level; it and `adam` were made under the scope of the division's strategy.
      division: what `divide_batch` returned.
      scales_loss: whether gradients may overflow; an update that is not finite is left out then.

    Returns:
      step(inputs, targets, iteration, stop=False, loss_scale=1.0) -> `Step`, on this worker's places of the batch: uint8
      arrays as in `load_dataset.Batch`. `iteration` is 1 for the first update.
    """
    import tensorflow as tf
    strategy = division.strategy
    devices = strategy.num_replicas_in_sync
    at_once = len(division.rounds) == 1 and not scales_loss
    with strategy.scope():
        sums = [] if at_once else [tf.Variable(tf.zeros_like(variable), trainable=False) for variable in adam.variables]

    def over_devices(values):
        """The sum over all devices of each value."""
        return values if devices == 1 else tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, values)

    def differentiate(inputs, targets, share, loss_scale):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            for variable in adam.variables:
                tape.watch(variable)
            value = share * loss(level, network(_to_unit_range(inputs), training=True), _to_unit_range(targets), vgg19)
            scaled = value * loss_scale
        return value, tape.gradient(scaled, adam.variables)

    def update_at_once(inputs, targets, share, stop, iteration):
        value, gradients = differentiate(inputs, targets, share, 1.0)
        value, stop, *gradients = over_devices([value, tf.identity(stop), *gradients])
        adam.apply(gradients, iteration, learning_rate)
        return value, stop

    def add_piece(inputs, targets, share, stop, loss_scale):
        value, gradients = differentiate(inputs, targets, share, loss_scale)
        for total, gradient in zip(sums, gradients, strict=True):
            tf.raw_ops.AssignAddVariableOp(resource=total.handle, value=gradient)
        return over_devices([value, tf.identity(stop)])

    def update_from_sums(iteration, loss_scale):
        gradients = [total / loss_scale for total in over_devices([total.read_value() for total in sums])]
        for total in sums:
            tf.raw_ops.AssignVariableOp(resource=total.handle, value=tf.zeros_like(total))

        def apply():
            adam.apply(gradients, iteration, learning_rate)
            return True

        if not scales_loss:
            return [apply()]
        finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(gradient)) for gradient in gradients])
        return [tf.cond(finite, apply, lambda: False)]

    def on_devices(function):
        """Compiled, run on all devices; gives what the first device of this worker returned."""
        compiled = tf.function(lambda *arguments: strategy.run(function, arguments), autograph=False, reduce_retracing=True)
        return lambda *arguments: [strategy.experimental_local_results(value)[0] for value in compiled(*arguments)]

    run_update, run_piece, run_sums = map(on_devices, (update_at_once, add_piece, update_from_sums))

    def step(inputs, targets, iteration, stop=False, loss_scale=1.0):
        iteration, stop, loss_scale = tf.constant(iteration, tf.int64), tf.constant(float(stop)), tf.constant(loss_scale)
        pieces = (_pieces_for_devices(division, parts, inputs, targets) for parts in division.rounds)
        if at_once:
            value, stop = run_update(*next(pieces), stop, iteration)
            return Step(float(value), True, float(stop) > 0)
        found = [run_piece(*piece, stop, loss_scale) for piece in pieces]
        applied, = run_sums(iteration, loss_scale)
        return Step(sum(float(value) for value, _ in found), bool(applied), float(found[-1][1]) > 0)

    return step


def _pieces_for_devices(division, parts, inputs, targets):
    """(inputs, targets, share of the batch) of a round, for `Strategy.run`. A device without images gets black ones, with
    the share 0."""
    import tensorflow as tf

    def on_devices(value_of):
        if len(parts) == 1:
            return tf.constant(value_of(parts[0]))
        return division.strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(value_of(parts[context.replica_id_in_sync_group])))

    def images(values, part):
        return values[part.start - division.places.start:][:len(part)] if part else np.zeros_like(values[:1])

    return (on_devices(lambda part: images(inputs, part)), on_devices(lambda part: images(targets, part)),
            on_devices(lambda part: np.float32(len(part) / division.size)))


def make_evaluation_step(network, level, vgg19):
    """Returns step(inputs, targets) -> (metrics, outputs) on uint8 arrays of any number of images."""
    import tensorflow as tf
    side, patch = load_dataset.target_side(level), load_dataset.PATCH

    @tf.function(autograph=False, input_signature=[tf.TensorSpec([None, patch, patch, network.input_shape[-1]], tf.uint8),
                                  tf.TensorSpec([None, side, side, 3], tf.uint8)])
    def step(inputs, targets):
        outputs = network(_to_unit_range(inputs), training=False)
        return metrics(level, outputs, _to_unit_range(targets), vgg19), outputs

    return step


def _to_unit_range(images):
    import tensorflow as tf
    return tf.cast(images, tf.float32) / 255


# What is reported ----------------------------------------------------------------------------------------------------


def evaluate_and_show(evaluation_step, test_pairs, damaged, settings, iteration, piece, stop):
    """(means of the metrics over all test patches, visual crops of the first few), which are written too; (None, [])
    where it is stopped.

    `piece` is the number of images that the device takes at a time.
    """
    totals, count, crops = {}, 0, []
    for batch in load_dataset.test_batches(test_pairs, settings.level, settings.batch_size, damaged):
        if stop.received:
            return None, []
        found, outputs = evaluate_batch(evaluation_step, batch, piece)
        for name, value in found.items():
            totals[name] = totals.get(name, 0.0) + value * len(batch.names)
        for place, parts in enumerate(zip(batch.inputs, outputs, batch.targets), count):
            if place < VISUAL_CROPS:
                path = utils.RESULTS / f"pynet_img_{place}_level_{settings.level}_iter_{iteration}.jpg"
                crops.append(visual_crop(*parts))
                attempt(utils.write_image, path, crops[-1])
        count += len(batch.names)
    if not count:
        raise DataError("all test photos are damaged: python -m tools.check_dataset lists them")
    return {name: total / count for name, total in totals.items()}, crops


def evaluate_batch(evaluation_step, batch, piece):
    """({name: metric of the batch}, outputs of the first images).

    PSNR, in dB, is that of the batch's MSE; the others are means over images.
    """
    found, outputs, count = {}, [], len(batch.names)
    for first in range(0, count, piece):
        means, rendered = evaluation_step(batch.inputs[first:first + piece], batch.targets[first:first + piece])
        outputs += [image.copy() for image in rendered.numpy()[:max(0, VISUAL_CROPS - len(outputs))]]
        for name, value in means.items():
            found[name] = found.get(name, 0.0) + float(value) * len(rendered) / count
    found["psnr"] = -10 * math.log10(found["mse"]) if found["mse"] else math.inf
    return found, outputs


def visual_crop(patch, output, target):
    """input | output | target side by side: uint8 (side, 3 side, 3), side at least that of the input patch.

    Small levels are enlarged pixel by pixel, so that their true resolution shows; the input bicubically.
    """
    side = max(len(patch), len(target))
    parts = Image.fromarray(patch[..., :3]), Image.fromarray(utils.to_uint8(output)), Image.fromarray(target)
    filters = Image.Resampling.BICUBIC, Image.Resampling.NEAREST, Image.Resampling.NEAREST
    return np.hstack([np.asarray(part.resize((side, side), how)) for part, how in zip(parts, filters)])


def log_line(iteration, training_loss, test):
    """The line of an evaluation in models/logs.txt: `training_loss` is the mean since the line before."""
    terms = ", ".join(f"{name}: {test[name]:.4g}" for name in LOGGED_METRICS if name in test)
    return f"step {iteration} | training: {training_loss:.4g}, test: {test['loss']:.4g} | {terms}"


def heading(settings, run, weights, train_pairs, test_pairs):
    """The line above a run's lines in models/logs.txt."""
    arguments = " ".join(f"{name}={value}" for name, value in inherited(settings).items())
    start = f"resumed after iteration {run.iteration}" if run.iteration else f"from {weights.name if weights else 'nothing'}"
    return (f"# {datetime.datetime.now():%Y-%m-%d %H:%M:%S} | level={settings.level} {arguments} | {start} | "
            f"{len(train_pairs)} training, {len(test_pairs)} test photos")


def append_to_log(line):
    """Adds a line to models/logs.txt."""
    with open(utils.LOG, "a", encoding="utf-8") as log:
        print(line, file=log)


if __name__ == "__main__":
    sys.exit(utils.run(main))

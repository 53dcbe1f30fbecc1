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
from types import SimpleNamespace

import numpy as np
from PIL import Image

import load_dataset
import utils
from utils import DataError, Parameter, UsageError

DEFAULT_ITERATIONS = {7: 5000, 6: 5000, 5: 20000, 4: 20000, 3: 30000, 2: 80000, 1: 100000}  # the paper's schedule
ADAM_BETA_1, ADAM_BETA_2, ADAM_EPSILON = 0.9, 0.999, 1e-8
VISUAL_CROPS = 7
MS_SSIM_LEVELS = (3, 2, 1)  # the patches of the levels above are too small for its five scales

PARAMETERS = (
    Parameter("level", int, utils.REQUIRED, "level to train: 7 first, then 6 ... 1", 1, 7),
    Parameter("batch_size", int, 50, "images in a batch", 1),
    Parameter("train_size", int, 4894, "training images drawn at random for each 1000 iterations", 1),
    Parameter("eval_step", int, 1000, "iterations between two checkpoints, with metrics and visual crops", 1),
    Parameter("learning_rate", float, 5e-5, "of Adam", 1e-12, 1),
    Parameter("restore_iter", int, None, "iteration of level N+1 to start from", 1, default_text="last saved"),
    Parameter("num_train_iters", int, None, "iterations to train", 1,
              default_text=", ".join(map(str, DEFAULT_ITERATIONS.values())) + " for levels 7 ... 1"),
    Parameter("vgg_dir", str, "vgg_pretrained/imagenet-vgg-verydeep-19.mat",
              "VGG-19 file for the content loss; none trains level 1 without it"),
    Parameter("dataset_dir", str, "ebb_dataset/", "folder with train/ and test/"),
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
    checkpoints: list = dataclasses.field(default_factory=list)  # iterations of those that this run has written


def main(argv):
    """Trains a level as the arguments say. Returns the exit status."""
    settings = utils.parse_arguments(argv, PARAMETERS, USAGE)
    if settings.level == 7 and settings.restore_iter:
        raise UsageError("restore_iter: level 7 is the first to be trained and starts from no other level")
    utils.prepare_folders(utils.MODELS, utils.RESULTS)
    with utils.lock_level(settings.level):
        utils.discard_half_saves(settings.level)
        run, weights, photos_before = find_start(settings)
        if is_done(settings, run):
            print(f"Level {settings.level} has its {settings.num_train_iters} iterations; num_train_iters=... trains on")
            return 0
        vgg_file = find_vgg19(settings)
        train_pairs, test_pairs = load_dataset.find_training_set(settings.dataset_dir)
        print(f"Data: {len(train_pairs)} training and {len(test_pairs)} test photos in {settings.dataset_dir}")
        if photos_before not in (None, fingerprint(train_pairs)):
            print(f"Note: these are not the training photos that the run had until now ({photos_before['count']} "
                  "photos): it goes on with these")
        utils.start_tensorflow()
        return train(settings, run, weights, vgg_file, train_pairs, test_pairs)


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
        print(f"Level {level} goes on after iteration {before.run.iteration} of {settings.num_train_iters} ({state})")
        return before.run, state, before.photos
    if settings.resume:
        print(f"Nothing to resume: {utils.MODELS}/ holds no state of level {level}, so it starts as usual")
    elif before:
        print(f"Note: resume=true would go on after iteration {before.run.iteration} of level {level}; this run starts "
              "anew. Its first checkpoint replaces that state, and checkpoints of the same iterations are replaced too")
    if settings.num_train_iters is None:
        settings.num_train_iters = DEFAULT_ITERATIONS[level]
    if level == 7:
        print("Level 7 starts from random weights")
        return Run(), None, None
    prefix, iteration = utils.find_checkpoint(level + 1, settings.restore_iter)
    print(f"Level {level} starts from level {level + 1}, iteration {iteration} ({prefix})")
    return Run(), prefix, None


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


def train(settings, run, weights, vgg_file, train_pairs, test_pairs):
    """The story of a level: restore, then iterate; every eval_step save, measure and show. Returns the exit status."""
    level = Level(settings, run, weights, vgg_file, train_pairs, test_pairs)
    level.say_disk_space()
    attempt(append_to_log, heading(settings, run, weights, train_pairs, test_pairs))
    saved = True
    with StopSignals() as stop:
        if run.iteration == settings.num_train_iters and run.iteration not in utils.saved_iterations(settings.level):
            saved, run.evaluated = level.save(level.save_weights, level.save_state), False
        if not run.evaluated:
            level.evaluate(stop)
        batches = load_dataset.training_batches(train_pairs, settings.level, settings.batch_size, settings.train_size,
                                                run.iteration + 1, settings.num_train_iters, settings.seed)
        progress = utils.ProgressLine(run.iteration, settings.num_train_iters, f"level {settings.level}, iteration")
        while run.iteration < settings.num_train_iters and not stop.received:
            batch = level.next_batch(batches)
            level.update(batch)
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
    """A level in training: its network with its moments, what one iteration does, and what is saved and shown."""

    def __init__(self, settings, run, weights, vgg_file, train_pairs, test_pairs):
        import model
        import vgg
        vgg19 = vgg.load_vgg19(vgg_file) if vgg_file else None  # first, because the file may be wrong
        self.settings, self.run, self.train_pairs, self.test_pairs = settings, run, train_pairs, test_pairs
        pynet = model.build_pynet(load_dataset.PATCH, load_dataset.PATCH, seed=None if weights else settings.seed)
        network = model.network_for_level(pynet, settings.level)
        self.adam = Adam(trained_variables(network))
        self.variables = pynet.variables
        self.state = pynet.variables | self.adam.named_moments(pynet.variables)
        if weights:
            utils.restore_checkpoint(self.state if run.iteration else self.variables, weights)
        self.training_step = make_training_step(network, settings.level, vgg19, self.adam, settings.learning_rate)
        self.evaluation_step = make_evaluation_step(network, settings.level, vgg19)
        self.damaged_test_photos = load_dataset.DamagedPhotos(len(test_pairs))
        self.state_iteration = run.iteration  # of the state on the disk, 0 while there is none of this run

    def next_batch(self, batches):
        """The next batch; where there can be none because too many photos are damaged, the state is saved first."""
        try:
            return next(batches)
        except DataError:
            self.save_for_stop(saved=True)
            raise

    def update(self, batch):
        """One iteration. DataError if the loss is NaN or infinite: such a run is lost, its checkpoints must not be."""
        value = float(self.training_step(batch.inputs, batch.targets, self.run.iteration + 1))
        self.run.iteration += 1
        self.run.losses.append(value)
        self.run.evaluated = bool(self.run.iteration % self.settings.eval_step
                                  and self.run.iteration < self.settings.num_train_iters)
        if not math.isfinite(value):
            raise self.not_finite(f"the loss is {value} (photos {', '.join(batch.names)})")

    def save(self, *actions):
        """Calls what saves weights or state; False where that fails. DataError if the weights are NaN or infinite."""
        import tensorflow as tf
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
        test = evaluate_and_show(self.evaluation_step, self.test_pairs, self.damaged_test_photos, self.settings,
                                 run.iteration, stop)
        if test is None:
            return
        line = log_line(run.iteration, np.mean(run.losses) if run.losses else math.nan, test)
        utils.say(line)
        attempt(append_to_log, line)
        run.losses, run.evaluated = [], True
        if run.iteration and self.is_on_disk():
            attempt(utils.write_notes, utils.resume_prefix(self.settings.level), self.notes())

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
    """{name: scalar} of a batch: loss, content (with VGG-19), mse, psnr of that mse in dB, l1, ms-ssim (levels 1-3)."""
    import tensorflow as tf
    mse = tf.reduce_mean(tf.math.squared_difference(output, target))
    found = {"loss": loss(level, output, target, vgg19)}
    if vgg19:
        found["content"] = content_loss(vgg19, output, target)
    found |= {"mse": mse, "psnr": -10 / math.log(10) * tf.math.log(mse), "l1": l1_loss(output, target)}
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
        beta_1_power, beta_2_power = (tf.cast(tf.pow(tf.constant(beta, tf.float64), t), tf.float32)
                                      for beta in (ADAM_BETA_1, ADAM_BETA_2))
        for variable, (m, s), gradient in zip(self.variables, self.moments, gradients, strict=True):
            tf.raw_ops.ResourceApplyAdam(
                var=variable.handle, m=m.handle, v=s.handle, beta1_power=beta_1_power, beta2_power=beta_2_power,
                lr=learning_rate, beta1=ADAM_BETA_1, beta2=ADAM_BETA_2, epsilon=ADAM_EPSILON, grad=gradient)


def trained_variables(network):
    """The tf.Variables that the output of a network depends on."""
    return [variable.value for variable in network.trainable_variables]


def make_training_step(network, level, vgg19, adam, learning_rate):
    """Returns step(inputs, targets, iteration): one update on uint8 arrays; it gives the loss before the update."""
    import tensorflow as tf

    @tf.function(autograph=False)
    def step(inputs, targets, iteration):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(adam.variables)
            value = loss(level, network(_to_unit_range(inputs), training=True), _to_unit_range(targets), vgg19)
        adam.apply(tape.gradient(value, adam.variables), iteration, learning_rate)
        return value

    return lambda inputs, targets, iteration: step(
        tf.constant(inputs), tf.constant(targets), tf.constant(iteration, tf.int64))


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


def evaluate_and_show(evaluation_step, test_pairs, damaged, settings, iteration, stop):
    """Means of the metrics over all test patches; writes the visual crops of the first few. None where it is stopped."""
    totals, count = {}, 0
    for batch in load_dataset.test_batches(test_pairs, settings.level, settings.batch_size, damaged):
        if stop.received:
            return None
        found, outputs = evaluation_step(batch.inputs, batch.targets)
        for name, value in found.items():
            totals[name] = totals.get(name, 0.0) + float(value) * len(batch.names)
        for place, parts in enumerate(zip(batch.inputs, outputs.numpy(), batch.targets), count):
            if place < VISUAL_CROPS:
                path = utils.RESULTS / f"pynet_img_{place}_level_{settings.level}_iter_{iteration}.jpg"
                attempt(utils.write_image, path, visual_crop(*parts))
        count += len(batch.names)
    if not count:
        raise DataError("all test photos are damaged: python -m tools.check_dataset lists them")
    return {name: total / count for name, total in totals.items()}


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
    terms = ", ".join(f"{name}: {value:.4g}" for name, value in test.items() if name != "loss")
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

"""Trains one level of PyNET: python train_model.py level=N, with N = 7 first, then 6, 5, 4, 3, 2, 1.

Each level starts from the last checkpoint of the level above. TensorFlow is imported by the functions that need it, so
that a mistyped argument or a missing photo is answered before the seconds which that takes.
"""

import datetime
import math
import pathlib
import sys

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
)
USAGE = "python train_model.py level=N [name=value ...]"


def main(argv):
    """Trains a level as the arguments say. Returns the exit status."""
    settings = utils.parse_arguments(argv, PARAMETERS, USAGE)
    if settings.level == 7 and settings.restore_iter:
        raise UsageError("restore_iter: level 7 is the first to be trained and starts from no other level")
    if settings.num_train_iters is None:
        settings.num_train_iters = DEFAULT_ITERATIONS[settings.level]
    start = None if settings.level == 7 else utils.find_checkpoint(settings.level + 1, settings.restore_iter)
    vgg_file = find_vgg19(settings)
    train_pairs = load_dataset.find_training_pairs(settings.dataset_dir, "train")
    test_pairs = load_dataset.find_training_pairs(settings.dataset_dir, "test")
    print(f"Data: {len(train_pairs)} training and {len(test_pairs)} test photos in {settings.dataset_dir}")
    utils.start_tensorflow()
    train(settings, start, vgg_file, train_pairs, test_pairs)


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


def train(settings, start, vgg_file, train_pairs, test_pairs):
    """The story of a level: restore, then iterate; every eval_step save, measure and show."""
    import model
    import vgg

    level, last = settings.level, settings.num_train_iters
    pynet = model.build_pynet(load_dataset.PATCH, load_dataset.PATCH)
    network = model.network_for_level(pynet, level)
    if start:
        prefix, iteration = start
        utils.restore_checkpoint(pynet.variables, prefix)
        print(f"Level {level} starts from level {level + 1}, iteration {iteration} ({prefix})")
    else:
        print("Level 7 starts from random weights")
    vgg19 = vgg.load_vgg19(vgg_file) if vgg_file else None

    adam = Adam(trained_variables(network))
    training_step = make_training_step(network, level, vgg19, adam, settings.learning_rate)
    evaluation_step = make_evaluation_step(network, level, vgg19)

    def evaluate(iteration, training_loss):
        line = log_line(iteration, training_loss, evaluate_and_show(
            evaluation_step, test_pairs, settings, iteration))
        print(line)
        append_to_log(line)

    append_to_log(heading(settings, start, train_pairs, test_pairs))
    evaluate(0, math.nan)
    losses = []
    progress = utils.ProgressLine(last, f"level {level}, iteration")
    done = 0
    try:
        for batch in load_dataset.training_batches(train_pairs, level, settings.batch_size, settings.train_size, 1, last):
            losses.append(float(training_step(batch.inputs, batch.targets, done + 1)))
            done += 1
            progress.update(done, f"loss {losses[-1]:.4g}")
            if done % settings.eval_step == 0 or done == last:
                progress.clear()
                utils.save_checkpoint(pynet.variables, utils.checkpoint_prefix(level, done))
                print(f"saved {utils.checkpoint_prefix(level, done)}")
                evaluate(done, np.mean(losses))
                losses = []
    except KeyboardInterrupt:
        progress.clear()
        print(f"Stopped after iteration {done} of level {level}. {what_is_saved(level)}", file=sys.stderr)
        raise


def what_is_saved(level):
    """What to do after a level was stopped."""
    saved = utils.saved_iterations(level)
    if not saved:
        return "No checkpoint was due yet: start the level again."
    return (f"The last checkpoint is {utils.checkpoint_prefix(level, saved[-1])}; "
            + (f"python train_model.py level={level - 1} starts from it." if level > 1 else
               "python test_model.py renders with it."))


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

    @tf.function
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

    @tf.function(input_signature=[tf.TensorSpec([None, patch, patch, network.input_shape[-1]], tf.uint8),
                                  tf.TensorSpec([None, side, side, 3], tf.uint8)])
    def step(inputs, targets):
        outputs = network(_to_unit_range(inputs), training=False)
        return metrics(level, outputs, _to_unit_range(targets), vgg19), outputs

    return step


def _to_unit_range(images):
    import tensorflow as tf
    return tf.cast(images, tf.float32) / 255


# What is reported ----------------------------------------------------------------------------------------------------


def evaluate_and_show(evaluation_step, test_pairs, settings, iteration):
    """Means of the metrics over all test patches; writes the visual crops of the first few."""
    totals, shown = {}, 0
    for batch in load_dataset.test_batches(test_pairs, settings.level, settings.batch_size):
        found, outputs = evaluation_step(batch.inputs, batch.targets)
        for name, value in found.items():
            totals[name] = totals.get(name, 0.0) + float(value) * len(batch.names)
        for parts in zip(batch.inputs, outputs.numpy(), batch.targets):
            if shown < VISUAL_CROPS:
                utils.write_image(utils.RESULTS / f"pynet_img_{shown}_level_{settings.level}_iter_{iteration}.jpg",
                                  visual_crop(*parts))
                shown += 1
    return {name: total / len(test_pairs) for name, total in totals.items()}


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


def heading(settings, start, train_pairs, test_pairs):
    """The line above a run's lines in models/logs.txt."""
    arguments = " ".join(f"{name}={value}" for name, value in vars(settings).items() if value is not None)
    return (f"# {datetime.datetime.now():%Y-%m-%d %H:%M:%S} | {arguments} | from {start[0].name if start else 'nothing'}"
            f" | {len(train_pairs)} training, {len(test_pairs)} test photos")


def append_to_log(line):
    """Adds a line to models/logs.txt."""
    utils.LOG.parent.mkdir(parents=True, exist_ok=True)
    with open(utils.LOG, "a", encoding="utf-8") as log:
        print(line, file=log)


if __name__ == "__main__":
    sys.exit(utils.run(main))

"""Trains one level of PyNET: python train_model.py level=N, with N = 7 first, then 6, 5, 4, 3, 2, 1.

Each level starts from the last checkpoint of the level above. What is minimised, measured and updated stands here; what
keeps long runs safe is in support/.
"""

import contextlib
import functools
import itertools
import math
import sys

import load_dataset
import utils
from support import (
    checkpoints,
    dataset_files,
    devices,
    experiments,
    image_metrics,
    runs,
    scripts,
    starts,
    training_log,
    updates,
)
from utils import DataError, LazyModule, Parameter, UsageError, tf

model, vgg = LazyModule("model"), LazyModule("vgg")  # which import TensorFlow

DEFAULT_ITERATIONS = {7: 5000, 6: 5000, 5: 20000, 4: 20000, 3: 30000, 2: 80000, 1: 100000}  # the paper's schedule
LOSS_WEIGHTS = {  # of the terms (section 3.3 of the paper, with the weights of the released training)
    **dict.fromkeys((7, 6, 5, 4, 3, 2), {"l1": 100.0}),
    1: {"l1": 10.0, "content": 0.1, "ssim": 10.0},
}
ADAM_BETA_1, ADAM_BETA_2, ADAM_EPSILON = 0.9, 0.999, 1e-8
VISUAL_CROPS = 7

PARAMETERS = (
    Parameter("level", int, utils.REQUIRED, "level to train: 7 first, then 6 ... 1", minimum=1, maximum=7),
    Parameter("batch_size", int, 50, "images in a batch, of all devices together", minimum=1),
    Parameter("micro_batch", int, None, "images that a device computes at a time: less memory, the same update",
              minimum=1, default_text="its share of the batch"),
    Parameter("patch_size", int, load_dataset.PATCH_SIZE, "side of the input patches in pixels, a multiple of 32",
              minimum=32),
    Parameter("width", ("1", "0.5", "0.25", "0.125"), "1",
              "share of the paper's feature maps; chosen at level 7, inherited by later levels"),
    Parameter("kernel_start", ("paper", "he"), None, "random start: the paper's, or He's where nothing is normalised",
              default_text="paper at width 1, else he"),
    Parameter("precision", utils.PRECISIONS, "float32", "of the feature maps; weights, Adam and losses stay float32"),
    Parameter("train_size", int, 4894, "training images drawn at random for each 1000 iterations", minimum=1),
    Parameter("eval_step", int, 1000, "iterations between two checkpoints, with metrics and visual crops", minimum=1),
    Parameter("learning_rate", float, 5e-5, "of Adam", minimum=1e-12, maximum=1),
    Parameter("restore_iter", int, None, "iteration of level N+1 to start from", minimum=1, default_text="last saved"),
    Parameter("weights", str, None, "prefix of a checkpoint to start from instead of level N+1 (fine-tuning)",
              default_text="none"),
    Parameter("num_train_iters", int, None, "iterations to train", minimum=1,
              default_text=", ".join(map(str, DEFAULT_ITERATIONS.values())) + " for levels 7 ... 1"),
    Parameter("vgg_dir", str, "vgg_pretrained/imagenet-vgg-verydeep-19.mat",
              "VGG-19 file for the content loss; none trains level 1 without it"),
    Parameter("dataset_dir", str, "ebb_dataset/", "folder with train/ and test/"),
    Parameter("cache_dir", str, None, "folder for decoded pictures, read several times as fast (EBB!: 30 GB)",
              default_text="none"),
    Parameter("val_size", int, 0, "test on the last N pairs of train/; inherited by later levels", minimum=0),
    Parameter("use_depth", bool, True, "use depth maps; chosen at level 7, inherited by later levels"),
    Parameter("resume", bool, False, "continue the level's stopped run, with its settings"),
    Parameter("seed", int, 0, "of the random weights, and of the choice of photos and patches",
              minimum=0, maximum=2 ** 31 - 1),
    Parameter("max_to_keep", int, 100, "newest checkpoints of this run to keep", minimum=1),
)
USAGE = "python train_model.py level=N [name=value ...]"


# What is minimised ---------------------------------------------------------------------------------------------------


def loss(level, output, target, vgg19=None):
    """Returns the loss of a level, a scalar: its terms, times their LOSS_WEIGHTS.

    Args:
      output, target: float32 (images, height, width, 3), RGB, 0-1; the output is not clipped.
      vgg19: what `vgg.load_vgg19` returned; None leaves the VGG_TERMS out.
    """
    total = 0.0
    for name, weight in LOSS_WEIGHTS[level].items():
        if name not in VGG_TERMS:
            total += weight * TERMS[name](output, target)
        elif vgg19:
            total += weight * VGG_TERMS[name](vgg19, output, target)
    return total


def l1_loss(output, target):
    """Returns the mean absolute error."""
    return tf.reduce_mean(tf.abs(output - target))


def ssim_loss(output, target):
    """Returns 1 - SSIM, of the index map, because `tf.image.ssim` averages inaccurately (support/image_metrics.py)."""
    return 1 - tf.reduce_mean(tf.image.ssim(output, target, 1.0, return_index_map=True))


def content_loss(vgg19, output, target):
    """Returns the mean squared difference of the relu5_4 features of RGB images in 0-1 (arXiv:1603.08155)."""
    features, wanted = (vgg.vgg19_features(vgg19, 255 * images) for images in (output, target))
    return tf.reduce_mean(tf.math.squared_difference(features, wanted))


TERMS = {"l1": l1_loss, "ssim": ssim_loss}
VGG_TERMS = {"content": content_loss}  # which need VGG-19


# What is measured ----------------------------------------------------------------------------------------------------


def metrics(level, output, target, vgg19=None):
    """Returns {name: scalar}, means over the images; all of them get into the log and the curves.

    "content" needs VGG-19, "ms-ssim" (Wang, Simoncelli, Bovik, Asilomar 2003) images of 176 pixels or more.
    """
    values = {"loss": loss(level, output, target, vgg19)}
    if vgg19:
        values["content"] = content_loss(vgg19, output, target)
    values |= {"mse": tf.reduce_mean(tf.math.squared_difference(output, target)), "l1": l1_loss(output, target)}
    if min(target.shape[1:3]) >= utils.MS_SSIM_SIDE:
        values["ms-ssim"] = tf.reduce_mean(image_metrics.ms_ssim(output, target))
    return values


# How one update is made ----------------------------------------------------------------------------------------------


def learning_rate_at(iteration, settings):
    """Returns the learning rate of an update, 1 for the first; constant, as in the paper. A schedule goes here."""
    return settings.learning_rate


class Adam:
    """Adam (arXiv:1412.6980) as TensorFlow 1 had it: v -= lr sqrt(1 - beta2^t) / (1 - beta1^t) m / (sqrt(s) + epsilon).

    One fused kernel updates a variable with its moments m and s.
    """

    def __init__(self, variables):
        self.variables = variables
        self.moments = [tuple(tf.Variable(tf.zeros_like(variable)) for _ in range(2)) for variable in variables]

    def slots(self, weights):
        """Returns {name: tf.Variable} of the moments, named after {name: tf.Variable} of the weights."""
        names = {id(variable): name for name, variable in weights.items()}
        return {names[id(variable)] + suffix: moment for variable, moments in zip(self.variables, self.moments)
                for suffix, moment in zip(("/Adam", "/Adam_1"), moments)}

    def apply(self, gradients, iteration, learning_rate):
        """Updates the variables. `iteration` is t, 1 for the first update."""
        t = tf.cast(iteration, tf.float64)
        beta_1, beta_2, epsilon = map(tf.constant, (ADAM_BETA_1, ADAM_BETA_2, ADAM_EPSILON))
        beta_1_power, beta_2_power = (tf.cast(tf.pow(tf.constant(beta, tf.float64), t), tf.float32)
                                      for beta in (ADAM_BETA_1, ADAM_BETA_2))
        for variable, (m, s), gradient in zip(self.variables, self.moments, gradients, strict=True):
            tf.raw_ops.ResourceApplyAdam(
                var=variable.handle, m=m.handle, v=s.handle, beta1_power=beta_1_power, beta2_power=beta_2_power,
                lr=learning_rate, beta1=beta_1, beta2=beta_2, epsilon=epsilon, grad=gradient)


def trained_variables(network, frozen=()):
    """Returns the tf.Variables that an update moves: all that the output depends on, the upper levels' too.

    frozen: how the names of layers begin that are left out, a string or a tuple, such as "level_7_" or "encoder_1_".
    """
    return [weight.value for layer in network.layers if not layer.name.startswith(frozen)
            for weight in layer.trainable_weights]


def differentiate(network, level, vgg19, variables, inputs, targets, weight=1.0):
    """Returns (loss, its gradients), both times `weight`, of the images of one replica: uint8 as in `Batch`."""
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        for variable in variables:
            tape.watch(variable)
        output = network(to_unit_range(inputs), training=True)
        value = weight * loss(level, output, to_unit_range(targets), vgg19)
    return value, tape.gradient(value, variables)


def to_unit_range(images):
    """Converts uint8 0-255 to float32 0-1."""
    return tf.cast(images, tf.float32) / 255


# How a level is trained ----------------------------------------------------------------------------------------------


def main(argv):
    """Trains a level as the arguments say. Returns the exit status."""
    settings = utils.parse_arguments(argv, PARAMETERS, USAGE)
    worker = updates.find_worker()
    check_arguments(settings, worker)
    with runs.locked_level(settings.level) if worker.index == 0 else contextlib.nullcontext():
        start = experiments.find_start(settings, PARAMETERS)
        experiments.complete_settings(settings, start, DEFAULT_ITERATIONS[settings.level])
        check_arguments(settings, worker)  # those of the resumed run, too
        if experiments.is_done(settings, start.run):
            utils.say(f"Level {settings.level} has {start.run.iteration} iterations; a larger num_train_iters= "
                      "continues it")
            return 0
        vgg_file = experiments.find_vgg19(settings, LOSS_WEIGHTS[settings.level].keys() & VGG_TERMS.keys())
        devices.start_tensorflow(precision=settings.precision)
        experiments.follow_network(settings, start.prefix)
        pairs = dataset_files.find_training_set(settings.dataset_dir, settings.use_depth, settings.patch_size,
                                                settings.val_size)
        code = {"commit": training_log.commit(), "loss_weights": str(LOSS_WEIGHTS[settings.level])}
        experiment = experiments.Experiment(settings, start, *pairs, code, writes=worker.index == 0)
        experiment.check_maps()
        experiment.say_start()
        try:
            return train(experiment, worker, vgg_file)
        except (tf.errors.ResourceExhaustedError, tf.errors.AbortedError, MemoryError):  # the second is oneDNN's
            raise updates.memory_full(settings) from None


def check_arguments(settings, worker):
    """Raises UsageError for values that do not go together."""
    if settings.level == 7 and settings.restore_iter:
        raise UsageError("restore_iter: level 7 is the first to be trained and starts from no other level")
    if settings.weights and settings.restore_iter:
        raise UsageError("restore_iter: is for a start from level N+1, weights= for any other; leave one out")
    if settings.patch_size % 32:
        raise UsageError(f"patch_size={settings.patch_size}: must be a multiple of 32")
    if settings.micro_batch and settings.micro_batch > settings.batch_size:
        raise UsageError(f"micro_batch={settings.micro_batch}: must be at most batch_size={settings.batch_size}")
    if settings.batch_size < worker.count:
        raise UsageError(f"batch_size={settings.batch_size}: is less than the {worker.count} workers of TF_CONFIG")


def train(experiment, worker, vgg_file):
    """Trains a level: builds, restores, then iterates; every eval_step saves, measures and shows.

    experiment: an `Experiment`; worker: an `updates.Worker`; vgg_file: of VGG-19, or None. Returns the status.
    """
    settings, run, level = experiment.settings, experiment.run, experiment.settings.level
    strategy = updates.choose_strategy(worker)  # before anything is computed
    division = updates.divide_batch(settings.batch_size, settings.micro_batch, strategy, worker)
    updates.check_agreement(division, experiment.shared_by_workers(), run.iteration)
    vgg19 = vgg.load_vgg19(vgg_file) if vgg_file else None  # before the network, because the file may be wrong
    with strategy.scope():
        pynet = build_network(experiment)
        network = model.network_for_level(pynet, level)
        optimizer = Adam(trained_variables(network, starts.frozen_layers(pynet, level)))
    moments = optimizer.slots(pynet.variables)
    if experiment.start.resumed:
        runs.restore_moments(moments, experiment.start)
    saver = runs.Saver(experiment, published=pynet.variables, state=pynet.variables | moments)
    log = training_log.TrainingLog(experiment)
    differentiate_loss = functools.partial(differentiate, network, level, vgg19, optimizer.variables)
    update = updates.make_update(differentiate_loss, optimizer, division,
                                 run.scale if settings.precision == "float16" else None)
    measure = functools.partial(evaluate, make_evaluation_step(network, level, vgg19), experiment,
                                load_dataset.DamagedPhotos(len(experiment.test_pairs)), division.largest_piece())
    batches = updates.training_batches(division, experiment.train_pairs, settings, run.iteration + 1)
    progress = utils.ProgressLine(run.iteration, settings.num_train_iters, f"level {level}, iteration")

    saver.say_disk_space()
    with runs.StopSignals() as stop, contextlib.closing(batches):
        while True:
            learning_rate = learning_rate_at(run.iteration + 1, settings)
            if run.evaluation_due:
                progress.clear()
                saver.save_if_due()
                evaluation = measure(stop) if experiment.writes else ({}, [])
                if evaluation:
                    log.report(*evaluation, learning_rate)
                    saver.note_evaluation()
            signal = updates.told_to_stop(division, stop.received, run.iteration)
            if signal or run.iteration >= settings.num_train_iters:
                break
            batch = saver.next_batch(batches, log)
            loss = update(batch, run.iteration + 1, learning_rate)
            run.count(loss, settings)
            saver.check_loss(loss, batch.names)
            progress.update(run.iteration, f"loss {loss:.4g}")
        progress.clear()
        return saver.finish(signal)


def build_network(experiment):
    """Returns the `model.PyNET` of an experiment, with the weights that it resumes or starts with."""
    settings, prefix, resumed = experiment.settings, experiment.start.prefix, experiment.start.resumed
    size, seed = settings.patch_size, None if resumed or settings.weights else settings.seed
    pynet = model.build_pynet(size, size, seed, settings.precision,
                              load_dataset.input_channels(experiment.train_pairs[0].kind), float(settings.width),
                              settings.kernel_start)
    if resumed:
        checkpoints.restore_checkpoint(pynet.variables, prefix)
    else:
        start_level(pynet, prefix, settings)
    return pynet


def start_level(pynet, prefix, settings):
    """Restores what level N+1 has trained, and nothing else: a level can be changed without training those above again.

    The rest keeps its random start, but for what He's start says. `prefix` is None for level 7. With weights= all is
    restored, and nothing begins anew.
    """
    if settings.weights:
        checkpoints.restore_checkpoint(pynet.variables, prefix)
        starts.lower_level_2(pynet, settings.level)
        return
    if prefix:
        checkpoints.restore_checkpoint(model.variables_of_level(pynet, settings.level + 1), prefix)
    if settings.kernel_start == "he":
        starts.begin_level(pynet, settings.level)


# How a level is evaluated --------------------------------------------------------------------------------------------


def make_evaluation_step(network, level, vgg19):
    """Returns step(inputs, targets) -> (metrics, outputs) on uint8 arrays of any number of images."""
    signature = [tf.TensorSpec(shape, tf.uint8) for shape in (network.input_shape, network.output_shape)]

    @tf.function(autograph=False, input_signature=signature)
    def step(inputs, targets):
        outputs = network(to_unit_range(inputs), training=False)
        return metrics(level, outputs, to_unit_range(targets), vgg19), outputs

    return step


def evaluate(evaluation_step, experiment, damaged, piece, stop):
    """Measures the test patches. Returns ({name: mean of a metric}, visual crops of the first few patches).

    Args:
      evaluation_step: of `make_evaluation_step`; damaged: the `load_dataset.DamagedPhotos` of all evaluations.
      piece: number of images that the device takes at a time.
      stop: the `runs.StopSignals`; None is returned where one is received.
    """
    totals, count, crops = {}, 0, []
    settings = experiment.settings
    for batch in load_dataset.test_batches(experiment.test_pairs, settings.level, settings.batch_size,
                                           settings.patch_size, damaged, settings.cache_dir):
        if stop.received:
            return None
        means, outputs = evaluate_batch(evaluation_step, batch, piece)
        for name, value in means.items():
            totals[name] = totals.get(name, 0.0) + value * len(batch.names)
        parts = zip(batch.inputs, outputs, batch.targets)
        crops += itertools.starmap(training_log.visual_crop, itertools.islice(parts, VISUAL_CROPS - len(crops)))
        count += len(batch.names)
    if not count:
        raise DataError("all test photos are damaged: python -m tools.check_dataset lists them")
    return {name: total / count for name, total in totals.items()}, crops


def evaluate_batch(evaluation_step, batch, piece):
    """Returns ({name: metric of the batch}, outputs of the first images).

    PSNR, in dB, is that of the batch's MSE; the others are means over images.
    """
    means, outputs, count = {}, [], len(batch.names)
    for first in range(0, count, piece):
        of_piece, images = evaluation_step(batch.inputs[first:first + piece], batch.targets[first:first + piece])
        outputs += [image.copy() for image in images.numpy()[:max(0, VISUAL_CROPS - len(outputs))]]
        for name, value in of_piece.items():
            means[name] = means.get(name, 0.0) + float(value) * len(images) / count
    means["psnr"] = -10 * math.log10(means["mse"]) if means["mse"] else math.inf
    return means, outputs


if __name__ == "__main__":
    sys.exit(scripts.run(main))

"""Trains one level of PyNET: python train_model.py level=N, with N = 7 first, then 6, 5, 4, 3, 2, 1.

Each level starts from the last checkpoint of the level above. What is minimised, measured and updated stands here; what
keeps long runs safe is in support/.
"""

import contextlib
import functools
import math
import sys

import numpy as np
from PIL import Image

import load_dataset
import utils
from support import checkpoints, devices, image_metrics, runs, starts, training_log
from utils import DataError, Parameter, UsageError, tf

DEFAULT_ITERATIONS = {7: 5000, 6: 5000, 5: 20000, 4: 20000, 3: 30000, 2: 80000, 1: 100000}  # the paper's schedule
LOSS_WEIGHTS = {  # of the terms (section 3.3 of the paper, with the weights of the released training)
    **dict.fromkeys((7, 6, 5, 4, 3, 2), {"l1": 100.0}),
    1: {"l1": 10.0, "content": 0.1, "ssim": 10.0},
}
ADAM_BETA_1, ADAM_BETA_2, ADAM_EPSILON = 0.9, 0.999, 1e-8
VISUAL_CROPS = 7

PARAMETERS = (
    Parameter("level", int, utils.REQUIRED, "level to train: 7 first, then 6 ... 1", 1, 7),
    Parameter("batch_size", int, 50, "images in a batch, of all devices together", 1),
    Parameter("micro_batch", int, None, "images that a device computes at a time: less memory, the same update", 1,
              default_text="its share of the batch"),
    Parameter("patch_size", int, load_dataset.PATCH_SIZE, "side of the input patches in pixels, a multiple of 32", 32),
    Parameter("width", ("1", "0.5", "0.25", "0.125"), "1",
              "share of the paper's feature maps; chosen at level 7, inherited by later levels"),
    Parameter("kernel_start", ("paper", "he"), None, "random start: the paper's, or He's where nothing is normalised",
              default_text="paper at width 1, else he"),
    Parameter("precision", utils.PRECISIONS, "float32", "of the feature maps; weights, Adam and losses stay float32"),
    Parameter("train_size", int, 4894, "training images drawn at random for each 1000 iterations", 1),
    Parameter("eval_step", int, 1000, "iterations between two checkpoints, with metrics and visual crops", 1),
    Parameter("learning_rate", float, 5e-5, "of Adam", 1e-12, 1),
    Parameter("restore_iter", int, None, "iteration of level N+1 to start from", 1, default_text="last saved"),
    Parameter("weights", str, None, "checkpoint to start from, as a prefix, instead of level N+1: fine-tuning",
              default_text="none"),
    Parameter("num_train_iters", int, None, "iterations to train", 1,
              default_text=", ".join(map(str, DEFAULT_ITERATIONS.values())) + " for levels 7 ... 1"),
    Parameter("vgg_dir", str, "vgg_pretrained/imagenet-vgg-verydeep-19.mat",
              "VGG-19 file for the content loss; none trains level 1 without it"),
    Parameter("dataset_dir", str, "ebb_dataset/", "folder with train/ and test/"),
    Parameter("val_size", int, 0, "pairs at the end of train/ to test on, instead of test/", 0),
    Parameter("use_depth", bool, True, "use depth maps; chosen at level 7, inherited by later levels"),
    Parameter("resume", bool, False, "continue the level's stopped run, with its settings"),
    Parameter("seed", int, 0, "of the random weights, and of the choice of photos and patches", 0, 2 ** 31 - 1),
    Parameter("max_to_keep", int, 100, "newest checkpoints of this run to keep", 1),
)
USAGE = "python train_model.py level=N [name=value ...]"


# What is minimised ---------------------------------------------------------------------------------------------------


def loss(level, output, target, vgg19=None):
    """Returns the loss of a level, a scalar: 100 L1 for levels 7-2; 10 L1 + 0.1 content + 10 (1 - SSIM) for level 1.

    Args:
      output, target: float32 (images, height, width, 3), RGB, 0-1; the output is not clipped.
      vgg19: what `vgg.load_vgg19` returned; None leaves the content term of level 1 out.
    """
    weights = LOSS_WEIGHTS[level]
    total = weights["l1"] * l1_loss(output, target)
    if "content" in weights and vgg19:
        total += weights["content"] * content_loss(vgg19, output, target)
    if "ssim" in weights:
        # of the index map, because `tf.image.ssim` itself averages inaccurately (support/image_metrics.py)
        total += weights["ssim"] * (1 - tf.reduce_mean(tf.image.ssim(output, target, 1.0, return_index_map=True)))
    return total


def l1_loss(output, target):
    """Returns the mean absolute error."""
    return tf.reduce_mean(tf.abs(output - target))


def content_loss(vgg19, output, target):
    """Returns the mean squared difference of the relu5_4 features of RGB images in 0-1 (arXiv:1603.08155)."""
    import vgg
    features, wanted = (vgg.vgg19_features(vgg19, 255 * images) for images in (output, target))
    return tf.reduce_mean(tf.math.squared_difference(features, wanted))


# What is measured ----------------------------------------------------------------------------------------------------


def metrics(level, output, target, vgg19=None):
    """Returns {name: scalar}, means over the images; all of them get into the log and the curves.

    "content" needs VGG-19, "ms-ssim" (Wang, Simoncelli, Bovik, Asilomar 2003) images of 176 pixels or more.
    """
    found = {"loss": loss(level, output, target, vgg19)}
    if vgg19:
        found["content"] = content_loss(vgg19, output, target)
    found |= {"mse": tf.reduce_mean(tf.math.squared_difference(output, target)), "l1": l1_loss(output, target)}
    if min(target.shape[1:3]) >= utils.MS_SSIM_SIDE:
        found["ms-ssim"] = tf.reduce_mean(image_metrics.ms_ssim(output, target))
    return found


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
    check_arguments(settings)
    worker = devices.find_worker()
    with runs.prepared_folders(settings.level) if worker.index == 0 else contextlib.nullcontext():
        run, weights, before = runs.find_start(settings, PARAMETERS)
        check_arguments(settings)  # those of the resumed run, too
        if settings.batch_size < worker.count:
            raise UsageError(f"batch_size={settings.batch_size}: is less than the {worker.count} workers of TF_CONFIG")
        settings.num_train_iters = settings.num_train_iters or DEFAULT_ITERATIONS[settings.level]
        if runs.is_done(settings, run):
            print(f"Level {settings.level} has {run.iteration} iterations; a larger num_train_iters= continues it")
            return 0
        vgg_file = runs.find_vgg19(settings)
        devices.start_tensorflow(precision=settings.precision)
        if weights:
            runs.follow_checkpoint(settings, weights)
        settings.kernel_start = settings.kernel_start or ("paper" if settings.width == "1" else "he")
        train_pairs, test_pairs = load_dataset.find_training_set(settings.dataset_dir, settings.use_depth,
                                                                 settings.patch_size, settings.val_size)
        utils.say(f"Data: {len(train_pairs)} training and {len(test_pairs)} test photos in {settings.dataset_dir}")
        try:
            return train(settings, worker, run, weights, before, vgg_file, train_pairs, test_pairs)
        except tf.errors.ResourceExhaustedError:
            raise devices.memory_full(settings) from None


def check_arguments(settings):
    """Raises UsageError for values that do not go together."""
    if settings.level == 7 and settings.restore_iter:
        raise UsageError("restore_iter: level 7 is the first to be trained and starts from no other level")
    if settings.weights and settings.restore_iter:
        raise UsageError("restore_iter: says where in level N+1 to start, and weights= elsewhere; leave one out")
    if settings.patch_size % 32:
        raise UsageError(f"patch_size={settings.patch_size}: must be a multiple of 32")
    if settings.micro_batch and settings.micro_batch > settings.batch_size:
        raise UsageError(f"micro_batch={settings.micro_batch}: must be at most batch_size={settings.batch_size}")


def train(settings, worker, run, weights, before, vgg_file, train_pairs, test_pairs):
    """The story of a level: restore, then iterate; every eval_step save, measure and show. Returns the exit status.

    Args:
      worker: this process among those that train together.
      run: where the level stands; weights: prefix of the checkpoint to start from, None for random weights.
      before: the state that is resumed, None where the level starts anew.
      vgg_file: of VGG-19, or None.
    """
    import model  # here, because they import TensorFlow at their top
    import vgg
    level, patch_size = settings.level, settings.patch_size
    strategy = devices.choose_strategy(worker)  # before anything is computed
    vgg19 = vgg.load_vgg19(vgg_file) if vgg_file else None  # before the network, because the file may be wrong
    with strategy.scope():
        pynet = model.build_pynet(patch_size, patch_size, None if before or settings.weights else settings.seed,
                                  settings.precision, load_dataset.input_channels(train_pairs[0].kind),
                                  float(settings.width), settings.kernel_start)
        network = model.network_for_level(pynet, level)
        if before:
            checkpoints.restore_checkpoint(pynet.variables, weights)
        else:
            start_level(pynet, weights, settings)
        optimizer = Adam(trained_variables(network, starts.frozen_layers(pynet, level)))
    moments = optimizer.slots(pynet.variables)
    code = {"commit": training_log.commit(), "loss_weights": str(LOSS_WEIGHTS[level])}
    saver = runs.Saver(settings, worker, run, pynet.variables, moments, train_pairs, code)
    if before:
        checkpoints.restore_checkpoint(moments, weights)
        runs.note_changes(settings, before, train_pairs, code)
    devices.check_agreement(strategy, worker, runs.shared_by_workers(settings, run, weights, train_pairs))

    division = devices.divide_batch(settings.batch_size, settings.micro_batch, strategy, worker)
    update = functools.partial(differentiate, network, level, vgg19, optimizer.variables)
    step = devices.make_training_step(update, optimizer, division, scales_loss=settings.precision == "float16")
    measure = functools.partial(evaluate, make_evaluation_step(network, level, vgg19), settings, test_pairs,
                                load_dataset.DamagedPhotos(len(test_pairs)), division.largest_piece())
    counts = {"training": len(train_pairs), "test": len(test_pairs)}
    log = training_log.TrainingLog(level, runs.inherited(settings), run, counts, code, writes=worker.index == 0)
    saver.say_disk_space()
    batches = load_dataset.training_batches(
        train_pairs, level, settings.batch_size, settings.train_size, run.iteration + 1, settings.num_train_iters,
        settings.seed, patch_size, division.indices)
    progress = utils.ProgressLine(run.iteration, settings.num_train_iters, f"level {level}, iteration")

    with runs.StopSignals(worker) as stop, contextlib.closing(batches):
        while True:
            learning_rate = learning_rate_at(run.iteration + 1, settings)
            if not run.evaluated:
                progress.clear()
                saver.save_if_due()
                found = None if worker.index else measure(run.iteration, stop)
                log.report(found, learning_rate)
                if found or worker.index:  # other workers than the first have nothing to measure
                    saver.note_evaluation()
            if stop.is_due() or run.iteration >= settings.num_train_iters:
                break
            try:
                batch = log.next_batch(batches)
            except DataError:  # too many photos are damaged
                saver.stop()
                raise
            done = devices.take_step(step, batch, run, learning_rate, bool(stop.received), settings)
            stop.hear(done.stopped)
            run.count(done.loss, settings)
            if not math.isfinite(done.loss):
                raise saver.not_finite(f"the loss is {done.loss} (photos {', '.join(batch.names)})")
            progress.update(run.iteration, f"loss {done.loss:.4g}")
        progress.clear()
        if stop.received:
            saver.stop()
    if saver.failed:
        utils.warn(saver.failure(), kind="error")
        return 1
    return 128 + stop.received if stop.received else 0


def start_level(pynet, prefix, settings):
    """Restores what level N+1 has trained, and nothing else: a level can be changed without training those above again.

    The rest keeps its random start, but for what He's start says. `prefix` is None for level 7. With weights= all is
    restored, and nothing begins anew.
    """
    import model
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


def evaluate(evaluation_step, settings, test_pairs, damaged, piece, iteration, stop):
    """Measures the test patches, and writes visual crops of the first few. Returns (means of the metrics, crops).

    piece: number of images that the device takes at a time. None is returned where it is stopped.
    """
    totals, count, crops = {}, 0, []
    level = settings.level
    for batch in load_dataset.test_batches(test_pairs, level, settings.batch_size, settings.patch_size, damaged):
        if stop.received:
            return None
        found, outputs = evaluate_batch(evaluation_step, batch, piece)
        for name, value in found.items():
            totals[name] = totals.get(name, 0.0) + value * len(batch.names)
        for parts in zip(batch.inputs, outputs, batch.targets):
            if len(crops) < VISUAL_CROPS:
                path = utils.RESULTS / f"pynet_img_{len(crops)}_level_{level}_iter_{iteration}.jpg"
                crops.append(visual_crop(*parts))
                training_log.attempt(utils.write_image, path, crops[-1])
        count += len(batch.names)
    if not count:
        raise DataError("all test photos are damaged: python -m tools.check_dataset lists them")
    return {name: total / count for name, total in totals.items()}, crops


def evaluate_batch(evaluation_step, batch, piece):
    """Returns ({name: metric of the batch}, outputs of the first images).

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
    """Returns input | output | target side by side: uint8 (side, 3 side, 3), side at least that of the input patch.

    Small levels are enlarged pixel by pixel, so that their true resolution shows; the input bicubically.
    """
    side = max(len(patch), len(target))
    parts = Image.fromarray(patch[..., :3]), Image.fromarray(utils.to_uint8(output)), Image.fromarray(target)
    filters = Image.Resampling.BICUBIC, Image.Resampling.NEAREST, Image.Resampling.NEAREST
    return np.hstack([np.asarray(part.resize((side, side), how)) for part, how in zip(parts, filters)])


if __name__ == "__main__":
    sys.exit(utils.run(main))

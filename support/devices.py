"""On what is it computed? TensorFlow's start, precision, several GPUs and machines, batches in pieces."""

import hashlib
import json
import math
import os
import pathlib
import re
import resource
import sys
from typing import Any, NamedTuple

import numpy as np

from utils import DataError, UsageError, first_line, say, tf, warn

FAST_FROM = {"float32": (0, 0), "float16": (7, 0), "bfloat16": (8, 0)}  # NVIDIA's compute capability: tensor cores
CPU_BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}  # in /proc/cpuinfo
FIRST_LOSS_SCALE, SCALE_DOUBLES_AFTER = 2.0 ** 15, 2000  # section 3.2 of arXiv:1710.03740 leaves the numbers open


def start_tensorflow(use_gpu=True, precision="float32"):
    """Imports TensorFlow, quietly, and prints on which device it computes; warns where that emulates a precision.

    A GPU's memory is taken as it is needed, not all at once. TF_CPP_MIN_LOG_LEVEL=0 in the environment brings
    TensorFlow's own messages back.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ |= {"KERAS_BACKEND": "tensorflow", "TF_USE_LEGACY_KERAS": "0"}
    if not use_gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    if os.environ["TF_CPP_MIN_LOG_LEVEL"] == "3":
        _import_quietly()
    tf.keras.config.set_image_data_format("channels_last")  # whatever the user's keras.json says
    tf.keras.config.set_floatx("float32")
    gpus = tf.config.list_physical_devices("GPU") if use_gpu else []
    tf.config.set_visible_devices(gpus, "GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    names = [detail.get("device_name", "a GPU") for detail in details]
    no_gpu = ": TensorFlow sees no GPU (TF_CPP_MIN_LOG_LEVEL=0 shows why)" if use_gpu else ""
    print("Computing on " + (", ".join(names) or f"the CPU{no_gpu}"), flush=True)
    slow = [name for name, detail in zip(names, details)
            if detail.get("compute_capability", (0, 0)) < FAST_FROM[precision]]
    if slow or not gpus and not cpu_computes(precision):
        warn(f"{', '.join(slow) or 'this CPU'} emulates {precision}, which can take longer than float32")


def cpu_computes(precision):
    """Returns whether the CPU has arithmetic for a precision: bfloat16 with AVX512_BF16 or AMX (x86), or BF16 (ARM)."""
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    features = set(cpuinfo.read_text(encoding="utf-8").split()) if cpuinfo.exists() else set()
    return precision == "float32" or precision == "bfloat16" and bool(features & CPU_BFLOAT16)


def peak_memory():
    """Returns the most bytes that were taken so far: of the first GPU where there is one, or of this process."""
    if tf.config.list_logical_devices("GPU"):
        return tf.config.experimental.get_memory_info("GPU:0")["peak"]
    status = pathlib.Path("/proc/self/status")  # getrusage() would count the parent process, too
    found = re.search(r"VmHWM:\s*([0-9]+) kB", status.read_text(encoding="utf-8") if status.exists() else "")
    return 1024 * (int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def _import_quietly():
    """Imports TensorFlow, whose libraries write a page to stderr before any setting of the log level is heard."""
    sys.stderr.flush()
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        tf.config.list_physical_devices()  # looks for a GPU's libraries
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


# Several machines ----------------------------------------------------------------------------------------------------


class Worker(NamedTuple):
    """This process among those that train together: `index` from 0 to `count` - 1. The first one writes the files."""

    index: int
    count: int


ONLY_WORKER = Worker(0, 1)


def find_worker():
    """Returns the `Worker` that the environment variable TF_CONFIG makes of this process. UsageError if it is wrong.

    TF_CONFIG is TensorFlow's: {"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}},
    with an optional "chief" before the workers. Without it there is one worker.
    """
    text = os.environ.get("TF_CONFIG", "").strip()
    if not text:
        return ONLY_WORKER
    try:
        config = json.loads(text)
        cluster, task = config["cluster"], config["task"]
        tasks = [(kind, index) for kind in ("chief", "worker") for index in range(len(cluster.get(kind, ())))]
        return Worker(tasks.index((task["type"], int(task["index"]))), len(tasks))
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UsageError('TF_CONFIG: must be like {"cluster": {"worker": ["host:port", ...]}, "task": {"type": '
                         f'"worker", "index": 0}}}}, not {text}') from None


def choose_strategy(worker):
    """Returns the tf.distribute.Strategy of all workers, all GPUs or one device; call it before all computing."""
    if worker.count > 1:
        say(f"Worker {worker.index + 1} of {worker.count}, waiting for the others")
        try:
            return tf.distribute.MultiWorkerMirroredStrategy()
        except (tf.errors.OpError, RuntimeError) as error:
            raise DataError(f"TF_CONFIG: the workers could not be connected ({first_line(error)}): check the "
                            "addresses, and that no earlier run still holds this worker's port") from None
    several = len(tf.config.list_logical_devices("GPU")) > 1
    return tf.distribute.MirroredStrategy() if several else tf.distribute.get_strategy()


def check_agreement(strategy, worker, text):
    """Raises DataError unless all workers have the same text, which says what they are about to train."""
    if worker.count == 1:
        return
    digest = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
    own = strategy.experimental_distribute_values_from_function(lambda _: tf.constant([digest], tf.int64))
    if len(set(strategy.gather(own, axis=0).numpy())) > 1:
        raise DataError("the workers do not have the same arguments, photos and checkpoints: give all of them the same "
                        "arguments, and copies of (or one shared) models/ and data set")


# A batch in pieces ---------------------------------------------------------------------------------------------------


class Division(NamedTuple):
    """How the replicas of a strategy share a batch of `size` images.

    rounds: rounds[i][d] is the range of images that replica d computes in round i, which may be empty.
    indices: the range of images that this worker loads.
    """

    size: int
    strategy: Any
    rounds: list
    indices: range

    def largest_piece(self):
        """Returns how many images a replica computes at a time."""
        return max(map(len, self.rounds[0]))


def divide_batch(size, micro_batch=None, strategy=None, worker=ONLY_WORKER):
    """Returns the `Division` of a batch, as even as can be, into pieces of at most `micro_batch` images."""
    strategy = strategy or tf.distribute.get_strategy()
    replicas = strategy.num_replicas_in_sync
    bounds = [size * replica // replicas for replica in range(replicas + 1)]
    shares = [range(size)[start:stop] for start, stop in zip(bounds, bounds[1:])]
    largest = max(map(len, shares))
    piece = min(micro_batch or largest, largest)
    rounds = [[share[first:first + piece] for share in shares] for first in range(0, largest, piece)]
    first, last = (replicas * index // worker.count for index in (worker.index, worker.index + 1))
    return Division(size, strategy, rounds, range(size)[bounds[first]:bounds[last]])


class Step(NamedTuple):
    """What an update gives: the loss before it, whether it was applied, whether any worker was told to stop."""

    loss: float
    applied: bool
    stopped: bool


def make_training_step(differentiate, optimizer, division, scales_loss=False):
    """Makes the update of one iteration from that of one replica.

    Nothing in the network mixes the images of a batch and every loss is a mean over images, so the gradient of a batch
    is the sum of the gradients of its pieces, each with its share of the images.

    Args:
      differentiate: (inputs, targets, weight) -> (loss, gradients), both times `weight`, as in `train_model`.
      optimizer: with `variables` and apply(gradients, iteration, learning_rate), made under the strategy's scope.
      scales_loss: whether gradients may overflow; an update that is not finite is left out then.

    Returns step(inputs, targets, iteration, learning_rate, stop=False, loss_scale=1.0) -> `Step`, on this worker's
    images of the batch: uint8 arrays as in `load_dataset.Batch`. `iteration` is 1 for the first update.
    """
    strategy = division.strategy
    with strategy.scope():
        sums = [tf.Variable(tf.zeros_like(variable), trainable=False) for variable in optimizer.variables]

    def sum_over_replicas(values):
        if strategy.num_replicas_in_sync == 1:
            return values
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, values)

    def add_piece(inputs, targets, share, stop, loss_scale):
        loss, gradients = differentiate(inputs, targets, share * loss_scale)
        for total, gradient in zip(sums, gradients, strict=True):
            tf.raw_ops.AssignAddVariableOp(resource=total.handle, value=gradient)
        return sum_over_replicas([loss / loss_scale, tf.identity(stop)])

    def apply_sums(iteration, learning_rate, loss_scale):
        gradients = [total / loss_scale for total in sum_over_replicas([total.read_value() for total in sums])]
        for total in sums:
            tf.raw_ops.AssignVariableOp(resource=total.handle, value=tf.zeros_like(total))

        def apply():
            optimizer.apply(gradients, iteration, learning_rate)
            return True

        if not scales_loss:
            return [apply()]
        finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(gradient)) for gradient in gradients])
        return [tf.cond(finite, apply, lambda: False)]

    run_piece, run_sums = _on_replicas(strategy, add_piece), _on_replicas(strategy, apply_sums)

    def step(inputs, targets, iteration, learning_rate, stop=False, loss_scale=1.0):
        stop, loss_scale = tf.constant(float(stop)), tf.constant(loss_scale)
        found = [run_piece(*_distribute(division, ranges, inputs, targets), stop, loss_scale)
                 for ranges in division.rounds]
        applied, = run_sums(tf.constant(iteration, tf.int64), tf.constant(learning_rate, tf.float32), loss_scale)
        return Step(sum(float(loss) for loss, _ in found), bool(applied), float(found[-1][1]) > 0)

    return step


def _on_replicas(strategy, function):
    """Compiles a function that runs on all replicas, and gives what the first replica of this worker returned."""
    compiled = tf.function(lambda *arguments: strategy.run(function, arguments), autograph=False, reduce_retracing=True)
    return lambda *arguments: [strategy.experimental_local_results(value)[0] for value in compiled(*arguments)]


def _distribute(division, ranges, inputs, targets):
    """Returns (inputs, targets, share of the batch) of a round; a replica without images gets a black one, share 0."""
    def of_replica(context):
        part = ranges[context.replica_id_in_sync_group]
        first = part.start - division.indices.start
        images = (values[first:first + len(part)] if part else np.zeros_like(values[:1])
                  for values in (inputs, targets))
        return tuple(map(tf.constant, (*images, np.float32(len(part) / division.size))))

    return division.strategy.experimental_distribute_values_from_function(of_replica)


def take_step(step, batch, run, learning_rate, stop, settings):
    """Returns the `Step` of one iteration. Where float16 gradients overflow, it is repeated with half the loss scale.

    step: of `make_training_step`; run: the `runs.Run`, with the loss scale; stop: whether this worker was told to stop.
    Raises DataError where a worker was lost, or gradients are not finite whatever the loss scale.
    """
    scales_loss = settings.precision == "float16"
    try:
        while True:
            found = step(batch.inputs, batch.targets, run.iteration + 1, learning_rate, stop,
                         run.loss_scale if scales_loss else 1.0)
            if found.applied or not math.isfinite(found.loss):
                break
            if run.loss_scale <= 1:
                raise DataError(f"iteration {run.iteration + 1}: the gradients are not finite, whatever the loss "
                                "scale: try precision=bfloat16 or a lower learning_rate")
            run.loss_scale, run.steps_at_scale = run.loss_scale / 2, 0
    except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError) as error:
        raise DataError(f"a worker was lost after iteration {run.iteration} ({type(error).__name__}): start all "
                        "workers again, with resume=true") from None
    run.steps_at_scale += scales_loss
    if run.steps_at_scale == SCALE_DOUBLES_AFTER:
        run.loss_scale, run.steps_at_scale = 2 * run.loss_scale, 0
    return found


def memory_full(settings):
    """Returns the error that says what needs less memory."""
    division = divide_batch(settings.batch_size, settings.micro_batch, choose_strategy(ONLY_WORKER))
    images = division.largest_piece()  # where there are several workers, a machine has fewer
    advice = (f"with micro_batch={images // 2} it computes a batch in smaller pieces, which is the same training"
              if images > 1 else "a smaller patch_size= takes less, and so does precision=bfloat16")
    return DataError(f"the device's memory is full at level {settings.level}: {advice}")

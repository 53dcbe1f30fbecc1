"""How does a batch become one update? In pieces, on several devices and machines, with a scaled loss in float16."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import os
from typing import Any, NamedTuple

import numpy as np

import load_dataset
from utils import DataError, UsageError, first_line, say, tf

SCALE_DOUBLES_AFTER = 2000  # iterations; section 3.2 of arXiv:1710.03740 leaves this and the first scale open


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


def choose_strategy(worker=ONLY_WORKER):
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


def check_agreement(division, text, iteration):
    """Raises DataError unless all workers have the same text, which says what they are about to train."""
    digest = int.from_bytes(hashlib.sha256(text.encode(errors="surrogateescape")).digest()[:7], "big")
    with _naming_lost_worker(division, iteration):
        digests = _of_all_workers(division, digest)
    if len(set(digests)) > 1:
        raise DataError("the workers do not have the same arguments, photos and checkpoints: give all of them the same "
                        "arguments, and copies of (or one shared) models/ and data set")


def told_to_stop(division, signal, iteration):
    """Returns the number of a signal that this worker (`signal`, None without one) or another one got, 0 for none.

    So all stop after the same iteration. One that stopped alone would leave the others waiting for it.
    """
    with _naming_lost_worker(division, iteration):
        return max(_of_all_workers(division, signal or 0))


def _of_all_workers(division, number):
    """Returns the whole numbers that the workers have."""
    if division.worker.count == 1:
        return [number]
    own = division.strategy.experimental_distribute_values_from_function(lambda _: tf.constant([number], tf.int64))
    return division.strategy.gather(own, axis=0).numpy().tolist()


@contextlib.contextmanager
def _naming_lost_worker(division, iteration):
    try:
        yield
    except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError) as error:
        if division.worker.count == 1:
            raise
        raise DataError(f"a worker was lost after iteration {iteration} ({type(error).__name__}): start all workers "
                        "again, with resume=true") from None


# A batch in pieces ---------------------------------------------------------------------------------------------------


class Division(NamedTuple):
    """How the replicas of a strategy share a batch of `size` images.

    rounds: rounds[i][d] is the range of images that replica d computes in round i, which may be empty.
    indices: the range of images that this worker loads.
    """

    size: int
    strategy: Any
    worker: Worker
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
    return Division(size, strategy, worker, rounds, range(size)[bounds[first]:bounds[last]])


def training_batches(division, pairs, settings, first):
    """Yields this worker's images of the batches from iteration `first` on, as `load_dataset.training_batches` does."""
    return load_dataset.training_batches(pairs, settings.level, settings.batch_size, settings.train_size, first,
                                         settings.num_train_iters, settings.seed, settings.patch_size,
                                         division.indices, settings.cache_dir)


# One update ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class LossScale:
    """By what the loss of precision=float16 is multiplied, so that small gradients do not become 0."""

    loss_scale: float = 2.0 ** 15
    steps_at_scale: int = 0  # iterations since it last changed

    def change(self, factor):
        self.loss_scale, self.steps_at_scale = self.loss_scale * factor, 0


class Step(NamedTuple):
    """What an update gives: the loss before it, and whether it was applied."""

    loss: float
    applied: bool


def make_update(differentiate, optimizer, division, scale=None):
    """Returns update(batch, iteration, learning_rate) -> the loss before it. The first `iteration` is 1.

    Args:
      differentiate, optimizer: as in `make_training_step`; division: of the batch.
      scale: the `LossScale` of float16, which updates change; None where gradients cannot overflow.
    update() raises DataError where a worker was lost, or gradients are not finite whatever the loss scale.
    """
    step = make_training_step(differentiate, optimizer, division, scale is not None)

    def update(batch, iteration, learning_rate):
        with _naming_lost_worker(division, iteration - 1):
            repeatable = functools.partial(step, batch.inputs, batch.targets, iteration, learning_rate)
            return take_scaled_step(repeatable, scale, iteration) if scale else repeatable().loss

    return update


def take_scaled_step(step, scale, iteration):
    """Returns the loss of step(loss_scale=...), repeated with half the `LossScale` as long as gradients overflow."""
    done = step(loss_scale=scale.loss_scale)
    while not done.applied and math.isfinite(done.loss):
        if scale.loss_scale <= 1:
            raise DataError(f"iteration {iteration}: the gradients are not finite, whatever the loss scale: try "
                            "precision=bfloat16 or a lower learning_rate")
        scale.change(1 / 2)
        done = step(loss_scale=scale.loss_scale)
    scale.steps_at_scale += 1
    if scale.steps_at_scale == SCALE_DOUBLES_AFTER:
        scale.change(2)
    return done.loss


def make_training_step(differentiate, optimizer, division, scales_loss=False):
    """Makes the update of one iteration from that of one replica.

    Nothing in the network mixes the images of a batch and every loss is a mean over images, so the gradient of a batch
    is the sum of the gradients of its pieces, each with its share of the images.

    Args:
      differentiate: (inputs, targets, weight) -> (loss, gradients), both times `weight`, as in `train_model`.
      optimizer: with `variables` and apply(gradients, iteration, learning_rate), made under the strategy's scope.
      scales_loss: whether gradients may overflow; an update that is not finite is left out then.

    Returns step(inputs, targets, iteration, learning_rate, loss_scale=1.0) -> `Step`, on this worker's images of the
    batch: uint8 arrays as in `load_dataset.Batch`. `iteration` is 1 for the first update.
    """
    strategy = division.strategy
    with strategy.scope():
        sums = [tf.Variable(tf.zeros_like(variable), trainable=False) for variable in optimizer.variables]

    def sum_over_replicas(values):
        if strategy.num_replicas_in_sync == 1:
            return values
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, values)

    def add_piece(inputs, targets, share, loss_scale):
        loss, gradients = differentiate(inputs, targets, share * loss_scale)
        for total, gradient in zip(sums, gradients, strict=True):
            tf.raw_ops.AssignAddVariableOp(resource=total.handle, value=gradient)
        return sum_over_replicas([loss / loss_scale])

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

    def step(inputs, targets, iteration, learning_rate, loss_scale=1.0):
        loss_scale = tf.constant(loss_scale)
        losses = [run_piece(*_distribute(division, ranges, inputs, targets), loss_scale) for ranges in division.rounds]
        applied = run_sums(tf.constant(iteration, tf.int64), tf.constant(learning_rate, tf.float32), loss_scale)
        return Step(sum(map(float, losses)), bool(applied))

    return step


def _on_replicas(strategy, function):
    """Compiles a function that runs on all replicas, and gives the one value that it returns on this worker's first."""
    compiled = tf.function(lambda *arguments: strategy.run(function, arguments), autograph=False, reduce_retracing=True)
    return lambda *arguments: strategy.experimental_local_results(compiled(*arguments)[0])[0]


def _distribute(division, ranges, inputs, targets):
    """Returns (inputs, targets, share of the batch) of a round; a replica without images gets a black one, share 0."""
    def of_replica(context):
        part = ranges[context.replica_id_in_sync_group]
        first = part.start - division.indices.start
        images = (values[first:first + len(part)] if part else np.zeros_like(values[:1])
                  for values in (inputs, targets))
        return tuple(map(tf.constant, (*images, np.float32(len(part) / division.size))))

    return division.strategy.experimental_distribute_values_from_function(of_replica)


def memory_full(settings):
    """Returns the error that says what needs less memory."""
    division = divide_batch(settings.batch_size, settings.micro_batch, choose_strategy())
    images = division.largest_piece()  # where there are several workers, a machine has fewer
    advice = (f"with micro_batch={images // 2} it computes a batch in smaller pieces, which is the same training"
              if images > 1 else "a smaller patch_size= takes less, and so does precision=bfloat16")
    return DataError(f"the device's memory is full at level {settings.level}: {advice}")

"""Trains a small PyNET for some steps in several ways, and prints {way: losses} as JSON: what test_updates.py compares.

Without TF_CONFIG in the environment the ways are one device and two logical CPUs; with it, this is one of several
workers.
"""

import functools
import json
import os
import pathlib
import sys

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import numpy as np
import tensorflow as tf

import model
import train_model
from support import updates

LEVEL, BATCH, SIZE, STEPS = 7, 5, 64, 10
LEARNING_RATE = 1e-5  # so small because Adam divides gradients that are hardly more than rounding by their own size


def losses(strategy, worker=updates.ONLY_WORKER, micro_batches=(None,)):
    """For each size of pieces the losses before the first updates of fresh weights, always on the same batch."""
    with strategy.scope():
        pynet = model.build_pynet(SIZE, SIZE, seed=1, width_multiplier=0.125, kernel_start="he")
        network = model.network_for_level(pynet, LEVEL)
        start = [variable.numpy() for variable in train_model.trained_variables(network)]
    for micro_batch in micro_batches:
        with strategy.scope():
            adam = train_model.Adam(train_model.trained_variables(network))
        for variable, value in zip(adam.variables, start):
            variable.assign(value)
        division = updates.divide_batch(BATCH, micro_batch, strategy, worker)
        update = functools.partial(train_model.differentiate, network, LEVEL, None, adam.variables)
        step = updates.make_training_step(update, adam, division)
        random, own = np.random.default_rng(1), slice(division.indices.start, division.indices.stop)
        inputs = random.integers(0, 256, (BATCH, SIZE, SIZE, 4), np.uint8)[own]
        targets = random.integers(200, 256, (BATCH, SIZE // 32, SIZE // 32, 3), np.uint8)[own]
        yield [step(inputs, targets, iteration, LEARNING_RATE).loss for iteration in range(1, STEPS + 1)]


def main():
    worker = updates.find_worker()
    if worker.count > 1:
        return dict(zip(["worker"], losses(updates.choose_strategy(worker), worker)))
    cpu, = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    one, both = tf.distribute.get_strategy(), tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    return (dict(zip(["one device"], losses(one)))
            | dict(zip(["two devices", "two devices, pieces of 1"], losses(both, micro_batches=(None, 1)))))


if __name__ == "__main__":
    print(json.dumps(main()))

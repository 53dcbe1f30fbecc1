"""Measures speed and memory on this machine: python -m tools.benchmark [what=render|train|data|startup|...] [level=N]

Most figures are medians of repeated runs. Beside those of render and train stands what the machine does at best in the
same run: a large plain convolution of the same precision. The output is a Markdown table. Each row is measured by a
process of its own, so that its peak memory is its own.
"""

import concurrent.futures
import contextlib
import datetime
import functools
import io
import multiprocessing
import os
import pathlib
import platform
import re
import statistics
import sys
import tempfile
import time
import timeit

import numpy as np
import PIL
from PIL import Image

import load_dataset
import train_model
import utils
from support import checkpoints, dataset_files, devices, renderer, scripts, updates
from tools import make_scenes
from utils import LazyModule, Parameter, tf

model = LazyModule("model")

PHOTO_SIZE = 1536, 1024  # width, height of the photos that are rendered and read, as EBB! has them
LEVELS = {  # where no level is given
    "render": (1,), "train": (7, 3), "data": (7, 3, 1), "startup": (7, 3), "sizes": (1,),
    "schedule": (7, 6, 5, 4, 3, 2, 1)}
ALL = "render", "train", "data", "startup"  # where `what` is not given
BATCH_SIZE = {7: 4, 6: 4, 5: 2}  # of what=train, 1 for the other levels
REPETITIONS = 9
DATA_PAIRS, PLAIN_PAIRS = 24, 8  # that are read in each
CONVOLUTION = 256, 384, 128  # height, width and maps of the plain 3 x 3 convolution
SIZES, SIDES = 300, (64, 800)  # photos that what=sizes renders, and the range of half of their sides in pixels

PARAMETERS = (
    Parameter("what", tuple(LEVELS), None, "what to measure; sizes: photos of many sizes; schedule: the paper's hours",
              default_text=", ".join(ALL)),
    Parameter("level", int, None, "level of the network", minimum=1, maximum=7,
              default_text="1 to render, 7 and 3 to train and to start, 7, 3 and 1 for data, all for schedule"),
    Parameter("precision", utils.PRECISIONS, "float32", "of the feature maps"),
    Parameter("width", ("1", "0.5", "0.25", "0.125"), "1", "share of the paper's feature maps"),
    Parameter("dataset_dir", str, None, "photos to read", default_text="synthetic ones"),
)
USAGE = "python -m tools.benchmark [name=value ...]"


def main(argv):
    """Measures what the arguments say and prints the table."""
    settings = utils.parse_arguments(argv, PARAMETERS, USAGE)
    devices.start_tensorflow(precision=settings.precision)
    print(machine(), "", "| what | time or rate | GFLOP/s | plain convolution, GFLOP/s | fraction | peak memory |",
          "|---|---|---|---|---|---|", sep="\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        dataset_dir = os.path.abspath(settings.dataset_dir or os.path.join(folder, "photos"))
        kinds = [settings.what] if settings.what else ALL
        if not settings.dataset_dir and {"data", "startup", "schedule"} & set(kinds):
            make_scenes.write_dataset(pathlib.Path(dataset_dir), train_count=8, test_count=1, size=PHOTO_SIZE)
        rows = []
        for kind in kinds:
            for level in [settings.level] if settings.level else LEVELS[kind]:
                rows.append(measure_in_own_process(kind, level, settings, dataset_dir, folder))
                print(row(rows[-1]), flush=True)
    hours = [measured["hours"] for measured in rows if "hours" in measured]
    if len(hours) > 1:
        print(f"Paper's schedule: {sum(hours):.1f} hours")


def machine():
    """Returns date, processor and versions on one line."""
    name = re.search(r"^model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    processor = f"{name[1] if name else platform.machine()}, {load_dataset.processors()} cores"
    versions = f"TensorFlow {tf.__version__}, NumPy {np.__version__}, Pillow {PIL.__version__}"
    return f"{datetime.date.today()}; {processor}; Python {platform.python_version()}, {versions}"


def measure_in_own_process(kind, level, settings, dataset_dir, folder):
    """Returns what `measure` gives. `folder` is for what it writes. Raises DataError if the process dies."""
    if kind == "startup" and level < 7:
        prefix = pathlib.Path(folder) / checkpoints.checkpoint_prefix(level + 1, 1)
        prefix.parent.mkdir(exist_ok=True)
        checkpoints.save_checkpoint(model.build_pynet(width_multiplier=float(settings.width)).variables, prefix)
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        measurement = process.submit(measure, kind, level, settings.precision, settings.width, dataset_dir, folder,
                                     time.time())
        try:
            return measurement.result()
        except concurrent.futures.BrokenExecutor as error:
            raise utils.DataError(
                f"what={kind} level={level}: the measuring process died, perhaps because memory was full; where the "
                "network computes, precision=bfloat16 or a smaller width= needs less") from error


def row(measured):
    """Returns a line of the table."""
    rate, best = measured.get("gflops"), measured.get("best_gflops")
    cells = [measured["what"], measured["result"], f"{rate:.0f}" if rate else "", f"{best:.0f}" if best else "",
             f"{rate / best:.2f}" if rate else "", f"{measured['peak'] / 1e9:.1f} GB"]
    return f"| {' | '.join(cells)} |"


def measure(kind, level, precision, width, dataset_dir, folder, started):
    """Measures a row: returns {what, result, peak in bytes} and, where the network computes, gflops and best_gflops."""
    os.chdir(folder)
    with contextlib.redirect_stdout(io.StringIO()):
        if kind == "startup":
            measured = one_iteration(level, precision, width, dataset_dir, started)
        else:
            devices.start_tensorflow(precision=precision)
            if kind == "data":
                measured = reading(level, dataset_dir)
            elif kind == "sizes":
                measured = many_sizes(level, precision, width)
            elif kind == "schedule":
                measured = schedule(level, precision, width, dataset_dir)
            else:
                measured = computing(rendering if kind == "render" else training, level, precision, width)
        return measured | {"peak": devices.peak_memory()}


def computing(prepare, level, precision, width):
    """Measures what `prepare`, which is `rendering` or `training`, gives, beside a large plain convolution."""
    what, work, count = prepare(level, precision, width)
    convolve, convolution_count = plain_convolution(precision)
    seconds, convolution_seconds = alternate(work, convolve)
    return {"what": f"{what}, width {width}, {precision}", "result": f"{seconds:.2f} s",
            "gflops": count / seconds / 1e9, "best_gflops": convolution_count / convolution_seconds / 1e9}


def rendering(level, precision, width):
    """Returns (what it is, a function that renders a photo of EBB!'s size, its floating-point operations)."""
    columns, rows = PHOTO_SIZE
    render, channels = build_renderer(level, precision, width)
    photo = np.random.default_rng(0).integers(0, 256, (rows // 2, columns // 2, channels), np.uint8)
    count = operations(level, rows // 2, columns // 2, width)
    return f"render {rows} x {columns}, level {level}", lambda: render(photo, PHOTO_SIZE), count


def build_renderer(level, precision, width):
    """Builds a network. Returns what `renderer.make_renderer` makes of it, and the channels of its input."""
    pynet = model.build_pynet(precision=precision, width_multiplier=float(width))
    return renderer.make_renderer(model.network_for_level(pynet, level), level), pynet.input.shape[-1]


def training(level, precision, width, batch_size=None):
    """Returns the same for an update. Backwards takes twice the operations: for the gradients of maps and kernels."""
    size, batch_size = load_dataset.PATCH_SIZE, batch_size or BATCH_SIZE.get(level, 1)
    pynet = model.build_pynet(size, size, precision=precision, width_multiplier=float(width))
    network = model.network_for_level(pynet, level)
    adam = train_model.Adam(train_model.trained_variables(network))
    update = functools.partial(train_model.differentiate, network, level, None, adam.variables)
    step = updates.make_training_step(update, adam, updates.divide_batch(batch_size), precision == "float16")
    random, side = np.random.default_rng(0), load_dataset.target_side(level)
    inputs = random.integers(0, 256, (batch_size, size, size, pynet.input.shape[-1]), np.uint8)
    targets = random.integers(0, 256, (batch_size, side, side, 3), np.uint8)
    count = 3 * batch_size * operations(level, size, size, width)
    return f"training step, level {level}, batch {batch_size}", lambda: step(inputs, targets, 1, 1e-6), count


def alternate(*works):
    """Returns each function's median seconds. They run in turns; their first calls, which compile, do not count."""
    turns = [[timeit.timeit(work, number=1) for work in works] for _ in range(1 + REPETITIONS)]
    return [statistics.median(seconds) for seconds in zip(*turns[1:])]


def plain_convolution(precision):
    """Returns (a function that computes a large 3 x 3 convolution, its floating-point operations)."""
    height, width, maps = CONVOLUTION
    images = tf.cast(tf.random.stateless_normal((1, height, width, maps), (0, 1)), precision)
    kernel = tf.cast(tf.random.stateless_normal((3, 3, maps, maps), (0, 2)), precision)
    convolve = tf.function(lambda: tf.nn.conv2d(images, kernel, 1, "SAME")[0, 0, 0, 0], autograph=False)
    return lambda: convolve().numpy(), 2 * 9 * maps * maps * height * width


def operations(level, height, width, width_multiplier="1"):
    """Returns the floating-point operations of a level's convolutions, for one image of the network's input size.

    They are a multiplication and an addition for each kernel weight and pixel (of a transposed convolution's input).
    """
    pynet = model.build_pynet(height, width, seed=None, width_multiplier=float(width_multiplier))
    total = 0
    for layer in model.network_for_level(pynet, level).layers:
        if hasattr(layer, "kernel"):
            transposed = isinstance(layer, tf.keras.layers.Conv2DTranspose)
            _, rows, columns, _ = (layer.input if transposed else layer.output).shape
            total += 2 * int(np.prod(layer.kernel.shape)) * rows * columns
    return total


def reading(level, dataset_dir):
    """Measures reading of training pairs in as many threads as there are cores, while nothing else computes.

    In turns with it, the same from decoded pictures in a cache_dir, and by plain calls of Pillow in one thread, which
    is how the original reads.
    """
    pairs = dataset_files.find_training_set(dataset_dir)[0]
    seconds, kept_seconds, plain_seconds = alternate(
        lambda: read(pairs, level), lambda: read(pairs, level, "cache"),
        lambda: read_plainly(pairs[:PLAIN_PAIRS], level))
    rate, plain_rate = DATA_PAIRS / seconds, len(pairs[:PLAIN_PAIRS]) / plain_seconds
    times = f"{rate / plain_rate:.1f} times the {plain_rate:.0f} of one core with plain Pillow"
    return {"what": f"training pairs, level {level}",
            "result": f"{rate:.0f} a second, {times}; {DATA_PAIRS / kept_seconds:.0f} with cache_dir="}


def read(pairs, level, cache_dir=None):
    """Reads DATA_PAIRS training pairs as a training does."""
    for _ in load_dataset.training_batches(pairs, level, 1, len(pairs), 1, DATA_PAIRS, cache_dir=cache_dir):
        pass


def read_plainly(pairs, level):
    """Reads training pairs as the original does: whole images are decoded, and halved, before a patch is cut out."""
    side = 2 * load_dataset.PATCH_SIZE
    for pair in pairs:
        with Image.open(pair.photo) as photo, Image.open(pair.map) as depth, Image.open(pair.bokeh) as bokeh:
            half = photo.resize((photo.width // 2, photo.height // 2), Image.Resampling.BICUBIC)
            np.dstack([np.asarray(half), np.asarray(depth)])[:side // 2, :side // 2].copy()
            target = Image.fromarray(np.asarray(bokeh)[:side, :side])
            np.asarray(target.resize((load_dataset.target_side(level),) * 2, Image.Resampling.BICUBIC))


def many_sizes(level, precision, width):
    """Measures time and memory of rendering photos of SIZES random sizes, the largest first, with one network."""
    render, channels = build_renderer(level, precision, width)
    random, measured = np.random.default_rng(0), []
    for columns, rows in np.vstack([[SIDES[1]] * 2, random.integers(*SIDES, (SIZES - 1, 2))]):
        photo = random.integers(0, 256, (rows, columns, channels), np.uint8)
        seconds = timeit.timeit(functools.partial(render, photo, (2 * columns, 2 * rows)), number=1)
        measured.append((1e6 * seconds / (4 * rows * columns), devices.peak_memory() / 1e9))
    texts = [f"{np.median(part[:, 0]):.2f} s a megapixel and {part[-1, 1]:.2f} GB"
             for part in np.array_split(measured, 3)]
    return {"what": f"render {SIZES} sizes, level {level}, width {width}, {precision}",
            "result": f"in the first, second and last third {', '.join(texts)}"}


def schedule(level, precision, width, dataset_dir):
    """Measures an update of the paper's batch size, and reading, and computes the hours of the paper's iterations."""
    batch_size, iterations = checkpoints.PAPER_BATCH_SIZES[level], train_model.DEFAULT_ITERATIONS[level]
    pairs = dataset_files.find_training_set(dataset_dir)[0]
    step = training(level, precision, width, batch_size)[1]
    seconds, *reading_seconds = alternate(step, lambda: read(pairs, level), lambda: read(pairs, level, "cache"))
    decode, kept = (total * batch_size / DATA_PAIRS for total in reading_seconds)
    hours = iterations * max(seconds, kept) / 3600
    return {"what": f"level {level}, {iterations} iterations of batch {batch_size}, width {width}, {precision}",
            "result": f"step {seconds:.2f} s, reading {decode:.2f} s, {kept:.2f} s with cache_dir=: {hours:.1f} hours",
            "hours": hours}


def one_iteration(level, precision, width, dataset_dir, started):
    """Measures from the start of the process to the end of a training of one iteration, saved and measured twice."""
    train_model.main([f"level={level}", "batch_size=1", f"precision={precision}", f"dataset_dir={dataset_dir}",
                      "vgg_dir=none", "num_train_iters=1", *([f"width={width}"] if level == 7 else [])])
    return {"what": f"process start to the end of one iteration, level {level}, width {width}, {precision}",
            "result": f"{time.time() - started:.1f} s"}


if __name__ == "__main__":
    sys.exit(scripts.run(main))

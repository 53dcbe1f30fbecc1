"""Measures speed and memory on this machine: python -m tools.benchmark [what=render|train|data|startup] [level=N] ...

Each figure is the median of repeated runs. Beside it stands what the machine does at best in the same run: a large
plain convolution of the same precision. The output is a Markdown table. Each row is measured by a process of its own,
so that its peak memory is its own.
"""

import datetime
import functools
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import PIL
from PIL import Image

import load_dataset
import test_model
import train_model
import utils
from support import checkpoints, devices
from tools import make_scenes
from utils import DataError, Parameter, tf

KINDS = ("render", "train", "data", "startup")
PHOTO_SIZE = 1536, 1024  # width, height of the photos that are rendered and read, as EBB! has them
LEVELS = {"render": (1,), "train": (7, 3), "data": (7, 3, 1), "startup": (7, 3)}  # where no level is given
BATCH_SIZE = {7: 4, 6: 4, 5: 2}  # of what=train, 1 for the other levels
REPETITIONS = {"render": 7, "train": 9}
DATA_TURNS, DATA_PAIRS = 9, 48  # turns, and pairs read in each
CONVOLUTION = 256, 384, 128  # height, width and maps of the plain 3 x 3 convolution
CONVOLUTION_REPETITIONS = 15

PARAMETERS = (
    Parameter("what", KINDS, None, "what to measure", default_text="all of it"),
    Parameter("level", int, None, "level of the network", 1, 7,
              default_text="1 to render, 7 and 3 to train and to start, 7, 3 and 1 for data"),
    Parameter("precision", utils.PRECISIONS, "float32", "of the feature maps"),
    Parameter("width", ("1", "0.5", "0.25", "0.125"), "1", "share of the paper's feature maps"),
    Parameter("dataset_dir", str, None, "photos for what=data", default_text="synthetic ones"),
)
USAGE = "python -m tools.benchmark [name=value ...]"


def main(argv):
    """Measures what the arguments say and prints the table. Returns the exit status."""
    if argv[:1] == ["--row"]:
        print(json.dumps(measure(**json.loads(argv[1]))))
        return 0
    settings = utils.parse_arguments(argv, PARAMETERS, USAGE)
    devices.start_tensorflow(precision=settings.precision)
    print(machine(), "", "| what | time or rate | GFLOP/s | plain convolution, GFLOP/s | fraction | peak memory |",
          "|---|---|---|---|---|---|", sep="\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        dataset_dir = os.path.abspath(settings.dataset_dir or os.path.join(folder, "photos"))
        kinds = [settings.what] if settings.what else KINDS
        if not settings.dataset_dir and {"data", "startup"} & set(kinds):
            make_scenes.write_dataset(pathlib.Path(dataset_dir), train_count=8, test_count=1, size=PHOTO_SIZE)
        for kind in kinds:
            for level in [settings.level] if settings.level else LEVELS[kind]:
                print(row(measure_in_own_process(kind, level, settings, dataset_dir, folder)), flush=True)
    return 0


def machine():
    """Returns date, processor and versions on one line."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    processor, cores = (names or [platform.machine()])[0], load_dataset.processors()
    versions = f"TensorFlow {tf.__version__}, NumPy {np.__version__}, Pillow {PIL.__version__}"
    return f"{datetime.date.today()}; {processor}, {cores} cores; Python {platform.python_version()}, {versions}"


def measure_in_own_process(kind, level, settings, dataset_dir, folder):
    """Returns what `measure` gives. `folder` is for what it writes."""
    import model
    if kind == "startup" and level < 7:
        prefix = pathlib.Path(folder) / checkpoints.checkpoint_prefix(level + 1, 1)
        prefix.parent.mkdir(exist_ok=True)
        checkpoints.save_checkpoint(model.build_pynet(width_multiplier=float(settings.width)).variables, prefix)
    request = json.dumps({"kind": kind, "level": level, "precision": settings.precision, "width": settings.width,
                          "dataset_dir": dataset_dir, "started": time.time()})
    repository = pathlib.Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-m", "tools.benchmark", "--row", request], stdout=subprocess.PIPE,
                          text=True, cwd=folder, env=os.environ | {"PYTHONPATH": str(repository)})
    if done.returncode:
        raise DataError(f"what={kind} level={level}: could not be measured")
    return json.loads(done.stdout.splitlines()[-1])


def row(found):
    """Returns a line of the table."""
    rate, best = found.get("gflops"), found.get("best_gflops")
    cells = [found["what"], found["result"], f"{rate:.0f}" if rate else "", f"{best:.0f}" if best else "",
             f"{rate / best:.2f}" if rate else "", f"{found['peak'] / 1e9:.1f} GB"]
    return f"| {' | '.join(cells)} |"


def measure(kind, level, precision, width, dataset_dir, started):
    """Measures a row: returns {what, result, peak in bytes} and, where the network computes, gflops and best_gflops."""
    if kind == "data":
        found = reading(level, dataset_dir)
    elif kind == "startup":
        found = first_update(level, precision, width, dataset_dir, started)
    else:
        devices.start_tensorflow(precision=precision)
        found = (rendering if kind == "render" else training)(level, precision, width)
    return found | {"peak": devices.peak_memory()}


def rendering(level, precision, width):
    """Measures a photo of EBB!'s size at a level."""
    import model
    columns, rows = PHOTO_SIZE
    pynet = model.build_pynet(precision=precision, width_multiplier=float(width))
    render = test_model.make_renderer(model.network_for_level(pynet, level), level)
    photo = np.random.default_rng(0).integers(0, 256, (rows // 2, columns // 2, 4), np.uint8)
    seconds, best = alternate(lambda: render(photo, PHOTO_SIZE), precision, REPETITIONS["render"])
    return {"what": f"render {rows} x {columns}, level {level}, width {width}, {precision}",
            "result": f"{seconds:.2f} s", "best_gflops": best,
            "gflops": operations(level, rows // 2, columns // 2, width) / seconds / 1e9}


def training(level, precision, width):
    """Measures an update. Backwards takes twice the operations: those of the gradients of maps and of kernels."""
    import model
    size, batch_size = load_dataset.PATCH_SIZE, BATCH_SIZE.get(level, 1)
    pynet = model.build_pynet(size, size, precision=precision, width_multiplier=float(width))
    network = model.network_for_level(pynet, level)
    adam = train_model.Adam(train_model.trained_variables(network))
    update = functools.partial(train_model.differentiate, network, level, None, adam.variables)
    step = devices.make_training_step(update, adam, devices.divide_batch(batch_size), precision == "float16")
    random, side = np.random.default_rng(0), load_dataset.target_side(level)
    inputs = random.integers(0, 256, (batch_size, size, size, 4), np.uint8)
    targets = random.integers(0, 256, (batch_size, side, side, 3), np.uint8)
    seconds, best = alternate(lambda: step(inputs, targets, 1, 1e-6), precision, REPETITIONS["train"])
    return {"what": f"training step, level {level}, batch {batch_size}, width {width}, {precision}",
            "result": f"{seconds:.2f} s", "best_gflops": best,
            "gflops": 3 * batch_size * operations(level, size, size, width) / seconds / 1e9}


def alternate(work, precision, repetitions):
    """Measures work and a large plain convolution in turns, so that both see the same machine.

    The first calls, which compile, do not count. Returns (median seconds of work, GFLOP/s of the convolution).
    """
    convolve, convolution_operations = plain_convolution(precision)
    work(), convolve()
    seconds, best = [], []
    for _ in range(repetitions):
        seconds.append(timed(work))
        best += [timed(convolve) for _ in range(CONVOLUTION_REPETITIONS // repetitions + 1)]
    return statistics.median(seconds), convolution_operations / statistics.median(best) / 1e9


def timed(work):
    """Returns how many seconds work() takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


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
    import model
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

    In turns with it, the same by plain calls of Pillow in one thread, which is how the original reads.
    """
    pairs = load_dataset.find_training_set(dataset_dir)[0]

    def read():
        for _ in load_dataset.training_batches(pairs, level, 1, train_size=len(pairs), first=1, last=DATA_PAIRS):
            pass

    read()
    seconds, plain_seconds = [], []
    for _ in range(DATA_TURNS):
        seconds.append(timed(read) / DATA_PAIRS)
        plain_seconds += [timed(lambda: read_plainly(pair, level)) for pair in pairs[:8]]  # noqa: B023
    rate, plain_rate = 1 / statistics.median(seconds), 1 / statistics.median(plain_seconds)
    return {"what": f"training pairs, level {level}",
            "result": f"{rate:.0f} a second, {rate / plain_rate:.1f} times the {plain_rate:.0f} of one core with plain "
                      "Pillow"}


def read_plainly(pair, level):
    """Reads a training pair as the original does: whole images are decoded, and halved, before a patch is cut out."""
    side = 2 * load_dataset.PATCH_SIZE
    with Image.open(pair.photo) as photo, Image.open(pair.depth) as depth, Image.open(pair.bokeh) as bokeh:
        half = photo.resize((photo.width // 2, photo.height // 2), Image.Resampling.BICUBIC)
        patch = np.dstack([np.asarray(half), np.asarray(depth)])[:side // 2, :side // 2].copy()
        target = Image.fromarray(np.asarray(bokeh)[:side, :side])
        return patch, np.asarray(target.resize((load_dataset.target_side(level),) * 2, Image.Resampling.BICUBIC))


class _Done(Exception):
    pass


def first_update(level, precision, width, dataset_dir, started):
    """Measures from the start of the process to the end of train_model.py's first update, after one test photo."""
    take_step = devices.take_step

    def update_and_end(*arguments):
        take_step(*arguments)
        raise _Done

    devices.take_step = update_and_end
    try:
        train_model.main([f"level={level}", "batch_size=1", f"precision={precision}", f"dataset_dir={dataset_dir}",
                          "vgg_dir=none", *([f"width={width}"] if level == 7 else [])])
    except _Done:
        seconds = time.time() - started
    finally:
        devices.take_step = take_step
    return {"what": f"process start to first update, level {level}, width {width}, {precision}",
            "result": f"{seconds:.1f} s"}


if __name__ == "__main__":
    sys.exit(utils.run(main))

"""Measures speed and memory on this machine: python -m tools.benchmark [what=render|train|data|startup] [level=N] ...

Each figure is the median of repeated runs. Beside it stands what the machine does at best in the same run, a large plain
convolution of the same precision, so that speeds are also fractions of that limit, which a slow or a busy machine does
not change. The output is a Markdown table. Each row is measured by a process of its own, so that its peak memory is its own.
"""

import datetime
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
import train_model
import utils
from tools import make_demo_dataset, training_record
from utils import DataError, Parameter

KINDS = ("render", "train", "data", "startup")
PHOTO_SIZE = 1536, 1024  # width, height of the photos that are rendered and read, as EBB! has them
LEVELS = {"render": (1,), "train": (7, 3), "data": (7, 6, 5, 4, 3, 2, 1), "startup": (7, 3)}  # where no level is given
BATCH_SIZE = {7: 4, 6: 4, 5: 2}  # of what=train, 1 for the other levels
REPETITIONS = {"render": 7, "train": 9}
DATA_TURNS, DATA_PAIRS = 9, 48  # turns, and pairs read in each
CONVOLUTION = 256, 384, 128  # height, width and maps of the plain 3 x 3 convolution
CONVOLUTION_REPETITIONS = 15

PARAMETERS = (
    Parameter("what", KINDS, None, "what to measure", default_text="all of it"),
    Parameter("level", int, None, "level of the network", 1, 7,
              default_text="1 to render, 7 and 3 to train and to start, all for data"),
    Parameter("precision", utils.PRECISIONS, "float32", "of the feature maps"),
    Parameter("dataset_dir", str, None, "photos for what=data", default_text="synthetic ones"),
)
USAGE = "python -m tools.benchmark [name=value ...]"


def main(argv):
    """Measures what the arguments say and prints the table. Returns the exit status."""
    if argv[:1] == ["--row"]:
        print(json.dumps(measure(**json.loads(argv[1]))))
        return 0
    settings = utils.parse_arguments(argv, PARAMETERS, USAGE)
    utils.start_tensorflow(precision=settings.precision)
    print(machine(), "", "| what | time or rate | GFLOP/s | plain convolution, GFLOP/s | fraction | peak memory |",
          "|---|---|---|---|---|---|", sep="\n", flush=True)
    kinds = [settings.what] if settings.what else KINDS
    with tempfile.TemporaryDirectory() as folder:
        if not settings.dataset_dir and {"data", "startup"} & set(kinds):
            make_demo_dataset.write_dataset(pathlib.Path(folder) / "photos", train_count=8, test_count=1, size=PHOTO_SIZE)
        dataset_dir = os.path.abspath(settings.dataset_dir or os.path.join(folder, "photos"))
        for kind in kinds:
            for level in [settings.level] if settings.level else LEVELS[kind]:
                print(row(measure_in_process_of_its_own(kind, level, settings.precision, dataset_dir, folder)), flush=True)
    return 0


def machine():
    """Date, processor and versions on one line."""
    import tensorflow as tf
    versions = f"TensorFlow {tf.__version__}, NumPy {np.__version__}, Pillow {PIL.__version__}"
    return (f"{datetime.date.today()}; {processor()}, {load_dataset.processors()} cores; Python "
            f"{platform.python_version()}, {versions}")


def processor():
    """The processor's name as Linux tells it."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def measure_in_process_of_its_own(kind, level, precision, dataset_dir, folder):
    """What `measure` gives. `folder` is for what it writes."""
    if kind == "startup" and level < 7:
        write_checkpoint_to_start_from(level + 1, folder)
    request = json.dumps({"kind": kind, "level": level, "precision": precision, "dataset_dir": dataset_dir,
                          "started": time.time()})
    repository = pathlib.Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-m", "tools.benchmark", "--row", request], stdout=subprocess.PIPE, text=True,
                          cwd=folder, env=os.environ | {"PYTHONPATH": str(repository)})
    if done.returncode:
        raise DataError(f"what={kind} level={level}: could not be measured")
    return json.loads(done.stdout.splitlines()[-1])


def row(found):
    """A line of the table."""
    rate, best = found.get("gflops"), found.get("best_gflops")
    cells = [found["what"], found["result"], f"{rate:.0f}" if rate else "", f"{best:.0f}" if best else "",
             f"{rate / best:.2f}" if rate else "", f"{found['peak'] / 1e9:.1f} GB"]
    return f"| {' | '.join(cells)} |"


def measure(kind, level, precision, dataset_dir, started):
    """Measures one row: {what, result, peak in bytes} and, where the network computes, gflops and best_gflops."""
    if kind == "data":
        found = reading(level, dataset_dir)
    elif kind == "startup":
        found = first_update(level, precision, dataset_dir, started)
    else:
        utils.start_tensorflow(precision=precision)
        found = rendering(level, precision) if kind == "render" else training(level, precision)
    return found | {"peak": training_record.device_memory()}


def rendering(level, precision):
    """A photo of EBB!'s size at a level."""
    import model
    import test_model
    width, height = PHOTO_SIZE
    pynet = model.build_pynet(precision=precision)
    render = test_model.make_renderer(model.network_for_level(pynet, level), level)
    photo = np.random.default_rng(0).integers(0, 256, (height // 2, width // 2, 4), np.uint8)
    seconds, best = alternate(lambda: render(photo, PHOTO_SIZE), precision, REPETITIONS["render"])
    work = operations(level, height // 2, width // 2)
    return {"what": f"render {height} x {width}, level {level}, {precision}", "result": f"{seconds:.2f} s",
            "gflops": work / seconds / 1e9, "best_gflops": best}


def training(level, precision):
    """An update of a level. Backwards takes twice the operations: those of the gradients of maps and of kernels."""
    import model
    size, side, batch_size = load_dataset.PATCH, load_dataset.target_side(level), BATCH_SIZE.get(level, 1)
    pynet = model.build_pynet(size, size, precision=precision)
    network = model.network_for_level(pynet, level)
    adam = train_model.Adam(train_model.trained_variables(network))
    step = train_model.make_training_step(network, level, None, adam, 1e-6, train_model.divide_batch(batch_size),
                                          scales_loss=precision == "float16")
    random = np.random.default_rng(0)
    inputs = random.integers(0, 256, (batch_size, size, size, 4), np.uint8)
    targets = random.integers(0, 256, (batch_size, side, side, 3), np.uint8)
    seconds, best = alternate(lambda: step(inputs, targets, 1), precision, REPETITIONS["train"])
    work = 3 * batch_size * operations(level, size, size)
    return {"what": f"training step, level {level}, batch {batch_size}, {precision}", "result": f"{seconds:.2f} s",
            "gflops": work / seconds / 1e9, "best_gflops": best}


def alternate(work, precision, repetitions):
    """(median seconds of work, GFLOP/s of the median plain convolution), measured in turns so that both see the same
    machine; the first call of each, which compiles, does not count."""
    convolve, convolution_operations = plain_convolution(precision)
    work(), convolve()
    seconds, best = [], []
    for _ in range(repetitions):
        seconds.append(timed(work))
        best += [timed(convolve) for _ in range(CONVOLUTION_REPETITIONS // repetitions + 1)]
    return statistics.median(seconds), convolution_operations / statistics.median(best) / 1e9


def timed(work):
    """Seconds."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def plain_convolution(precision):
    """(a function that computes a large 3 x 3 convolution and waits for it, its floating-point operations)."""
    import tensorflow as tf
    height, width, maps = CONVOLUTION
    images = tf.cast(tf.random.stateless_normal((1, height, width, maps), (0, 1)), precision)
    kernel = tf.cast(tf.random.stateless_normal((3, 3, maps, maps), (0, 2)), precision)
    convolve = tf.function(lambda: tf.nn.conv2d(images, kernel, 1, "SAME")[0, 0, 0, 0], autograph=False)
    return lambda: convolve().numpy(), 2 * 9 * maps * maps * height * width


def operations(level, height, width):
    """Floating-point operations of the convolutions of a level, for one image of the network's input size: a
    multiplication and an addition for each kernel weight and pixel (a transposed convolution: pixel of its input)."""
    import model
    from tensorflow import keras
    network = model.network_for_level(model.build_pynet(height, width, seed=None), level)
    total = 0
    for layer in network.layers:
        if isinstance(layer, (keras.layers.Conv2D, keras.layers.Conv2DTranspose)):
            transposed = isinstance(layer, keras.layers.Conv2DTranspose)
            _, rows, columns, _ = (layer.input if transposed else layer.output).shape
            total += 2 * int(np.prod(layer.kernel.shape)) * rows * columns
    return total


def reading(level, dataset_dir):
    """Training pairs, decoded in as many threads as there are cores, while nothing else computes; all have been read once,
    which is when their content is checked. In turns with it, the same by plain calls of Pillow in one thread, which is how
    the original reads, so that the factor grows with the number of cores."""
    pairs = load_dataset.find_training_pairs(dataset_dir, "train")
    utils.start_tensorflow(use_gpu=False)

    def read(count):
        for _ in load_dataset.training_batches(pairs, level, 1, train_size=len(pairs), first=1, last=count):
            pass

    read(2 * len(pairs))
    seconds, processor_seconds, plain_seconds = [], [], []
    for turn in range(DATA_TURNS):
        processor_started = time.process_time()
        seconds.append(timed(lambda: read(DATA_PAIRS)) / DATA_PAIRS)
        processor_seconds.append((time.process_time() - processor_started) / DATA_PAIRS)
        plain_seconds += [timed(lambda: read_plainly(pair, level)) for pair in pairs[:8]]
    rate, plain_rate = 1 / statistics.median(seconds), 1 / statistics.median(plain_seconds)
    milliseconds = 1000 * statistics.median(processor_seconds)
    return {"what": f"training pairs, level {level}",
            "result": f"{rate:.0f} a second ({milliseconds:.0f} ms of a core each), {rate / plain_rate:.1f} "
                      f"times the {plain_rate:.0f} of one core with plain Pillow"}


def read_plainly(pair, level):
    """A training pair as the original loads it: whole images are decoded, and halved, before a patch is cut out."""
    with Image.open(pair.photo) as photo, Image.open(pair.depth) as depth, Image.open(pair.bokeh) as bokeh:
        half = photo.resize((photo.width // 2, photo.height // 2), Image.Resampling.BICUBIC)
        patch = np.dstack([np.asarray(half), np.asarray(depth)])[:load_dataset.PATCH, :load_dataset.PATCH].copy()
        side = 2 * load_dataset.PATCH
        target = Image.fromarray(np.asarray(bokeh)[:side, :side])
        return patch, np.asarray(target.resize((load_dataset.target_side(level),) * 2, Image.Resampling.BICUBIC))


def write_checkpoint_to_start_from(level, folder):
    """Random weights, as the last checkpoint of a level."""
    import model
    prefix = pathlib.Path(folder) / utils.checkpoint_prefix(level, 1)
    prefix.parent.mkdir(exist_ok=True)
    utils.save_checkpoint(model.build_pynet().variables, prefix)


def first_update(level, precision, dataset_dir, started):
    """From the start of the process to the end of the first update of train_model.py, with batch 1; before it one test
    photo is measured, as in every training."""
    class Done(Exception):
        pass

    def update_and_end(self, batch, stop):
        update(self, batch, stop)
        raise Done

    update, train_model.Level.update = train_model.Level.update, update_and_end
    try:
        train_model.main([f"level={level}", "batch_size=1", f"precision={precision}", f"dataset_dir={dataset_dir}",
                          "vgg_dir=none"])
    except Done:
        seconds = time.time() - started
    finally:
        train_model.Level.update = update
    return {"what": f"process start to first update, level {level}, {precision}", "result": f"{seconds:.1f} s"}


if __name__ == "__main__":
    sys.exit(utils.run(main))

"""Shows the whole pipeline in minutes, without any download: python -m tools.demo

Makes a few synthetic scenes and renders one with the small network of models/small/, if it is there. Then it trains a
small network of its own from scratch, level 7 to 1, and puts all of it on one contact sheet, results/demo.png. Training
and rendering are those of train_model.py and test_model.py, run as a user would run them, but in results/demo/: the
user's own models/ and results/ stay as they are.
"""

import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

import utils
from support.training_log import LOG
from tools import make_scenes, plot_logs
from utils import DataError, Parameter

FOLDER = utils.RESULTS / "demo"
SHEET = utils.RESULTS / "demo.png"
SCRIPTS = pathlib.Path(__file__).resolve().parent.parent
SMALL = SCRIPTS / utils.SMALL
TRAIN_COUNT, TEST_COUNT = 12, 1

SCHEDULE = {7: 100, 6: 60, 5: 60, 4: 60, 3: 80, 2: 20, 1: 10}  # iterations: what two CPU cores do in minutes
NETWORK = "width=0.25", "patch_size=128", "batch_size=2", "learning_rate=4e-4", "vgg_dir=none"

PARAMETERS = (Parameter("seed", int, 0, "another one gives other scenes and another training", 0),)
USAGE = "python -m tools.demo [seed=N]"

COLUMNS, PICTURE_SIZE, LABEL_HEIGHT, FONT_SIZE, GAP = 4, (600, 400), 34, 22, 12  # of the contact sheet, in pixels


def main(argv):
    """Runs the demo. Returns the exit status: that of the script which failed, if one did."""
    settings = utils.parse_arguments(argv, PARAMETERS, USAGE)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stops the script that runs, too
    started = time.monotonic()
    prepare_folder()
    print(f"This takes some minutes on two CPU cores. Making {TRAIN_COUNT + TEST_COUNT} scenes in "
          f"{FOLDER / 'ebb_dataset'}/", flush=True)
    make_scenes.write_dataset(FOLDER / "ebb_dataset", TRAIN_COUNT, TEST_COUNT, seed=settings.seed)
    for script, *arguments in commands(settings.seed):
        print(f"\n$ python {script} {shlex.join(arguments)}", flush=True)
        status = subprocess.call([sys.executable, SCRIPTS / script, *arguments], cwd=FOLDER)
        if status:
            print(f"error: {script} ended with exit status {status}, so the demo ends here", file=sys.stderr)
            return status
        if script == "test_model.py":
            write_sheet()
    print(f"""
The demo took {utils.duration(time.monotonic() - started)}. All but the contact sheet is in {FOLDER}/.

What this shows: the pipeline is whole, from photos through seven levels, each trained from the one above it, to a photo
rendered at full size. What was trained just now is a network with a quarter of the paper's feature maps, for
{sum(SCHEDULE.values())} iterations instead of the paper's 260,000: large shapes and colours, not bokeh.""")
    return 0


def prepare_folder():
    """Makes results/demo/. Raises DataError where it exists."""
    if FOLDER.exists():
        raise DataError(f"{FOLDER}: exists, probably from an earlier demo; delete or rename it")
    utils.prepare_folders(FOLDER)
    if SMALL.with_suffix(".index").exists():
        shutil.copytree(SMALL.parent, FOLDER / utils.SMALL.parent)


def commands(seed):
    """Yields the calls of the scripts, each as [script, argument, ...]."""
    if SMALL.with_suffix(".index").exists():
        yield ["test_model.py", "small=true"]
    for level, iterations in SCHEDULE.items():
        yield ["train_model.py", f"level={level}", f"num_train_iters={iterations}", f"seed={seed}", *NETWORK]
    yield ["test_model.py", "level=1"]


# The contact sheet ---------------------------------------------------------------------------------------------------


def write_sheet():
    """Writes results/demo.png: the test photo with what was made of it, then the visual crops of every level."""
    panels = [labelled(label, file) for label, file in [*photo_files(), *crop_files()] if file.exists()]
    panels += [Image.new("RGB", panels[0].size, "white")] * (-len(panels) % COLUMNS)
    rows = [np.hstack(panels[first:first + COLUMNS]) for first in range(0, len(panels), COLUMNS)]
    utils.write_image(SHEET, np.vstack(rows))
    print(f"Look at it: {SHEET}", flush=True)


def photo_files():
    """Returns the test photo and what was made of it, as (label, file), whether it is there yet or not."""
    test, rendered = FOLDER / "ebb_dataset" / "test", FOLDER / utils.FULL_RESOLUTION
    return [("photo", test / "original" / "0.jpg"), ("depth map", test / "original_depth" / "0.png"),
            ("target", test / "bokeh" / "0.jpg"), ("small network of models/small/", rendered / "0_level_1_small.png"),
            ("network trained just now, level 1", rendered / f"0_level_1_iteration_{SCHEDULE[1]}.png")]


def crop_files():
    """Returns the visual crops (input | output | target) at the end of every level, as (label, file)."""
    levels = plot_logs.read_log(FOLDER / LOG) if (FOLDER / LOG).exists() else {}
    ends = {level: max(evaluations.items()) for level, evaluations in levels.items()}
    return [(f"level {level} after {iteration} iterations: test PSNR {metrics['psnr']:.4g} dB",
             FOLDER / utils.RESULTS / f"pynet_img_0_level_{level}_iter_{iteration}.jpg")
            for level, (iteration, metrics) in ends.items()]


def labelled(label, file):
    """Returns the picture of a file with a line of text above it and a gap around both."""
    with Image.open(file) as image:
        picture = ImageOps.pad(image.convert("RGB"), PICTURE_SIZE, Image.Resampling.LANCZOS, "white", (0.5, 0))
    panel = ImageOps.expand(picture, (GAP, LABEL_HEIGHT, GAP, GAP), "white")
    ImageDraw.Draw(panel).text((GAP, 0), label, "black", ImageFont.load_default(FONT_SIZE))
    return panel


if __name__ == "__main__":
    sys.exit(utils.run(main))

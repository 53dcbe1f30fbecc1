"""Shows the whole pipeline in minutes, without any download: python -m tools.demo

Makes a few synthetic scenes and renders one with the small network of models/small/, if it is there. Then it trains a
small network of its own from scratch, level 7 to 1, and puts all of it on one contact sheet, results/demo.png. Training
and rendering are those of train_model.py and test_model.py, run as a user would run them, but in results/demo/: the
user's own models/ and results/ stay as they are.
"""

import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import utils
from support.training_log import LOG
from tools import make_scenes, plot_logs
from utils import DataError, Parameter

FOLDER = utils.RESULTS / "demo"
SHEET = utils.RESULTS / "demo.png"
MARKER = FOLDER / "made_by_demo.txt"
SCRIPTS = pathlib.Path(__file__).resolve().parent.parent
SMALL = SCRIPTS / utils.SMALL
TRAIN_COUNT, TEST_COUNT = 12, 1

SCHEDULE = {7: 100, 6: 60, 5: 60, 4: 60, 3: 80, 2: 20, 1: 10}  # iterations: what two CPU cores do in minutes
NETWORK = "width=0.25", "patch_size=128", "batch_size=2", "learning_rate=4e-4", "vgg_dir=none"

PARAMETERS = (Parameter("seed", int, 0, "another one gives other scenes and another training", 0),)
USAGE = "python -m tools.demo [seed=N]"

PHOTO_HEIGHT, CROP_HEIGHT, LABEL_HEIGHT, FONT_SIZE, GAP = 400, 300, 34, 22, 12  # of the contact sheet, in pixels


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
        status = run_script(script, arguments)
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
    """Makes results/demo/, without what an earlier demo left. Raises DataError where the folder is not a demo's."""
    if FOLDER.exists() and not MARKER.exists():
        raise DataError(f"{FOLDER}: was not made by this demo, so it is left as it is; rename it")
    shutil.rmtree(FOLDER, ignore_errors=True)
    utils.prepare_folders(FOLDER)
    MARKER.write_text("python -m tools.demo made this folder, and replaces what is in it.\n", encoding="utf-8")
    if SMALL.with_suffix(".index").exists():
        shutil.copytree(SMALL.parent, FOLDER / utils.SMALL.parent)


def commands(seed):
    """Yields the calls of the scripts, each as [script, argument, ...]."""
    if SMALL.with_suffix(".index").exists():
        yield ["test_model.py", "small=true"]
    for level, iterations in SCHEDULE.items():
        yield ["train_model.py", f"level={level}", f"num_train_iters={iterations}", f"seed={seed}", *NETWORK]
    yield ["test_model.py", "level=1"]


def run_script(script, arguments):
    """Runs a script of this repository in results/demo/, and prints the command. Returns its exit status."""
    shown = shlex.join(["python", os.path.relpath(SCRIPTS / script, FOLDER), *arguments])
    print(f"\n$ (cd {FOLDER} && {shown})", flush=True)
    return subprocess.call([sys.executable, SCRIPTS / script, *arguments], cwd=FOLDER,
                           env=os.environ | {"PYTHONUNBUFFERED": "1"})


# The contact sheet ---------------------------------------------------------------------------------------------------


def write_sheet():
    """Writes results/demo.png: the test photo with what was made of it, then the visual crops of every level."""
    crops = crop_panels() if (FOLDER / LOG).exists() else []
    rows = [photo_panels(), *(crops[first:first + 2] for first in range(0, len(crops), 2))]
    width = max(sum(panel.width + GAP for panel in row) for row in rows)
    sheet = Image.new("RGB", (width + GAP, sum(row[0].height + GAP for row in rows) + GAP), "white")
    top = GAP
    for row in rows:
        left = GAP
        for panel in row:
            sheet.paste(panel, (left, top))
            left += panel.width + GAP
        top += row[0].height + GAP
    utils.write_image(SHEET, np.asarray(sheet))
    print(f"Look at it: {SHEET}", flush=True)


def photo_panels():
    """Returns photo | depth map | rendered | target, each with its label."""
    test, rendered = FOLDER / "ebb_dataset" / "test", FOLDER / utils.FULL_RESOLUTION
    files = {"photo": test / "original" / "0.jpg", "depth map": test / "original_depth" / "0.png",
             "small network of models/small/": rendered / "0_level_1_small.png",
             "network trained just now, level 1": rendered / f"0_level_1_iteration_{SCHEDULE[1]}.png",
             "target": test / "bokeh" / "0.jpg"}
    return [labelled(label, file, PHOTO_HEIGHT) for label, file in files.items() if file.exists()]


def crop_panels():
    """Returns the visual crop (input | output | target) of the test photo at the end of every level, with a label."""
    panels = []
    for level, evaluations in plot_logs.read_log(FOLDER / LOG).items():
        iteration, metrics = evaluations.popitem()
        file = FOLDER / utils.RESULTS / f"pynet_img_0_level_{level}_iter_{iteration}.jpg"
        label = f"level {level}, trained just now: {iteration} iterations, test PSNR {metrics['psnr']:.4g} dB"
        panels.append(labelled(label, file, CROP_HEIGHT))
    return panels


def labelled(label, file, height):
    """Returns the picture of a file, scaled to a height in pixels, with a line of text above it."""
    with Image.open(file) as image:
        size = round(image.width * height / image.height), height
        picture = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    panel = Image.new("RGB", (picture.width, LABEL_HEIGHT + height), "white")
    ImageDraw.Draw(panel).text((0, 0), label, "black", ImageFont.load_default(FONT_SIZE))
    panel.paste(picture, (0, LABEL_HEIGHT))
    return panel


if __name__ == "__main__":
    sys.exit(utils.run(main))

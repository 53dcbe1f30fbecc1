"""Shows the whole pipeline in minutes, without any download: python -m tools.demo

Makes a small synthetic data set, trains levels 7 to 1 for a few iterations each, renders a test photo, and puts all
of it on one contact sheet, results/demo.png. The training and the rendering are those of train_model.py and
test_model.py, run as a user would run them, but in results/demo/: the user's own models/ and results/ stay as they are.
"""

import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import train_model
import utils
from tools import make_demo_dataset
from utils import DataError, Parameter

FOLDER = utils.RESULTS / "demo"
SHEET = utils.RESULTS / "demo.png"
MARKER = FOLDER / "made_by_demo.txt"
CONTENTS = "ebb_dataset", "models", "results"  # what a demo writes into its folder
NEEDED_SPACE = 3e9  # bytes: a checkpoint for each level, and twice the resumable state of one
TRAIN_COUNT, TEST_COUNT = 8, 1
SCRIPTS = pathlib.Path(__file__).resolve().parent.parent


class Training(NamedTuple):
    iterations: int
    batch_size: int


# What two CPU cores do in minutes. The upper levels are cheap and get the most iterations. Levels 3 to 1 would need a
# hundred times as many to show anything: theirs only show that they run.
SCHEDULE = {
    7: Training(24, 2),
    6: Training(12, 2),
    5: Training(5, 2),
    4: Training(4, 1),
    3: Training(1, 1),
    2: Training(1, 1),
    1: Training(1, 1),
}
LEARNING_RATE = 1e-4  # twice the default; at 3e-4 and more the colours swing from one end of their range to the other
RENDERED_LEVELS = 4, 1

PARAMETERS = (Parameter("seed", int, 0, "another one gives other scenes and another training", 0),)
USAGE = "python -m tools.demo [seed=N]"

PHOTO_HEIGHT, CROP_HEIGHT, LABEL_HEIGHT, FONT_SIZE, GAP = 360, 300, 34, 22, 12  # of the contact sheet, in pixels
PAPER, INK = "white", "black"


def main(argv):
    """Runs the demo. Returns the exit status: that of the script which failed, if one did."""
    settings = utils.parse_arguments(argv, PARAMETERS, USAGE)
    started = time.monotonic()
    prepare_folder()
    print(f"Writing {TRAIN_COUNT} training photos and {TEST_COUNT} test photo to {FOLDER / 'ebb_dataset'}/", flush=True)
    make_demo_dataset.write_dataset(FOLDER / "ebb_dataset", TRAIN_COUNT, TEST_COUNT, seed=settings.seed)
    for script, *arguments in commands(settings.seed):
        status = run_script(script, arguments)
        if status:
            print(f"error: {script} ended with exit status {status}, so the demo ends here", file=sys.stderr)
            return status
        delete_states()
    utils.write_image(SHEET, np.asarray(contact_sheet()))
    print(f"\nThe demo took {utils.duration(time.monotonic() - started)}. Its contact sheet is {SHEET}; all else is in "
          f"{FOLDER}/ (1.4 GB; delete it when you like).\n\n{conclusion()}")


def prepare_folder():
    """Makes results/demo/, without what an earlier demo left there; DataError where the folder is not a demo's."""
    if FOLDER.exists() and not MARKER.exists():
        raise DataError(f"{FOLDER}: was not made by this demo, so it is left as it is; rename it")
    utils.prepare_folders(FOLDER)
    MARKER.write_text("python -m tools.demo made this folder, and replaces what is in it.\n", encoding="utf-8")
    for name in CONTENTS:
        shutil.rmtree(FOLDER / name, ignore_errors=True)
    if utils.free_space(FOLDER) < NEEDED_SPACE:
        raise DataError(f"{FOLDER}/: the demo needs {NEEDED_SPACE / 1e9:.0f} GB of disk, and less is free")


def commands(seed):
    """The calls of the scripts, each as [script, argument, ...]."""
    for level, training in SCHEDULE.items():
        yield ["train_model.py", f"level={level}", f"batch_size={training.batch_size}",
               f"num_train_iters={training.iterations}", f"learning_rate={LEARNING_RATE:g}", f"seed={seed}",
               "vgg_dir=none"]
    for level in RENDERED_LEVELS:
        yield ["test_model.py", f"level={level}"]


def run_script(script, arguments):
    """Runs a script of this repository in results/demo/, and says with what command. Returns its exit status.

    However the demo is stopped, the script is stopped with it. It does not hear Ctrl-C before it listens for it itself:
    in the midst of its imports it would answer with a traceback.
    """
    shown = shlex.join(["python", os.path.relpath(SCRIPTS / script, FOLDER), *arguments])
    print(f"\n$ (cd {FOLDER} && {shown})", flush=True)
    for_demo = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = subprocess.Popen([sys.executable, SCRIPTS / script, *arguments], cwd=FOLDER,
                                   env=os.environ | {"PYTHONUNBUFFERED": "1"})
    finally:
        signal.signal(signal.SIGINT, for_demo)
    for_all = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        status = process.wait()
    finally:
        process.kill()
        process.wait()
        signal.signal(signal.SIGTERM, for_all)
    return status if status >= 0 else 128 - status


def delete_states():
    """Deletes what resume=true would need of a level that is done: half a gigabyte each."""
    for file in (FOLDER / "models").glob("*_resume.ckpt*"):
        file.unlink()


def conclusion():
    """What the demo has shown, and what it has not: a few lines of text."""
    done, full = (sum(counts) for counts in ((training.iterations for training in SCHEDULE.values()),
                                             train_model.DEFAULT_ITERATIONS.values()))
    return f"""\
What this shows: the pipeline is whole, from photos through seven levels, each trained from the one above it, to a photo
rendered at full size. At levels 7 to 4 the loss falls, and the large shapes appear with roughly their colours.
What it cannot show: bokeh. The paper trains {full:,} iterations, this was {done}. Levels 3 to 1 have only begun, and
their output is still the grey of random weights. Nor do these scenes stand for photos: they are flat cut-outs in a few
colours, with exact depth maps."""


# The contact sheet ---------------------------------------------------------------------------------------------------


def contact_sheet():
    """The first test photo with what was made of it, then the visual crops of every level. Returns a Pillow image."""
    crops = [labelled(f"level {level}: {SCHEDULE[level].iterations} iterations, test PSNR {psnr} dB",
                      crop_file(level), CROP_HEIGHT) for level, psnr in psnr_by_level().items()]
    rows = [joined(photo_panels(), across=True), joined(crops[:3], across=True), joined(crops[3:6], across=True),
            joined([*crops[6:], text_panel(conclusion(), 2 * crops[0].width)], across=True)]
    return joined(rows, across=False, margin=GAP)


def photo_panels():
    """photo | depth | rendered | target, each with its label."""
    test = FOLDER / "ebb_dataset" / "test"
    rendered = FOLDER / "results" / "full-resolution"
    files = {"photo": test / "original" / "0.jpg", "depth": test / "original_depth" / "0.png"}
    files |= {f"rendered at level {level}": rendered / f"0_level_{level}_iteration_{SCHEDULE[level].iterations}.png"
              for level in RENDERED_LEVELS}
    files |= {"target": test / "bokeh" / "0.jpg"}
    return [labelled(label, file, PHOTO_HEIGHT) for label, file in files.items()]


def crop_file(level):
    """The visual crop (input | output | target) of the first test photo at the end of a level."""
    return FOLDER / "results" / f"pynet_img_0_level_{level}_iter_{SCHEDULE[level].iterations}.jpg"


def psnr_by_level():
    """{level: PSNR in dB at its end, as text}, from models/logs.txt."""
    found, level = {}, None
    for line in (FOLDER / "models" / "logs.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            level = int(re.search(r"\blevel=(\d)", line)[1])
        else:
            found[level] = re.search(r"psnr: ([^,]+)", line)[1]
    return found


def labelled(label, file, height):
    """The picture of a file, scaled to a height in pixels, with a line of text above it."""
    with Image.open(file) as image:
        picture = image.convert("RGB").resize((round(image.width * height / image.height), height),
                                              Image.Resampling.LANCZOS)
    panel = Image.new("RGB", (picture.width, LABEL_HEIGHT + height), PAPER)
    ImageDraw.Draw(panel).text((0, 0), label, INK, ImageFont.load_default(FONT_SIZE))
    panel.paste(picture, (0, LABEL_HEIGHT))
    return panel


def text_panel(text, width):
    """Lines of text, set as high as a picture below its label."""
    panel = Image.new("RGB", (width, LABEL_HEIGHT + CROP_HEIGHT), PAPER)
    ImageDraw.Draw(panel).multiline_text((GAP, LABEL_HEIGHT), text, INK, ImageFont.load_default(FONT_SIZE), spacing=12)
    return panel


def joined(panels, across, margin=0):
    """Pictures side by side (or one below the other), with gaps."""
    along = [panel.width if across else panel.height for panel in panels]
    aside = [panel.height if across else panel.width for panel in panels]
    size = sum(along) + GAP * (len(panels) - 1) + 2 * margin, max(aside) + 2 * margin
    sheet = Image.new("RGB", size if across else size[::-1], PAPER)
    place = margin
    for panel, length in zip(panels, along):
        sheet.paste(panel, (place, margin) if across else (margin, place))
        place += length + GAP
    return sheet


if __name__ == "__main__":
    sys.exit(utils.run(main))

"""Shows bokeh, and how a network learns it, in minutes and without any download: python -m tools.demo

Makes a few synthetic scenes and renders them with the small network of models/small/, one of them also with other
focuses and apertures. Then it trains such a network from scratch, level 7 to 1. Both go onto one contact sheet,
results/demo.png. Training and rendering are those of train_model.py and test_model.py, run as a user would run them,
but in results/demo/: the user's own models/ and results/ stay as they are.
"""

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
from support import devices, scripts
from support.renderer import Renderer
from support.training_log import LOG
from tools import make_scenes, plot_logs
from utils import DataError, Parameter

FOLDER = utils.RESULTS / "demo"
RENDERED = utils.RESULTS / "rendered"  # in it
SHEET = utils.RESULTS / "demo.png"
MARKER = FOLDER / ".made_by_demo"
SCRIPTS = pathlib.Path(__file__).resolve().parent.parent
SEED = 7  # of the scenes: three that show different things
TRAIN_COUNT, TEST_COUNT = 12, 3

CHOSEN = 1  # of the test photos: that which is rendered with each of these
CHOICES = {
    "focus=0.6,0.5": {"focus": (0.6, 0.5)}, "focus=0.04,0.6": {"focus": (0.04, 0.6)},
    "focus=0.2,0.9": {"focus": (0.2, 0.9)}, "aperture=0.25": {"aperture": 0.25}, "aperture=1": {},
    "aperture=2": {"aperture": 2}}

SCHEDULE = {7: 100, 6: 60, 5: 60, 4: 60, 3: 80, 2: 20, 1: 10}  # iterations: what two CPU cores do in three minutes
NETWORK = "width=0.25", "patch_size=128", "batch_size=2", "vgg_dir=none"

PARAMETERS = (Parameter("seed", int, SEED, "another seed gives other scenes and another training",
                        minimum=0, maximum=2 ** 31 - 1),)
USAGE = "python -m tools.demo [seed=N]"

SHEET_WIDTH, LABEL_HEIGHT, FONT_SIZE, GAP = 2400, 34, 22, 12  # in pixels


def main(argv):
    """Runs the demo. Returns the exit status: that of the script which failed, if one did."""
    settings = utils.parse_arguments(argv, PARAMETERS, USAGE)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stops the script that runs, too
    started = time.monotonic()
    prepare_folder()
    print(f"This takes two to six minutes on two CPU cores. Making {TRAIN_COUNT + TEST_COUNT} scenes in "
          f"{FOLDER / 'ebb_dataset'}/", flush=True)
    make_scenes.write_dataset(FOLDER / "ebb_dataset", TRAIN_COUNT, TEST_COUNT, seed=settings.seed)
    for script, *arguments in commands(settings.seed):
        print(f"\n$ python {script} {shlex.join(arguments)}", flush=True)
        status = subprocess.call([sys.executable, SCRIPTS / script, *arguments], cwd=FOLDER)
        if status == 0 and script == "test_model.py":
            render_choices()
        if status:
            print(f"error: {script} ended with exit status {status}, so the demo ends here", file=sys.stderr)
            return status
        write_sheet()
        print(f"Look at it after {utils.duration(time.monotonic() - started)}: {SHEET}", flush=True)
    print(f"""
All but the contact sheet is in {FOLDER}/.

The photos in the upper rows were rendered by the small network of models/small/, whose README says how it was trained.
The crops below them are of the network that was trained just now, for {sum(SCHEDULE.values())} iterations (the paper:
260,000). Each level starts from the one before it and doubles the size. In so short a time levels 7 to 4 learn
large shapes. Levels 3 to 1 begin as the photo, and have hardly learned to blur.""")
    return 0


def prepare_folder():
    """Makes results/demo/, without what an earlier demo left. Raises DataError where the folder is not a demo's."""
    if FOLDER.exists() and not MARKER.exists():
        raise DataError(f"{FOLDER}: was not made by this demo, so it is left as it is; rename or delete it")
    shutil.rmtree(FOLDER, ignore_errors=True)
    utils.prepare_folders(FOLDER)
    MARKER.touch()


def commands(seed):
    """Yields the calls of the scripts, each as [script, argument, ...]."""
    yield ["test_model.py", "small=true", "detail=true", f"out={RENDERED}"]
    for level, iterations in SCHEDULE.items():
        rate = "4e-4" if level > 2 else "5e-5"  # 2 and 1 begin as the level above: larger steps only disturb that
        yield ["train_model.py", f"level={level}", f"num_train_iters={iterations}", f"learning_rate={rate}",
               f"seed={seed}", *NETWORK]


def render_choices():
    """Renders one test photo with the small network once for each of CHOICES."""
    test = FOLDER / "ebb_dataset" / "test"
    devices.start_tensorflow()
    render = Renderer("small")
    for number, options in enumerate(CHOICES.values()):
        picture = render(test / "original" / f"{CHOSEN}.jpg", test / "original_depth" / f"{CHOSEN}.png", **options)
        utils.write_image(FOLDER / RENDERED / f"choice_{number}.png", np.asarray(picture))


# The contact sheet ---------------------------------------------------------------------------------------------------


def write_sheet():
    """Writes results/demo.png.

    It has a row for each test photo, one of other focuses and apertures, and rows of crops as the levels are trained.
    """
    trained = (0, 1) if (FOLDER / LOG).exists() else ()
    rows = [*map(photo_row, range(TEST_COUNT)), choices_row(), *map(crop_row, trained)]
    utils.write_image(SHEET, np.vstack([row_of_pictures(row) for row in rows]))


def photo_row(number):
    """Returns a test photo and what the small network made of it, as [(label, picture)]."""
    test = FOLDER / "ebb_dataset" / "test"
    files = {"photo": test / "original" / f"{number}.jpg", "depth map": test / "original_depth" / f"{number}.png",
             "rendered by the small network": FOLDER / RENDERED / f"{number}_level_1_small.png",
             "target": test / "bokeh" / f"{number}.jpg"}
    return [(label, Image.open(file).convert("RGB")) for label, file in files.items()]


def choices_row():
    """Returns a test photo with other focuses and apertures, as [(label, picture)]."""
    return [(label, Image.open(FOLDER / RENDERED / f"choice_{number}.png")) for number, label in enumerate(CHOICES)]


def crop_row(number):
    """Returns a patch of a test photo, what each level that has been trained makes of it, and the target, likewise."""
    row = []
    for level, evaluations in plot_logs.read_log(FOLDER / LOG).items():
        iteration, metrics = max(evaluations.items())
        crop = Image.open(FOLDER / utils.RESULTS / f"pynet_img_{number}_level_{level}_iter_{iteration}.jpg")
        patch, output, target = (crop.crop((left, 0, left + crop.height, crop.height))
                                 for left in range(0, crop.width, crop.height))
        row = [*(row or [("crop", patch)]), (f"level {level}: {metrics['psnr']:.1f} dB", output)]
    return [*row, ("target", target)]


def row_of_pictures(row):
    """Returns [(label, picture)] side by side, each with its label above it, uint8 (height, SHEET_WIDTH, 3)."""
    step = SHEET_WIDTH // max(4, len(row))
    width, (_, first) = step - GAP, row[0]
    height = width * first.height // first.width
    strip = Image.new("RGB", (SHEET_WIDTH, LABEL_HEIGHT + height + GAP), "white")
    for index, (label, picture) in enumerate(row):
        left = index * step + GAP // 2
        strip.paste(picture.resize((width, height), Image.Resampling.LANCZOS), (left, LABEL_HEIGHT))
        ImageDraw.Draw(strip).text((left, GAP // 2), label, "black", ImageFont.load_default(FONT_SIZE))
    return np.asarray(strip)


if __name__ == "__main__":
    sys.exit(scripts.run(main))

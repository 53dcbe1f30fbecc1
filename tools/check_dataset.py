"""Decodes every file of a data set before training: python -m tools.check_dataset [dataset_dir=ebb_dataset/].

Reports what is missing, damaged, of a wrong size or pixel format, pairs that do not show the same scene, and pictures
that are no depth maps. Shows three photos beside their depth maps in results/depth_maps.jpg. Ends with the commands
that bring the data set to a training.
"""

import functools
import pathlib
import shlex
import sys

import numpy as np
from PIL import Image, ImageFilter

import load_dataset
import utils
from support import dataset_files, depth_networks, scripts
from tools import make_depth_maps
from utils import DataError, Parameter

MIN_RESEMBLANCE = 0.7  # pairs of one scene are well above 0.8, photos of different scenes around 0
CELL = 64  # side of the squares, in pixels, whose means are compared
MIN_CONTRAST = 8.0  # standard deviation of these means, 0-255; below it they tell nothing
MIN_SPREAD = 16  # grey levels between the 1st and the 99th percentile of a depth map; EBB!'s have 200 or more
DETAIL_SIZE = 96, 64  # width and height at which the detail of photo and depth map are compared
MAX_LIKENESS = 0.8  # correlation of that; on EBB! it is up to 0.44, and 1 where a depth map is the photo in grey
PREVIEW, PREVIEWED = utils.RESULTS / "depth_maps.jpg", 3  # the photos that are shown with their depth maps
MIN_MAPS, MIN_CERTAINTY = 8, 3  # maps, and standard errors of their mean slope, to call a data set inverted
CONTENTS = {"photo": "photos", "map": "{} maps", "bokeh": "targets"}  # of the fields of a `Pair`
VAL294 = 294  # test pairs of the split that papers on EBB! report
SPLIT_NAMES = {"train": ("train",), "test": ("test", "val")}  # how the folder of a split may begin, in lower case

PARAMETERS = (
    Parameter("dataset_dir", str, "ebb_dataset/", "folder with train/ and test/"),
    Parameter("use_depth", bool, True, "false checks a data set without depth maps"),
    Parameter("val_size", int, 0, "test on the last N pairs of train/ instead of test/", minimum=0),
    Parameter("patch_size", int, load_dataset.PATCH_SIZE, "of the training; photos must be twice as large on each side",
              minimum=32),
)
USAGE = "python -m tools.check_dataset [dataset_dir=FOLDER] [name=value ...]"


def main(argv):
    """Checks train/ and test/. Returns the exit status: 1 if anything is wrong."""
    settings = utils.parse_arguments(argv, PARAMETERS, USAGE)
    splits = ("train",) if settings.val_size else ("train", "test")
    problems = [problem for split in splits for problem in check_split(settings, split)]
    for problem in problems:
        utils.say(f"error: {problem}", sys.stderr)
    print(f"Problems to repair: {len(problems)}" if problems else "All files are sound.")
    for line in next_steps(argv, settings, splits, problems):
        utils.say(line)
    return 1 if problems else 0


def check_split(settings, split):
    """Prints the counts of a split. Returns its problems, a list of texts that name the file."""
    folder, kind = pathlib.Path(settings.dataset_dir) / split, dataset_files.find_kind(settings.dataset_dir)
    files, _ = dataset_files.list_files(settings.dataset_dir, split, kind)
    use_maps = settings.use_depth and bool(files["map"])  # without any, the photos are checked all the same
    pairs, problems = dataset_files.survey(settings.dataset_dir, split, split == "train" or bool(files["bokeh"]),
                                          kind if use_maps else None, settings.patch_size)
    if settings.use_depth > use_maps and files["photo"]:
        problems.append(f"{folder / load_dataset.MAPS[kind].name}: no such folder, or no .jpg or .png in it")
    if settings.val_size >= len(pairs) > 0:
        problems.append(f"{folder}: has {len(pairs)} sound pairs, val_size={settings.val_size} needs more")
    progress, slopes = utils.ProgressLine(0, len(pairs), f"{split}:"), []
    for done, (found, slope) in enumerate(load_dataset.stream(check_pair, pairs, ahead=16), 1):
        problems += found
        slopes += [] if slope is None else [slope]
        progress.update(done, f"{len(problems)} problems")
    progress.clear()
    print(f"{split}:", ", ".join(f"{len(files[field])} {what.format(kind)}" for field, what in CONTENTS.items()))
    if seem_inverted(slopes):
        utils.warn(f"{folder}: most depth maps are darker below, where things are nearer in most photos; bright must "
                   f"be near: look at {PREVIEW}")
    if slopes and split == "train":
        shown = {pair.photo: pair.map for pair in pairs[::-(-len(pairs) // PREVIEWED)]}
        make_depth_maps.write_preview(PREVIEW, shown, functools.partial(load_dataset.read_image, mode="RGB"))
    return problems


def image_names(folder):
    """Returns the names, without suffix, of the images in a folder of a data set."""
    return {path.stem for path in folder.glob("[!.]*") if path.suffix.lower() in dataset_files.SUFFIXES}


# What to do next -----------------------------------------------------------------------------------------------------


def next_steps(argv, settings, splits, problems):
    """Returns the lines that end the report: what is missing and the command that makes it, then how to go on."""
    folder, check = pathlib.Path(settings.dataset_dir), ["python", "-m", "tools.check_dataset", *argv]
    moves = find_moves(folder)
    if moves:
        commands = [["mkdir", "-p", *sorted({str(target.parent) for target in moves})],
                    *(["mv", str(place), str(target)] for target, place in moves.items())]
        return ["Folders have other names or lie elsewhere. This moves them:",
                *(f"  {shlex.join(words)}" for words in commands), f"Then: {shlex.join(check)}"]
    files = {split: dataset_files.list_files(folder, split, dataset_files.find_kind(folder))[0] for split in splits}
    photos, maps, targets = ({(split, name) for split in splits for name in files[split][field]} for field in CONTENTS)
    if not photos:
        return [f"No photos found: {folder / 'train' / 'original'} and {folder / 'train' / 'bokeh'} must hold them"]
    lines, command = [], check if problems else ["python", "train_model.py", "level=7", *argv]
    if settings.use_depth and photos - maps:
        make = ["python", "-m", "tools.make_depth_maps", f"model={depth_networks.DEFAULT}", f"dataset_dir={folder}"]
        lines += [f"Missing depth maps: {len(photos - maps)}. This makes them:", f"  {shlex.join(make)}"]
    too_many = settings.val_size >= len(targets) > 1
    if too_many or not settings.val_size and not any(split == "test" for split, _ in targets):
        val_size = f"val_size={VAL294 if len(targets) > VAL294 else max(1, len(targets) // 5)}"
        why = f"train/ has only {len(targets)} targets" if too_many else "test/ has no targets to measure on"
        lines += [f"{why}: {val_size} takes the last pairs of train/ instead"]
        command = [*(word for word in command if not word.startswith("val_size=")), val_size]
    return [*lines, f"Then: {shlex.join(command)}"]


def find_moves(folder):
    """Returns {where it must be: where it is} for the folders of an extracted data set, {} where all are in place.

    The names tell what a folder is: EBB/Training/original is train/original, Validation holding photos test/original.
    """
    moves = {}
    known = {row.name for row in (load_dataset.PHOTOS, *load_dataset.MAPS.values(), load_dataset.TARGETS)}
    for place in sorted(path for path in folder.rglob("*") if path.is_dir() and image_names(path)):
        names = [name.lower() for name in place.relative_to(folder).parts]
        splits = [split for name in names for split, starts in SPLIT_NAMES.items() if name.startswith(starts)]
        name = load_dataset.PHOTOS.name if names[-1].startswith(SPLIT_NAMES["test"]) else names[-1]
        target = folder / (splits[-1] if splits else "train") / name
        if name in known and target not in moves and not target.exists():
            moves[target] = place
    return moves


# Pairs ---------------------------------------------------------------------------------------------------------------


def check_pair(pair):
    """Decodes the files of a pair. Returns (their problems, a list of texts; the slope of its depth map, or None)."""
    images, problems, slope = {}, [], None
    for field in load_dataset.folders(pair.kind):
        try:
            images[field] = getattr(pair, field) and load_dataset.read(pair, field)
        except DataError as error:
            problems.append(str(error))
    if pair.bokeh and not problems and resemblance(images["photo"], images["bokeh"]) < MIN_RESEMBLANCE:
        problems.append(f"{pair.bokeh}: does not show the scene of {pair.photo}")
    if pair.kind == "depth" and not problems:
        problems += [f"{pair.map}: {reason}" for reason in depth_map_problems(images["photo"], images["map"])]
        slope = slope_of(images["map"])
    return problems, slope


def depth_map_problems(photo, depth):
    """Returns the reasons why a grey Pillow image cannot be the depth map of a photo, a list of texts."""
    low, high = np.percentile(depth, (1, 99))
    if high - low < MIN_SPREAD:
        return [f"has nearly one tone, {low:.0f} to {high:.0f} of 0 to 255"]
    width, height = depth.size
    parts = {"is": (0, 0, width, height), "shows in its left half": (0, 0, width // 2, height),
             "shows in its right half": (width // 2, 0, width, height)}
    detail = fine_detail(photo)
    with np.errstate(invalid="ignore", divide="ignore"):  # where one is without detail
        likeness = {what: np.corrcoef(detail, fine_detail(depth.crop(box)))[0, 1] for what, box in parts.items()}
    return [f"{what} the photo" for what, value in likeness.items() if value > MAX_LIKENESS]


def fine_detail(image):
    """Returns what is left of a small grey copy of a Pillow image without its soft parts: float32 (pixels,)."""
    small = image.convert("L").resize(DETAIL_SIZE, Image.Resampling.BOX)
    return (np.float32(small) - np.float32(small.filter(ImageFilter.BoxBlur(2)))).ravel()


def slope_of(depth):
    """Returns how much brighter the lower third of a grey Pillow image is than its upper third, in grey levels."""
    upper, _, lower = np.array_split(np.asarray(depth, np.float32), 3)
    return float(lower.mean() - upper.mean())


def seem_inverted(slopes):
    """Returns whether maps are darker below by more than chance. Of EBB!'s eight samples seven are brighter, by 64."""
    return (len(slopes) >= MIN_MAPS
            and np.mean(slopes) < -MIN_CERTAINTY * np.std(slopes, ddof=1) / np.sqrt(len(slopes)))


def resemblance(photo, bokeh):
    """Returns how much two Pillow RGB images of one size look alike from far, from -1 to 1.

    This is the correlation of their means over squares, 1 where one has too little contrast to tell. It finds what a
    JPEG decoder does not: flipped bits that change the rest of a picture.
    """
    means = [np.asarray(image.reduce(CELL), np.float32).ravel() for image in (photo, bokeh)]
    if min(values.std() for values in means) < MIN_CONTRAST:
        return 1.0
    return float(np.corrcoef(*means)[0, 1])


if __name__ == "__main__":
    sys.exit(scripts.run(main))

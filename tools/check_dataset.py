"""Decodes every photo of a data set before a training does: python -m tools.check_dataset [dataset_dir=ebb_dataset/].

Reports what is missing, damaged, of a wrong size or pixel format, and pairs that do not show the same scene. Counts the
photos of each size.
"""

import collections
import pathlib
import sys

import numpy as np

import load_dataset
import utils
from utils import DataError, Parameter

MIN_RESEMBLANCE = 0.7  # pairs of one scene are well above 0.8, photos of different scenes around 0
CELL = 64  # side of the squares, in pixels, whose means are compared
MIN_CONTRAST, HIGH_CONTRAST = 8.0, 16.0  # standard deviation of these means, 0-255: below the first they tell nothing

PARAMETERS = (
    Parameter("dataset_dir", str, "ebb_dataset/", "folder with train/ and test/"),
    Parameter("use_depth", bool, True, "false: without depth maps"),
    Parameter("val_size", int, 0, "the last so many pairs of train/ are the test photos, instead of test/", 0),
    Parameter("patch_size", int, load_dataset.PATCH_SIZE, "photos must have twice as many pixels on each side", 32),
)
USAGE = "python -m tools.check_dataset [dataset_dir=FOLDER] [name=value ...]"


def main(argv):
    """Checks train/ and test/. Returns the exit status: 1 if anything is wrong."""
    settings = utils.parse_arguments(argv, PARAMETERS, USAGE)
    if not pathlib.Path(settings.dataset_dir).is_dir():
        raise DataError(f"{settings.dataset_dir}: no such folder")
    problems = check_split(settings, "train")
    if not settings.val_size:
        problems += check_split(settings, "test")
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    print(f"{len(problems)} problem{'' if len(problems) == 1 else 's'} found" if problems else "All files are sound.")
    return 1 if problems else 0


def check_split(settings, split):
    """Prints the counts and sizes of a split. Returns its problems, a list of texts that name the file."""
    has_targets = any((pathlib.Path(settings.dataset_dir) / split / "bokeh").glob("[!.]*"))
    pairs, problems = load_dataset.survey(settings.dataset_dir, split, split == "train" or has_targets,
                                          settings.use_depth, settings.patch_size)
    if pairs and not has_targets:
        print(f"{split}: no bokeh/, so its photos can be rendered but not measured; val_size=294 measures the last 294 "
              "pairs of train/ instead")
    if pairs and settings.val_size:
        _, test_pairs = load_dataset.split_off(pairs, settings.val_size, settings.dataset_dir)
        print(f"test: the last {len(test_pairs)} pairs of train/, from {test_pairs[0].name} on")
    progress = utils.ProgressLine(0, len(pairs), f"{split}:")
    for done, found in enumerate(load_dataset.stream(check_pair, pairs, ahead=16), 1):
        problems += found
        progress.update(done, f"{len(problems)} problems")
    progress.clear()
    sizes = collections.Counter(load_dataset.size_text(pair.size) for pair in pairs)
    print(f"{split}: {len(pairs)} complete pairs", *(f"  {count} of {size}" for size, count in sizes.most_common()),
          sep="\n")
    return problems


def check_pair(pair):
    """Decodes the files of a pair. Returns their problems, a list of texts."""
    images, problems = {}, []
    for path, mode in ((pair.photo, "RGB"), (pair.depth, "L"), (pair.bokeh, "RGB")):
        try:
            images[path] = path and load_dataset.read_image(path, mode)
        except DataError as error:
            problems.append(str(error))
    photo, bokeh = images.get(pair.photo), images.get(pair.bokeh)
    if photo and bokeh and resemblance(photo, bokeh) < MIN_RESEMBLANCE:
        problems.append(f"{pair.bokeh}: does not show the scene of {pair.photo}")
    return problems


def resemblance(photo, bokeh):
    """Returns how much two Pillow RGB images of one size look alike from far, from -1 to 1.

    This is the correlation of their means over squares. Where one has too little contrast to tell, it is 0 if the other
    has plenty, else 1. It finds what a JPEG decoder does not: flipped bits that change the rest of a picture.
    """
    means = [np.asarray(image.reduce(CELL), np.float32).ravel() for image in (photo, bokeh)]
    low, high = sorted(float(values.std()) for values in means)
    if low < MIN_CONTRAST:
        return 0.0 if high > HIGH_CONTRAST else 1.0
    return float(np.corrcoef(*means)[0, 1])


if __name__ == "__main__":
    sys.exit(utils.run(main))

"""Decodes every photo of a data set before a training does: python -m tools.check_dataset [dataset_dir=ebb_dataset/].

Reports what is missing, unreadable, truncated, of the wrong size or format, and pairs whose photo and bokeh photo do
not show the same scene; and how many photos of which sizes there are.
"""

import collections
import pathlib
import sys

import load_dataset
import utils
from utils import DataError, Parameter

PARAMETERS = (Parameter("dataset_dir", str, "ebb_dataset/", "folder with train/ and test/"),
              Parameter("use_depth", bool, True, "false: without depth maps"))
USAGE = "python -m tools.check_dataset [dataset_dir=FOLDER] [use_depth=false]"


def main(argv):
    """Checks both splits. Returns the exit status: 1 if anything is wrong."""
    settings = utils.parse_arguments(argv, PARAMETERS, USAGE)
    if not pathlib.Path(settings.dataset_dir).is_dir():
        raise DataError(f"{settings.dataset_dir}: no such folder")
    problems = [problem for split in ("train", "test")
                for problem in check_split(settings.dataset_dir, split, settings.use_depth)]
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    print(f"{len(problems)} problem{'' if len(problems) == 1 else 's'} found" if problems else "All files are sound.")
    return 1 if problems else 0


def check_split(dataset_dir, split, use_depth):
    """Prints the counts and sizes of a split, and returns its problems as a list of texts that name the file."""
    has_targets = (pathlib.Path(dataset_dir) / split / "bokeh").is_dir()
    if split == "test" and not has_targets:
        print("test: there is no bokeh/, so its photos can be rendered, but not serve for the metrics in training")
    pairs, problems = load_dataset.survey(dataset_dir, split, split == "train" or has_targets, use_depth)
    problems = list(problems)
    progress = utils.ProgressLine(0, len(pairs), f"{split}:")
    for done, found in enumerate(load_dataset.stream(check_pair, pairs, ahead=16), 1):
        problems += found
        progress.update(done, f"{len(problems)} problems")
    progress.clear()
    sizes = collections.Counter(pair.size for pair in pairs)
    print(f"{split}: {len(pairs)} complete pairs" + "".join(
        f"\n  {count} of {width} x {height}" for (width, height), count in sizes.most_common()))
    return problems


def check_pair(pair):
    """Decodes the files of a pair; returns the problems as a list of texts."""
    images, problems = {}, []
    for kind, mode in (("photo", "RGB"), ("depth", "L"), ("bokeh", "RGB")):
        path = getattr(pair, kind)
        try:
            images[kind] = load_dataset.read_image(path, mode) if path else None
        except DataError as error:
            problems.append(str(error))
    if images.get("photo") and images.get("bokeh"):
        likeness = load_dataset.resemblance(images["photo"], images["bokeh"])
        if likeness < load_dataset.LEAST_RESEMBLANCE:
            problems.append(f"{pair.bokeh}: does not show the scene of {pair.photo} (correlation {likeness:.2f})")
    return problems


if __name__ == "__main__":
    sys.exit(utils.run(main))

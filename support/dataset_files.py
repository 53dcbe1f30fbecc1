"""Which pairs does a data set have, and what is wrong with its files?

Files belong together by name, whatever their suffix. Names and headers are checked here; whole files are decoded by
`load_dataset`, and all of them by `tools.check_dataset`.
"""

import collections
import concurrent.futures
import pathlib
import re
import unicodedata

import load_dataset
from load_dataset import MAPS, PATCH_SIZE, Pair, folders, size_text
from utils import DataError

SPLITS = ("train", "test")
SUFFIXES = (".jpg", ".jpeg", ".png")
OTHER_SUFFIXES = (".jfif", ".mpo", ".webp", ".tif", ".tiff", ".heic", ".heif", ".hif", ".avif", ".gif", ".bmp", ".jxl",
                  ".jp2", ".psd", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2",  # of photos, too,
                  ".pfm", ".exr")  # and of maps


def find_training_set(dataset_dir, use_depth=True, patch_size=PATCH_SIZE, val_size=0):
    """Returns (training pairs, test pairs), two lists of `Pair`s in numeric order.

    Photos must be at least twice as large as the patches. Where val_size is not 0, the last val_size pairs of train/
    are the test pairs, instead of test/.

    Raises DataError with a list of all files that are missing, unreadable or of a wrong size, or where val_size leaves
    nothing to train with.
    """
    kind = find_kind(dataset_dir) if use_depth else None
    train, problems = survey(dataset_dir, "train", True, kind, patch_size)
    test, test_problems = ([], []) if val_size else survey(dataset_dir, "test", True, kind, patch_size)
    _raise_problems(problems + test_problems, dataset_dir)
    if val_size >= len(train):
        raise DataError(f"val_size={val_size}: must be less than the {len(train)} pairs in {dataset_dir}'s train/")
    return (train[:-val_size], train[-val_size:]) if val_size else (train, test)


def find_test_photos(dataset_dir, use_depth=True, val_size=0):
    """Returns the `Pair`s to render, of any size; those of test/ need no target. Raises DataError as above."""
    if val_size:
        return find_training_set(dataset_dir, use_depth, 1, val_size)[1]
    pairs, problems = survey(dataset_dir, "test", False, find_kind(dataset_dir) if use_depth else None)
    _raise_problems(problems, dataset_dir)
    return pairs


def check_photos(dataset_dir, split):
    """Raises DataError where a split has no photos at all."""
    if not list_files(dataset_dir, split, kind=None)[0]["photo"]:
        raise DataError(f"{dataset_dir}: no such folder, or no photos in {split}/; images_dir=FOLDER renders your own")


def find_kind(dataset_dir):
    """Returns which of MAPS a data set has, by its folders; "depth" where it has none. DataError where it has two."""
    found = {kind: place for kind, folder in MAPS.items() for split in SPLITS
             if (place := pathlib.Path(dataset_dir) / split / folder.name).is_dir()}
    if len(found) > 1:
        raise DataError(f"{' and '.join(map(str, found.values()))}: a data set has one kind of map; remove one of them")
    return next(iter(found), "depth")


def list_files(dataset_dir, split, kind):
    """Lists the files of a split, "train" or "test". This is the place for another layout, such as a table of files.

    Returns {field of `Pair`: {name without suffix: path}} and {path that is left out: reason}.
    """
    place = pathlib.Path(dataset_dir) / split
    found = {field: images_by_name(place / folder.name) for field, folder in folders(kind).items()}
    left_out = collections.ChainMap(*(reasons for _, reasons in found.values()))
    return {field: images for field, (images, _) in found.items()}, left_out


def survey(dataset_dir, split, for_training, kind="depth", patch_size=PATCH_SIZE):
    """Checks names and headers of the files of a split, with a `kind` of map, a key of MAPS, or with None.

    Where it is for_training, every photo needs a target, and must be large enough for a patch.
    Returns (the `Pair`s without a problem in numeric order, a list of problems as texts that name a file or folder).
    """
    files, left_out = list_files(dataset_dir, split, kind)
    problems = [f"{path}: {reason}" for path, reason in left_out.items()]
    required = {field: pathlib.Path(dataset_dir) / split / folder.name for field, folder in folders(kind).items()
                if for_training or field != "bokeh"}
    empty = [place for field, place in required.items() if not files[field]]
    if empty:
        return [], problems + [f"{place}: no such folder, or no .jpg or .png in it" for place in empty]
    names = set().union(*files.values()) if for_training else set(files["photo"])
    names -= set(map(name_of, left_out))
    whole = set(files["photo"]).intersection(*(files[field] for field in required))
    unmatched = {field: [name for name in files[field] if name not in whole] for field in required}
    pairs = []
    for name in sorted(names, key=numeric_order):
        missing = {field: place for field, place in required.items() if name not in files[field]}
        problems += [f"{place / name}: no .jpg or .png of this name{nearest(name, unmatched[field])}"
                     for field, place in missing.items()]
        if not missing:
            paths = {field: files.get(field, {}).get(name) for field in ("photo", "map", "bokeh")}
            pairs.append(Pair(name, **paths, size=None, kind=kind))
    smallest = 2 * patch_size if for_training else 2
    with concurrent.futures.ThreadPoolExecutor(4 * load_dataset.processors()) as pool:  # they mostly wait for the disk
        checked = list(pool.map(lambda pair: _check_headers(pair, smallest), pairs))
    problems += [problem for _, found in checked for problem in found]
    return [pair for pair, found in checked if not found], sorted(problems, key=numeric_order)


def images_by_name(folder, suffixes=SUFFIXES):
    """Returns {name: path} of the pictures in a folder, in numeric order, and {path: reason} of those left out.

    A name is without suffix and as people see it: composed (Unicode's NFC), with escapes where it is no UTF-8. Hidden
    files, and files that are no pictures by their suffix, are ignored.
    """
    images, left_out = {}, {}
    for path in sorted(pathlib.Path(folder).glob("[!.]*"), key=lambda path: numeric_order(path.name)):
        name, suffix = name_of(path), path.suffix.lower()
        if suffix in suffixes and not path.is_file():
            left_out[path] = "is no file, or a link to a file that is missing"
        elif suffix in suffixes and name in images:
            left_out[path] = f"has the same name as {images[name].name}; keep one"
        elif suffix in suffixes:
            images[name] = path
        elif suffix in OTHER_SUFFIXES:
            left_out[path] = "is of a format that is not read here; save it as JPEG or PNG"
    return images, left_out


def name_of(path):
    """Returns a file's name without suffix as people see it: composed, and with escapes for bytes that are no UTF-8."""
    return unicodedata.normalize("NFC", path.stem).encode("utf-8", "backslashreplace").decode()


def nearest(name, others):
    """Returns "; the nearest is 7_depth" for 7 where this is among `others`, names without a counterpart, else ""."""
    pattern = re.compile(rf"(?<![0-9]){re.escape(name)}(?![0-9])", re.IGNORECASE)
    near = next(filter(pattern.search, others), None)
    return f"; the nearest is {near}" if near else ""


def _check_headers(pair, smallest):
    """Returns the pair with its size, and the list of what is wrong with it."""
    problems = []
    for field in folders(pair.kind):
        try:
            image = getattr(pair, field) and load_dataset.read(pair, field, decode=False)
            pair = pair._replace(size=image.size) if field == "photo" else pair
        except DataError as error:
            problems.append(str(error))
    if pair.size and min(pair.size) < smallest:
        problems.append(f"{pair.photo}: is {size_text(pair.size)}, must be {smallest} x {smallest} or more")
    return pair, problems


def _raise_problems(problems, dataset_dir):
    if problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''} with the data set"
        check = "python -m tools.check_dataset, with the same dataset_dir=, use_depth= and val_size=, says what to do"
        raise DataError("\n  ".join([count, *problems, check]))


def numeric_order(text):
    """Returns a sort key that puts 9.jpg before 10.jpg."""
    parts = re.split(r"([0-9]+)", text)  # text, number, text, number, ... text
    return [int(part) if index % 2 else part for index, part in enumerate(parts)]

"""Makes the depth maps that PyNET needs, with any monocular depth network that you have:

    python -m tools.make_depth_maps model=depth_anything_v2_small images_dir=my_photos depth_dir=my_depth
    python -m tools.make_depth_maps model=megadepth.onnx preset=megadepth dataset_dir=ebb_dataset/

The network is an ONNX or TFLite file, a SavedModel folder or a Keras file that takes an RGB image and gives one
channel. A depth map is an 8-bit grey PNG of half the photo's width and height, rounded down, bright = near. Photos that
have one keep it. depth_maps.json beside the maps holds the settings that made them.
"""

import functools
import json
import math
import pathlib
import sys
import warnings

import numpy as np
from PIL import Image, ImageOps

import load_dataset
import utils
from support import dataset_files, own_photos, scripts
from support.depth_networks import NAMED, OUTPUTS, PRESETS, open_network
from utils import DataError, Parameter, UsageError

NOTE = "depth_maps.json"  # in the folder of the depth maps: what made them
SOFTWARE_TAG, PREVIEW_SOFTWARE = 0x0131, "PyNET Bokeh: preview of depth maps"  # EXIF 2.32: what wrote a picture
PREVIEWED, PREVIEW_SIZE = 6, (480, 360)  # photos on the contact sheet, spread evenly over all, and their pixels

PARAMETERS = (
    Parameter("model", str, utils.REQUIRED,
              f"depth network: .onnx, .tflite, SavedModel folder, .keras, .h5, or by name: {' or '.join(NAMED)}"),
    Parameter("images_dir", str, None, "folder of photos, or one photo", default_text="none"),
    Parameter("depth_dir", str, None, "folder for the depth maps of images_dir", default_text="none"),
    Parameter("dataset_dir", str, None, "data set whose train/ and test/ get original_depth/", default_text="none"),
    Parameter("preset", tuple(PRESETS), "none", "range, mean, std, output, size and multiple of a known network"),
    Parameter("range", str, None, "what the pixel values 0 and 255 become, as low,high",
              default_text="0,1; 0,255 if the network takes unquantised whole numbers"),
    Parameter("mean", str, "0,0,0", "subtracted from R,G,B after range"),
    Parameter("std", str, "1,1,1", "R,G,B are divided by these after mean"),
    Parameter("output", tuple(OUTPUTS), "inverse",
              "what the network gives: large = near, small = near, a distance, or the logarithm of one"),
    Parameter("output_name", str, None, "the output to take, if the network gives several",
              default_text="the one with depth in its name"),
    Parameter("size", int, None, "longer side of the input, if the network takes any size", minimum=1,
              default_text="512, or the preset's"),
    Parameter("multiple", int, 32, "both sides are rounded to multiples of this", minimum=1),
    Parameter("replace", bool, False, "delete existing depth maps and make them anew"),
    Parameter("preview", str, None, "contact sheet to write, as FILE.png or FILE.jpg", default_text="none"),
)
USAGE = ("python -m tools.make_depth_maps model=FILE (images_dir=PHOTOS depth_dir=FOLDER | dataset_dir=FOLDER) "
         "[name=value ...]")


def main(argv):
    """Makes the depth maps that the arguments ask for. Returns the exit status: 1 if a photo got none."""
    settings = utils.parse_arguments(argv, PARAMETERS, USAGE)
    preset, sheet = read_preset(settings), settings.preview and pathlib.Path(settings.preview)
    if sheet and (sheet.suffix.lower() not in (".png", ".jpg") or sheet.exists() and not is_our_preview(sheet)):
        raise UsageError(f"preview={sheet}: must be a new file that ends in .png or .jpg")
    warnings.simplefilter("ignore")  # Pillow's about odd metadata, TFLite's about its successor; errors are raised
    photos = find_photos(settings)
    if sheet and sheet.parent.resolve() in {path.parent.resolve() for path in (*photos, *photos.values())}:
        raise UsageError(f"preview={sheet}: must not lie among the photos or the depth maps")
    note = note_of(settings, preset)
    kept = [] if settings.replace else [depth for depth in photos.values() if is_there(depth)]
    check_notes(kept, note)
    to_depth = open_network(settings.model, preset, settings.output_name) if len(kept) < len(photos) else None
    if settings.replace:
        photos = {path: replace(depth) for path, depth in photos.items()}
    if to_depth:
        for folder in {depth.parent for depth in photos.values()}:
            with utils.whole_file(folder / NOTE) as partial:
                partial.write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")
    # Training takes a data set's photos as they lie in the file, so their depth maps have to lie as they do.
    decode = functools.partial(load_dataset.read_image, mode="RGB") if settings.dataset_dir else own_photos.read_photo
    previewed = {}
    if sheet:
        previewed = dict(list(photos.items())[::math.ceil(len(photos) / PREVIEWED)])
        make_depth_maps(previewed, decode, to_depth)
        write_preview(sheet, previewed, decode)
    make_depth_maps({path: photos[path] for path in photos if path not in previewed}, decode, to_depth)
    failed = sum(not is_there(depth) for depth in photos.values())
    print(f"Depth maps: {len(photos) - len(kept) - failed} made, {len(kept)} kept, {failed} photos failed")
    return 1 if failed else 0


# The arguments, and the photos that they name ------------------------------------------------------------------------


def read_preset(settings):
    """Returns the `Preset` that the arguments name, changed by those that are given beside it."""
    given = {name: getattr(settings, name) for name in settings.given & {"output", "multiple"}}
    for name, count in (("range", 2), ("mean", 3), ("std", 3)):
        if name in settings.given:
            given[name] = _numbers(name, getattr(settings, name), count)
    if settings.size:
        given |= {"size": (settings.size, settings.size), "fit": min}
    name = settings.preset if "preset" in settings.given else NAMED.get(settings.model, settings.preset)
    return PRESETS[name]._replace(**given)


def _numbers(name, text, count):
    try:
        numbers = tuple(map(float, text.split(",")))
    except ValueError:
        numbers = ()
    if len(numbers) != count or not all(map(math.isfinite, numbers)) or name == "std" and min(numbers) <= 0:
        above = " above 0" if name == "std" else ""
        raise UsageError(f"{name}={text}: must be {count} numbers{above} with commas between them")
    return numbers


def find_photos(settings):
    """Makes the folders of the depth maps. Returns {photo: its depth map, which may be missing}."""
    given = [name for name in ("images_dir", "depth_dir", "dataset_dir") if getattr(settings, name)]
    if given not in (["images_dir", "depth_dir"], ["dataset_dir"]):
        raise UsageError(f"{' and '.join(given) or 'images_dir'}: write images_dir=PHOTOS depth_dir=FOLDER or, for a "
                         "data set, dataset_dir=FOLDER")
    if settings.images_dir:
        folders = {settings.images_dir: pathlib.Path(settings.depth_dir)}
    else:
        splits = [pathlib.Path(settings.dataset_dir) / split for split in ("train", "test")]
        photos, maps = load_dataset.PHOTOS.name, load_dataset.MAPS["depth"].name
        folders = {split / photos: split / maps for split in splits if (split / photos).is_dir()}
    if not folders:
        raise DataError(f"{settings.dataset_dir}: has no train/original/ or test/original/, which hold the photos")
    photos, suffixes = {}, {}
    if settings.dataset_dir:  # those that training looks for
        suffixes = {"suffixes": dataset_files.SUFFIXES, "depth_suffixes": dataset_files.SUFFIXES}
    for images_dir, depth_dir in folders.items():
        utils.prepare_folders(depth_dir)
        pairs, without = own_photos.find_pairs(images_dir, depth_dir, **suffixes)
        if any(pair.photo.samefile(pair.map) for pair in pairs):
            raise UsageError(f"depth_dir={depth_dir}: holds the photos; name another folder for the depth maps")
        without += [pair.photo for pair in pairs if not is_there(pair.map)]
        photos |= {pair.photo: pair.map for pair in pairs}
        photos |= {path: depth_dir / f"{path.stem}.png" for path in without}
    return photos


# Depth maps that are there already -----------------------------------------------------------------------------------


def is_there(depth):
    """Returns whether a depth map exists and is not empty, as a full disk may leave it."""
    return depth.is_file() and depth.stat().st_size > 0


def note_of(settings, preset):
    """Returns the settings that decide what a depth map looks like, as JSON gives them back."""
    model = pathlib.Path(settings.model)
    note = {"model": model.name, "bytes": model.stat().st_size if model.is_file() else None, **preset._asdict(),
            "fit": preset.fit and preset.fit.__name__, "output_name": settings.output_name}
    return json.loads(json.dumps(note))


def check_notes(kept, note):
    """Raises UsageError where the notes beside the depth maps that are kept say that other settings made them."""
    for path in sorted({depth.parent / NOTE for depth in kept}):
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            other = [f"{name}={before[name]}" for name in note if before[name] != note[name]]
        except FileNotFoundError:
            utils.say(f"Note: {path} is missing, so it is not known what made the depth maps there; they are kept")
            continue
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{path}: is damaged; replace=true makes its depth maps anew") from None
        if other:
            raise UsageError(f"{path.parent}: holds depth maps that were made with {', '.join(other)}; replace=true "
                             "makes them anew")


def replace(depth):
    """Deletes a depth map. Returns the path of the one that takes its place."""
    depth.unlink(missing_ok=True)
    return depth.with_suffix(".png")


# From the photo to the depth map -------------------------------------------------------------------------------------


def make_depth_maps(photos, decode, to_depth):
    """Writes those depth maps of {photo: depth map} that do not exist yet, and names the photos that fail."""
    missing = {path: depth for path, depth in photos.items() if not is_there(depth)}
    progress = utils.ProgressLine(0, len(missing), "depth maps:")
    for number, (path, depth) in enumerate(missing.items(), 1):
        try:
            utils.write_image(depth, to_depth(decode(path), path))
        except DataError as error:
            utils.warn(str(error), kind="error")
        progress.update(number, depth.name)
    progress.clear()


def write_preview(sheet, photos, decode):
    """Writes a contact sheet of {photo: depth map}, without those that cannot be read, and prints what it shows."""
    rows = {}
    for path, depth in photos.items():
        try:
            pictures = decode(path), Image.open(depth).convert("RGB")
        except Exception:  # a photo that is damaged, or whose depth map is missing, or not an image
            continue
        rows[path.name] = np.hstack([ImageOps.pad(picture, PREVIEW_SIZE, color="white") for picture in pictures])
    if rows:
        mark = Image.Exif()
        mark[SOFTWARE_TAG] = PREVIEW_SOFTWARE
        utils.write_image(sheet, np.vstack(list(rows.values())), {"exif": mark.tobytes()})
        utils.say(f"Preview: {sheet} shows {', '.join(rows)} beside their depth maps: near must be bright")


def is_our_preview(path):
    """Returns whether `write_preview` wrote a file, which may be overwritten then."""
    try:
        with Image.open(path) as image:
            return image.getexif().get(SOFTWARE_TAG) == PREVIEW_SOFTWARE
    except Exception:  # Pillow raises many kinds
        return False


if __name__ == "__main__":
    sys.exit(scripts.run(main))

"""Makes the depth maps that PyNET needs, with any monocular depth network that you have:

    python -m tools.make_depth_maps model=midas.tflite preset=midas_v21_small images_dir=my_photos depth_dir=my_depth
    python -m tools.make_depth_maps model=megadepth.onnx preset=megadepth dataset_dir=ebb_dataset/

The network is an ONNX or TFLite file, a SavedModel folder or a Keras file that takes an RGB image and gives one
channel. A depth map is an 8-bit grey PNG of half the photo's width and height, rounded down, bright = near. Photos that
have one keep it.
"""

import functools
import math
import pathlib
import sys
import warnings

import numpy as np
from PIL import Image, ImageOps

import load_dataset
import utils
from support import own_photos
from support.depth_networks import OUTPUTS, PRESETS, open_network
from utils import DataError, Parameter, UsageError

PREVIEWED, PREVIEW_SIZE = 6, (480, 360)  # photos on the contact sheet, spread evenly over all, and their pixels

PARAMETERS = (
    Parameter("model", str, utils.REQUIRED, "depth network: .onnx, .tflite, a SavedModel folder, .keras or .h5"),
    Parameter("images_dir", str, None, "folder of photos, or one photo", default_text="none"),
    Parameter("depth_dir", str, None, "folder for the depth maps of images_dir", default_text="none"),
    Parameter("dataset_dir", str, None, "data set whose train/ and test/ get original_depth/", default_text="none"),
    Parameter("preset", tuple(PRESETS), "none", "range, mean, std, output, size and multiple of a known network"),
    Parameter("range", str, None, "what the pixel values 0 and 255 become, as low,high",
              default_text="0,1; 0,255 if the network takes unquantised whole numbers"),
    Parameter("mean", str, "0,0,0", "then subtracted from R,G,B"),
    Parameter("std", str, "1,1,1", "R,G,B are then divided by these"),
    Parameter("output", tuple(OUTPUTS), "inverse",
              "what the network gives: large = near, small = near, a distance, or the logarithm of one"),
    Parameter("output_name", str, None, "the output to take, if the network gives several",
              default_text="the one with depth in its name"),
    Parameter("size", int, None, "longer side of the input, if the network takes any size", 1,
              default_text="512, or the preset's"),
    Parameter("multiple", int, 32, "both sides are rounded to multiples of this", 1),
    Parameter("preview", str, None, "contact sheet to write, as FILE.png or FILE.jpg", default_text="none"),
)
USAGE = ("python -m tools.make_depth_maps model=FILE (images_dir=PHOTOS depth_dir=FOLDER | dataset_dir=FOLDER) "
         "[name=value ...]")


def main(argv):
    """Makes the depth maps that the arguments ask for. Returns the exit status: 1 if a photo got none."""
    settings = utils.parse_arguments(argv, PARAMETERS, USAGE)
    preset, sheet = read_preset(settings), pathlib.Path(settings.preview or "")
    if settings.preview and (sheet.exists() or sheet.suffix.lower() not in (".png", ".jpg")):
        raise UsageError(f"preview={sheet}: must be a new file that ends in .png or .jpg")
    warnings.simplefilter("ignore")  # Pillow's about odd metadata, TFLite's about its successor; errors are raised
    photos = find_photos(settings)
    folders = {path.parent.resolve() for path in (*photos, *photos.values())}
    if settings.preview and sheet.parent.resolve() in folders:
        raise UsageError(f"preview={sheet}: must not lie among the photos or the depth maps")
    # Training takes a data set's photos as they lie in the file, so their depth maps have to lie as they do.
    decode = functools.partial(load_dataset.read_image, mode="RGB") if settings.dataset_dir else own_photos.read_photo
    kept = sum(depth.exists() for depth in photos.values())
    to_depth = open_network(settings.model, preset, settings.output_name) if kept < len(photos) else None
    previewed = {}
    if settings.preview:
        previewed = dict(list(photos.items())[::math.ceil(len(photos) / PREVIEWED)])
        make_depth_maps(previewed, decode, to_depth)
        write_preview(sheet, previewed, decode)
    make_depth_maps({path: photos[path] for path in photos if path not in previewed}, decode, to_depth)
    failed = sum(not depth.exists() for depth in photos.values())
    print(f"Depth maps: {len(photos) - kept - failed} made, {kept} kept, {failed} photos failed")
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
    return PRESETS[settings.preset]._replace(**given)


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
        raise UsageError(f"{' and '.join(given) or 'images_dir'}: write either images_dir=PHOTOS depth_dir=FOLDER or "
                         "dataset_dir=FOLDER, which is for a data set")
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
        suffixes = {"suffixes": load_dataset.SUFFIXES, "depth_suffixes": load_dataset.SUFFIXES}
    for images_dir, depth_dir in folders.items():
        utils.prepare_folders(depth_dir)
        pairs, without = own_photos.find_pairs(images_dir, depth_dir, **suffixes)
        if any(pair.photo.samefile(pair.map) for pair in pairs):
            raise UsageError(f"depth_dir={depth_dir}: holds the photos; name another folder for the depth maps")
        photos |= {pair.photo: pair.map for pair in pairs}
        photos |= {path: depth_dir / f"{path.stem}.png" for path in without}
    return photos


# From the photo to the depth map -------------------------------------------------------------------------------------


def make_depth_maps(photos, decode, to_depth):
    """Writes those depth maps of {photo: depth map} that do not exist yet, and names the photos that fail."""
    missing = {path: depth for path, depth in photos.items() if not depth.exists()}
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
        utils.write_image(sheet, np.vstack(list(rows.values())))
        print(f"Preview: {sheet} shows {', '.join(rows)} beside their depth maps: near must be bright", flush=True)


if __name__ == "__main__":
    sys.exit(utils.run(main))

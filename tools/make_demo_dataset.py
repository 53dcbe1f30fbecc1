"""Writes a small synthetic data set in EBB!'s folders, formats and sizes: textured objects at several distances.

    python -m tools.make_demo_dataset dataset_dir=my_dataset/

A scene is a stack of flat layers that face the camera, each of them whole, also where a nearer one hides it. The photo
lays them over each other as they are. The bokeh photo spreads each over its disc of confusion first, colour and
coverage alike and in linear light, and then lays them over each other from back to front: so a sharp object keeps its
edge before a blurred background, and a blurred foreground spreads over what is behind it.
"""

import colorsys
import math
import pathlib
import sys
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.signal import fftconvolve

import load_dataset
import utils
from utils import DataError, Parameter

# The camera of EBB! (arXiv:2006.05698, section 2): Canon 7D, 50 mm f/1.8 lens wide open. Lengths in mm.
FOCAL_LENGTH = 50.0
F_NUMBER = 1.8
SENSOR_WIDTH = 22.3  # of the 7D's APS-C sensor (Canon's specifications), along the photo's longer side

SUBJECT_DISTANCES = 900, 1800  # the subject is in focus
BACKGROUND_DISTANCES = 6000, 20000
OBJECTS_BEHIND = 3, 5  # between subject and background
FOREGROUND_SHARE = 0.5  # of the scenes have something nearer than the subject, at a side
LAMPS = 4, 12  # small lights in the background, which become discs
COOL, WARM = (0.22, 0.6), (-0.1, 0.17)  # hues of the background, and of all things before it
LAMP_LIGHT = 10, 40  # in multiples of the photo's white

PARAMETERS = (
    Parameter("dataset_dir", str, utils.REQUIRED, "folder to write train/ and test/ into"),
    Parameter("train_count", int, 20, "photos in train/", 1),
    Parameter("test_count", int, 4, "photos in test/", 1),
    Parameter("seed", int, 0, "another one gives other scenes", 0),
)
USAGE = "python -m tools.make_demo_dataset dataset_dir=FOLDER [name=value ...]"


class Layer(NamedTuple):
    """Something flat that faces the camera.

    rgba: float32 (height, width, 4), linear light times coverage (white is 1, lamps are brighter), and coverage, 0-1.
    left, top: where it lies in the photo, in pixels; parts may be outside.
    distance: from the lens, in mm.
    """

    rgba: np.ndarray
    left: int
    top: int
    distance: float


def main(argv):
    """Writes the data set that the arguments ask for."""
    settings = utils.parse_arguments(argv, PARAMETERS, USAGE)
    write_dataset(settings.dataset_dir, settings.train_count, settings.test_count, seed=settings.seed)
    print(f"{settings.train_count} training and {settings.test_count} test photos are in {settings.dataset_dir}")


def write_dataset(folder, train_count, test_count, size=(1536, 1024), seed=0):
    """Writes FOLDER/{train,test}/{original,original_depth,bokeh}/, with photos 0, 1 ... of different scenes.

    Args:
      folder: for train/ and test/; is made where there is none.
      train_count, test_count: how many photos each gets.
      size: (width, height) of the photos in pixels, 64 x 64 or more; training needs 1024 x 1024.
      seed: of all scenes, 0 or more.

    Raises:
      DataError: train/ or test/ exist and are not empty, or cannot be written.
    """
    splits = [pathlib.Path(folder) / "train", pathlib.Path(folder) / "test"]
    for split in splits:
        if split.is_dir() and any(split.iterdir()):
            raise DataError(f"{split}: is not empty, and nothing is overwritten; name another folder")
    utils.prepare_folders(*(split / kind for split in splits for kind in ("original", "original_depth", "bokeh")))
    scenes = [(split, number, [seed, place, number])
              for place, (split, count) in enumerate(zip(splits, (train_count, test_count)))
              for number in range(count)]
    try:
        for _ in load_dataset.stream(lambda scene: _write_scene(*scene, size), scenes, ahead=2):
            pass
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error})") from None


def _write_scene(folder, number, seed, size):
    photo, depth, bokeh = make_scene(size, seed)
    utils.write_image(folder / "original" / f"{number}.jpg", photo)
    utils.write_image(folder / "original_depth" / f"{number}.png", depth)
    utils.write_image(folder / "bokeh" / f"{number}.jpg", bokeh)


def make_scene(size, seed):
    """One scene, the same for the same seed.

    Args:
      size: (width, height) in pixels, 64 x 64 or more.
      seed: a whole number from 0, or a list of such.

    Returns:
      photo: uint8 (height, width, 3), everything in focus.
      depth: uint8 (height // 2, width // 2), inverse distance, 0 for the farthest layer to 255 for the nearest.
      bokeh: uint8 (height, width, 3), only the subject in focus.
    """
    layers, focus = _make_layers(size, np.random.default_rng(seed))
    discs = [confusion_diameter(layer.distance, focus, size) for layer in layers]
    return photograph(layers, [0] * len(layers), size), depth_map(layers, size), photograph(layers, discs, size)


# The camera ----------------------------------------------------------------------------------------------------------


def confusion_diameter(distance, focus, size):
    """Diameter in pixels of the disc that a point becomes: c = A f |z - z_f| / (z (z_f - f)), A = f / f-number.

    The thin lens formula, as in Potmesil and Chakravarty, "A lens and aperture camera model for synthetic image
    generation" (SIGGRAPH 1981). `distance` is z, `focus` z_f, in mm; `size` is the photo's (width, height).
    """
    aperture = FOCAL_LENGTH / F_NUMBER
    on_sensor = aperture * FOCAL_LENGTH * abs(distance - focus) / (distance * (focus - FOCAL_LENGTH))
    return on_sensor * max(size) / SENSOR_WIDTH


def photograph(layers, discs, size):
    """uint8 (height, width, 3), sRGB: the layers from back to front, each spread over a disc of so many pixels."""
    width, height = size
    light = np.zeros((height, width, 3), np.float32)
    for layer, diameter in zip(layers, discs, strict=True):
        seen = _spread(layer, diameter)
        in_photo, in_layer = _overlap(seen, size)
        part = seen.rgba[in_layer]
        light[in_photo] = light[in_photo] * (1 - part[..., 3:]) + part[..., :3]
    return utils.to_uint8(_encode_srgb(light))


def depth_map(layers, size):
    """uint8 (height // 2, width // 2): inverse distance, 0 for the farthest layer to 255 for the nearest."""
    width, height = size
    inverse = np.zeros((height, width), np.float32)
    for layer in layers:
        in_photo, in_layer = _overlap(layer, size)
        inverse[in_photo][layer.rgba[in_layer][..., 3] >= 0.5] = 1 / layer.distance
    far, near = (1 / pick(layer.distance for layer in layers) for pick in (max, min))
    full = Image.fromarray((inverse - far) / (near - far))
    return utils.to_uint8(full.resize((width // 2, height // 2), Image.Resampling.BOX))


def _spread(layer, diameter):
    """The layer as light spreads it over discs of confusion: larger by the disc's radius on every side."""
    if diameter < 1:
        return layer
    disc = _disc(diameter)
    reach = len(disc) // 2
    rgba = fftconvolve(layer.rgba, disc[..., np.newaxis], axes=(0, 1))
    rgba = np.maximum(rgba, 0)  # the Fourier transform's rounding
    rgba[..., 3] = np.minimum(rgba[..., 3], 1)
    return layer._replace(rgba=rgba, left=layer.left - reach, top=layer.top - reach)


def _disc(diameter):
    """float32 (n, n), n odd: a disc with a smooth rim, whose sum is 1."""
    reach = math.ceil(diameter / 2)
    x = np.arange(-reach, reach + 1)
    disc = np.clip(diameter / 2 + 0.5 - np.hypot(x, x[:, np.newaxis]), 0, 1)
    return np.float32(disc / disc.sum())


def _overlap(layer, size):
    """Where the layer and the photo meet: slices of the photo, and slices of the layer."""
    in_photo, in_layer = [], []
    for first, length, limit in zip((layer.top, layer.left), layer.rgba.shape, size[::-1]):
        start, stop = max(first, 0), min(first + length, limit)
        in_photo.append(slice(start, stop))
        in_layer.append(slice(start - first, stop - first))
    return tuple(in_photo), tuple(in_layer)


def _encode_srgb(light):
    """Linear light -> sRGB values (IEC 61966-2-1), 0-1; what is brighter than white is clipped."""
    light = np.clip(light, 0, 1)
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def _decode_srgb(values):
    """sRGB values, 0-1 -> linear light."""
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


# The scene -----------------------------------------------------------------------------------------------------------


def _make_layers(size, random):
    """(layers from back to front, distance of the subject)."""
    width, height = size
    focus, far = _log_uniform(random, *SUBJECT_DISTANCES), _log_uniform(random, *BACKGROUND_DISTANCES)
    margin = math.ceil(confusion_diameter(far, focus, size) / 2) + 1  # what the blur brings in from outside
    layers = [_make_background(size, far, margin, random)]
    for _ in range(random.integers(*LAMPS, endpoint=True)):
        layers.append(_make_lamp((random.uniform(0, width), random.uniform(0, height)), far, height, random))
    count = random.integers(*OBJECTS_BEHIND, endpoint=True)
    for distance in sorted((_log_uniform(random, 1.4 * focus, 0.7 * far) for _ in range(count)), reverse=True):
        centre = random.uniform(0, width), random.uniform(0, height)
        layers.append(_make_object(centre, random.uniform(0.15, 0.35) * height, distance, height, random))
    centre = random.uniform(0.35, 0.65) * width, random.uniform(0.4, 0.6) * height
    layers.append(_make_object(centre, random.uniform(0.25, 0.38) * height, focus, height, random))
    if random.random() < FOREGROUND_SHARE:
        centre = random.choice([0, 1]) * width, random.uniform(0, height)
        distance = random.uniform(0.6, 0.8) * focus
        layers.append(_make_object(centre, random.uniform(0.15, 0.25) * height, distance, height, random))
    return layers, focus


def _make_background(size, distance, margin, random):
    x, y = _coordinates(*(side + 2 * margin for side in size))
    shade = 0.75 - 0.3 * y / size[1]  # brighter above
    light = _decode_srgb(_texture(x, y, size[1], COOL, random) * shade[..., np.newaxis])
    return Layer(np.dstack([light, np.ones_like(x)]), -margin, -margin, distance)


def _make_lamp(centre, distance, height, random):
    radius = 0.004 * height
    colour = _colour(random.uniform(0, 0.2), 0.3, 1) * random.uniform(*LAMP_LIGHT)
    return _cut_out(colour, _disc_shape(*_square(radius), radius, random), centre, distance)


def _make_object(centre, radius, distance, height, random):
    """An object with the given centre (x, y) and radius in pixels of the photo."""
    x, y = _square(radius)
    shape = random.choice([_disc_shape, _rectangle_shape, _blob_shape])
    outline = shape(x, y, radius, random)
    shade = 1 - 0.3 * (x + y) / radius - 0.3 * (x * x + y * y) / radius ** 2  # light comes from the left and above
    texture = _texture(x, y, height, WARM, random) * np.clip(shade, 0.25, 1.2)[..., np.newaxis]
    return _cut_out(_decode_srgb(np.clip(texture, 0, 1)), outline, centre, distance)


def _cut_out(light, outline, centre, distance):
    """The layer that shows `light` inside of an outline; its rim covers pixels in part."""
    coverage = np.clip(0.5 - outline, 0, 1)[..., np.newaxis]
    left, top = (round(place) - len(outline) // 2 for place in centre)
    return Layer(np.concatenate([light * coverage, coverage], axis=-1), left, top, distance)


def _square(radius):
    """Coordinates of a square that holds a circle."""
    side = 2 * math.ceil(radius) + 3
    return _coordinates(side, side)


def _coordinates(width, height):
    """x and y of every pixel, float32 (height, width), 0 in the middle."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    return x - (width - 1) / 2, y - (height - 1) / 2


def _log_uniform(random, low, high):
    return math.exp(random.uniform(math.log(low), math.log(high)))


# Shapes: the distance of every pixel from the outline, in pixels, negative inside ------------------------------------


def _disc_shape(x, y, radius, random):
    return np.hypot(x, y) - radius


def _rectangle_shape(x, y, radius, random):
    u, v = _turn(x, y, random.uniform(0, math.pi))
    corner = random.uniform(0.5, 1.1)
    return np.maximum(np.abs(u) - radius * math.cos(corner), np.abs(v) - radius * math.sin(corner))


def _blob_shape(x, y, radius, random):
    angle = np.arctan2(y, x) + random.uniform(0, 2 * math.pi)
    depth = random.uniform(0.1, 0.25)
    return np.hypot(x, y) - radius * (1 - depth + depth * np.sin(int(random.integers(3, 7)) * angle))


def _turn(x, y, angle):
    return x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)


# Textures: float32 (height, width), 0-1, the share of the second of two colours --------------------------------------


def _texture(x, y, height, hues, random):
    """sRGB values, 0-1: a pattern of two colours with grain, so that blur shows at every place."""
    pattern = random.choice([_stripes, _checks, _clouds, _gradient])(x, y, height, random)
    dark, bright = (_colour(random.uniform(*hues), random.uniform(0.2, 0.7), value)
                    for value in (random.uniform(0.15, 0.45), random.uniform(0.6, 0.95)))
    colours = dark + (bright - dark) * pattern[..., np.newaxis]
    return np.clip(colours * (0.7 + 0.6 * _noise(x.shape, random))[..., np.newaxis], 0, 1)


def _colour(hue, saturation, value):
    return np.float32(colorsys.hsv_to_rgb(hue % 1, saturation, value))


def _stripes(x, y, height, random):
    u, _ = _turn(x, y, random.uniform(0, math.pi))
    return _waves(u, height, random)


def _checks(x, y, height, random):
    u, v = _turn(x, y, random.uniform(0, math.pi))
    across, down = _waves(u, height, random), _waves(v, height, random)
    return across + down - 2 * across * down


def _waves(u, height, random):
    period = random.uniform(0.04, 0.12) * height
    return np.clip(0.5 + 0.15 * period * np.sin(u * 2 * math.pi / period), 0, 1)


def _clouds(x, y, height, random):
    return np.clip(3 * _noise(x.shape, random) - 1, 0, 1)


def _gradient(x, y, height, random):
    u, _ = _turn(x, y, random.uniform(0, 2 * math.pi))
    return (u - u.min()) / (u.max() - u.min())


def _noise(shape, random):
    """Smooth random grids, each twice as fine as the one before and weaker; float32 (height, width), 0-1."""
    height, width = shape
    total = np.zeros(shape, np.float32)
    cell = max(shape) / 3
    while cell >= 2:
        grid = np.float32(random.random((math.ceil(height / cell) + 1, math.ceil(width / cell) + 1)))
        total += cell ** 0.5 * np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC))
        cell /= 2
    return (total - total.min()) / (total.max() - total.min())


if __name__ == "__main__":
    sys.exit(utils.run(main))

"""Writes a data set of synthetic scenes in EBB!'s folders, formats and sizes, rich enough to learn from:

    python -m tools.make_scenes dataset_dir=my_dataset/ train_count=2000 test_count=20

A scene is a stack of layers, each of them whole, also where a nearer one hides it. The photo lays them over each other.
The bokeh photo first spreads each over its disc of confusion, colour and coverage alike and in linear light: a sharp
object keeps its edge before a blurred background, and a blurred foreground spreads over what is behind it.

Objects hide each other and have a power law of sizes (dead leaves: Lee, Mumford, Huang, IJCV 2001), textures have a
spectrum of 1/f (Field, JOSA A 1987), both as in photos. Networks trained on dead leaves alone carry over to photos
(Achddou, Gousseau, Ladjal, SSVM 2021).
"""

import colorsys
import concurrent.futures
import functools
import math
import multiprocessing
import pathlib
import sys
from typing import NamedTuple

import numpy as np
import scipy.fft
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps
from scipy import ndimage

import load_dataset
import utils
from support import own_photos
from utils import Parameter

# The camera of EBB! (arXiv:2006.05698, section 2): Canon 7D, 50 mm f/1.8 lens wide open. Lengths in mm.
FOCAL_LENGTH = 50.0
F_NUMBER = 1.8
SENSOR_WIDTH = 22.3  # of the 7D's APS-C sensor (Canon's specifications), along the photo's longer side

SUBJECT_DISTANCES = 850, 2500  # the subject is in focus
BACKGROUND_DISTANCES = 3000, 20000  # and at least 2.5 times the subject's
PLANE_SHARE = 0.45  # of the scenes have a ground or a slanted wall
FOREGROUND_SHARE = 0.25  # of the scenes have something nearer than the subject
OBJECTS_BEHIND = 4, 11  # between subject and background
PHOTO_SHARE = 0.6  # of the textures come from photos where there are any
SLOPES = 1.0, 1.2, 1.4, 1.6, 2.0  # of noise: its amplitude falls with the frequency f as f^-1 (whole photos) to f^-2
FIELD_SIDE = 1024  # of the noise that textures are cut from
BANDS = 16  # that a slanted plane is cut into, each with one disc
MAX_SCENES_HERE = 16  # more are worth starting processes

PARAMETERS = (
    Parameter("dataset_dir", str, utils.REQUIRED, "folder to write train/ and test/ into"),
    Parameter("train_count", int, 20, "photos in train/", 1),
    Parameter("test_count", int, 4, "photos in test/", 1),
    Parameter("seed", int, 0, "another seed gives other scenes", 0),
    Parameter("photos_dir", str, None, "folder of your own photos to use as textures", default_text="none"),
)
USAGE = "python -m tools.make_scenes dataset_dir=FOLDER [name=value ...]"


class Layer(NamedTuple):
    """Something that faces the camera."""

    rgba: np.ndarray  # float32 (4, height, width): linear light (1 is white) times coverage, and coverage, 0-1
    left: int  # where it lies in the photo, in pixels; parts may be outside
    top: int
    distance: float  # in mm
    depth: float | np.ndarray  # 1 / distance in the depth map, a number or one for each row or column


def main(argv):
    """Writes the data set that the arguments ask for."""
    settings = utils.parse_arguments(argv, PARAMETERS, USAGE)
    count = write_dataset(settings.dataset_dir, settings.train_count, settings.test_count, seed=settings.seed,
                          photos_dir=settings.photos_dir)
    print(f"{count} new scenes in {settings.dataset_dir}")


def write_dataset(folder, train_count, test_count, size=(1536, 1024), seed=0, photos_dir=None):
    """Writes FOLDER/{train,test}/{original,original_depth,bokeh}/ with photos 0, 1 ... of different scenes.

    Photos that are there already are kept: larger counts add to them, and a stopped run goes on. `size` is (width,
    height); `photos_dir` holds photos to use as textures. Returns the number of new scenes. Raises DataError where the
    folder cannot be written, photos_dir holds no or damaged photos, or a process dies.
    """
    photos = tuple(own_photos.find_photos(photos_dir).values()) if photos_dir else ()
    scenes = []
    for index, (name, count) in enumerate((("train", train_count), ("test", test_count))):
        split = pathlib.Path(folder) / name
        utils.prepare_folders(*(split / folder.name for folder in load_dataset.folders("depth").values()))
        present = {path.stem for path in (split / "original").iterdir()}
        scenes += [(split, str(number), size, [seed, index, number], photos)
                   for number in range(count) if str(number) not in present]
    workers = concurrent.futures.ThreadPoolExecutor(load_dataset.processors())
    if len(scenes) > MAX_SCENES_HERE:  # spawned, since a fork of a process with TensorFlow's threads can hang
        spawn = multiprocessing.get_context("spawn")
        workers = concurrent.futures.ProcessPoolExecutor(load_dataset.processors(), mp_context=spawn)
    progress = utils.ProgressLine(0, len(scenes), "scene")
    with workers:
        try:
            for done, path in enumerate(workers.map(_write_scene, scenes), 1):
                progress.update(done, str(path))
        except concurrent.futures.BrokenExecutor as error:
            raise utils.DataError("a process that made scenes died, perhaps because memory was full; "
                                  "the same command goes on with the missing scenes") from error
    progress.clear()
    return len(scenes)


def _write_scene(scene):
    folder, name, size, seed, photos = scene
    photo, depth, bokeh = make_scene(size, seed, photos)
    utils.write_image(folder / "original_depth" / f"{name}.png", depth)
    utils.write_image(folder / "bokeh" / f"{name}.jpg", bokeh)
    utils.write_image(folder / "original" / f"{name}.jpg", photo)  # last: a scene with a photo is complete
    return folder / "original" / f"{name}.jpg"


def make_scene(size, seed, photos=()):
    """Returns one scene, the same for the same seed and photos.

    `size` is (width, height) in pixels, 64 x 64 or more; `seed` a whole number from 0 or a list of such; `photos` are
    paths of photos to use as textures.

    Returns:
      photo: uint8 (height, width, 3), everything in focus.
      depth: uint8 (height // 2, width // 2), 0-255, bright = near, as a monocular depth network sees it.
      bokeh: uint8 (height, width, 3), only the subject in focus.
    """
    random = np.random.default_rng(seed)
    photos = [own_photos.read_photo(photos[index]) for index in random.integers(len(photos), size=3)] if photos else []
    layers, focus = _make_layers(size, photos, random)
    light = expose(layers, None, size)
    gain = np.clip(_log_uniform(random, 0.1, 0.28) / np.minimum(light, 1).mean(), 0.3, 3)
    gain = np.float32(gain * random.uniform(0.9, 1.1, (3, 1, 1)))  # white balance
    side = random.uniform(0.15, 0.4)
    soft = ImageFilter.Kernel((3, 3), np.outer([side, 1, side], [side, 1, side]).ravel())  # no lens is quite sharp
    photo, bokeh = (np.asarray(Image.fromarray(develop(image * gain)).filter(soft))
                    for image in (light, expose(layers, focus, size)))
    noise = _log_uniform(random, 0.3, 1.5) * random.standard_normal(photo.shape, np.float32)
    photo = np.uint8(np.clip(np.round(photo + noise), 0, 255))  # bokeh: more light, less noise
    return photo, depth_map(layers, size, random), bokeh


# The camera ----------------------------------------------------------------------------------------------------------


def confusion_diameter(distance, focus, size):
    """Returns the diameter in pixels of the disc that a point becomes: A f |z - z_f| / (z (z_f - f)), A = f / f-number.

    The thin lens formula, as in Potmesil and Chakravarty, "A lens and aperture camera model for synthetic image
    generation" (SIGGRAPH 1981). `distance` is z, `focus` z_f, in mm; `size` is the photo's (width, height).
    """
    on_sensor = FOCAL_LENGTH / F_NUMBER * FOCAL_LENGTH * abs(1 - focus / distance) / (focus - FOCAL_LENGTH)
    return on_sensor * max(size) / SENSOR_WIDTH


def linear(srgb):
    """Returns the light of sRGB values (IEC 61966-2-1), both 0-1."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


LIGHT_OF_SRGB = np.float32(linear(np.arange(256) / 255))
SRGB_OF_LIGHT = np.uint8(np.searchsorted(linear((np.arange(255) + 0.5) / 255), np.arange(65536) / 65535))


def expose(layers, focus, size):
    """Returns the linear light of layers from back to front, float32 (3, height, width); focus=None: all are sharp."""
    light = np.zeros((3, size[1], size[0]), np.float32)
    for rgba, left, top, distance, _ in layers:
        if focus is not None:
            rgba, margin = _spread(rgba, confusion_diameter(distance, focus, size))
            left, top = left - margin, top - margin
        _lay_over(light, rgba, left, top)
    return light


def develop(light):
    """Returns sRGB, uint8 (height, width, 3), of linear light (3, height, width); above white it is clipped."""
    return np.stack([SRGB_OF_LIGHT.take(np.uint16(np.clip(plane, 0, 1) * 65535 + 0.5)) for plane in light], axis=-1)


def _spread(planes, diameter):
    """Returns planes spread over a disc, larger by a margin on each side, and the margin."""
    if diameter < 0.75:
        return planes, 0
    factor = 4 if diameter >= 28 else 2 if diameter >= 14 else 1  # a smaller size makes no visible difference
    planes = np.pad(planes, [(0, 0), *((0, -side % factor) for side in planes.shape[1:])])
    planes = np.stack([Image.fromarray(plane).reduce(factor) for plane in planes])
    disc = _disc(diameter / factor)
    height, width = (side + len(disc) - 1 for side in planes.shape[1:])
    shape = [scipy.fft.next_fast_len(side, real=True) for side in (height, width)]
    spectrum = scipy.fft.rfft2(planes, shape) * scipy.fft.rfft2(disc, shape)
    planes = np.maximum(scipy.fft.irfft2(spectrum, shape)[:, :height, :width], 0)  # the transform rounds below 0
    size = width * factor, height * factor
    planes = np.stack([Image.fromarray(plane).resize(size, Image.Resampling.BILINEAR) for plane in planes])
    return planes, len(disc) // 2 * factor


def _lay_over(planes, rgba, left, top):
    """Lays rgba over the planes of light, or of light and coverage, in place."""
    below, rgba = _overlap(planes, rgba, left, top)
    below *= 1 - rgba[3]
    below += rgba[:len(planes)]


def _overlap(planes, part, left, top):
    """Returns what lies over each other, views of both, where `part` is at (left, top) of `planes`."""
    below = planes[:, max(top, 0):max(top + part.shape[1], 0), max(left, 0):max(left + part.shape[2], 0)]
    return below, part[:, max(-top, 0):, max(-left, 0):][:, :below.shape[1], :below.shape[2]]


@functools.lru_cache(maxsize=64)
def _disc(diameter):
    """Returns a disc with a smooth rim, whose sum is 1, float32 (n, n), n odd."""
    x = np.arange(-math.ceil(diameter / 2), math.ceil(diameter / 2) + 1)
    disc = np.clip(diameter / 2 + 0.5 - np.hypot(x, x[:, np.newaxis]), 0, 1)
    return np.float32(disc / disc.sum())


def depth_map(layers, size, random):
    """Returns 1 / distance as a monocular depth network gives it, uint8 (height // 2, width // 2), 0-255.

    Such a network computes at a few hundred pixels a side. It loses what is thin, sees reliefs in what is flat, misses
    edges or makes them soft, and knows neither scale nor gamma. How much of each follows eight maps of EBB! photos
    by MegaDepth (arXiv:1804.00607): slopes, and how much is flat or black.
    """
    depth = np.zeros((1, size[1], size[0]))
    for layer in layers:
        part = np.broadcast_to(layer.depth, layer.rgba.shape[1:])
        if np.isscalar(layer.depth):
            part = part * (1 + random.uniform(0, 0.2) * _noise(part.shape, random, 2.0))
        (below,), (coverage, part) = _overlap(depth, np.stack([layer.rgba[3], part]), layer.left, layer.top)
        np.copyto(below, part, where=coverage > 0.5)
    depth = depth[0, 2::4, 2::4]
    depth = (depth - depth.min()) / max(np.ptp(depth), 1e-12)
    noise = np.stack([_noise(depth.shape, random, 2.0) for _ in range(4)])
    depth = ndimage.median_filter(depth, random.choice([3, 5])) ** _log_uniform(random, 0.5, 1.6)
    misplaced = np.indices(depth.shape) + random.uniform(0, 2.5) * noise[:2]
    depth = ndimage.map_coordinates(depth, misplaced, order=1, mode="nearest")
    sharp, soft = (ndimage.gaussian_filter(depth, _log_uniform(random, *sigmas)) for sigmas in ((0.4, 1.6), (3, 10)))
    depth = sharp + (soft - sharp) * np.clip(0.5 + 0.5 * noise[2], 0, 1) + random.uniform(0.06, 0.2) * noise[3]
    image = Image.fromarray(np.float32(depth)).resize((size[0] // 2, size[1] // 2), Image.Resampling.BICUBIC)
    return utils.to_uint8((image - np.min(image)) / np.ptp(image))


# The scene -----------------------------------------------------------------------------------------------------------


def _make_layers(size, photos, random):
    """Returns (layers from back to front, distance of the subject)."""
    width, height = size
    focus = _log_uniform(random, *SUBJECT_DISTANCES)
    far = _log_uniform(random, max(BACKGROUND_DISTANCES[0], 2.5 * focus), BACKGROUND_DISTANCES[1])
    margin = math.ceil(confusion_diameter(far, focus, size) / 2) + 8  # what the blur brings in from outside
    backdrop = np.ones((4, height + 2 * margin, width + 2 * margin), np.float32)
    kind = random.choice(["leaves", "leaves", "leaves", "plain", "noise"])
    backdrop[:3] = _texture(backdrop.shape[1:], photos, random, kind) * random.uniform(0.7, 2)
    _add_highlights(backdrop, random)
    layers = [Layer(backdrop, -margin, -margin, far, 1 / far)]
    if random.random() < PLANE_SHARE:
        layers += _make_plane(size, margin, focus, far, random)

    def add(x, y, radius, distance, solid_share=0.5):
        rgba = _draw_thing(radius * height, solid_share, photos, random)
        left, top = round(x * width - rgba.shape[2] / 2), round(y * height - rgba.shape[1] / 2)
        layers.append(Layer(rgba, left, top, distance, 1 / distance))

    for _ in range(random.integers(*OBJECTS_BEHIND, endpoint=True)):
        x, y, radius = random.uniform(-0.1, 1.1), random.uniform(0, 0.9), _log_uniform(random, 0.06, 0.35)
        add(x, y, radius, _log_uniform(random, 1.2 * focus, far))
    x, y = random.uniform(0.35, 0.65), random.uniform(0.4, 0.65)
    add(x, y, random.uniform(0.25, 0.45), focus, solid_share=0.85)
    if random.random() < 0.6:  # something before the subject
        add(x + random.uniform(-0.2, 0.2), y + random.uniform(-0.3, 0.3), 0.25, focus)
    if random.random() < FOREGROUND_SHARE:
        x, y, radius = random.choice([-0.05, 0.1, 0.9, 1.05]), random.random(), random.uniform(0.15, 0.35)
        add(x, y, radius, focus * random.uniform(0.5, 0.8))
    return sorted(layers, key=lambda layer: -layer.distance), focus


def _make_plane(size, margin, focus, far, random):
    """Returns a ground or a wall, from the far end on to before the focus, as bands of one distance each.

    A band goes on below the nearer one, whose blurred edge thus lets through only what looks almost the same.
    """
    wall = random.random() < 0.33  # a ground that is turned on its side
    width, height = (size[::-1] if wall else size) + np.array(2 * margin)
    edge, at_focus = round(random.uniform(0.15, 0.5) * height), random.uniform(0.8, 1.1) * height
    rows, step = height - edge, (height - edge) // BANDS
    rise = (1 / focus - 1 / far) / (at_focus - edge)  # 1 / distance of any plane is linear in the photo
    depth = 1 / far + rise * np.arange(rows + step)[:, np.newaxis]
    image = Image.new("RGB", (2 * width, 2 * rows), tuple(_palette(random, 1)[0]))
    _draw_leaves(image, _log_uniform(random, 0.6, 6), random, farthest=depth[0, 0] / depth[-1, 0])
    rgba, bands = _lit(image, random), []
    for start in range(0, rows, step):
        distance = 1 / depth[start + step // 2, 0]
        stop = min(start + step + math.ceil(confusion_diameter(distance, focus, size)) + 8, rows)
        bands.append(Layer(rgba[:, start:stop], -margin, edge + start - margin, distance, depth[start:stop]))
    return [Layer(rgba.swapaxes(1, 2), top, left, distance, depth.T) for rgba, left, top, distance, depth in bands
            ] if wall else bands


def _draw_thing(radius, solid_share, photos, random):
    """Returns rgba of something solid, or of twigs with or without leaves, wires, or the bars of a fence."""
    aspect = _log_uniform(random, 0.8, 1.25)
    height, width = max(8, round(2 * radius * aspect)), max(8, round(2 * radius / aspect))
    if random.random() < solid_share:
        rgba = _draw_solid(height, width, photos, random)
        for _ in range(random.integers(0, 8)):  # parts with a power law of sizes
            share = 0.15 / math.sqrt(1 - 0.94 * random.random())
            part = _draw_solid(max(6, round(height * share)), max(6, round(width * share)), photos, random)
            _lay_over(rgba, part, *(random.integers(rgba.shape[axis] - part.shape[axis] + 1) for axis in (2, 1)))
    else:
        image = Image.new("RGBA", (2 * width, 2 * height))
        _draw_lines(image, random)
        if random.random() < 0.6:
            _draw_leaves(image, _log_uniform(random, 0.3, 1.6), random, clustered=True)
        rgba = _lit(image, random)
    if random.random() < 0.4:
        _add_highlights(rgba, random)
    return rgba


def _draw_solid(height, width, photos, random):
    """Returns rgba of a textured, shaded shape with a random outline that fills the rectangle."""
    corners, order = random.choice([4, 5, 7, 90, 90, 90]), np.arange(2, random.choice([3, 7, 16]))[:, np.newaxis]
    angle = 2 * math.pi * (np.arange(corners) + 0.5) / corners
    phase, strength = random.uniform(0, 2 * math.pi, order.shape), random.normal(0, 0.3, order.shape) / order
    radius = np.maximum(1 + (strength * np.cos(order * angle + phase)).sum(axis=0), 0.15)
    points = radius[:, np.newaxis] * np.stack([np.cos(angle), np.sin(angle)], -1)
    points = (points - points.min(axis=0)) / np.ptp(points, axis=0)
    image = Image.new("L", (4 * width, 4 * height))
    ImageDraw.Draw(image).polygon((points * image.size).ravel().tolist(), fill=255)
    coverage = np.asarray(image.reduce(4)) * np.float32(1 / 255)
    left, right, top, bottom = random.uniform(0.4, 1.2, 4)
    light = np.float32(np.outer(np.linspace(top, bottom, height), np.linspace(left, right, width))) * coverage
    return np.stack([*_texture((height, width), photos, random) * light, coverage])


def _add_highlights(rgba, random):
    """Puts small spots of one colour on a thing, 4 to 60 times as bright as white."""
    colour = LIGHT_OF_SRGB[_palette(random, 1)].reshape(3, 1, 1) + 0.3
    for _ in range(random.integers(1, 5 + rgba[0].size // 30000)):
        diameter = _log_uniform(random, 1.4, 7)
        light = colour * _disc(diameter) * np.float32(diameter ** 2 * math.pi / 4 * _log_uniform(random, 4, 60))
        below, light = _overlap(rgba, light, *(random.integers(side) for side in rgba.shape[:0:-1]))
        below[:3] += light * below[3]


def _log_uniform(random, low, high):
    return math.exp(random.uniform(math.log(low), math.log(high)))


# Drawings, at twice their size, and textures: linear light, float32 (3, height, width) --------------------------------


def _lit(image, random):
    """Returns a drawing as rgba of a layer, unevenly lit."""
    bands = [np.asarray(band) for band in image.reduce(2).convert("RGBA").split()]
    shape, coverage = bands[3].shape, bands[3] * np.float32(1 / 255)
    light = np.exp(_log_uniform(random, 0.08, 0.6) * _noise(shape, random)) * coverage
    return np.stack([*(LIGHT_OF_SRGB[band] * light for band in bands[:3]), coverage])


def _draw_leaves(image, coverage, random, clustered=False, farthest=1.0):
    """Draws leaves whose radii have a density of r^-3, as in the dead leaves model.

    `coverage` is the sum of their areas in multiples of the image's. With farthest < 1 they lie on a ground, and those
    at the image's upper edge are as much smaller.
    """
    radius = min(image.size) * _log_uniform(random, 0.008, 0.03) / np.sqrt(1 - 0.98 * random.random(3000))
    radius = radius[:5 + np.searchsorted(np.cumsum(1.2 * radius ** 2), coverage * image.width * image.height)]
    count = len(radius)
    centre = random.normal(0.5, 0.14, (count, 2)) if clustered else random.random((count, 2))
    if farthest < 1:
        scale = np.sort(1 / (1 + (1 / farthest - 1) * np.sqrt(random.random(count))))
        radius, centre[:, 1] = radius * scale, (scale - farthest) / (1 - farthest)
    angle, flat = np.linspace(0, 2 * math.pi, 16, endpoint=False), random.uniform(0.3, 1, (count, 1))
    outline = np.cos(angle) + 1j * flat * np.sin(angle) * np.sqrt(np.abs(np.sin(angle)))  # pointed at both ends
    outline *= random.uniform(random.uniform(0.3, 1), 1, (count, 16))
    outline *= (radius * np.exp(2j * math.pi * random.random(count)))[:, np.newaxis]
    outline += centre[:, :1] * image.width + 1j * centre[:, 1:] * image.height  # a matrix product takes all cores
    points = outline.view(float).tolist()  # x, y, x, y ...
    colours = _palette(random, 12, random.uniform(0.2, 1))[random.integers(0, 12, count)]
    colours, draw = colours * random.uniform(0.6, 1, (count, 1)), ImageDraw.Draw(image)
    for corners, colour, dark in zip(points, np.uint8(colours), np.uint8(0.8 * colours)):
        draw.polygon(corners, fill=tuple(colour))
        draw.polygon(corners[:18], fill=tuple(dark))  # the half beyond the midrib


def _draw_lines(image, random):
    """Draws twigs, or wires where they hardly bend, or a fence: upright bars in a row and some across."""
    draw, palette, bend = ImageDraw.Draw(image), _palette(random, 4, 0.2), _log_uniform(random, 0.01, 0.4)
    fence, count = random.random() < 0.3, random.integers(3, 12)
    for index in range(count):
        start, heading, thickness = random.random(2), random.uniform(0, 2 * math.pi), _log_uniform(random, 0.003, 0.03)
        if fence:
            upright, thickness, bend = index % 4 < 3, 0.3 / count, 0.01
            start, heading = (((index + 0.5) / count, 0.05), math.pi / 2) if upright else ((0, start[1]), 0)
        heading = heading + np.cumsum(random.normal(0, bend, 16))
        path = start + np.cumsum(np.stack([np.cos(heading), np.sin(heading)], -1), axis=0) / 16
        width = max(1, round(thickness * min(image.size)))
        draw.line((path * image.size).ravel().tolist(), tuple(palette[random.integers(4)]), width, joint="curve")


def _texture(shape, photos, random, kind=None):
    """Returns a surface: colours mixed by noise, plain, in stripes or checks; leaves; letters; a part of a photo."""
    height, width = shape
    if photos and random.random() < PHOTO_SHARE:
        border, centre = random.uniform(0, 0.3), random.random(2)
        part = ImageOps.fit(photos[random.integers(len(photos))], (width, height), bleed=border, centering=centre)
        return LIGHT_OF_SRGB[np.asarray(part)].transpose(2, 0, 1)
    kind = kind or random.choice(["noise"] * 4 + ["plain", "leaves", "stripes", "letters"])
    if kind in ("leaves", "letters"):
        image = Image.new("RGB", (2 * width, 2 * height), tuple(_palette(random, 1)[0]))
        for colour in _palette(random, 4, 0.5) if kind == "letters" else ():
            font = ImageFont.load_default(max(8, image.height * random.uniform(0.1, 0.4)))
            text, place = random.integers(ord("0"), ord("z"), 12), random.uniform(-0.2, 0.8, 2) * image.size
            ImageDraw.Draw(image).text(place, "".join(map(chr, text)), tuple(colour), font)
        if kind == "leaves":
            _draw_leaves(image, _log_uniform(random, 0.3, 4), random)
        return _lit(image, random)[:3]
    share, grain = 0.5 + _log_uniform(random, 0.4, 3) * _noise(shape, random), _log_uniform(random, 0.03, 0.6)
    if kind == "plain":
        share, grain = 0.5 + 0.1 * _noise(shape, random, 2.0), grain / 10
    elif kind == "stripes":  # or checks
        frequency = 2 * math.pi / _log_uniform(random, 6, 120) * np.array([1, random.choice([0, random.random(), 1])])
        wave_x, wave_y = (np.float32(np.cos(np.arange(side) * f)) for side, f in zip((width, height), frequency))
        share = 0.5 + 3 * wave_x * wave_y[:, np.newaxis]
    first, second = LIGHT_OF_SRGB[_palette(random, 2)][..., np.newaxis, np.newaxis]
    return (first + (second - first) * np.clip(share, 0, 1)) * np.exp(grain * _noise(shape, random))


def _palette(random, count, spread=1.0):
    """Returns sRGB colours, uint8 (count, 3), whose hues lie within `spread` of the circle."""
    hues = (random.random() + spread * random.uniform(-0.5, 0.5, count)) % 1
    saturations = np.minimum(random.beta(1.2, 2.9) * random.uniform(0.5, 1.3, count), 1)
    values = random.uniform(0.08, 1, count)
    return utils.to_uint8([colorsys.hsv_to_rgb(*colour) for colour in zip(hues, saturations, values)])


def _noise(shape, random, slope=None):
    """Returns noise of mean 0 and deviation 1, about, float32 (height, width): part of a field, which is periodic."""
    field = _field(random.choice(SLOPES) if slope is None else slope)
    rows, columns = (np.arange(side) + random.integers(FIELD_SIDE) for side in shape)
    return field.take(rows, 0, mode="wrap").take(columns, 1, mode="wrap")


@functools.cache
def _field(slope):
    """Returns noise whose amplitude falls with the frequency f as f^-slope, float32 (FIELD_SIDE, FIELD_SIDE)."""
    white = np.random.default_rng(round(10 * slope)).standard_normal((FIELD_SIDE, FIELD_SIDE), np.float32)
    frequency = np.hypot(scipy.fft.fftfreq(FIELD_SIDE)[:, np.newaxis], scipy.fft.rfftfreq(FIELD_SIDE))
    frequency[0, 0] = math.inf
    field = scipy.fft.irfft2(scipy.fft.rfft2(white) * np.float32(frequency ** -slope))
    return field / field.std()


if __name__ == "__main__":
    sys.exit(utils.run(main))

"""Writes a data set of synthetic scenes in EBB!'s folders, formats and sizes, rich enough to learn from:

    python -m tools.make_scenes dataset_dir=my_dataset/ train_count=2000 test_count=20

A scene is a stack of layers, each of them whole, also where a nearer one hides it; tools/thin_lens.py takes its photos.
Objects hide each other and have a power law of sizes, as in photos (dead leaves: Lee, Mumford, Huang, IJCV 2001).
Networks trained on dead leaves alone carry over to photos (Achddou, Gousseau, Ladjal, SSVM 2021).

With maps=focus, focus maps take the place of depth maps: they say how large the disc of confusion is. Focus and
aperture then differ between the scenes of train/, some of which are nights with lights. Those of test/ have the same
photos and targets as with maps=depth.
"""

import concurrent.futures
import math
import multiprocessing
import os
import pathlib
import sys
import threading
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from scipy import ndimage

import load_dataset
import utils
from support import focus_maps, own_photos, scripts
from support.depth_networks import PERCENTILES
from tools.scene_textures import (
    LIGHT_OF_SRGB,
    choose_colours,
    draw_leaves,
    draw_lines,
    lit,
    log_uniform,
    make_noise,
    make_texture,
)
from tools.thin_lens import Layer, Lens, confusion_diameter, develop, expose, lay_over, make_disc, overlap
from utils import Parameter

SUBJECT_DISTANCES = 850, 2500  # the subject is in focus
BACKGROUND_DISTANCES = 3000, 20000  # and at least 2.5 times the subject's
PLANE_SHARE = 0.45  # of the scenes have a ground or a slanted wall
FOREGROUND_SHARE = 0.25  # of the scenes have something nearer than the subject
OBJECTS_BEHIND = 4, 11  # between subject and background
BANDS = 16  # that a slanted plane is cut into, each with one disc
NIGHT_SHARE = 0.3  # of the training scenes with focus maps: lights before a dark background
SHARP_SHARE = 0.06  # of these scenes: everything is sharp
WIDE_OPEN_SHARE = 0.5  # of those that are not sharp: the lens is wide open, as in test/
APERTURES = 0.1, 1.5  # of the others, in multiples of the lens wide open
FOCUS_SHARES = {"subject": 0.6, "behind": 0.25, "background": 0.15}  # of those that are not sharp: what is in focus
MAX_SCENES_HERE = 16  # more are worth starting processes

PARAMETERS = (
    Parameter("dataset_dir", str, utils.REQUIRED, "folder to write train/ and test/ into"),
    Parameter("train_count", int, 20, "photos in train/", minimum=1),
    Parameter("test_count", int, 4, "photos in test/", minimum=1),
    Parameter("seed", int, 0, "another seed gives other scenes", minimum=0),
    Parameter("maps", tuple(load_dataset.MAPS), "depth", "kind of maps; with focus, focus and aperture vary in train/"),
    Parameter("photos_dir", str, None, "folder of your own photos to use as textures", default_text="none"),
)
USAGE = "python -m tools.make_scenes dataset_dir=FOLDER [name=value ...]"


def main(argv):
    """Writes the data set that the arguments ask for."""
    settings = utils.parse_arguments(argv, PARAMETERS, USAGE)
    count = write_dataset(settings.dataset_dir, settings.train_count, settings.test_count, seed=settings.seed,
                          photos_dir=settings.photos_dir, maps=settings.maps)
    print(f"{count} new scenes in {settings.dataset_dir}")


def write_dataset(folder, train_count, test_count, size=(1536, 1024), seed=0, photos_dir=None, maps="depth"):
    """Writes FOLDER/{train,test}/{original,original_depth,bokeh}/ with photos 0, 1 ... of different scenes.

    Photos that are there already are kept: larger counts add to them, and a stopped run goes on. `size` is (width,
    height); `photos_dir` holds photos to use as textures; maps="focus" writes original_focus/ instead of
    original_depth/. Returns the number of new scenes. Raises DataError where the folder cannot be written, photos_dir
    holds no or damaged photos, or a process dies.
    """
    photos = tuple(own_photos.find_photos(photos_dir).values()) if photos_dir else ()
    scenes = []
    for index, (name, count) in enumerate((("train", train_count), ("test", test_count))):
        split = pathlib.Path(folder) / name
        utils.prepare_folders(*(split / folder.name for folder in load_dataset.folders(maps).values()))
        present = {path.stem for path in (split / "original").iterdir()}
        varied_lens = maps == "focus" and name == "train"
        scenes += [(split, str(number), size, [seed, index, number], photos, maps, varied_lens)
                   for number in range(count) if str(number) not in present]
    workers = concurrent.futures.ThreadPoolExecutor(load_dataset.processors())
    if len(scenes) > MAX_SCENES_HERE:  # spawned, since a fork of a process with TensorFlow's threads can hang
        spawn = multiprocessing.get_context("spawn")
        workers = concurrent.futures.ProcessPoolExecutor(load_dataset.processors(), spawn, _end_with_parent)
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


def _end_with_parent():
    """Lets this worker process end with the one that started it, which may be killed and can tell nobody."""
    def wait():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _write_scene(scene):
    folder, name, *arguments, maps, varied_lens = scene
    photo, depth_or_focus, bokeh = make_scene(*arguments, maps, varied_lens)
    utils.write_image(folder / load_dataset.MAPS[maps].name / f"{name}.png", depth_or_focus)
    utils.write_image(folder / "bokeh" / f"{name}.jpg", bokeh)
    utils.write_image(folder / "original" / f"{name}.jpg", photo)  # last: a scene with a photo is complete
    return folder / "original" / f"{name}.jpg"


def make_scene(size, seed, photos=(), maps="depth", varied_lens=False):
    """Returns one scene, the same for the same arguments.

    `size` is (width, height) in pixels, 64 x 64 or more; `seed` a whole number from 0 or a list of such; `photos` are
    paths of photos to use as textures. Where `varied_lens`, focus and aperture differ from scene to scene, and
    some are nights; else the subject is in focus and the lens wide open.

    Returns:
      photo: uint8 (height, width, 3), everything in focus.
      map: uint8 (height // 2, width // 2), see `depth_map` and `focus_map`.
      bokeh: uint8 (height, width, 3), as the lens shows it.
    """
    random = np.random.default_rng(seed)
    own_random, = random.spawn(1)  # of lens, night and focus map; without varied_lens the photo does not depend on it
    photos = [own_photos.read_photo(photos[index]) for index in random.integers(len(photos), size=3)] if photos else []
    layers, subject = _make_layers(size, photos, random, APERTURES[1] if varied_lens else 1)
    lens = Lens(subject)
    if varied_lens:
        lens = _choose_lens(inverse_distance(layers, size), subject, size, own_random)
        if own_random.random() < NIGHT_SHARE:
            _turn_to_night(layers[0].rgba, own_random)
    light = expose(layers, None, size)
    gain = np.clip(log_uniform(random, 0.1, 0.28) / np.minimum(light, 1).mean(), 0.3, 3)
    gain = np.float32(gain * random.uniform(0.9, 1.1, (3, 1, 1)))  # white balance
    side = random.uniform(0.15, 0.4)
    soft = ImageFilter.Kernel((3, 3), np.outer([side, 1, side], [side, 1, side]).ravel())  # no lens is quite sharp
    photo, bokeh = (np.asarray(Image.fromarray(develop(image * gain)).filter(soft))
                    for image in (light, expose(layers, lens, size)))
    noise = log_uniform(random, 0.3, 1.5) * random.standard_normal(photo.shape, np.float32)
    photo = np.uint8(np.clip(np.round(photo + noise), 0, 255))  # bokeh: more light, less noise
    depth_or_focus = focus_map(layers, lens, size, own_random) if maps == "focus" else depth_map(layers, size, random)
    return photo, depth_or_focus, bokeh


def _choose_lens(near, subject, size, random):
    """Returns a `Lens` that is focused on the subject, on something behind it or on the farthest thing there is."""
    if random.random() < SHARP_SHARE:
        return Lens(subject, 0.0)
    behind = near[near < 0.9 / subject]
    target = random.choice(list(FOCUS_SHARES), p=list(FOCUS_SHARES.values()))
    focus = subject
    if target != "subject" and behind.size:
        focus = 1 / (random.choice(behind) if target == "behind" else near.min())
    largest = confusion_diameter(1 / np.array([near.min(), near.max()]), Lens(focus), size).max()
    limit = focus_maps.largest_disc(size) / max(largest, 1e-6)  # what a focus map can say
    aperture = 1.0 if random.random() < WIDE_OPEN_SHARE else log_uniform(random, *APERTURES)
    return Lens(focus, min(aperture, limit))


# The maps ------------------------------------------------------------------------------------------------------------


class MapErrors(NamedTuple):
    """How far a depth network is from the truth; ranges from which each scene draws, lengths in pixels of its map."""

    relief: float  # largest share by which a flat thing is uneven
    gamma: tuple
    misplaced: float  # largest shift of an edge
    sharp: tuple  # deviations of the blur where edges are sharp
    soft: tuple  # and where they are soft
    clouds: tuple  # deviation of what is added, in shares of the whole range


# Slopes, and how much is flat or black, follow eight maps of EBB! photos by MegaDepth (arXiv:1804.00607).
MEGADEPTH = MapErrors(0.2, (0.5, 1.6), 2.5, (0.4, 1.6), (3, 10), (0.06, 0.2))
NEWER_NETWORKS = MapErrors(0.06, (0.8, 1.25), 1.2, (0.4, 1.0), (1, 4), (0.005, 0.04))


def depth_map(layers, size, random):
    """Returns 1 / distance as a monocular depth network gives it, uint8 (height // 2, width // 2), bright = near."""
    image = _estimated_depth(layers, size, random, MEGADEPTH)
    return utils.to_uint8((image - np.min(image)) / np.ptp(image))


def focus_map(layers, lens, size, random):
    """Returns what `focus_maps.focus_map` makes of a depth map, uint8 (height // 2, width // 2), bright = in focus.

    The depth map errs, the focus is read off it where the truth is in focus, and the aperture is the one that fits the
    truth best; so the map has the errors that a user's has.
    """
    if not lens.aperture:
        return np.full((size[1] // 2, size[0] // 2), 255, np.uint8)
    depth = _estimated_depth(layers, size, random, NEWER_NETWORKS)
    low, high = np.percentile(depth, PERCENTILES)
    depth = utils.to_uint8((depth - low) / max(high - low, 1e-6))
    near = inverse_distance(layers, size)[1::2, 1::2]  # as many rows and columns as the map has
    diameter = confusion_diameter(1 / near, lens, size)
    blur = 255 * diameter / focus_maps.largest_disc(size)
    at_focus = np.median(depth[diameter <= max(2, np.percentile(diameter, 2))])
    difference = focus_maps.difference(depth, at_focus)
    return focus_maps.focus_map(depth, at_focus, np.sum(difference * blur) / max(np.sum(difference ** 2), 1))


def inverse_distance(layers, size):
    """Returns the true 1 / distance of what each pixel shows, float64 (height, width)."""
    return _compose(layers, size, [np.broadcast_to(layer.depth, layer.rgba.shape[1:]) for layer in layers])


def _compose(layers, size, parts):
    """Lays parts, one (height, width) for each layer from back to front, over each other where a layer covers."""
    whole = np.zeros((1, size[1], size[0]))
    for layer, part in zip(layers, parts):
        (below,), (coverage, part) = overlap(whole, np.stack([layer.rgba[3], part]), layer.left, layer.top)
        np.copyto(below, part, where=coverage > 0.5)
    return whole[0]


def _estimated_depth(layers, size, random, errors):
    """Returns what a depth network sees: float32 (height // 2, width // 2), about 0 to 1.

    Such a network computes at a few hundred pixels a side. It loses what is thin, sees reliefs in what is flat, misses
    edges or makes them soft, and knows neither scale nor gamma.
    """
    parts = []
    for layer in layers:
        parts.append(np.broadcast_to(layer.depth, layer.rgba.shape[1:]))
        if np.isscalar(layer.depth):
            parts[-1] = parts[-1] * (1 + random.uniform(0, errors.relief) * make_noise(parts[-1].shape, random, 2.0))
    depth = _compose(layers, size, parts)[2::4, 2::4]
    depth = (depth - depth.min()) / max(np.ptp(depth), 1e-12)
    noise = np.stack([make_noise(depth.shape, random, 2.0) for _ in range(4)])
    depth = ndimage.median_filter(depth, random.choice([3, 5])) ** log_uniform(random, *errors.gamma)
    misplaced = np.indices(depth.shape) + random.uniform(0, errors.misplaced) * noise[:2]
    depth = ndimage.map_coordinates(depth, misplaced, order=1, mode="nearest")
    sharp, soft = (ndimage.gaussian_filter(depth, log_uniform(random, *deviations))
                   for deviations in (errors.sharp, errors.soft))
    clouds = random.uniform(*errors.clouds) * noise[3]
    depth = sharp + (soft - sharp) * np.clip(0.5 + 0.5 * noise[2], 0, 1) + clouds
    return np.asarray(Image.fromarray(np.float32(depth)).resize((size[0] // 2, size[1] // 2), Image.Resampling.BICUBIC))


# The scene -----------------------------------------------------------------------------------------------------------


def _make_layers(size, photos, random, largest_aperture=1):
    """Returns (layers from back to front, distance of the subject)."""
    width, height = size
    focus = log_uniform(random, *SUBJECT_DISTANCES)
    far = log_uniform(random, max(BACKGROUND_DISTANCES[0], 2.5 * focus), BACKGROUND_DISTANCES[1])
    widest = Lens(focus, largest_aperture)
    margin = math.ceil(confusion_diameter(far, widest, size) / 2) + 8  # what the blur brings in from outside
    backdrop = np.ones((4, height + 2 * margin, width + 2 * margin), np.float32)
    kind = random.choice(["leaves", "leaves", "leaves", "plain", "noise"])
    backdrop[:3] = make_texture(backdrop.shape[1:], photos, random, kind) * random.uniform(0.7, 2)
    _add_highlights(backdrop, random)
    layers = [Layer(backdrop, -margin, -margin, far, 1 / far)]
    if random.random() < PLANE_SHARE:
        layers += _make_plane(size, margin, widest, far, random)

    def add(x, y, radius, distance, solid_share=0.5):
        rgba = _draw_thing(radius * height, solid_share, photos, random)
        left, top = round(x * width - rgba.shape[2] / 2), round(y * height - rgba.shape[1] / 2)
        layers.append(Layer(rgba, left, top, distance, 1 / distance))

    for _ in range(random.integers(*OBJECTS_BEHIND, endpoint=True)):
        x, y, radius = random.uniform(-0.1, 1.1), random.uniform(0, 0.9), log_uniform(random, 0.06, 0.35)
        add(x, y, radius, log_uniform(random, 1.2 * focus, far))
    x, y = random.uniform(0.35, 0.65), random.uniform(0.4, 0.65)
    add(x, y, random.uniform(0.25, 0.45), focus, solid_share=0.85)
    if random.random() < 0.6:  # something before the subject
        add(x + random.uniform(-0.2, 0.2), y + random.uniform(-0.3, 0.3), 0.25, focus)
    if random.random() < FOREGROUND_SHARE:
        x, y, radius = random.choice([-0.05, 0.1, 0.9, 1.05]), random.random(), random.uniform(0.15, 0.35)
        add(x, y, radius, focus * random.uniform(0.5, 0.8))
    return sorted(layers, key=lambda layer: -layer.distance), focus


def _make_plane(size, margin, widest, far, random):
    """Returns a ground or a wall, from the far end on to before the focus, as bands of one distance each.

    A band goes on below the nearer one, whose blurred edge thus lets through only what looks almost the same.
    """
    wall = random.random() < 0.33  # a ground that is turned on its side
    width, height = (size[::-1] if wall else size) + np.array(2 * margin)
    edge, at_focus = round(random.uniform(0.15, 0.5) * height), random.uniform(0.8, 1.1) * height
    rows, step = height - edge, (height - edge) // BANDS
    rise = (1 / widest.focus - 1 / far) / (at_focus - edge)  # 1 / distance of any plane is linear in the photo
    depth = 1 / far + rise * np.arange(rows + step)[:, np.newaxis]
    image = Image.new("RGB", (2 * width, 2 * rows), tuple(choose_colours(random, 1)[0]))
    draw_leaves(image, log_uniform(random, 0.6, 6), random, farthest=depth[0, 0] / depth[-1, 0])
    rgba, bands = lit(image, random), []
    for start in range(0, rows, step):
        distance = 1 / depth[start + step // 2, 0]
        stop = min(start + step + math.ceil(confusion_diameter(distance, widest, size)) + 8, rows)
        bands.append(Layer(rgba[:, start:stop], -margin, edge + start - margin, distance, depth[start:stop]))
    return [Layer(rgba.swapaxes(1, 2), top, left, distance, depth.T) for rgba, left, top, distance, depth in bands
            ] if wall else bands


def _draw_thing(radius, solid_share, photos, random):
    """Returns rgba of something solid, or of twigs with or without leaves, wires, or the bars of a fence."""
    aspect = log_uniform(random, 0.8, 1.25)
    height, width = max(8, round(2 * radius * aspect)), max(8, round(2 * radius / aspect))
    if random.random() < solid_share:
        rgba = _draw_solid(height, width, photos, random)
        for _ in range(random.integers(0, 8)):  # parts with a power law of sizes
            share = 0.15 / math.sqrt(1 - 0.94 * random.random())
            part = _draw_solid(max(6, round(height * share)), max(6, round(width * share)), photos, random)
            lay_over(rgba, part, *(random.integers(rgba.shape[axis] - part.shape[axis] + 1) for axis in (2, 1)))
    else:
        image = Image.new("RGBA", (2 * width, 2 * height))
        draw_lines(image, random)
        if random.random() < 0.6:
            draw_leaves(image, log_uniform(random, 0.3, 1.6), random, clustered=True)
        rgba = lit(image, random)
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
    return np.stack([*make_texture((height, width), photos, random) * light, coverage])


def _turn_to_night(backdrop, random):
    """Darkens a background, in place, and puts lights of several colours on it."""
    backdrop[:3] *= log_uniform(random, 0.01, 0.2)
    for _ in range(random.integers(2, 6)):
        _add_highlights(backdrop, random, (3, 14))


def _add_highlights(rgba, random, diameters=(1.4, 7)):
    """Puts small spots of one colour on a thing, 4 to 60 times as bright as white; diameters: a range in pixels."""
    colour = LIGHT_OF_SRGB[choose_colours(random, 1)].reshape(3, 1, 1) + 0.3
    for _ in range(random.integers(1, 5 + rgba[0].size // 30000)):
        diameter = log_uniform(random, *diameters)
        light = colour * make_disc(diameter) * np.float32(diameter ** 2 * math.pi / 4 * log_uniform(random, 4, 60))
        below, light = overlap(rgba, light, *(random.integers(side) for side in rgba.shape[:0:-1]))
        below[:3] += light * below[3]


if __name__ == "__main__":
    sys.exit(scripts.run(main))

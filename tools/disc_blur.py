"""Blurs the test photos of a data set by their focus maps, without a network: what a network has to beat.

    python -m tools.disc_blur dataset_dir=scenes/

Prints PSNR, SSIM and MS-SSIM, as test_model.py does, of the photo itself and of a disc blur in linear light: thirteen
discs of fixed diameters, between which the focus map interpolates. It knows neither occlusion nor the map's errors.
"""

import functools
import sys

import numpy as np
import scipy.fft

import load_dataset
import test_model
import utils
from support import dataset_files, devices, focus_maps, results_page, scripts
from tools.scene_textures import linear
from tools.thin_lens import develop, make_disc
from utils import DataError, Parameter

DIAMETERS = np.array([0, 2, 4, 7, 11, 16, 23, 32, 44, 60, 80, 105, 120]) / 120  # of the largest disc

PARAMETERS = (Parameter("dataset_dir", str, utils.REQUIRED, "data set with focus maps (tools.make_scenes maps=focus)"),)
USAGE = "python -m tools.disc_blur dataset_dir=FOLDER"


def main(argv):
    """Measures the test photos of a data set."""
    settings = utils.parse_arguments(argv, PARAMETERS, USAGE)
    pairs = dataset_files.find_test_photos(settings.dataset_dir)
    if pairs[0].kind != "focus" or not all(pair.bokeh for pair in pairs):
        raise DataError(f"{settings.dataset_dir}: test/ must hold original_focus/ and bokeh/, as those of "
                        "tools.make_scenes maps=focus do")
    devices.start_tensorflow(use_gpu=False)
    results = {"photo": [], "disc blur": []}
    for pair in pairs:
        photo, target = load_dataset.read(pair, "photo"), load_dataset.load_target(pair, level=1)
        focus_map = load_dataset.resize(load_dataset.read(pair, "map"), photo.size)
        pictures = np.asarray(photo), blur(np.asarray(photo), np.asarray(focus_map))
        for name, picture in zip(results, pictures):
            results[name].append(test_model.measure(np.float32(picture) / 255, target))
            utils.say(f"{pair.name}, {name}: {results_page.metrics_text(results[name][-1])}")
    for name, metrics in results.items():
        print(f"Mean, {name}: {results_page.metrics_text(results_page.mean_metrics(metrics))}")


def blur(photo, focus_map):
    """Returns a photo, uint8 (height, width, 3), blurred by a focus map, uint8 (height, width), as uint8."""
    light = np.float32(linear(photo.transpose(2, 0, 1) / 255))
    share = 1 - focus_map / 255  # of the largest disc
    blurred = np.zeros_like(light)
    for index, diameter in enumerate(DIAMETERS):
        weight = np.interp(share, DIAMETERS, np.arange(len(DIAMETERS)) == index)
        blurred += np.float32(weight) * spread(light, diameter * focus_maps.largest_disc(photo.shape[:2]))
    return develop(blurred)


def spread(light, diameter):
    """Returns linear light, float32 (3, height, width), spread over discs of one diameter in pixels."""
    if diameter < 1:
        return light
    disc = make_disc(diameter)
    margin = len(disc) // 2
    padded = np.pad(light, [(0, 0), (margin, margin), (margin, margin)], "edge")
    shape = [scipy.fft.next_fast_len(side, real=True) for side in padded.shape[1:]]
    transform, back = functools.partial(scipy.fft.rfft2, s=shape), functools.partial(scipy.fft.irfft2, s=shape)
    height, width = light.shape[1:]
    return np.maximum(back(transform(padded) * transform(disc)), 0)[:, 2 * margin:, 2 * margin:][:, :height, :width]


if __name__ == "__main__":
    sys.exit(scripts.run(main))

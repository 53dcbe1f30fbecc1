"""models/small/: what the weights that come with the repository promise, on pictures that they were not trained on."""

import numpy as np
import pytest
from PIL import Image

import load_dataset
import test_model
from support import focus_maps, own_photos
from support.renderer import Renderer
from tools import make_scenes


@pytest.fixture(scope="module")
def renderer():
    return Renderer("small")


def test_takes_focus_maps(renderer):
    assert renderer.kind == "focus"


def test_blur_grows_with_the_aperture_where_it_is_not_in_focus(renderer):
    photo, depth, _ = make_scenes.make_scene((768, 512), [2, 1, 1])
    half = own_photos.load_input(own_photos.Pair("a", photo, depth, None, None))[0]
    blurred = focus_maps.refocus(half[..., 3]) < 200
    detail = []
    for aperture in (0, 0.25, 0.5, 1, 2):
        image = renderer.render_whole(renderer.refocus(half, aperture=aperture), (768, 512)).mean(axis=-1)
        detail.append(np.abs(np.diff(image[::2, ::2], axis=1))[blurred[:, 1:]].mean())
    assert detail == sorted(detail, reverse=True) and detail[-1] < 0.4 * detail[0]


def test_closed_aperture_gives_own_photos_back(renderer):
    """With their detail, to 36 dB; the network's bare picture, at half the resolution, is 5 to 6 dB worse."""
    photo, depth, _ = make_scenes.make_scene((768, 512), [2, 1, 1])
    picture = np.asarray(renderer(photo, depth, aperture=0))
    assert test_model.measure(np.float32(picture) / 255, photo)["PSNR"] > 36


def test_is_5_db_nearer_to_the_target_than_the_photo_itself(renderer):
    """Over two scenes that it was not trained on, at the size at which the blur was learned."""
    psnrs = []
    for number in (0, 1):
        photo, focus_map, target = make_scenes.make_scene((1536, 1024), [2, 1, number], maps="focus")
        half = np.asarray(load_dataset.halve(Image.fromarray(photo)))
        image = renderer.render_whole(np.dstack([half, focus_map]), (1536, 1024))
        psnrs.append([test_model.measure(np.float32(picture), target)["PSNR"] for picture in (image, photo / 255)])
    network, photo = np.mean(psnrs, axis=0)
    assert network > photo + 5

"""models/small/: what the weights that come with the repository promise, on pictures that they were not trained on."""

import numpy as np
import pytest
from PIL import Image

import test_model
from support import focus_maps, own_photos
from tools import disc_blur, make_scenes
from tools.scene_textures import linear

SIZE = WIDTH, HEIGHT = 1536, 1024  # at which the blur was learned


@pytest.fixture(scope="module")
def renderer():
    return test_model.Renderer("small")


def render(renderer, photo, focus_map):
    """What the network makes of uint8 (height, width, 3) and (height / 2, width / 2), in linear light."""
    seen = np.dstack([np.asarray(Image.fromarray(photo).reduce(2)), focus_map])
    return linear(renderer.render_whole(seen, photo.shape[1::-1]))


def test_takes_focus_maps(renderer):
    assert renderer.kind == "focus"


@pytest.mark.parametrize("diameter", [16, 32, 64])
def test_point_of_light_becomes_a_disc_of_the_diameter_in_the_focus_map(renderer, diameter):
    """Within 20%: the diameter of the area that is brighter than half of the disc's middle."""
    photo = np.full((HEIGHT // 2, WIDTH // 2, 3), 12, np.uint8)
    rows, columns = np.mgrid[:HEIGHT // 2, :WIDTH // 2]
    distance = np.hypot(rows - HEIGHT / 4 + 0.5, columns - WIDTH / 4 + 0.5)
    photo[distance < max(3, diameter / 6)] = 255
    value = round(255 * (1 - diameter / focus_maps.largest_disc(SIZE)))
    light = render(renderer, photo, np.full((HEIGHT // 4, WIDTH // 4), value, np.uint8)).mean(axis=-1)
    light -= np.median(light)
    middle = np.median(light[distance < diameter / 4])
    found = 2 * np.sqrt(np.count_nonzero(light > middle / 2) / np.pi)
    assert found == pytest.approx(diameter, rel=0.2)


def test_blur_grows_with_the_aperture_where_it_is_not_in_focus(renderer):
    photo, depth, _ = make_scenes.make_scene((768, 512), [2, 1, 1])
    half = own_photos.load_input(own_photos.Pair("a", photo, depth, None, None))[0]
    blurred = focus_maps.refocus(half[..., 3]) < 200
    detail = []
    for aperture in (0, 0.25, 0.5, 1, 2):
        image = renderer.render_whole(renderer.refocus(half, aperture=aperture), (768, 512)).mean(axis=-1)
        detail.append(np.abs(np.diff(image[::2, ::2], axis=1))[blurred[:, 1:]].mean())
    assert detail == sorted(detail, reverse=True) and detail[-1] < 0.4 * detail[0]


def test_closed_aperture_leaves_the_photo_as_sharp_as_level_1_can_show_it(renderer):
    """Nowhere is the picture further from the photo than the photo is that was halved and enlarged again."""
    photo, _, _ = make_scenes.make_scene((768, 512), [2, 1, 1])
    image = renderer.render_whole(np.dstack([np.asarray(Image.fromarray(photo).reduce(2)),
                                             np.full((256, 384), 255, np.uint8)]), (768, 512))
    halved = np.asarray(Image.fromarray(photo).reduce(2).resize((768, 512), Image.Resampling.BICUBIC)) / 255
    error, limit = (np.square(picture - photo / 255).mean(axis=-1) for picture in (image, halved))
    parts = [values[32:-32, 32:-32].reshape(7, 64, 11, 64).mean(axis=(1, 3)) for values in (error, limit)]
    assert np.all(parts[0] < 1.5 * parts[1] + 4e-4)


def test_beats_a_disc_blur_by_the_same_focus_map(renderer):
    psnrs = []
    for number in range(3):
        photo, focus_map, target = make_scenes.make_scene((768, 512), [2, 1, number], maps="focus")
        half = np.asarray(Image.fromarray(photo).reduce(2))
        image = renderer.render_whole(np.dstack([half, focus_map]), (768, 512))
        blurred = disc_blur.blur(photo, np.asarray(Image.fromarray(focus_map).resize((768, 512)))) / 255
        psnrs.append([test_model.measure(np.float32(picture), target)["PSNR"] for picture in (image, blurred)])
    network, blur = np.mean(psnrs, axis=0)
    assert network > blur + 0.5

"""test_model.Renderer: from Python, photos come out as test_model.py writes them; the network is a small random one."""

import numpy as np
import pytest
from PIL import Image

import test_model
import utils
from support import depth_networks, own_photos
from utils import DataError

SIZE = WIDTH, HEIGHT = 150, 110


@pytest.fixture(scope="module")
def render(small_checkpoint):
    return test_model.Renderer(small_checkpoint)


def smooth(size, channels, seed=0):
    cells = np.random.default_rng(seed).integers(0, 256, (9, 9, channels), np.uint8).squeeze()
    return Image.fromarray(cells).resize(size, Image.Resampling.BICUBIC)


@pytest.mark.parametrize("arguments, options", [([], {}), (["max_side=100", "detail=false"],
                                                           {"side": 100, "with_detail": False})])
def test_paths_pictures_and_arrays_give_what_test_model_writes(render, workplace, call, small_checkpoint,
                                                                link_checkpoint, arguments, options):
    link_checkpoint(small_checkpoint, utils.SMALL)
    smooth(SIZE, 3).save("a.png")
    smooth((60, 44), 1).save("depth.png")
    done = call(test_model, "small=true", "images_dir=a.png", "depth_dir=depth.png", *arguments)
    assert done.status == 0, done.err
    [written] = workplace.rglob("a_level_1_small.png")
    photo, depth = Image.open("a.png"), Image.open("depth.png")
    for inputs in (("a.png", "depth.png"), (photo, depth), (np.asarray(photo), np.asarray(depth))):
        picture = render(*inputs, **options)
        assert picture.size == SIZE
        np.testing.assert_array_equal(picture, Image.open(written))


def test_result_keeps_the_photos_profile_and_a_grey_photo_stays_grey(render, tmp_path):
    smooth(SIZE, 1).save(tmp_path / "grey.png")
    pixels = np.asarray(render(tmp_path / "grey.png", smooth(SIZE, 1)))
    assert np.ptp(pixels, axis=-1).max() == 0 and np.ptp(pixels) > 0
    assert np.ptp(np.asarray(render(smooth(SIZE, 3), smooth(SIZE, 1))), axis=-1).max() > 0


def test_photo_without_a_depth_map_gets_one_from_the_depth_network_once_loaded(render, monkeypatch):
    loaded = []
    monkeypatch.setattr(depth_networks, "open_network", lambda name: loaded.append(name) or (
        lambda image, name: np.asarray(image.convert("L").resize((WIDTH // 2, HEIGHT // 2)))))
    photo = smooth(SIZE, 3)
    expected = render(photo, photo.convert("L").resize((WIDTH // 2, HEIGHT // 2)))
    for _ in range(2):
        np.testing.assert_array_equal(render(photo), expected)
    assert loaded == [depth_networks.DEFAULT]


def test_network_sees_own_photos_continued_on_all_sides(render, monkeypatch):
    """16 pixels of the input, mirrored, then what makes it a multiple of 32."""
    seen = []
    monkeypatch.setattr(render, "_render", lambda photo, size: seen.append((photo, size)) or np.zeros(
        (size[1], size[0], 3), np.float32))
    array, size, photo = own_photos.load_input(own_photos.Pair("a", smooth(SIZE, 3), smooth(SIZE, 1), None, None))
    assert render.render_own(array, size, photo).size == SIZE
    [(framed, framed_size)] = seen
    np.testing.assert_array_equal(framed, np.pad(array, [(16, 16), (16, 16), (0, 0)], "reflect"))
    assert framed_size == (WIDTH + 64, HEIGHT + 64)


def test_frame_is_cut_back_to_the_same_pixels(render, monkeypatch):
    """A network that enlarges its input: without detail, own photos come out in place."""
    monkeypatch.setattr(render, "_render", lambda photo, size: np.float32(
        Image.fromarray(photo[..., :3]).resize(size, Image.Resampling.NEAREST)) / 255)
    array, size, photo = own_photos.load_input(own_photos.Pair("a", smooth(SIZE, 3), smooth(SIZE, 1), None, None))
    np.testing.assert_array_equal(render.render_own(array, size, photo, with_detail=False),
                                  array[..., :3].repeat(2, 0).repeat(2, 1))


@pytest.mark.parametrize("kind", ["depth", "focus"])
def test_only_a_focus_map_says_what_is_the_photo_itself(render, monkeypatch, kind):
    """Where a depth map is white, something is near, and whether it is sharp is up to the network."""
    monkeypatch.setattr(render, "kind", kind)
    monkeypatch.setattr(render, "_render", lambda photo, size: np.full((size[1], size[0], 3), 0.2, np.float32))
    photo = smooth(SIZE, 3)
    seen = np.dstack([photo.resize((WIDTH // 2, HEIGHT // 2)), np.full((HEIGHT // 2, WIDTH // 2), 255, np.uint8)])
    assert (render.render_own(seen, SIZE, photo) == photo) == (kind == "focus")


def test_picture_that_is_not_finite_is_refused(small_checkpoint, small_pynet, tmp_path):
    from support import checkpoints
    values = {name: variable.numpy() for name, variable in small_pynet.variables.items()}
    name = list(values)[-1]
    import tensorflow as tf
    variables = {key: tf.Variable(np.full_like(value, np.nan) if key == name else value)
                 for key, value in values.items()}
    checkpoints.save_checkpoint(variables, tmp_path / "nan")
    with pytest.raises(DataError, match="not finite"):
        test_model.Renderer(tmp_path / "nan")(smooth(SIZE, 3), smooth(SIZE, 1))


def test_weights_that_are_missing_are_named(workplace):
    with pytest.raises(DataError, match=r"models/small.*pynet_bokeh_small"):
        test_model.Renderer("small")

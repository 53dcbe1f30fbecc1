"""focus= and aperture= of test_model.py, and which maps a network takes: the card of its weights says so."""

import json

import numpy as np
import pytest
from conftest import QUICK
from PIL import Image

import load_dataset
import test_model
import train_model
import utils
from support import checkpoints, dataset_files, focus_maps, own_photos, training_log
from tools import make_scenes
from utils import UsageError

SIZE = 160, 128


@pytest.fixture
def focus_checkpoint(small_checkpoint, link_checkpoint, workplace):
    """The small network's files in models/small/, with a card that says that it was trained on focus maps."""
    link_checkpoint(small_checkpoint, utils.SMALL)
    utils.SMALL.with_name(f"{utils.SMALL.name}.json").write_text(json.dumps({"maps": "focus"}))
    photo, depth, _ = make_scenes.make_scene(SIZE, 0)
    Image.fromarray(photo).save("photo.png")
    Image.fromarray(depth).save("depth.png")
    return utils.SMALL


def seen_by_the_network(renderer, **options):
    """The map that the network is given for photo.png, uint8."""
    seen = []
    render_own = renderer.render_own
    renderer.render_own = lambda inputs, *arguments: seen.append(inputs) or render_own(inputs, *arguments)
    renderer("photo.png", "depth.png", **options)
    return seen[0][..., 3]


@pytest.mark.parametrize("card, kind", [({"maps": "focus"}, "focus"), ({"maps": "depth"}, "depth"), ({}, "depth"),
                                        ({"maps": ["x"]}, "depth"), ([], "depth")])
def test_card_beside_a_checkpoint_says_which_maps_its_network_takes(focus_checkpoint, card, kind):
    utils.SMALL.with_name(f"{utils.SMALL.name}.json").write_text(json.dumps(card))
    assert training_log.map_kind(focus_checkpoint) == kind


def test_card_of_a_level_counts_for_the_iterations_that_it_knows(small_checkpoint, link_checkpoint, workplace):
    for iteration in (5, 6):
        link_checkpoint(small_checkpoint, checkpoints.checkpoint_prefix(3, iteration))
    training_log.card_path(3).write_text(json.dumps({"maps": "focus", "evaluations": {"6": {}}}))
    kinds = [training_log.map_kind(checkpoints.checkpoint_prefix(3, iteration)) for iteration in (5, 6)]
    assert kinds == ["depth", "focus"]


def test_network_for_focus_maps_sees_the_map_of_focus_and_aperture(focus_checkpoint):
    renderer = test_model.Renderer(focus_checkpoint)
    depth = np.asarray(Image.open("depth.png"))
    scale = 2 * max(depth.shape) / own_photos.LEARNED_SIDE
    for focus, aperture in ((None, 1), ((0.1, 0.2), 1), (None, 0), ((0.9, 0.9), 2.5)):
        seen = seen_by_the_network(renderer, focus=focus, aperture=aperture)
        assert np.array_equal(seen, focus_maps.refocus(depth, focus, aperture * scale))


def test_network_for_depth_maps_sees_the_distance_from_the_focus(focus_checkpoint):
    """255 - |d - d_focus| at the point; without a focus the depth map as it is. It has no aperture."""
    utils.SMALL.with_name(f"{utils.SMALL.name}.json").unlink()
    renderer, depth = test_model.Renderer(focus_checkpoint), np.asarray(Image.open("depth.png"))
    assert np.array_equal(seen_by_the_network(renderer), depth)
    at_focus = focus_maps.depth_in_focus(depth, (0.2, 0.8))
    expected = 255 - np.maximum(np.abs(depth - at_focus) - focus_maps.UNEVENNESS, 0)
    assert np.abs(seen_by_the_network(renderer, focus=(0.2, 0.8)) - expected).max() <= 0.5
    with pytest.raises(UsageError, match="aperture.*focus maps"):
        renderer("photo.png", "depth.png", aperture=0.5)


def test_command_line_renders_what_the_renderer_does(focus_checkpoint, call, workplace):
    done = call(test_model, "small=true", "images_dir=photo.png", "depth_dir=depth.png", "focus=.25,0.5", "aperture=.5")
    assert done.status == 0, done.err
    [written] = workplace.rglob("photo_level_1_small.png")
    expected = test_model.Renderer(focus_checkpoint)("photo.png", "depth.png", focus=(0.25, 0.5), aperture=0.5)
    np.testing.assert_array_equal(Image.open(written), expected)


@pytest.mark.parametrize("argument, complaint", [
    ("focus=1.5,0.5", "from 0 to 1"), ("focus=0.5", "X,Y"), ("focus=a,b", "X,Y"), ("focus=-0.1,0.5", "X,Y"),
    ("focus=nan,0", "X,Y"), ("aperture=-1", "aperture"), ("aperture=wide", "aperture")])
def test_wrong_focus_or_aperture_is_refused_before_tensorflow(focus_checkpoint, call, argument, complaint):
    done = call(test_model, "small=true", "images_dir=photo.png", "depth_dir=depth.png", argument)
    assert done.status == 2 and complaint in done.err and done.err.count("\n") == 1


def test_aperture_is_refused_for_networks_of_depth_maps_and_focus_is_called_a_trick(focus_checkpoint, call):
    utils.SMALL.with_name(f"{utils.SMALL.name}.json").unlink()
    own = "small=true", "images_dir=photo.png", "depth_dir=depth.png"
    done = call(test_model, *own, "aperture=2")
    assert done.status == 2 and "focus maps" in done.err
    done = call(test_model, *own, "focus=0.5,0.5")
    assert done.status == 0 and "a trick" in done.out


def test_page_shows_the_map_that_the_network_saw_under_its_name(focus_checkpoint, call, workplace):
    own = "small=true", "images_dir=photo.png", "depth_dir=depth.png"
    assert call(test_model, *own, "out=focus_maps").status == 0
    utils.SMALL.with_name(f"{utils.SMALL.name}.json").unlink()
    assert call(test_model, *own, "out=depth_maps").status == 0
    assert call(test_model, *own, "focus=0.5,0.5", "out=trick").status == 0
    for folder, kind in {"focus_maps": "focus", "depth_maps": "depth", "trick": "focus"}.items():
        shown = {path.suffixes[-2] for path in workplace.glob(f"{folder}/page/*.jpg")}
        assert shown == {".photo", ".result", f".{kind}"}


def test_constant_depth_map_is_an_error_that_names_the_photo(focus_checkpoint, call):
    Image.new("L", (80, 64), 7).save("depth.png")
    done = call(test_model, "small=true", "images_dir=photo.png", "depth_dir=depth.png")
    assert done.status == 1 and done.err.startswith("error: photo.png: its depth map is the same everywhere")


def test_kinds_of_maps_that_do_not_fit_are_named(focus_checkpoint, call):
    """Depth maps become focus maps, with a line that says so; focus maps cannot become depth maps."""
    make_scenes.write_dataset("depth", 1, 1, size=(192, 160))
    make_scenes.write_dataset("focus", 1, 1, size=(192, 160), maps="focus")
    done = call(test_model, "small=true", "dataset_dir=depth")
    assert done.status == 0 and "they are made of the depth maps" in done.out
    done = call(test_model, "small=true", "dataset_dir=focus")
    assert done.status == 0 and "Note" not in done.out
    utils.SMALL.with_name(f"{utils.SMALL.name}.json").unlink()
    done = call(test_model, "small=true", "dataset_dir=focus")
    assert done.status == 1 and "trained on depth maps" in done.err


def test_data_set_is_measured_bare_or_with_the_detail_of_own_photos(focus_checkpoint, call, workplace):
    make_scenes.write_dataset("focus", 1, 1, size=(192, 160), maps="focus")
    renderer, [pair] = test_model.Renderer(focus_checkpoint), dataset_files.find_test_photos("focus/")
    seen, photo = load_dataset.load_input(pair), load_dataset.read(pair, "photo")
    target = load_dataset.load_target(pair, level=1)
    for argument, expected in {
            "val_size=0": renderer.render_whole(seen, pair.size),  # bare by default
            "detail=true": np.float32(renderer.render_own(seen, pair.size, photo)) / 255}.items():
        done = call(test_model, "small=true", "dataset_dir=focus/", argument, f"out={argument}")
        [written] = workplace.glob(f"{argument}/*.png")
        np.testing.assert_array_equal(Image.open(written), utils.to_uint8(expected))
        psnr = test_model.measure(expected, target)["PSNR"]
        assert done.status == 0 and f"Mean: PSNR {psnr:.2f} dB" in done.out


def test_training_notes_the_kind_of_maps_and_refuses_another_but_for_fine_tuning(workplace, small_dataset, call):
    make_scenes.write_dataset("focus", 2, 1, size=(192, 160), maps="focus")
    first = call(train_model, "level=7", f"dataset_dir={small_dataset}", "num_train_iters=1", *QUICK)
    assert first.status == 0, first.err
    prefix = checkpoints.checkpoint_prefix(7, 1)
    refused = call(train_model, "level=6", "dataset_dir=focus", "num_train_iters=1", *QUICK)
    assert refused.status == 1 and "trained with depth maps" in refused.err and f"weights={prefix}" in refused.err
    resumed = call(train_model, "level=7", "dataset_dir=focus", "num_train_iters=2", "resume=true")
    assert resumed.status == 1 and "trained with depth maps" in resumed.err
    tuned = call(train_model, "level=7", "dataset_dir=focus", "num_train_iters=1", f"weights={prefix}", *QUICK)
    assert tuned.status == 0 and "what the map means is learned anew" in tuned.err
    assert training_log.map_kind(checkpoints.checkpoint_prefix(7, 1)) == "focus"
    assert training_log.map_kind(checkpoints.resume_prefix(7)) == "focus"

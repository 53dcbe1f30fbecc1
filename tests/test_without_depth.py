"""use_depth=false: PyNET on photos alone, told by its checkpoints, in training, resuming and testing."""

import shutil

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import load_dataset
import model
import test_model
import train_model
import utils


@pytest.fixture
def photos(dataset, tmp_path):
    """The data set without its depth maps."""
    folder = tmp_path / "photos"
    shutil.copytree(dataset, folder, ignore=shutil.ignore_patterns("original_depth"))
    return folder


def small(folder):
    return "vgg_dir=none", "batch_size=1", "eval_step=1", f"dataset_dir={folder}"


def test_levels_7_and_6_train_resume_and_render_without_depth_maps_and_without_saying_so_again(photos, workplace, call):
    assert call(train_model, "level=7", "use_depth=false", "num_train_iters=1", *small(photos)).status == 0
    assert call(train_model, "level=7", "resume=true", "num_train_iters=2", *small(photos)).status == 0
    assert call(train_model, "level=6", "num_train_iters=1", *small(photos)).status == 0
    for level, iteration in ((7, 2), (6, 1)):
        prefix = utils.checkpoint_prefix(level, iteration)
        shapes = tf.train.load_checkpoint(str(prefix)).get_variable_to_shape_map()
        assert len(shapes) == 440 and shapes["generator/Variable"] == [3, 3, 12, 32]
        assert not utils.takes_depth(prefix) and not utils.takes_depth(utils.resume_prefix(level))

    assert call(test_model, "level=6", f"dataset_dir={photos}").status == 0
    test_photo = next((photos / "test/original").iterdir())
    result = utils.FULL_RESOLUTION / f"{test_photo.stem}_level_6_iteration_1.png"
    with Image.open(test_photo) as photo, Image.open(result) as image:
        assert image.size == (photo.width // 32, photo.height // 32)
    before = result.read_bytes()
    assert call(test_model, "level=6", f"images_dir={photos / 'test/original'}").status == 0
    assert result.read_bytes() == before

    mixed = call(train_model, "level=6", "use_depth=true", "num_train_iters=1", *small(photos))
    assert mixed.status == 1 and "of a network without depth maps; leave use_depth=true out" in mixed.err
    resumed = call(train_model, "level=7", "use_depth=true", "resume=true", "num_train_iters=3", *small(photos))
    assert resumed.status == 1 and "of a network without depth maps" in resumed.err


def test_a_network_with_depth_maps_is_not_continued_without_them(workplace, pynet, photos, call):
    utils.MODELS.mkdir(exist_ok=True)
    utils.save_checkpoint(pynet.variables, utils.checkpoint_prefix(7, 1))
    mixed = call(train_model, "level=6", "use_depth=false", "num_train_iters=1", *small(photos))
    assert mixed.status == 1 and "of a network with depth maps; leave use_depth=false out" in mixed.err
    missing = call(train_model, "level=6", "num_train_iters=1", *small(photos))
    assert missing.status == 1 and "original_depth: no such folder" in missing.err
    own = call(test_model, "level=7", f"images_dir={photos / 'test/original'}")
    assert own.status == 1 and "this network takes depth maps" in own.err and "depth_dir=FOLDER" in own.err


def test_patches_and_whole_photos_without_depth_are_those_with_depth_less_their_fourth_channel(dataset):
    for split in ("train", "test"):
        with_depth, without = (load_dataset.find_training_pairs(dataset, split, use_depth) for use_depth in (True, False))
        assert [pair.depth for pair in without] == [None] * len(with_depth)
        for pair, bare in zip(with_depth[:1], without):
            patch, target = load_dataset.load_patch(pair, 4, 0, 0)
            bare_patch, bare_target = load_dataset.load_patch(bare, 4, 0, 0)
            np.testing.assert_array_equal(bare_patch, patch[..., :3])
            np.testing.assert_array_equal(bare_target, target)
            np.testing.assert_array_equal(load_dataset.load_input(bare), load_dataset.load_input(pair)[..., :3])


def test_only_the_first_kernels_differ_from_those_of_the_network_with_depth(pynet):
    bare = model.build_pynet(seed=None, use_depth=False)
    assert bare.input.shape[-1] == 3
    differing = [name for name in pynet.variables if bare.variables[name].shape != pynet.variables[name].shape]
    assert list(bare.variables) == list(pynet.variables) and differing == ["generator/Variable"]


def test_what_is_no_checkpoint_is_left_to_those_who_restore_it(tmp_path):
    assert utils.takes_depth(tmp_path / "absent")
    (tmp_path / "odd.index").write_bytes(b"generator/Variable")
    assert utils.takes_depth(tmp_path / "odd")

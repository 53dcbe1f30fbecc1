"""tools/demo.py: calls that the scripts take, a folder of its own, and a contact sheet of what was made."""

import numpy as np
import pytest
from PIL import Image

import test_model
import train_model
import utils
from tools import demo
from utils import DataError


def test_every_call_is_one_that_the_scripts_take():
    known = {"train_model.py": train_model, "test_model.py": test_model}
    calls = [(script, utils.parse_arguments(arguments, known[script].PARAMETERS, ""))
             for script, *arguments in demo.commands(seed=3)]
    assert [settings.level for script, settings in calls if script == "train_model.py"] == [7, 6, 5, 4, 3, 2, 1]
    assert [settings.level for script, settings in calls if script == "test_model.py"] == list(demo.RENDERED_LEVELS)
    assert {settings.seed for script, settings in calls if script == "train_model.py"} == {3}


def test_a_folder_that_is_not_the_demos_is_left_as_it_is(workplace):
    (demo.FOLDER / "models").mkdir(parents=True)
    with pytest.raises(DataError, match=r"results/demo: was not made by this demo"):
        demo.prepare_folder()
    assert (demo.FOLDER / "models").is_dir() and not demo.MARKER.exists()


def test_an_earlier_demo_is_replaced_and_the_users_own_models_stay(workplace):
    demo.prepare_folder()
    (demo.FOLDER / "models").mkdir()
    (utils.MODELS / "logs.txt").write_text("mine")
    demo.prepare_folder()
    assert not (demo.FOLDER / "models").exists() and (utils.MODELS / "logs.txt").read_text() == "mine"


def test_too_little_disk_is_said_before_anything_is_written(workplace, monkeypatch):
    monkeypatch.setattr(utils, "free_space", lambda folder: 2e9)
    with pytest.raises(DataError, match="needs 3 GB of disk"):
        demo.prepare_folder()


def test_contact_sheet_shows_the_photo_and_the_crops_of_all_levels(workplace):
    demo.prepare_folder()
    size = {"original": (300, 200), "original_depth": (150, 100), "bokeh": (300, 200)}
    for kind, shape in size.items():
        suffix = "png" if kind == "original_depth" else "jpg"
        write(demo.FOLDER / "ebb_dataset/test" / kind / f"0.{suffix}", shape, (200, 0, 0))
    for level in demo.RENDERED_LEVELS:
        name = f"0_level_{level}_iteration_{demo.SCHEDULE[level].iterations}.png"
        write(demo.FOLDER / "results/full-resolution" / name, (300, 200), (0, 200, 0))
    log = []
    for level, training in demo.SCHEDULE.items():
        write(demo.crop_file(level), (90, 30), (0, 0, 200))
        log += [f"# now | level={level} batch_size=1", "step 0 | training: nan, test: 9 | mse: 0.1, psnr: 9.5, l1: 0.1",
                f"step {training.iterations} | training: 1, test: 9 | mse: 0.1, psnr: 1{level}.5, l1: 0.1"]
    (demo.FOLDER / "models").mkdir()
    (demo.FOLDER / "models/logs.txt").write_text("\n".join(log))

    assert demo.psnr_by_level() == {level: f"1{level}.5" for level in demo.SCHEDULE}
    sheet = np.asarray(demo.contact_sheet()).astype(int)
    red, green, blue = (np.sum((sheet[..., channel] > 150) & (sheet.sum(-1) < 300)) for channel in range(3))
    panel = demo.PHOTO_HEIGHT * demo.PHOTO_HEIGHT * 3 / 2
    assert red == pytest.approx(3 * panel, rel=0.02)  # photo, depth and target
    assert green == pytest.approx(2 * panel, rel=0.02)
    assert blue == pytest.approx(7 * demo.CROP_HEIGHT * demo.CROP_HEIGHT * 3, rel=0.02)


def write(path, size, colour):
    utils.write_image(path, np.full((*size[::-1], 3), colour, np.uint8))

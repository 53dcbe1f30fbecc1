"""tools/demo.py: calls that the scripts take, a folder of its own, and a contact sheet of what was made."""

import math

import numpy as np
import pytest

import test_model
import train_model
import utils
from tools import demo
from utils import DataError


def test_every_call_is_one_that_the_scripts_take():
    known = {"train_model.py": train_model, "test_model.py": test_model}
    calls = [(script, utils.parse_arguments(arguments, known[script].PARAMETERS, ""))
             for script, *arguments in demo.commands(seed=3)]
    trained = [settings for script, settings in calls if script == "train_model.py"]
    assert [settings.level for settings in trained] == [7, 6, 5, 4, 3, 2, 1]
    assert {settings.seed for settings in trained} == {3}
    assert calls[-1][0] == "test_model.py" and calls[-1][1].level == 1


def test_an_earlier_demo_and_the_users_own_models_are_left_as_they_are(workplace):
    (utils.MODELS / "logs.txt").write_text("mine")
    demo.prepare_folder()
    (demo.FOLDER / "models").mkdir(exist_ok=True)
    with pytest.raises(DataError, match=r"results/demo: exists"):
        demo.prepare_folder()
    assert (demo.FOLDER / "models").is_dir() and (utils.MODELS / "logs.txt").read_text() == "mine"


@pytest.fixture
def rendered_scene(workplace):
    """What the demo has after the small network rendered its test photo: red files, and a green result."""
    demo.prepare_folder()
    for kind, shape in {"original": (300, 200), "original_depth": (150, 100), "bokeh": (300, 200)}.items():
        suffix = "png" if kind == "original_depth" else "jpg"
        write(demo.FOLDER / "ebb_dataset/test" / kind / f"0.{suffix}", shape, (200, 0, 0))
    write(demo.FOLDER / "results/full-resolution/0_level_1_small.png", (300, 200), (0, 200, 0))


def test_the_first_sheet_shows_photo_depth_map_result_and_target(rendered_scene):
    demo.write_sheet()
    red, green, blue = areas_of_colours()
    panel = math.prod(demo.PICTURE_SIZE)
    assert (red, green, blue) == (pytest.approx(3 * panel, rel=0.02), pytest.approx(panel, rel=0.02), 0)


def test_the_last_sheet_adds_the_crops_of_all_levels(rendered_scene, monkeypatch):
    log = []
    for level, iterations in demo.SCHEDULE.items():
        write(demo.FOLDER / f"results/pynet_img_0_level_{level}_iter_{iterations}.jpg", (90, 30), (0, 0, 200))
        log += [f"# now | level={level} batch_size=1", "step 0 | training: -, test: 9 | mse: 0.1, psnr: 9.5, l1: 0.1",
                f"step {iterations} | training: 1, test: 9 | mse: 0.1, psnr: 1{level}.5, l1: 0.1"]
    (demo.FOLDER / "models").mkdir(exist_ok=True)
    (demo.FOLDER / "models/logs.txt").write_text("\n".join([*log, ""]))

    labels, labelled = [], demo.labelled
    monkeypatch.setattr(demo, "labelled", lambda label, *arguments: labels.append(label) or labelled(label, *arguments))
    demo.write_sheet()
    assert labels[-7:] == [f"level {level} after {iterations} iterations: test PSNR 1{level}.5 dB"
                           for level, iterations in demo.SCHEDULE.items()]
    _, _, blue = areas_of_colours()
    assert blue == pytest.approx(7 * demo.PICTURE_SIZE[0] ** 2 / 3, rel=0.02)


def areas_of_colours():
    """Pixels of the sheet that are red, green and blue."""
    import imageio.v3 as iio
    sheet = iio.imread(demo.SHEET).astype(int)
    return [int(np.sum((sheet[..., channel] > 150) & (sheet.sum(-1) < 300))) for channel in range(3)]


def write(path, size, colour):
    utils.write_image(path, np.full((*size[::-1], 3), colour, np.uint8))

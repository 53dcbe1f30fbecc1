"""tools/demo.py: calls that the scripts take, a folder of its own, and a contact sheet of what was made."""

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
    assert calls[0][0] == "test_model.py" and calls[0][1].small
    trained = [settings for script, settings in calls[1:] if script == "train_model.py"]
    assert [settings.level for settings in trained] == [7, 6, 5, 4, 3, 2, 1] and len(calls) == 8
    assert {settings.seed for settings in trained} == {3}


def test_an_earlier_demo_is_replaced_and_what_is_not_a_demos_is_left(workplace):
    (utils.MODELS / "logs.txt").write_text("mine")
    demo.prepare_folder()
    (demo.FOLDER / "logs.txt").write_text("of the demo before")
    demo.prepare_folder()
    assert not (demo.FOLDER / "logs.txt").exists() and (utils.MODELS / "logs.txt").read_text() == "mine"
    demo.MARKER.unlink()
    with pytest.raises(DataError, match=r"results/demo: was not made by this demo"):
        demo.prepare_folder()
    assert demo.FOLDER.is_dir()


@pytest.fixture
def rendered_scenes(workplace):
    """What the demo has after the small network rendered its test photos: red files, and green results."""
    demo.prepare_folder()
    for number in range(demo.TEST_COUNT):
        for name in (f"original/{number}.jpg", f"original_depth/{number}.png", f"bokeh/{number}.jpg"):
            write(demo.FOLDER / "ebb_dataset/test" / name, (300, 200), (200, 0, 0))
        write(demo.FOLDER / demo.RENDERED / f"{number}_level_1_small.png", (300, 200), (0, 200, 0))
    for number in range(len(demo.CHOICES)):
        write(demo.FOLDER / demo.RENDERED / f"choice_{number}.png", (300, 200), (0, 0, 200))


def test_the_first_sheet_shows_every_photo_with_its_map_result_and_target_and_one_with_other_focuses(rendered_scenes):
    demo.write_sheet()
    red, green, blue = areas_of_colours()
    width, choice = (demo.SHEET_WIDTH / pictures - demo.GAP for pictures in (4, len(demo.CHOICES)))
    assert green == pytest.approx(demo.TEST_COUNT * width ** 2 / 1.5, rel=0.02)
    assert red == pytest.approx(3 * green, rel=0.02)
    assert blue == pytest.approx(len(demo.CHOICES) * choice ** 2 / 1.5, rel=0.02)


def test_the_last_sheet_adds_the_crops_of_all_levels(rendered_scenes):
    log, side = [], 30
    for level, iterations in demo.SCHEDULE.items():
        crop = np.full((side, 3 * side, 3), 255, np.uint8)
        crop[:, side:2 * side] = 0, 0, 200  # the output
        for number in (0, 1):
            utils.write_image(demo.FOLDER / f"results/pynet_img_{number}_level_{level}_iter_{iterations}.jpg", crop)
        log += [f"# now | level={level} batch_size=1", "step 0 | training: -, test: 9 | mse: 0.1, psnr: 9.5, l1: 0.1",
                f"step {iterations} | training: 1, test: 9 | mse: 0.1, psnr: 1{level}.5, l1: 0.1"]
    (demo.FOLDER / "models").mkdir()
    (demo.FOLDER / "models/logs.txt").write_text("\n".join([*log, ""]))

    labels = [label for label, _ in demo.crop_row(1)]
    assert labels == ["crop", *(f"level {level}: 1{level}.5 dB" for level in demo.SCHEDULE), "target"]
    demo.write_sheet()
    *_, blue = areas_of_colours()
    choices = len(demo.CHOICES) * (demo.SHEET_WIDTH / len(demo.CHOICES) - demo.GAP) ** 2 / 1.5
    assert blue == pytest.approx(choices + 2 * 7 * (demo.SHEET_WIDTH // 9 - demo.GAP) ** 2, rel=0.05)


def areas_of_colours():
    """Pixels of the sheet that are red, green and blue."""
    import imageio.v3 as iio
    sheet = iio.imread(demo.SHEET).astype(int)
    return [int(np.sum((sheet[..., channel] > 150) & (sheet.sum(-1) < 300))) for channel in range(3)]


def write(path, size, colour):
    utils.write_image(path, np.full((*size[::-1], 3), colour, np.uint8))

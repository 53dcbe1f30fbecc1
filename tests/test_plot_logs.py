"""tools/plot_logs.py: what models/logs.txt holds of every level is drawn, whatever happened to the runs."""

import math

import numpy as np
import pytest
from PIL import Image

import train_model
import utils
from tools import plot_logs

TEST = {"loss": 8.5, "mse": 0.01, "psnr": 20.0, "l1": 0.085}
ORIGINAL_LINE = "step 1000 | training: 9.5, test: 9.1 | content: 12.5, mse: 0.005, psnr: 23.01, l1: 0.091, ms-ssim: 0.8765"


def heading(level):
    return f"# 2026-11-20 10:00:00 | level={level} batch_size=50 train_size=4894 | from nothing | 9 training, 3 test photos"


def evaluation(iteration, psnr=20.0, **more):
    return train_model.log_line(iteration, 9.5 if iteration else math.nan, TEST | {"psnr": psnr} | more)


def write_log(folder, *lines, end="\n"):
    (folder / "logs.txt").write_text("\n".join(lines) + end, encoding="utf-8")
    return folder / "logs.txt"


def psnr_by_iteration(levels, level):
    return {iteration: values["psnr"] for iteration, values in levels[level].items()}


def shown(colour):
    """How many pixels of the picture are of a curve's colour."""
    with Image.open(utils.RESULTS / "training.png") as image:
        picture = np.asarray(image).astype(int)
    wanted = [int(colour[place:place + 2], 16) for place in (1, 3, 5)]
    return np.sum(np.abs(picture - wanted).max(axis=-1) < 8)


# Reading -------------------------------------------------------------------------------------------------------------


def test_every_level_is_read_with_all_its_values_in_the_order_of_training(tmp_path):
    log = write_log(tmp_path, heading(6), evaluation(0), evaluation(1000, 21.5),
                    heading(7), evaluation(1000, 19.25), heading(3), evaluation(500, **{"ms-ssim": 0.875}))
    levels = plot_logs.read_log(log)
    assert list(levels) == [7, 6, 3]
    assert levels[3] == {500: {"training": 9.5, "test": 8.5, "mse": 0.01, "psnr": 20.0, "l1": 0.085, "ms-ssim": 0.875}}
    assert psnr_by_iteration(levels, 6) == {0: 20.0, 1000: 21.5}
    assert math.isnan(levels[6][0]["training"])


@pytest.mark.parametrize("level", [None, 2])
def test_original_log_without_headings_is_of_the_level_that_is_given(tmp_path, level):
    levels = plot_logs.read_log(write_log(tmp_path, ORIGINAL_LINE), level)
    assert levels == {level: {1000: {"training": 9.5, "test": 9.1, "content": 12.5, "mse": 0.005, "psnr": 23.01,
                                     "l1": 0.091, "ms-ssim": 0.8765}}}


def test_resumed_run_replaces_what_was_trained_again(tmp_path):
    log = write_log(tmp_path, heading(7), *(evaluation(i) for i in (0, 100, 200, 300)),
                    heading(7), evaluation(200, 25), evaluation(250, 26))
    assert psnr_by_iteration(plot_logs.read_log(log), 7) == {0: 20, 100: 20, 200: 25, 250: 26}


def test_level_that_was_started_anew_keeps_nothing_of_the_run_before(tmp_path):
    log = write_log(tmp_path, heading(7), *(evaluation(i) for i in (0, 100, 200)), heading(7), evaluation(0, 11),
                    evaluation(150, 12))
    assert psnr_by_iteration(plot_logs.read_log(log), 7) == {0: 11, 150: 12}


def test_start_that_trained_nothing_replaces_nothing(tmp_path):
    log = write_log(tmp_path, heading(7), evaluation(0), evaluation(100), heading(7), evaluation(0, 11))
    assert psnr_by_iteration(plot_logs.read_log(log), 7) == {0: 20, 100: 20}


def test_iterations_that_start_over_without_a_heading_are_another_run(tmp_path):
    log = write_log(tmp_path, evaluation(0), evaluation(100), evaluation(200), evaluation(0, 11), evaluation(100, 12))
    assert psnr_by_iteration(plot_logs.read_log(log, 5), 5) == {0: 11, 100: 12}


@pytest.mark.parametrize("length", range(1, len(evaluation(200)) + 1))
def test_last_line_cut_short_anywhere_is_left_out(tmp_path, length):
    log = write_log(tmp_path, heading(7), evaluation(100), evaluation(200)[:length], end="")
    assert list(plot_logs.read_log(log)[7]) == [100]


def test_run_that_follows_a_line_cut_short_is_read(tmp_path):
    log = write_log(tmp_path, heading(7), evaluation(100), evaluation(200)[:20] + heading(6), evaluation(300))
    levels = plot_logs.read_log(log)
    assert {level: list(points) for level, points in levels.items()} == {7: [100], 6: [300]}


def test_levels_follow_each_other_on_the_axis(tmp_path):
    log = write_log(tmp_path, heading(7), evaluation(0), evaluation(500), heading(6), evaluation(0), evaluation(2000))
    stretches = plot_logs.one_after_another(plot_logs.read_log(log))
    assert [(stretch.level, stretch.start, stretch.end) for stretch in stretches] == [(7, 0, 500), (6, 500, 2500)]


# Drawing -------------------------------------------------------------------------------------------------------------


def test_picture_shows_loss_psnr_and_ms_ssim(workplace, call):
    write_log(utils.MODELS, heading(7), evaluation(0, 12), evaluation(1000, 20), evaluation(2000, 21),
              heading(3), evaluation(0, 12, **{"ms-ssim": 0.5}), evaluation(1000, 22, **{"ms-ssim": 0.9}))
    done = call(plot_logs)
    assert (done.status, done.err) == (0, "")
    assert "Level 7: iterations 0 to 2000, test loss 8.5, PSNR 21 dB" in done.out
    assert "Level 3: iterations 0 to 1000, test loss 8.5, PSNR 22 dB, MS-SSIM 0.9" in done.out
    assert "results/training.png" in done.out
    assert shown(plot_logs.BLUE) > 100 and shown(plot_logs.VERMILION) > 500
    with_ms_ssim = Image.open(utils.RESULTS / "training.png").height
    write_log(utils.MODELS, heading(7), evaluation(0, 12), evaluation(1000, 20))
    assert call(plot_logs).status == 0
    assert Image.open(utils.RESULTS / "training.png").height < with_ms_ssim


@pytest.mark.parametrize("lines", [
    [evaluation(0)], [evaluation(0, math.nan), evaluation(10, math.nan), evaluation(20, 20)],
    [evaluation(1, 20), evaluation(2, 20)], [evaluation(0, loss=0.0), evaluation(9, loss=0.0)],
    [evaluation(0), evaluation(10, math.inf, loss=1e30)], [evaluation(0, math.nan, loss=math.nan)]],
    ids=["one line", "nan", "constant", "zero loss", "infinite", "nothing but nan"])
def test_few_or_odd_values_are_drawn_as_far_as_they_go(workplace, call, lines):
    write_log(utils.MODELS, heading(7), *lines)
    done = call(plot_logs)
    assert (done.status, done.err) == (0, "")
    assert (utils.RESULTS / "training.png").exists()


@pytest.mark.parametrize("low, high, most, expected", [
    (0, 260000, 8, "0 50,000 100,000 150,000 200,000 250,000"), (19.1, 23.7, 6, "20 21 22 23"),
    (0.818, 0.921, 6, "0.82 0.84 0.86 0.88 0.90 0.92"), (0, 1, 8, "0.0 0.2 0.4 0.6 0.8 1.0")])
def test_ticks_are_round_numbers(low, high, most, expected):
    assert " ".join(text for _, text in plot_logs.linear_ticks(low, high, most)) == expected


@pytest.mark.parametrize("low, high, expected", [(-1, 3, "0.1 1 10 100 1000"), (0, 2, "1 2 5 10 20 50 100"),
                                                 (0.5, 1.1, "4 6 8 10 12")])
def test_ticks_of_the_logarithmic_axis_are_powers_of_ten_where_it_is_long(low, high, expected):
    assert " ".join(text for _, text in plot_logs.log_ticks(low, high)) == expected


# Mistakes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [None, "", "no metrics\n", heading(7) + "\n"])
def test_log_that_is_missing_or_has_no_metrics_is_named(workplace, call, content):
    if content is not None:
        (utils.MODELS / "logs.txt").write_text(content)
    done = call(plot_logs)
    assert done.status == 1 and done.err.startswith("error: models/logs.txt: ") and done.err.count("\n") == 1
    assert not utils.RESULTS.exists()


def test_another_log_can_be_named(workplace, call):
    write_log(workplace, ORIGINAL_LINE)
    done = call(plot_logs, "log=logs.txt", "level=2")
    assert done.status == 0 and "Level 2: iterations 0 to 1000" in done.out

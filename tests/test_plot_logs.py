"""tools/plot_logs.py: what models/logs.txt holds of every level is drawn, whatever happened to the runs."""

import math
import sys

import pytest

import utils
from tools import plot_logs

ORIGINAL_LINE = ("step 1000 | training: 9.5, test: 9.1 | content: 12.5, mse: 0.005, psnr: 23.01, l1: 0.091, "
                 "ms-ssim: 0.8765")


def heading(level):
    return f"# 2026-11-20 10:00:00 | level={level} batch_size=50 | from nothing | 9 training, 3 test photos"


def evaluation(iteration, psnr=20.0, training="9.5", test=8.5, more=""):
    return f"step {iteration} | training: {training}, test: {test} | mse: 0.01, psnr: {psnr}, l1: 0.085{more}"


def write_log(folder, *lines, end="\n"):
    (folder / "logs.txt").write_text("\n".join(lines) + end, encoding="utf-8")
    return folder / "logs.txt"


def psnr_by_iteration(log, level=7):
    return {iteration: values["psnr"] for iteration, values in plot_logs.read_log(log)[level].items()}


# Reading -------------------------------------------------------------------------------------------------------------


def test_every_level_is_read_with_all_its_values_in_the_order_of_training(tmp_path):
    log = write_log(tmp_path, heading(6), evaluation(0), evaluation(1000, 21.5),
                    heading(7), evaluation(1000, 19.25), heading(3), evaluation(500, more=", ms-ssim: 0.875"))
    levels = plot_logs.read_log(log)
    assert list(levels) == [7, 6, 3]
    assert levels[3] == {500: {"training": 9.5, "test": 8.5, "mse": 0.01, "psnr": 20.0, "l1": 0.085, "ms-ssim": 0.875}}
    assert psnr_by_iteration(log, 6) == {0: 20.0, 1000: 21.5}


@pytest.mark.parametrize("text", ["-", "nan"])
def test_training_loss_of_iteration_0_is_not_a_number(tmp_path, text):
    assert math.isnan(plot_logs.read_log(write_log(tmp_path, evaluation(0, training=text)))[None][0]["training"])


def test_original_log_has_no_headings_so_its_level_is_not_known(tmp_path):
    levels = plot_logs.read_log(write_log(tmp_path, ORIGINAL_LINE))
    assert levels == {None: {1000: {"training": 9.5, "test": 9.1, "content": 12.5, "mse": 0.005, "psnr": 23.01,
                                    "l1": 0.091, "ms-ssim": 0.8765}}}


def test_resumed_run_replaces_what_it_trained_again(tmp_path):
    log = write_log(tmp_path, heading(7), *(evaluation(i) for i in (0, 100, 200, 300)),
                    heading(7), evaluation(200, 25), evaluation(250, 26))
    assert psnr_by_iteration(log) == {0: 20, 100: 20, 200: 25, 250: 26}


def test_level_started_anew_keeps_nothing_of_the_run_before(tmp_path):
    log = write_log(tmp_path, heading(7), *(evaluation(i) for i in (0, 100, 200)), heading(6), evaluation(0),
                    heading(7), evaluation(0, 11), evaluation(150, 12))
    assert psnr_by_iteration(log) == {0: 11, 150: 12}


@pytest.mark.parametrize("more", [[], [heading(6), evaluation(0), evaluation(100)], [heading(7), evaluation(0, 12)]])
def test_start_that_trained_nothing_replaces_nothing(tmp_path, more):
    log = write_log(tmp_path, heading(7), evaluation(0), evaluation(100), heading(7), evaluation(0, 11), *more)
    assert psnr_by_iteration(log) == {0: 20, 100: 20}


@pytest.mark.parametrize("length", [1, 20, 60, len(evaluation(200)) - 1, len(evaluation(200))])
def test_last_line_cut_short_is_left_out(tmp_path, length):
    log = write_log(tmp_path, heading(7), evaluation(100), evaluation(200)[:length], end="")
    assert list(psnr_by_iteration(log)) == [100]


def test_run_after_a_line_cut_short_is_read(tmp_path):
    log = write_log(tmp_path, heading(7), evaluation(100), evaluation(200)[:20] + heading(6), evaluation(300))
    levels = plot_logs.read_log(log)
    assert {level: list(evaluations) for level, evaluations in levels.items()} == {7: [100], 6: [300]}


# Drawing -------------------------------------------------------------------------------------------------------------


def curves(figure, panel):
    """[{total iteration: value}] of the curves in a panel, without the gaps between levels."""
    return [{x: y for x, y in line.get_xydata() if not math.isnan(y)} for line in figure.axes[panel].lines]


def test_levels_follow_each_other_on_the_axis_of_total_iterations(tmp_path):
    pytest.importorskip("matplotlib")
    log = write_log(tmp_path, heading(7), evaluation(0, 12, "-"), evaluation(500, 20),
                    heading(3), evaluation(1000, 21), evaluation(2000, 22, more=", ms-ssim: 0.9"))
    figure = plot_logs.draw(plot_logs.read_log(log))
    assert [axes.get_ylabel().split()[0] for axes in figure.axes] == ["loss", "PSNR", "MS-SSIM"]
    assert curves(figure, 0) == [{500: 9.5, 1500: 9.5, 2500: 9.5}, {0: 8.5, 500: 8.5, 1500: 8.5, 2500: 8.5}]
    assert curves(figure, 1) == [{0: 12, 500: 20, 1500: 21, 2500: 22}]
    assert curves(figure, 2) == [{2500: 0.9}]


def test_picture_is_written_and_the_end_of_each_level_printed(workplace, call):
    pytest.importorskip("matplotlib")
    write_log(utils.MODELS, heading(7), evaluation(0, 12, "-"), evaluation(2000, 21),
              heading(3), evaluation(1000, 22, more=", ms-ssim: 0.9"))
    done = call(plot_logs)
    assert (done.status, done.err) == (0, "")
    assert "Level 7: iteration 2000, training 9.5, test 8.5, mse 0.01, psnr 21, l1 0.085\n" in done.out
    assert "Level 3: iteration 1000, training 9.5, test 8.5, mse 0.01, psnr 22, l1 0.085, ms-ssim 0.9\n" in done.out
    assert (utils.RESULTS / "training.png").read_bytes().startswith(b"\x89PNG")


def test_odd_values_are_drawn_as_far_as_they_go(workplace, call):
    pytest.importorskip("matplotlib")
    write_log(utils.MODELS, evaluation(0, "nan", "-", 0.0), evaluation(10, "inf", test="nan"), evaluation(20, 20, 1e30))
    done = call(plot_logs)
    assert (done.status, done.err) == (0, "") and (utils.RESULTS / "training.png").exists()


# Mistakes ------------------------------------------------------------------------------------------------------------


def test_missing_matplotlib_is_one_line_after_the_numbers(workplace, call, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    write_log(workplace, ORIGINAL_LINE)
    done = call(plot_logs, "log=logs.txt")
    assert done.status == 1 and "Level not known: iteration 1000, " in done.out
    assert "pip install matplotlib" in done.err and done.err.count("\n") == 1 and not utils.RESULTS.exists()


@pytest.mark.parametrize("content", [None, "", "no metrics\n", heading(7) + "\n"])
def test_log_that_is_missing_or_has_no_metrics_is_named(workplace, call, content):
    if content is not None:
        (utils.MODELS / "logs.txt").write_text(content)
    done = call(plot_logs)
    assert done.status == 1 and done.err.startswith("error: models/logs.txt: ") and done.err.count("\n") == 1
    assert not utils.RESULTS.exists()

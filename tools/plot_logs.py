"""Draws the whole training into results/training.png: python -m tools.plot_logs

Loss, PSNR and MS-SSIM of all levels in models/logs.txt, one level after another on one axis of total iterations.
It is drawn with Pillow, which is there anyway, and needs no display.
"""

import functools
import math
import pathlib
import re
import sys
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import utils
from utils import DataError, Parameter

PICTURE = utils.RESULTS / "training.png"

PARAMETERS = (
    Parameter("log", str, str(utils.LOG), "log to draw; those of the original code can be read as well"),
    Parameter("level", int, None, "level of lines without a heading, which the original's logs do not name", 1, 7,
              default_text="not known"),
)
USAGE = "python -m tools.plot_logs [name=value ...]"

HEADING = re.compile(r"#.*\blevel=([1-7])\b")  # searched, as a line cut short by a crash may stand before it
EVALUATION = re.compile(r"step (\d+) \| training: (\S+), test: (\S+) \| ((?:[\w-]+: \S+, )*[\w-]+: \S+)")

# The look, in pixels of the finished picture, which is drawn FINE times as large and then scaled down.
FINE = 3
WIDTH, PANEL_HEIGHT = 1600, 280
MARGIN_LEFT, MARGIN_RIGHT, MARGIN_TOP, MARGIN_BOTTOM, GAP = 100, 36, 104, 84, 62
FONT_SIZE, TITLE_SIZE = 19, 26
INNER_WIDTH = WIDTH - MARGIN_LEFT - MARGIN_RIGHT
LINE, HAIRLINE, DOT = 2.4, 1, 4  # widths of curves and of the grid, radius of a dot
SPARSE = 16  # points that lie further apart than this are shown as dots too
INK, GRID, BAND, PAPER = "#222222", "#d9d9d9", "#f5f5f2", "#ffffff"
BLUE, VERMILION = "#0072b2", "#d55e00"  # of Okabe and Ito, told apart by colour-blind people too


class Panel(NamedTuple):
    """One of the diagrams. `curves` are (name in the log, name in the legend, colour)."""

    title: str
    curves: tuple
    logarithmic: bool = False


PANELS = (
    Panel("Loss (at level 1 a sum of other terms)", (("training", "training", BLUE), ("test", "test photos", VERMILION)),
          logarithmic=True),
    Panel("PSNR of the test photos, in dB", (("psnr", "", VERMILION),)),
    Panel("MS-SSIM of the test photos (levels 3 to 1)", (("ms-ssim", "", VERMILION),)),
)


class Stretch(NamedTuple):
    """A level's part of the axis, in total iterations, and its metrics: {iteration: {name: value}}."""

    level: int | None
    start: int
    end: int
    points: dict


def main(argv):
    """Draws the picture, and prints where each level ended."""
    settings = utils.parse_arguments(argv, PARAMETERS, USAGE)
    stretches = one_after_another(read_log(settings.log, settings.level))
    utils.prepare_folders(utils.RESULTS)
    utils.write_image(PICTURE, np.asarray(draw(stretches)))
    for stretch in stretches:
        print(summary(stretch))
    print(f"The training of {len(stretches)} level{'' if len(stretches) == 1 else 's'} is drawn in {PICTURE}")


# The log -------------------------------------------------------------------------------------------------------------


def read_log(path, level=None):
    """Reads the metrics of every level from a log as train_model.py writes it, or as the original code did.

    A run that resumes a level, or starts it anew, replaces what the log has of that level from the run's first line on:
    those iterations were trained again. A start that got no further than iteration 0 replaces nothing.

    Args:
      path: of the log.
      level: of lines that stand under no heading (the original's logs have none); None where it is not known.

    Returns:
      {level: {iteration: {name: value}}}, levels and iterations in the order of training. The names are training, test,
      psnr, l1 ...; a value may be NaN.

    Raises:
      DataError: there is no such file, or it holds no metrics.
    """
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); train_model.py writes it") from None
    found = {}
    for run_level, points in _runs(text, level):
        known = found.setdefault(run_level, {})
        if max(points) > 0 or not known:
            found[run_level] = {i: known[i] for i in known if i < min(points)} | points
    if not found:
        raise DataError(f"{path}: holds no metrics of any iteration")
    return {level: dict(sorted(found[level].items())) for level in sorted(found, key=_place_in_training)}


def _place_in_training(level):
    return -math.inf if level is None else -level


def _runs(text, level):
    """Yields (level, {iteration: {name: value}}) of each run with metrics.

    A run ends at a heading, or where the iterations start over. What follows the last line break was cut short.
    """
    points = {}
    for line in text.split("\n")[:-1]:
        heading, evaluation = HEADING.search(line), EVALUATION.fullmatch(line.rstrip())
        if points and (heading or evaluation and int(evaluation[1]) <= max(points)):
            yield level, points
            points = {}
        if heading:
            level = int(heading[1])
        elif evaluation:
            points[int(evaluation[1])] = _values(evaluation)
    if points:
        yield level, points


def _values(evaluation):
    terms = dict(term.split(": ") for term in evaluation[4].split(", "))
    return {name: _number(text) for name, text in ({"training": evaluation[2], "test": evaluation[3]} | terms).items()}


def _number(text):
    try:
        return float(text)
    except ValueError:
        return math.nan


def one_after_another(levels):
    """Lays {level: {iteration: metrics}} out on one axis, each level from where the one before it ended: `Stretch`es."""
    stretches, start = [], 0
    for level, points in levels.items():
        stretches.append(Stretch(level, start, start + max(points), points))
        start = stretches[-1].end
    return stretches


def summary(stretch):
    """Level 3: iterations 0 to 30000, test loss 3.1, PSNR 23.4 dB, MS-SSIM 0.91 (best PSNR 23.5 dB, iteration 29000)."""
    last = stretch.points[max(stretch.points)]
    name = "Level not known" if stretch.level is None else f"Level {stretch.level}"
    text = (f"{name}: iterations 0 to {max(stretch.points)}, test loss {last['test']:.4g}, "
            f"PSNR {last.get('psnr', math.nan):.4g} dB")
    if "ms-ssim" in last:
        text += f", MS-SSIM {last['ms-ssim']:.4g}"
    psnr = dict(_known(stretch, "psnr"))
    if not psnr:
        return text
    best = max(psnr, key=psnr.get)
    return f"{text} (best PSNR {psnr[best]:.4g} dB, iteration {best})"


# The picture ---------------------------------------------------------------------------------------------------------


def draw(stretches):
    """The diagrams, one below the other on the same axis. Returns a Pillow image."""
    panels = [panel for panel in PANELS if _values_to_show(stretches, panel)]
    height = MARGIN_TOP + len(panels) * (PANEL_HEIGHT + GAP) - GAP + MARGIN_BOTTOM
    sheet = Image.new("RGB", (WIDTH * FINE, height * FINE), PAPER)
    pen = ImageDraw.Draw(sheet)
    write(pen, MARGIN_LEFT, 16, "Training of PyNET, level by level", "la", TITLE_SIZE)
    for place, panel in enumerate(panels):
        draw_panel(sheet, panel, stretches, MARGIN_TOP + place * (PANEL_HEIGHT + GAP))
    bottom = height - MARGIN_BOTTOM
    for value, text in iteration_ticks(stretches):
        write(pen, MARGIN_LEFT + x_of(value, stretches), bottom + 10, text, "ma")
    write(pen, MARGIN_LEFT + INNER_WIDTH / 2, bottom + 42, "total iterations", "ma")
    return sheet.resize((WIDTH, height), Image.Resampling.LANCZOS)


def draw_panel(sheet, panel, stretches, top):
    """One diagram with its title, legend, axes and curves; `top` is that of its frame, in pixels."""
    pen, bottom = ImageDraw.Draw(sheet), top + PANEL_HEIGHT
    scale = math.log10 if panel.logarithmic else float
    values = _values_to_show(stretches, panel)
    low, high = widened(scale(min(values)), scale(max(values)))

    def y_of(value):
        return PANEL_HEIGHT * (high - scale(value)) / (high - low)

    ticks = log_ticks(low, high) if panel.logarithmic else linear_ticks(low, high, 6)
    diagram = draw_diagram(panel, stretches, y_of, [value for value, _ in ticks])
    sheet.paste(diagram, (FINE * MARGIN_LEFT, FINE * top))
    pen.rectangle([FINE * MARGIN_LEFT, FINE * top, FINE * (MARGIN_LEFT + INNER_WIDTH), FINE * bottom], outline=INK,
                  width=FINE * HAIRLINE)
    for value, text in ticks:
        write(pen, MARGIN_LEFT - 10, top + y_of(value), text, "rm")
    for value, _ in iteration_ticks(stretches):
        x = MARGIN_LEFT + x_of(value, stretches)
        line(pen, [(x, bottom), (x, bottom + 6)], INK, HAIRLINE)
    write_levels(pen, stretches, top - 7)
    write(pen, MARGIN_LEFT, top - 31, panel.title, "ls")
    draw_legend(pen, panel, top - 31)


def draw_diagram(panel, stretches, y_of, grid):
    """What is inside the frame, as an image of its own, so that no curve leaves it."""
    diagram = Image.new("RGB", (FINE * INNER_WIDTH, FINE * PANEL_HEIGHT), PAPER)
    pen = ImageDraw.Draw(diagram)
    for stretch in stretches[1::2]:
        left, right = (FINE * x_of(total, stretches) for total in (stretch.start, stretch.end))
        pen.rectangle([left, 0, right, FINE * PANEL_HEIGHT], fill=BAND)
    for value in grid:
        line(pen, [(0, y_of(value)), (INNER_WIDTH, y_of(value))], GRID, HAIRLINE)
    for stretch in stretches[1:]:
        x = x_of(stretch.start, stretches)
        line(pen, [(x, 0), (x, PANEL_HEIGHT)], GRID, 2 * HAIRLINE)
    for name, _, colour in panel.curves:
        for stretch in stretches:
            draw_curve(pen, [(x_of(stretch.start + iteration, stretches), y_of(value))
                             for iteration, value in _known(stretch, name, panel.logarithmic)], colour)
    return diagram


def draw_curve(pen, points, colour):
    """A line through (x, y) points, which are dots too where they are few."""
    if len(points) > 1:
        line(pen, points, colour, LINE)
    if len(points) == 1 or points and (points[-1][0] - points[0][0]) / (len(points) - 1) > SPARSE:
        for x, y in points:
            pen.ellipse([FINE * (x - DOT), FINE * (y - DOT), FINE * (x + DOT), FINE * (y + DOT)], colour)


def write_levels(pen, stretches, baseline):
    """Names the stretches: "level 7" above each, or "7" where that is too wide, or nothing."""
    for stretch in stretches:
        left, right = (x_of(total, stretches) for total in (stretch.start, stretch.end))
        for text in ("level not known", "?") if stretch.level is None else (f"level {stretch.level}", str(stretch.level)):
            if text_width(text) + 4 <= right - left:
                write(pen, MARGIN_LEFT + (left + right) / 2, baseline, text, "ms")
                break


def draw_legend(pen, panel, baseline):
    """Names the curves, from the right end of the title's line to the left."""
    right = MARGIN_LEFT + INNER_WIDTH
    for _, name, colour in reversed(panel.curves):
        if name:
            write(pen, right, baseline, name, "rs")
            right -= text_width(name) + 10
            line(pen, [(right - 34, baseline - 6), (right, baseline - 6)], colour, 2 * LINE)
            right -= 34 + 28


def x_of(total_iteration, stretches):
    """In pixels from the left of the frame."""
    return INNER_WIDTH * total_iteration / max(stretches[-1].end, 1)


def line(pen, points, colour, width):
    pen.line([(FINE * x, FINE * y) for x, y in points], colour, round(FINE * width), joint="curve")


def write(pen, x, y, text, anchor, size=FONT_SIZE):
    pen.text((FINE * x, FINE * y), text, INK, font(size), anchor)


def text_width(text):
    return font(FONT_SIZE).getlength(text) / FINE


@functools.cache
def font(size):
    return ImageFont.load_default(FINE * size)


def _known(stretch, name, positive=False):
    """[(iteration, value)] of a metric where it is known (and positive, for a logarithmic axis)."""
    return [(iteration, values[name]) for iteration, values in stretch.points.items()
            if math.isfinite(values.get(name, math.nan)) and (values[name] > 0 or not positive)]


def _values_to_show(stretches, panel):
    """The values that the axis spans: all but those of untrained levels, unless there are no others."""
    known = [point for stretch in stretches for name, _, _ in panel.curves
             for point in _known(stretch, name, panel.logarithmic)]
    return [value for iteration, value in known if iteration > 0] or [value for _, value in known]


# Axes ----------------------------------------------------------------------------------------------------------------


def widened(low, high):
    """A range with some room at both ends, also where it is a single value."""
    room = 0.06 * (high - low) or 0.05
    return low - room, high + room


def iteration_ticks(stretches):
    """[(value, text)] of the axis that the diagrams share."""
    return linear_ticks(0, max(stretches[-1].end, 1), 8)


def linear_ticks(low, high, most):
    """[(value, text)]: at most `most` + 1 multiples of 1, 2 or 5 times a power of ten, from `low` to `high`."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step for step in (power, 2 * power, 5 * power, 10 * power) if step >= rough * (1 - 1e-9))
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [(number * step, f"{number * step:,.{decimals}f}") for number in range(first, last + 1)]


def log_ticks(low, high):
    """[(value, text)] from 10^low to 10^high: powers of ten, with their double and fivefold where those are few."""
    for factors in ((1,), (1, 2, 5)):
        values = [factor * 10.0 ** power for power in range(math.floor(low), math.ceil(high) + 1) for factor in factors]
        values = [value for value in values if low <= math.log10(value) <= high]
        if len(values) >= 4:
            return [(value, f"{value:g}") for value in values]
    return linear_ticks(10 ** low, 10 ** high, 8)


if __name__ == "__main__":
    sys.exit(utils.run(main))

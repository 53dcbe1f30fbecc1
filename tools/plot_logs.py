"""Draws the whole training into results/training.png: python -m tools.plot_logs

Loss, PSNR and MS-SSIM of all levels in models/logs.txt, one level after another on one axis of total iterations.
"""

import itertools
import math
import pathlib
import re
import sys

import utils
from support import scripts
from support.training_log import LOG
from utils import RESULTS, DataError, Parameter

PICTURE = RESULTS / "training.png"
PANELS = {  # title: {name in the log: name in the legend}
    "loss (level 1: other terms)": {"training": "training", "test": "test photos"},
    "PSNR of the test photos, dB": {"psnr": None},
    "MS-SSIM of the test photos": {"ms-ssim": None},
}
HEADING = re.compile(r"#.*?\blevel=([1-7])\b")  # searched, because a line cut short by a crash may stand before it
VALUE = r"[\w-]+: (?:-|nan|-?inf|-?\d+(?:\.\d+)?(?:e[+-]\d+)?)"
EVALUATION = re.compile(rf"step (\d+) \| {VALUE}, {VALUE} \| (?:{VALUE}, )*{VALUE}", re.ASCII)
METRIC = re.compile(r"([\w-]+): ([^\s,]+)")

PARAMETERS = (
    Parameter("log", str, str(LOG), "log to draw, also one of the original code"),
)
USAGE = "python -m tools.plot_logs [name=value ...]"


def main(argv):
    """Prints where each level ended, and draws the picture."""
    settings = utils.parse_arguments(argv, PARAMETERS, USAGE)
    levels = read_log(settings.log)
    for level, evaluations in levels.items():
        iteration, metrics = max(evaluations.items())
        ends = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        print(f"Level {level or 'not known'}: iteration {iteration}, {ends}")
    figure = draw(levels)
    utils.prepare_folders(RESULTS)
    with utils.whole_file(PICTURE) as partial:
        figure.savefig(partial)
    print(f"Picture: {PICTURE}")


def read_log(path):
    """Reads the metrics of every level from a log that train_model.py or the original code wrote.

    A run replaces what its level's earlier runs measured from its first iteration on: it trained that again. A start
    that got no further than iteration 0 replaces nothing. The level of the original's lines is not known: None.

    Returns {level: {iteration: {name: value}}}, levels and iterations in the order of training. The names are training,
    test, psnr, l1 ...; a value that was not computed is NaN. Raises DataError where there are no metrics.
    """
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); train_model.py writes it") from None
    runs = [(None, {})]
    for line in text.split("\n")[:-1]:  # a last line without its end was cut short
        heading, evaluation = HEADING.search(line), EVALUATION.fullmatch(line.rstrip())
        if heading:
            runs.append((int(heading[1]), {}))
        elif evaluation:
            values = {name: math.nan if text == "-" else float(text) for name, text in METRIC.findall(line)}
            runs[-1][1][int(evaluation[1])] = values
    levels = {}
    for level, run in runs:
        before = levels.get(level, {})
        if max(run, default=0) > 0 or (run and not before):
            levels[level] = {iteration: before[iteration] for iteration in before if iteration < min(run)} | run
    if not levels:
        raise DataError(f"{path}: holds no metrics of any iteration")
    return dict(sorted(levels.items(), key=lambda item: -(item[0] or math.inf)))


def draw(levels):
    """Returns a matplotlib figure of what `read_log` returned. Raises DataError where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure  # which needs no display
    except ImportError:
        raise DataError("the picture is drawn with matplotlib: pip install matplotlib") from None
    starts = [0, *itertools.accumulate(max(evaluations) for evaluations in levels.values())]
    figure = Figure(figsize=(12, 9), layout="constrained")
    all_axes = figure.subplots(len(PANELS), sharex=True)
    for axes, (title, curves) in zip(all_axes, PANELS.items()):
        axes.set_ylabel(title)
        axes.vlines(starts[:-1], 0, 1, "lightgrey", transform=axes.get_xaxis_transform())
        for name, label in curves.items():
            points = []
            for start, evaluations in zip(starts, levels.values()):
                points += [(start + iteration, values.get(name, math.nan)) for iteration, values in evaluations.items()]
                points.append((math.nan, math.nan))  # leaves a gap
            axes.plot(*zip(*points), ".-", label=label)
    all_axes[0].set_yscale("log", nonpositive="mask")
    all_axes[0].legend()
    top = all_axes[0].secondary_xaxis("top", xlabel="level")
    top.set_xticks(starts[:-1], [level or "?" for level in levels])
    all_axes[-1].set_xlabel("total iterations")
    return figure


if __name__ == "__main__":
    sys.exit(scripts.run(main))

"""The pages that show what test_model.py rendered, for a browser that opens them from the disk.

    results/full-resolution/<run>/index.html       page of a run
    results/full-resolution/<run>/metrics.csv      its table, which ends with the means
    results/full-resolution/<run>/settings.json    its settings and means
    results/full-resolution/<run>/page/            small pictures, loaded as the page is scrolled
    results/full-resolution/index.html             all runs, the latest first
"""

import csv
import datetime
import hashlib
import html
import io
import json
import math
import os
import pathlib
import urllib.parse
from typing import NamedTuple

import numpy as np
from PIL import Image

import utils
from load_dataset import MAPS, PHOTOS

PICTURES = "page"  # the sub-folder of the small pictures
SETTINGS = "settings.json"
LONGEST_NAME = 60  # bytes of the photos' folder in the name of a run; file systems allow 255 in all
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")  # of cells that spreadsheets would compute
LONGEST_SIDE = 768  # of a small picture, in pixels; that of EBB!'s photos at half size, as the network sees them
JPEG_QUALITY = 85
CHOICES = {"photo": "Photo", "target": "Target"} | {kind: f"{kind.capitalize()} map" for kind in MAPS}
FORMATS = {"PSNR": "{:.2f} dB"}  # of the metrics; four decimal places for the others


class Result(NamedTuple):
    """A rendered photo."""

    name: str
    path: pathlib.Path  # of the rendered picture
    size: tuple  # (width, height) of the photo
    metrics: dict  # {name: value, NaN where the photo is too small for it}; empty without a target
    pictures: dict  # what `write_thumbnails` returned


def metric_text(name, value):
    """Returns a metric with its unit, "23.41 dB" or "0.8651"; NaN is "photo too small"."""
    return "photo too small" if math.isnan(value) else FORMATS.get(name, "{:.4f}").format(value)


def metrics_text(values):
    """Returns "PSNR 23.41 dB, SSIM 0.8651, MS-SSIM 0.9123" for {name: value}."""
    return ", ".join(f"{name} {metric_text(name, value)}" for name, value in values.items())


def mean_metrics(found):
    """Returns {name: mean} over a list of {name: value}, without NaN and empty ones; {} where all are empty."""
    means = {}
    for name in next(filter(None, found), ()):
        known = [values[name] for values in found if values and not math.isnan(values[name])]
        means[name] = float(np.mean(known)) if known else math.nan
    return means


# Files ---------------------------------------------------------------------------------------------------------------


class Run(NamedTuple):
    """What a run renders with, and where its results go."""

    prefix: pathlib.Path  # of the checkpoint
    suffix: str  # what the names of its pictures end in
    folder: pathlib.Path
    facts: dict  # {name: value} of all that its results depend on


def describe_run(settings, prefix, suffix, left_out):
    """Returns the `Run` of test_model.py's settings: its folder is another one where any of its facts is.

    left_out: names of settings that do not matter for these photos.
    """
    left_out = {"given", "out", *left_out}
    facts = {name: value for name, value in vars(settings).items() if name not in left_out and value is not None}
    facts |= {name: os.path.realpath(facts[name]) for name in ("dataset_dir", "images_dir", "depth_dir")
              if name in facts}
    index = pathlib.Path(f"{prefix}.index").read_bytes()  # with a checksum of every variable
    facts |= {"weights": str(prefix), "weights_checksum": hashlib.sha256(index).hexdigest()[:16]}
    val = f"val_{settings.val_size}_" if settings.val_size else ""
    kind = f"{val}{suffix.removesuffix('.png').lstrip('_')}_{settings.precision}"
    name = run_name(settings.images_dir or settings.dataset_dir, kind, facts)
    return Run(prefix, suffix, pathlib.Path(settings.out or utils.FULL_RESOLUTION / name), facts)


def curve_name(settings, run):
    """Returns the name of the curve of a level's test means: one for each data set, split and precision."""
    facts = {name: run.facts[name] for name in ("dataset_dir", "val_size", "precision")}
    val = f"val_{settings.val_size}_" if settings.val_size else ""
    return f"test_{run_name(settings.dataset_dir, f'{val}{settings.precision}', facts)}"


def run_name(photos, kind, facts):
    """Returns the name of a run: the folder or file of its photos, what kind it is, and a checksum of {fact: value}."""
    name = os.fsencode(os.path.basename(os.path.realpath(photos)))[:LONGEST_NAME].decode(errors="ignore")
    checksum = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]
    return f"{name}_{kind}-{checksum}"


def write_thumbnails(path, photo_and_map, result, target, kind, profile=None):
    """Writes the small JPEGs of one photo to a sub-folder beside the rendered picture `path`.

    photo_and_map: uint8 (height, width, channels), the network's input with this kind of map; result, target: uint8
    (height, width, 3) of any size, no target where it is None; profile: the photo's ICC profile, as bytes.
    Returns {"photo", kind, "result", "target": file name}. Raises OSError.
    """
    folder = path.parent / PICTURES
    folder.mkdir(exist_ok=True)
    images = {"photo": photo_and_map[..., :PHOTOS.channels], "result": result}
    if kind:
        images[kind] = photo_and_map[..., PHOTOS.channels]  # its first channel
    if target is not None:
        images["target"] = target
    names = {kind: f"{path.stem}.{kind}.jpg" for kind in images}
    for kind, image in images.items():
        small = Image.fromarray(image)
        small.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
        with utils.whole_file(folder / names[kind]) as partial:
            small.save(partial, quality=JPEG_QUALITY, icc_profile=profile if small.mode == "RGB" else None)
    return names


def write_page(folder, settings, heading, results, problems, total):
    """Writes page, table and settings of a run, each whole or not at all, and the list of all runs beside its folder.

    Args:
      folder: where the results are.
      settings: {name: value} that the results depend on; heading: {what: value}, more about the run.
      results: the `Result`s in the order of the run, of `total` photos.
      problems: a text for each photo that could not be rendered.

    Returns the path of the page. Raises OSError.
    """
    means = mean_metrics([result.metrics for result in results])
    now = f"{datetime.datetime.now():%Y-%m-%d %H:%M:%S}"
    rows = {**settings, **heading, "Date": now, "Rendered": f"{len(results)} of {total} photos"}
    about = {"date": now, "rendered": len(results), "photos": total, "settings": settings, "problems": problems,
             "means": {name: mean if math.isfinite(mean) else None for name, mean in means.items()}}
    page = folder / "index.html"
    _write(folder / "metrics.csv", _table(results, means))
    _write(folder / SETTINGS, json.dumps(about, indent=1) + "\n")
    listed = folder.parent.resolve() == utils.FULL_RESOLUTION.resolve()
    _write(page, _page(folder.name, rows, results, means, problems, listed))
    if listed:
        _write(utils.FULL_RESOLUTION / "index.html", _list_of_runs(utils.FULL_RESOLUTION))
    return page


def show_page(run, heading, results, problems, total):
    """Writes the page of a `Run` and prints where it is; the other arguments are those of `write_page`."""
    try:
        utils.say(f"Look at them: {write_page(run.folder, run.facts, heading, results, problems, total)}")
    except OSError as error:
        problems.append(f"{run.folder}/index.html: could not be written ({error.strerror or error})")
        utils.warn(problems[-1], kind="error")


def _write(path, text):
    with utils.whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="")


def _table(results, means):
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["photo", "result", "width", "height", *means])
    for result in results:
        writer.writerow([_cell(result.name), _cell(result.path.name), *result.size, *_numbers(result.metrics, means)])
    if means:
        writer.writerow(["mean", "", "", "", *_numbers(means, means)])
    return table.getvalue()


def _cell(text):
    """Returns a text that a spreadsheet does not take for a formula."""
    return utils.printable(f"'{text}" if text.startswith(FORMULA_STARTS) else text)


def _numbers(values, names):
    numbers = [values.get(name, math.nan) for name in names]
    return ["" if math.isnan(value) else f"{value:.6g}" for value in numbers]


# The page ------------------------------------------------------------------------------------------------------------


def _page(run, rows, results, means, problems, listed):
    rows |= {f"Mean {name}": metric_text(name, mean) for name, mean in means.items()}
    facts = "".join(f"<div><dt>{_text(what)}</dt><dd>{_text(value)}</dd></div>" for what, value in rows.items())
    orders = "".join(f"<option>{_text(text)}</option>"
                     for text in ("in order", *(f"by {name}, lowest first" for name in means)))
    cards = "\n".join(_card(number, result, means) for number, result in enumerate(results))
    runs = '<p><a href="../index.html">All runs</a></p>' if listed else ""
    return _TEMPLATE.format(run=_text(run), facts=facts, lists=runs + _list("Not rendered", map(_text, problems)),
                            orders=orders, cards=cards, style=_STYLE, script=_SCRIPT)


def _list_of_runs(root):
    """Returns the page that lists the runs in a folder, the latest first."""
    runs = []
    for path in root.glob(f"*/{SETTINGS}"):
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
            values = about["date"], f"{about['rendered']} of {about['photos']}", metrics_text(
                {name: math.nan if mean is None else mean for name, mean in about["means"].items()})
            weights = about["settings"]["weights"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # not written by us
            continue
        link = f'<a href="{_address(f"{path.parent.name}/index.html")}">{_text(path.parent.name)}</a>'
        runs.append((values[0], "".join(f"<td>{cell}</td>" for cell in (link, *map(_text, (*values, weights))))))
    rows = "\n".join(f"<tr>{cells}</tr>" for _, cells in sorted(runs, reverse=True))
    return _RUNS_TEMPLATE.format(rows=rows, style=_STYLE)


def _text(value):
    """Returns a value as text, quoted for HTML."""
    return html.escape(utils.printable(value))


def _list(summary, entries):
    """Returns a list that opens at a click, empty text without entries."""
    entries = "".join(f"<li>{entry}</li>" for entry in entries)
    return f"<details><summary>{summary}</summary><ul>{entries}</ul></details>" if entries else ""


def _card(number, result, metric_names):
    """Returns the part of one photo: slider, pictures to compare the result with, metrics."""
    name = _text(result.name)
    address = {kind: _address(f"{PICTURES}/{file}") for kind, file in result.pictures.items()}
    width, height = result.size
    choices = "".join(
        f'<button type="button"><img src="{address[kind]}" alt="" loading="lazy"><span>{text}</span></button>'
        for kind, text in CHOICES.items() if kind in address)
    values = [result.metrics.get(metric, math.nan) for metric in metric_names]
    keys = [number, *(value if math.isfinite(value) else 1e9 for value in values)]  # what is not known comes last
    return f"""<article data-keys="{" ".join(map(str, keys))}">
<h2><a href="{_address(result.path.name)}">{name}</a> <small>{width} x {height}</small></h2>
<div class="compare" style="aspect-ratio:{width}/{height};--ratio:{width / height:.4f}">
<img src="{address["result"]}" alt="{name}, rendered" loading="lazy">
<img class="before" src="{address["photo"]}" alt="{name}, photo" loading="lazy">
<span class="line"></span><span class="tag">Photo</span><span class="tag right">Rendered</span>
<input type="range" min="0" max="100" value="50" aria-label="Line between {name} and its result">
</div>
<div class="choices">{choices}</div>
<p>{_text(metrics_text(result.metrics))}</p>
</article>"""


def _address(path):
    """Returns a relative URL, quoted for URLs and HTML."""
    return html.escape(urllib.parse.quote(os.fsencode(path)))


_STYLE = """
:root { color-scheme: light dark }
body { margin: 0 auto; max-width: 110rem; padding: 1rem; font: 1rem/1.45 system-ui, sans-serif }
h1, h2 { font-size: 1.1rem; margin: .4rem 0 }
h2, dd, details { overflow-wrap: anywhere }
small, dt { font-size: .8rem; opacity: .7 }
dl { display: flex; flex-wrap: wrap; gap: .4rem 1.6rem }
dd { margin: 0 }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); gap: 1.6rem 1.2rem }
article { min-width: 0; content-visibility: auto; contain-intrinsic-size: auto 28rem }
.compare { position: relative; max-width: min(100%, calc(85vh * var(--ratio))); margin: auto; --x: 50% }
.compare img, input { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0 }
.before { clip-path: inset(0 calc(100% - var(--x)) 0 0) }
.line { position: absolute; inset: 0 auto 0 var(--x); width: 2px; background: #fff; box-shadow: 0 0 4px #000 }
.tag { position: absolute; left: 0; bottom: 0; padding: 0 .4rem; background: #000a; color: #fff }
.right { left: auto; right: 0 }
td, th { padding: .3rem .8rem .3rem 0; text-align: left; overflow-wrap: anywhere }
input { opacity: 0; cursor: ew-resize; touch-action: pan-y }
.compare:focus-within { outline: 3px solid #2a6fdb }
.choices { display: flex; flex-wrap: wrap; gap: .4rem; margin-top: .5rem }
.choices img { width: 6rem; height: 4rem; object-fit: cover; display: block }
"""

_SCRIPT = """
const main = document.querySelector("main"), order = document.querySelector("select");

order.addEventListener("change", () => {
  const key = card => card.dataset.keys.split(" ")[order.selectedIndex];
  main.append(...[...main.children].sort((a, b) => key(a) - key(b)));
});

main.addEventListener("input", event => {
  event.target.parentNode.style.setProperty("--x", event.target.value + "%");
});

main.addEventListener("click", event => {
  const button = event.target.closest("button");
  if (!button) return;
  const card = button.closest("article");
  card.querySelector(".before").src = button.querySelector("img").src;
  card.querySelector(".tag").textContent = button.textContent;
});
"""

_TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{run}: PyNET Bokeh</title>
<style>{style}</style>
</head>
<body>
<h1>PyNET Bokeh: results</h1>
<dl>{facts}</dl>
{lists}
<label>Show the photos <select autocomplete="off">{orders}</select></label>
<main>
{cards}
</main>
<script>{script}</script>
</body>
</html>
"""

_RUNS_TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>PyNET Bokeh: runs</title>
<style>{style}</style>
</head>
<body>
<h1>PyNET Bokeh: runs</h1>
<table>
<tr><th>Run</th><th>Date</th><th>Photos</th><th>Means</th><th>Weights</th></tr>
{rows}
</table>
</body>
</html>
"""

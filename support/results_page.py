"""The page that shows what test_model.py rendered, for a browser that opens it from the disk.

    results/full-resolution/index_<run>.html, metrics_<run>.csv    page and table of a run
    results/full-resolution/index.html                             the page of the latest run, with links to the others
    results/full-resolution/page/                                  small pictures, loaded as the page is scrolled
"""

import csv
import html
import io
import math
import pathlib
import urllib.parse
from typing import NamedTuple

import numpy as np
from PIL import Image

import utils
from load_dataset import MAPS, PHOTOS

PICTURES = "page"  # the sub-folder of the small pictures
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


def write_thumbnails(path, photo_and_map, result, target, kind):
    """Writes the small JPEGs of one photo to a sub-folder beside the rendered picture `path`.

    photo_and_map: uint8 (height, width, channels), the network's input with this kind of map; result, target: uint8
    (height, width, 3) of any size, no target where it is None. Returns {"photo", kind, "result", "target": file name}.
    Raises OSError.
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
            small.save(partial, quality=JPEG_QUALITY)
    return names


def write_page(folder, run, heading, results, problems, total):
    """Writes page and table of a run, each whole or not at all. Returns the path of index.html. Raises OSError.

    Args:
      folder: where the results are.
      run: name of the run, of which `heading` is {what: value}; one of the same name is replaced.
      results: the `Result`s in the order of the run, of `total` photos.
      problems: a text for each photo that could not be rendered.
    """
    page = folder / f"index_{run}.html"
    others = sorted(path.name for path in folder.glob("index_*.html") if path != page)
    means = mean_metrics([result.metrics for result in results])
    text = _page(run, others, heading, results, means, problems, total)
    index = folder / "index.html"
    for path, content in ((folder / f"metrics_{run}.csv", _table(results, means)), (page, text), (index, text)):
        with utils.whole_file(path) as partial:
            partial.write_text(content, encoding="utf-8", newline="")
    return index


def _table(results, names):
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["photo", "result", "width", "height", *names])
    for result in results:
        values = [result.metrics.get(name, math.nan) for name in names]
        writer.writerow([result.name, result.path.name, *result.size,
                         *("" if math.isnan(value) else f"{value:.6g}" for value in values)])
    return table.getvalue()


# The page ------------------------------------------------------------------------------------------------------------


def _page(run, others, heading, results, means, problems, total):
    rows = {**heading, "Rendered": f"{len(results)} of {total} photos"}
    rows |= {f"Mean {name}": metric_text(name, mean) for name, mean in means.items()}
    facts = "".join(f"<div><dt>{html.escape(what)}</dt><dd>{html.escape(str(value))}</dd></div>"
                    for what, value in rows.items())
    links = [f'<a href="{_address(name)}">{html.escape(name[len("index_"):-len(".html")])}</a>' for name in others]
    lists = _list("Other runs", links) + _list("Not rendered", map(html.escape, problems))
    orders = "".join(f"<option>{html.escape(text)}</option>"
                     for text in ("in order", *(f"by {name}, lowest first" for name in means)))
    cards = "\n".join(_card(number, result, means) for number, result in enumerate(results))
    return _TEMPLATE.format(run=html.escape(run), facts=facts, lists=lists, orders=orders, cards=cards, style=_STYLE,
                            script=_SCRIPT)


def _list(summary, entries):
    """Returns a list that opens at a click, empty text without entries."""
    entries = "".join(f"<li>{entry}</li>" for entry in entries)
    return f"<details><summary>{summary}</summary><ul>{entries}</ul></details>" if entries else ""


def _card(number, result, metric_names):
    """Returns the part of one photo: slider, pictures to compare the result with, metrics."""
    name = html.escape(result.name)
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
<p>{html.escape(metrics_text(result.metrics))}</p>
</article>"""


def _address(path):
    """Returns a relative URL, quoted for URLs and HTML."""
    return html.escape(urllib.parse.quote(path))


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

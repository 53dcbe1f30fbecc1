"""The page that shows what test_model.py rendered, for a browser that opens it from the disk.

    results/full-resolution/index_<run>.html, metrics_<run>.csv    page and table of a run
    results/full-resolution/index.html                             the page of the latest run, with links to the others
    results/full-resolution/page/                                  small pictures for the pages

The pictures are loaded as the page is scrolled, so it stays light with hundreds of photos.
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

PICTURES = "page"  # the sub-folder of the small pictures
LONGEST_SIDE = 1024  # of a small picture, in pixels
JPEG_QUALITY = 85
FORMATS = {"PSNR": "{:.2f} dB"}  # of the metrics; four decimal places for the others


class Result(NamedTuple):
    """A rendered photo."""

    name: str
    path: pathlib.Path  # of the rendered picture
    size: tuple  # (width, height) of the photo
    metrics: dict  # {name: value, NaN where the photo is too small for it}; empty without a target
    pictures: dict  # what `write_thumbnails` returned


# Metrics in words ----------------------------------------------------------------------------------------------------


def metric_text(name, value):
    """Returns a metric with its unit, "23.41 dB" or "0.8651"; NaN is "photo too small"."""
    return "photo too small" if math.isnan(value) else FORMATS.get(name, "{:.4f}").format(value)


def metrics_text(values):
    """Returns "PSNR 23.41 dB, SSIM 0.8651, MS-SSIM 0.9123" for {name: value}."""
    return ", ".join(f"{name} {metric_text(name, value)}" for name, value in values.items())


def mean_metrics(found):
    """Returns {name: mean} over a list of {name: value}, without NaN and empty ones; {} where all are empty."""
    measured = [values for values in found if values]
    means = {}
    for name in measured[0] if measured else ():
        known = [values[name] for values in measured if not math.isnan(values[name])]
        means[name] = float(np.mean(known)) if known else math.nan
    return means


# Files ---------------------------------------------------------------------------------------------------------------


def write_thumbnails(path, photo_and_depth, result, target):
    """Writes the small JPEGs of one photo, all of one size, to a sub-folder beside the rendered picture.

    Args:
      path: of the rendered picture.
      photo_and_depth: uint8 (height, width, 4 or 3), the network's input.
      result: uint8 (height, width, 3) of any size.
      target: the same, or None.

    Returns:
      {"photo", "depth", "result", "target": file name}, without what is missing.

    Raises:
      OSError: one could not be written.
    """
    folder = path.parent / PICTURES
    folder.mkdir(exist_ok=True)
    height, width = photo_and_depth.shape[:2]
    scale = min(1, LONGEST_SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    images = {"photo": photo_and_depth[..., :3], "result": result}
    if photo_and_depth.shape[-1] == 4:
        images["depth"] = photo_and_depth[..., 3]
    if target is not None:
        images["target"] = target
    names = {kind: f"{path.stem}.{kind}.jpg" for kind in images}
    for kind, image in images.items():
        small = Image.fromarray(np.ascontiguousarray(image)).resize(size, Image.Resampling.BILINEAR, reducing_gap=2)
        with utils.whole_file(folder / names[kind]) as partial:
            small.save(partial, quality=JPEG_QUALITY)
    return names


def write_page(folder, run, heading, results, problems, total):
    """Writes page and table of a run, each whole or not at all. Returns the path of index.html.

    Args:
      folder: where the results are.
      run: name of the run; one of the same name is replaced.
      heading: {what: value} of the run.
      results: the `Result`s in the order of the run.
      problems: a text for each photo that could not be rendered.
      total: the number of photos of the run.

    Raises:
      OSError: one could not be written.
    """
    page = folder / f"index_{run}.html"
    others = sorted(path.name for path in folder.glob("index_*.html") if path != page)
    means = mean_metrics([result.metrics for result in results])
    text = _page(run, others, heading, results, means, problems, total)
    index = folder / "index.html"
    for path, content in ((folder / f"metrics_{run}.csv", _table(results, list(means))), (page, text), (index, text)):
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
    buttons = "".join(f'<button type="button" data-key="{number}">{html.escape(key)}</button>'
                      for number, key in enumerate(["order", "name", *means]))
    links = _list(f"Other runs ({len(others)})", [
        f'<a href="{_address(name)}">{html.escape(name[len("index_"):-len(".html")])}</a>' for name in others])
    failed = _list(f"{len(problems)} not rendered", map(html.escape, problems))
    cards = "\n".join(_card(number, result, list(means)) for number, result in enumerate(results))
    return _TEMPLATE.format(run=html.escape(run), facts=facts, lists=links + failed, buttons=buttons, cards=cards,
                            style=_STYLE, script=_SCRIPT)


def _list(summary, entries):
    """Returns a list that opens at a click, empty text without entries."""
    entries = "".join(f"<li>{entry}</li>" for entry in entries)
    return f'<details><summary>{summary}</summary><ul>{entries}</ul></details>' if entries else ""


def _card(number, result, metric_names):
    """Returns the part of one photo: slider, pictures to compare the result with, metrics."""
    name = html.escape(result.name)
    address = {kind: _address(f"{PICTURES}/{file}") for kind, file in result.pictures.items()}
    width, height = result.size
    choices = "".join(
        f'<button type="button" data-src="{address[kind]}" aria-pressed="{str(kind == "photo").lower()}">'
        f'<img src="{address[kind]}" alt="" width="96" height="64" loading="lazy">{text}</button>'
        for kind, text in (("photo", "Photo"), ("target", "Target"), ("depth", "Depth map")) if kind in address)
    metrics = "".join(f"<li><b>{html.escape(metric)}</b> {metric_text(metric, value)}</li>"
                      for metric, value in result.metrics.items())
    values = [result.metrics.get(metric, math.nan) for metric in metric_names]
    keys = [number, name, *("" if math.isnan(value) else min(value, 1e9) for value in values)]  # a PSNR can be infinite
    data = " ".join(f'data-k{place}="{key}"' for place, key in enumerate(keys))
    return f"""<article {data}>
<h2><a href="{_address(result.path.name)}">{name}</a> <small>{width} x {height}</small></h2>
<div class="compare" style="aspect-ratio:{width}/{height};--ratio:{width / height:.4f}">
<img class="after" src="{address["result"]}" alt="{name}, rendered" width="{width}" height="{height}" loading="lazy">
<img class="before" src="{address["photo"]}" alt="{name}, photo" width="{width}" height="{height}" loading="lazy">
<span class="line"></span><span class="tag left">Photo</span><span class="tag right">Rendered</span>
<input type="range" min="0" max="100" value="50" aria-label="How much of {name} is shown as it was">
</div>
<div class="choices">{choices}</div>
<ul class="metrics">{metrics}</ul>
</article>"""


def _address(path):
    """Returns a relative URL, quoted for URLs and HTML."""
    return html.escape(urllib.parse.quote(path))


_STYLE = """
:root { color-scheme: light dark; --line: #8886; --accent: #2a6fdb }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 110rem; padding: 1rem; font: 1rem/1.45 system-ui, sans-serif }
h1 { font-size: 1.4rem; margin: 0 0 .6rem }
h2 { font-size: 1.05rem; margin: 0 0 .4rem; overflow-wrap: anywhere }
small { font-weight: normal; opacity: .7 }
dl { display: flex; flex-wrap: wrap; gap: .4rem 1.6rem; margin: 0 0 .8rem }
dt { font-size: .8rem; opacity: .7 }
dd { margin: 0; overflow-wrap: anywhere }
.sort { position: sticky; top: 0; z-index: 2; display: flex; flex-wrap: wrap; gap: .4rem; align-items: center;
        padding: .5rem 0; background: Canvas; border-bottom: 1px solid var(--line) }
button { font: inherit; color: inherit; padding: .35rem .7rem; min-height: 2.5rem; cursor: pointer;
         border: 1px solid var(--line); border-radius: .4rem; background: none }
button[aria-pressed=true] { border-color: var(--accent); box-shadow: inset 0 0 0 1px var(--accent) }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); gap: 1.6rem 1.2rem;
       margin-top: 1rem; align-items: start }
article { min-width: 0; content-visibility: auto; contain-intrinsic-size: auto 28rem }
.compare { position: relative; overflow: hidden; background: #8883; max-width: min(100%, calc(85vh * var(--ratio)));
           min-width: min(100%, 3rem); max-height: 85vh; margin: auto; --x: 50% }
.compare img { position: absolute; inset: 0; width: 100%; height: 100%; pointer-events: none }
.compare .before { clip-path: inset(0 calc(100% - var(--x)) 0 0) }
.compare .line { position: absolute; top: 0; bottom: 0; left: var(--x); width: 3px; margin-left: -1.5px;
                 background: #fff; box-shadow: 0 0 4px #000; pointer-events: none }
.compare .tag { position: absolute; bottom: .4rem; padding: 0 .4rem; border-radius: .3rem; font-size: .8rem;
                background: #000a; color: #fff; pointer-events: none }
.compare .left { left: .4rem } .compare .right { right: .4rem }
.compare input { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; opacity: 0; cursor: ew-resize;
                 touch-action: pan-y }
.compare:has(input:focus-visible) { outline: 3px solid var(--accent); outline-offset: 2px }
.choices { display: flex; flex-wrap: wrap; gap: .4rem; margin-top: .5rem }
.choices button { display: flex; align-items: center; gap: .5rem; padding: .25rem .6rem .25rem .25rem }
.choices img { width: 4.5rem; height: 3rem; object-fit: cover; border-radius: .25rem; display: block }
.metrics { display: flex; flex-wrap: wrap; gap: 0 1.2rem; list-style: none; margin: .4rem 0 0; padding: 0 }
details { margin-bottom: .8rem; overflow-wrap: anywhere }
"""

_SCRIPT = """
const main = document.querySelector("main");
const sorting = document.querySelectorAll(".sort button");
const names = new Intl.Collator(undefined, {numeric: true});

function sortBy(button) {
  const key = "k" + button.dataset.key, isName = button.dataset.key === "1";
  const direction = button.dataset.direction === "1" ? -1 : 1;
  const cards = [...main.children];
  cards.sort((a, b) => {
    const left = a.dataset[key], right = b.dataset[key];
    if (left === "" || right === "") return (left === "") - (right === "");
    return direction * (isName ? names.compare(left, right) : left - right);
  });
  main.append(...cards);
  for (const other of sorting) {
    const current = other === button;
    other.dataset.direction = current ? direction : "";
    other.setAttribute("aria-pressed", current);
    other.textContent = other.textContent.replace(/ [\\u2191\\u2193]$/, "")
      + (current ? direction === 1 ? " \\u2191" : " \\u2193" : "");
  }
}

document.addEventListener("input", event => {
  const compare = event.target.closest(".compare");
  if (compare) compare.style.setProperty("--x", event.target.value + "%");
});

document.addEventListener("click", event => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.closest(".sort")) return sortBy(button);
  const card = button.closest("article");
  card.querySelector(".before").src = button.dataset.src;
  card.querySelector(".left").textContent = button.textContent;
  for (const other of card.querySelectorAll(".choices button")) other.setAttribute("aria-pressed", other === button);
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
<div class="sort">Sort by {buttons}</div>
<main>
{cards}
</main>
<script>{script}</script>
</body>
</html>
"""

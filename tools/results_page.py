"""The page that shows what test_model.py rendered: index.html, metrics.csv, and small pictures in a sub-folder.

Plain files that a browser opens from the disk. The pictures are loaded as the page is scrolled, so it stays light with
hundreds of photos. Each run writes the page anew, with its own photos.
"""

import contextlib
import csv
import html
import io
import math
import os
import pathlib
import urllib.parse
from typing import NamedTuple, Optional

import numpy as np
from PIL import Image

PICTURES = "page"  # the sub-folder of the small pictures
LONGEST_SIDE = 1024  # of a small picture, in pixels
JPEG_QUALITY = 85
PLACES = {"PSNR": 2}  # after the decimal point; 4 for the others


class Result(NamedTuple):
    """What became of one photo."""

    name: str
    path: pathlib.Path  # of the rendered picture
    size: tuple  # (width, height) of the photo
    metrics: dict  # {name: value, NaN where the photo is too small for it}; empty without a target
    pictures: dict  # {"result", "photo", "depth", "target": file name in the sub-folder}
    older: Optional[pathlib.Path]  # where a result of that name is now that was there before


def write_thumbnails(path, photo_and_depth, result, target):
    """Writes the small JPEGs of one photo, all of one size.

    Args:
      path: of the rendered picture; the sub-folder is made beside it.
      photo_and_depth: uint8 (height, width, 4 or 3), the network's input.
      result: uint8 (height, width, 3) of any size.
      target: the same, or None.

    Returns:
      {"photo", "depth", "result", "target": file name}; OSError where one cannot be written.
    """
    folder = path.parent / PICTURES
    folder.mkdir(exist_ok=True)
    height, width = photo_and_depth.shape[:2]
    scale = min(1, LONGEST_SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    depth = photo_and_depth[..., 3] if photo_and_depth.shape[-1] == 4 else None
    images = {"photo": photo_and_depth[..., :3], "depth": depth, "result": result, "target": target}
    names = {}
    for kind, image in images.items():
        if image is None:
            continue
        names[kind] = f"{path.stem}.{kind}.jpg"
        small = Image.fromarray(np.ascontiguousarray(image)).resize(size, Image.Resampling.BILINEAR, reducing_gap=2)
        with _whole(folder / names[kind]) as partial:
            small.save(partial, format="JPEG", quality=JPEG_QUALITY)
    return names


def write_page(folder, heading, results, metric_names, problems, total):
    """Writes index.html and metrics.csv into `folder`, each whole or not at all, and returns the page's path.

    Args:
      folder: where the results lie.
      heading: {what: text} of the run.
      results: the `Result`s in the order of the run.
      metric_names: those that a result may have, in the order in which they are shown.
      problems: a text for each photo that could not be rendered.
      total: the number of photos that the run was asked for.
    """
    texts = {"metrics.csv": _table(results, metric_names),
             "index.html": _page(heading, results, metric_names, problems, total)}
    for name, text in texts.items():
        with _whole(folder / name) as partial:
            partial.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")
    return folder / "index.html"


@contextlib.contextmanager
def _whole(path):
    """Gives the path of a file to write, which becomes `path` if that succeeds and is deleted if not."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _table(results, metric_names):
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["photo", "result", "width", "height", *metric_names])
    for result in results:
        values = [result.metrics.get(name, math.nan) for name in metric_names]
        writer.writerow([result.name, result.path.name, *result.size,
                         *("" if math.isnan(value) else f"{value:.6g}" for value in values)])
    return table.getvalue()


def _page(heading, results, metric_names, problems, total):
    shown = [name for name in metric_names if any(name in result.metrics for result in results)]
    means = {f"Mean {name}": _metric_text(name, mean)
             for name, mean in mean_metrics([result.metrics for result in results], shown).items()}
    rows = {**heading, "Rendered": f"{len(results)} of {total} photos", **means}
    facts = "".join(f"<div><dt>{html.escape(what)}</dt><dd>{html.escape(text)}</dd></div>" for what, text in rows.items())
    keys = ["order", "name", *shown]
    buttons = "".join(f'<button type="button" data-key="{number}">{html.escape(key)}</button>'
                      for number, key in enumerate(keys))
    failed = "".join(f"<li>{html.escape(problem)}</li>" for problem in problems)
    failed = f'<details class="failed"><summary>{len(problems)} not rendered</summary><ul>{failed}</ul></details>'
    cards = "\n".join(_card(number, result, shown) for number, result in enumerate(results))
    return _TEMPLATE.format(facts=facts, buttons=buttons, failed=failed if problems else "", cards=cards,
                            style=_STYLE, script=_SCRIPT)


def mean_metrics(found, names):
    """{name: mean} over a list of {name: value}, without the NaN of photos that are too small; NaN where all are."""
    means = {}
    for name in names:
        known = [values[name] for values in found if not math.isnan(values.get(name, math.nan))]
        means[name] = float(np.mean(known)) if known else math.nan
    return means


def _metric_text(name, value):
    if math.isnan(value):
        return "photo too small"
    return f"{value:.{PLACES.get(name, 4)}f}" + (" dB" if name == "PSNR" else "")


def _card(number, result, shown):
    """One photo: the slider, the pictures that it can compare the result with, and the metrics."""
    name = html.escape(result.name)
    address = {kind: _address(f"{PICTURES}/{file}") for kind, file in result.pictures.items()}
    width, height = result.size
    choices = "".join(
        f'<button type="button" data-src="{address[kind]}" aria-pressed="{"true" if kind == "photo" else "false"}">'
        f'<img src="{address[kind]}" alt="" width="96" height="64" loading="lazy">{text}</button>'
        for kind, text in (("photo", "Photo"), ("target", "Target"), ("depth", "Depth map")) if kind in address)
    metrics = "".join(f"<li><b>{html.escape(metric)}</b> {_metric_text(metric, result.metrics[metric])}</li>"
                      for metric in shown if metric in result.metrics)
    keys = [number, result.name, *("" if math.isnan(value) else value
                                   for value in (result.metrics.get(metric, math.nan) for metric in shown))]
    data = " ".join(f'data-k{place}="{html.escape(str(1e9 if key == math.inf else key))}"' for place, key in enumerate(keys))
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
    """A relative URL, for an attribute: what has a meaning in URLs or HTML is quoted."""
    return html.escape(urllib.parse.quote(os.fsencode(path)))


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
.failed { margin-bottom: .8rem; overflow-wrap: anywhere }
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
<title>PyNET Bokeh: results</title>
<style>{style}</style>
</head>
<body>
<h1>PyNET Bokeh: results</h1>
<dl>{facts}</dl>
{failed}
<div class="sort">Sort by {buttons}</div>
<main>
{cards}
</main>
<script>{script}</script>
</body>
</html>
"""

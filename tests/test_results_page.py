"""support/results_page.py: what the page and the table of a test run hold, whatever the photos are called.

How the page looks and sorts was tried in a browser; here its elements are read.
"""

import csv
import html.parser
import math
import urllib.parse

import numpy as np
import pytest
from PIL import Image

from support import results_page

METRICS = ("PSNR", "SSIM", "MS-SSIM")
RUN = "level_1_orig"
NAMES = ["7", "with 'quotes\" and <b>", "100% #1 ?a=b&c", "Фото 写真", "space at end "]
SIZE = WIDTH, HEIGHT = 120, 80


class Elements(html.parser.HTMLParser):
    """Every element of a page with its attributes, in order, and the text of the page."""

    def __init__(self, text):
        super().__init__()
        self.found, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for found, attributes in self.found if found == tag]


def make_result(folder, name, metrics, target=True, size=SIZE):
    width, height = size
    y, x = np.mgrid[:height, :width]
    result = np.uint8(np.dstack([x % 256, y % 256, 0 * x]))
    path = folder / f"{name}_level_1_orig.png"
    Image.fromarray(result).save(path)
    photo_and_depth = np.full((height // 2, width // 2, 4), (10, 60, 110, 200), np.uint8)
    pictures = results_page.write_thumbnails(path, photo_and_depth, result, result if target else None, "depth")
    return results_page.Result(name, path, size, metrics, pictures)


@pytest.fixture
def page(tmp_path):
    """The page of five photos with odd names and one that could not be rendered, its elements, and its folder."""
    results = [make_result(tmp_path, name, dict(zip(METRICS, (20.123 + number, 0.5, math.nan))))
               for number, name in enumerate(NAMES[:4])] + [make_result(tmp_path, NAMES[4], {}, target=False)]
    path = results_page.write_page(tmp_path, RUN, {"Level": 1, "Photos": "a & <b>"}, results,
                                   ["photos/x<y>.jpg: is damaged"], 6)
    return tmp_path, Elements(path.read_text(encoding="utf-8"))


def test_every_link_and_picture_leads_to_a_file_whatever_the_photos_are_called(page):
    folder, elements = page
    addresses = [link["href"] for link in elements.all("a")] + [image["src"] for image in elements.all("img")]
    assert len(elements.all("a")) == len(NAMES) and len(addresses) > 4 * len(NAMES)
    for address in addresses:
        assert not urllib.parse.urlsplit(address).query and (folder / urllib.parse.unquote(address)).is_file()


def test_names_and_settings_are_shown_as_they_are(page):
    _, elements = page
    texts = "a & <b>", "photos/x<y>.jpg: is damaged", "5 of 6 photos", "21.12 dB", "Mean PSNR", "too small"
    assert all(text in elements.text for text in (*NAMES, *texts))
    assert len(elements.all("article")) == len(NAMES) and not elements.all("b")


def test_page_needs_nothing_but_its_own_files_and_loads_pictures_when_they_are_seen(page):
    _, elements = page
    assert all(image["loading"] == "lazy" for image in elements.all("img"))
    assert not elements.all("link") and all("src" not in script for script in elements.all("script"))
    assert any("width=device-width" in meta.get("content", "") for meta in elements.all("meta"))


def test_every_photo_has_a_slider_for_pointer_and_keyboard_with_a_label(page):
    _, elements = page
    sliders = [element for element in elements.all("input") if element["type"] == "range"]
    assert len(sliders) == len(NAMES)
    assert all(name in slider["aria-label"] for name, slider in zip(NAMES, sliders))


def test_target_is_offered_where_there_is_one_and_the_depth_map_always(page):
    _, elements = page
    addresses = [image["src"] for image in elements.all("img")]
    assert sum(".target.jpg" in address for address in addresses) == 4
    assert sum(".depth.jpg" in address for address in addresses) == 5
    assert len(elements.all("button")) == 3 * 4 + 2


def test_cards_carry_what_they_are_sorted_by(page):
    _, elements = page
    assert len(elements.all("option")) == 1 + len(METRICS)
    keys = [[float(key) for key in card["data-keys"].split()] for card in elements.all("article")]
    assert [key[0] for key in keys] == [0, 1, 2, 3, 4]
    assert [key[1] for key in keys[:4]] == pytest.approx([20.123, 21.123, 22.123, 23.123])
    assert keys[4][1] == keys[0][3] == 1e9  # without a target, too small: last


def test_table_holds_every_photo_with_its_metrics(page):
    folder, _ = page
    with open(folder / f"metrics_{RUN}.csv", newline="", encoding="utf-8") as table:
        rows = list(csv.DictReader(table))
    assert list(rows[0]) == ["photo", "result", "width", "height", *METRICS]
    assert [row["photo"] for row in rows] == NAMES
    assert rows[0] == {"photo": "7", "result": "7_level_1_orig.png", "width": "120", "height": "80", "PSNR": "20.123",
                       "SSIM": "0.5", "MS-SSIM": ""}
    assert rows[4]["PSNR"] == ""


def test_small_pictures_of_one_photo_have_one_size(tmp_path):
    result = make_result(tmp_path, "a", {}, size=(3000, 1500))
    sizes = {Image.open(tmp_path / results_page.PICTURES / name).size for name in result.pictures.values()}
    assert sizes == {(768, 384)} and set(result.pictures) == {"photo", "depth", "result", "target"}
    assert all((tmp_path / results_page.PICTURES / name).stat().st_size < 150_000 for name in result.pictures.values())


def test_page_of_300_photos_is_small(tmp_path):
    result = make_result(tmp_path, "photo", dict.fromkeys(METRICS, 0.5))
    path = results_page.write_page(tmp_path, RUN, {}, 300 * [result], [], 300)
    assert path.stat().st_size < 700_000


def test_runs_do_not_replace_each_others_page_and_index_shows_the_latest_with_links_to_the_others(page):
    folder, _ = page
    for photo in ("first", "second"):
        results_page.write_page(folder, "level_3_orig", {}, [make_result(folder, photo, {})], [], 1)
    latest, earlier = (Elements((folder / name).read_text(encoding="utf-8"))
                       for name in ("index.html", f"index_{RUN}.html"))
    assert len(latest.all("article")) == 1 and "second" in latest.text and "first" not in latest.text
    assert latest.all("a")[0]["href"] == f"index_{RUN}.html"
    assert len(earlier.all("article")) == len(NAMES)
    assert (folder / "metrics_level_3_orig.csv").read_text().endswith("height\nsecond,second_level_1_orig.png,120,80\n")
    assert (folder / f"metrics_{RUN}.csv").read_text().count("\n") == 1 + len(NAMES)
    assert not list(folder.glob("*.partial*")) and not list(folder.glob(".*"))


def test_metrics_in_words():
    values = {"PSNR": 23.4149, "SSIM": 0.86514, "MS-SSIM": math.nan}
    assert results_page.metrics_text(values) == "PSNR 23.41 dB, SSIM 0.8651, MS-SSIM photo too small"
    assert results_page.metric_text("PSNR", math.inf) == "inf dB"


def test_means_leave_out_photos_without_target_and_those_too_small():
    found = [{"PSNR": 20.0, "SSIM": math.nan}, {}, {"PSNR": 23.0, "SSIM": math.nan}]
    means = results_page.mean_metrics(found)
    assert means["PSNR"] == 21.5 and math.isnan(means["SSIM"])
    assert results_page.mean_metrics([{}]) == {}

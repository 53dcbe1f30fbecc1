"""support/results_page.py: what the page and the table of a test run hold, whatever the photos are called.

How the page looks and sorts was tried in a browser; here its elements are read.
"""

import csv
import html.parser
import json
import math
import os
import re
import urllib.parse

import numpy as np
import pytest
from PIL import Image, ImageCms

import utils
from support import results_page

METRICS = ("PSNR", "SSIM", "MS-SSIM")
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


def make_result(folder, name, metrics, target=True, size=SIZE, profile=None):
    folder.mkdir(parents=True, exist_ok=True)
    width, height = size
    y, x = np.mgrid[:height, :width]
    result = np.uint8(np.dstack([x % 256, y % 256, 0 * x]))
    path = folder / f"{name}_level_1_orig.png"
    Image.fromarray(result).save(path)
    photo_and_depth = np.full((height // 2, width // 2, 4), (10, 60, 110, 200), np.uint8)
    pictures = results_page.write_thumbnails(path, photo_and_depth, result, result if target else None, "depth",
                                             profile)
    return results_page.Result(name, path, size, metrics, pictures)


@pytest.fixture
def page(tmp_path):
    """The page of five photos with odd names and one that could not be rendered, its elements, and its folder."""
    results = [make_result(tmp_path, name, dict(zip(METRICS, (20.123 + number, 0.5, math.nan))))
               for number, name in enumerate(NAMES[:4])] + [make_result(tmp_path, NAMES[4], {}, target=False)]
    path = results_page.write_page(tmp_path, {"level": 1, "photos": "a & <b>"}, {"Origin": "here"}, results,
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
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as table:
        rows = list(csv.DictReader(table))
    assert list(rows[0]) == ["photo", "result", "width", "height", *METRICS]
    assert [row["photo"] for row in rows] == [*NAMES, "mean"]
    assert float(rows[-1]["PSNR"]) == pytest.approx(21.623) and rows[-1]["MS-SSIM"] == ""
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
    path = results_page.write_page(tmp_path, {}, {}, 300 * [result], [], 300)
    assert path.stat().st_size < 700_000


def test_thumbnails_keep_the_photos_colour_profile(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    result = make_result(tmp_path, "a", {}, profile=profile)
    found = {kind: Image.open(tmp_path / results_page.PICTURES / name).info.get("icc_profile")
             for kind, name in result.pictures.items()}
    assert found == {"photo": profile, "result": profile, "target": profile, "depth": None}


def test_cells_that_a_spreadsheet_would_compute_are_text(tmp_path):
    names = ["=1+1", "+1", "-1", "@a"]
    results = [make_result(tmp_path, name, {"PSNR": -3.5}) for name in names]
    results_page.write_page(tmp_path, {}, {}, results, [], 4)
    with open(tmp_path / "metrics.csv", newline="", encoding="utf-8") as table:
        rows = list(csv.DictReader(table))
    assert [row["photo"] for row in rows] == [*(f"'{name}" for name in names), "mean"]
    assert rows[0]["result"].startswith("'=1+1_") and float(rows[0]["PSNR"]) == -3.5


def test_names_that_are_no_utf_8_are_shown_and_linked(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    path = results_page.write_page(tmp_path, {}, {}, [make_result(tmp_path, name, {})], [f"{name}: is damaged"], 2)
    elements = Elements(path.read_text(encoding="utf-8"))
    address = elements.all("a")[0]["href"]
    assert (tmp_path / os.fsdecode(urllib.parse.unquote_to_bytes(address))).is_file() and "caf\\udce9" in elements.text


def test_settings_are_written_as_json_with_the_means(page):
    about = json.loads((page[0] / "settings.json").read_text())
    assert about["settings"] == {"level": 1, "photos": "a & <b>"} and (about["rendered"], about["photos"]) == (5, 6)
    assert about["means"] == {"PSNR": pytest.approx(21.623), "SSIM": 0.5, "MS-SSIM": None}


def test_index_lists_the_runs_latest_first_and_what_is_not_a_run_is_left_out(workplace):
    for number, run in enumerate(["a <b>", "c"]):
        folder = utils.FULL_RESOLUTION / run
        result = make_result(folder, "x", {"PSNR": 20.0 + number})
        results_page.write_page(folder, {"weights": "models/w"}, {}, [result], [], 2)
        about = json.loads((folder / "settings.json").read_text())
        (folder / "settings.json").write_text(json.dumps(about | {"date": f"2026-01-0{number + 1}"}))
    for content in ("{", "[]", '{"date": 1}'):
        folder = utils.FULL_RESOLUTION / f"not a run {len(content)}"
        folder.mkdir()
        (folder / "settings.json").write_text(content)
    folder = utils.FULL_RESOLUTION / "a <b>"
    page = results_page.write_page(folder, {"weights": "models/w"}, {}, [make_result(folder, "x", {})], [], 1)
    index = Elements((utils.FULL_RESOLUTION / "index.html").read_text(encoding="utf-8"))
    assert [link["href"] for link in index.all("a")] == ["a%20%3Cb%3E/index.html", "c/index.html"]
    assert "1 of 2" in index.text and "PSNR 21.00 dB" in index.text and "models/w" in index.text
    assert Elements(page.read_text()).all("a")[0]["href"] == "../index.html"


def test_name_of_a_run_is_that_of_the_photos_with_a_checksum_of_all_that_counts():
    name = results_page.run_name("somewhere/2024.05/", "level_1_small", {"a": 1})
    assert re.fullmatch(r"2024\.05_level_1_small-[0-9a-f]{8}", name)
    assert name != results_page.run_name("somewhere/2024.05/", "level_1_small", {"a": 2})
    assert len(os.fsencode(results_page.run_name("é" * 120, "level_1_small", {}))) < 100


def test_metrics_in_words():
    values = {"PSNR": 23.4149, "SSIM": 0.86514, "MS-SSIM": math.nan}
    assert results_page.metrics_text(values) == "PSNR 23.41 dB, SSIM 0.8651, MS-SSIM photo too small"
    assert results_page.metric_text("PSNR", math.inf) == "inf dB"


def test_means_leave_out_photos_without_target_and_those_too_small():
    found = [{"PSNR": 20.0, "SSIM": math.nan}, {}, {"PSNR": 23.0, "SSIM": math.nan}]
    means = results_page.mean_metrics(found)
    assert means["PSNR"] == 21.5 and math.isnan(means["SSIM"])
    assert results_page.mean_metrics([{}]) == {}

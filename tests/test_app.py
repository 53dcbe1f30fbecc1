"""tools/app.py: a page that renders what test_model.py renders, for its own machine only, and answers in sentences."""

import contextlib
import functools
import json
import pathlib
import shlex
import shutil
import sys
import time

import numpy as np
import pytest
from PIL import Image

import test_model
import utils
from tools import app

SIZE = 192, 160
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = ("headless", "no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking",
         "disable-component-update", "disable-sync", "window-size=1400,1400")


def test_one_line_says_that_gradio_is_missing(call, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert call(app) == (1, "", "error: gradio is missing: pip install gradio\n")


def test_weights_are_chosen_as_in_test_model(call):
    outcome = call(app, "small=true", "orig=true")
    assert outcome.status == 2 and "give only one" in outcome.err


def test_a_page_that_is_stopped_leaves_no_files(call, monkeypatch):
    folders = []

    def stop(settings, folder):
        (folder / "upload.jpg").touch()
        folders.append(folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(app, "open_page", stop)
    assert call(app).status == 0
    assert len(folders) == 1 and not folders[0].exists()


@pytest.fixture(scope="module")
def page(module_workplace, small_checkpoint, link_checkpoint):
    """A page with one example. In place of the small network is one for focus maps with random weights."""
    pytest.importorskip("gradio")
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(utils, "SMALL", module_workplace / utils.MODELS / "small" / utils.SMALL.name)
        patches.setattr(app, "SCENES", 1)
        patches.setattr(app, "RESTING", 0)
        link_checkpoint(small_checkpoint, utils.SMALL)
        utils.SMALL.with_name(f"{utils.SMALL.name}.json").write_text(json.dumps({"maps": "focus"}))
        (module_workplace / "empty.onnx").touch()
        settings = utils.parse_arguments(["depth_model=empty.onnx"], app.PARAMETERS, app.USAGE)
        page = app.open_page(settings, module_workplace / "page")
        yield page
        page.close(verbose=False)


@pytest.fixture
def client(page, tmp_path):
    """client("/open", photo, depth) calls what a button of the page calls, in one visit."""
    from gradio_client import Client, handle_file
    visit = Client(page.local_url, verbose=False, download_files=tmp_path / "downloads")

    def ask(name, *values):
        return visit.predict(*(handle_file(value) if isinstance(value, pathlib.Path) else value for value in values),
                             api_name=name)
    return ask


@pytest.mark.parametrize("focus, aperture", [("", 1), ("0.25,0.6", 1.5)])
def test_the_page_gives_what_test_model_writes_to_the_byte(client, call, small_dataset, tmp_path, focus, aperture):
    Image.open(small_dataset / "test/original/0.jpg").save("photo.png", icc_profile=rgb_profile())
    shutil.copy(small_dataset / "test/original_depth/0.png", "map.png")
    client("/open", pathlib.Path("photo.png"), pathlib.Path("map.png"))
    _, _, command, _ = client("/render_quickly", focus, aperture)
    (_, shown), download = client("/render_whole", focus, aperture, ".png")
    outcome = call(test_model, *shlex.split(command)[2:], f"out={tmp_path}")
    assert outcome.status == 0, outcome
    written = tmp_path / pathlib.Path(download["value"]).name
    assert pathlib.Path(shown).read_bytes() == pathlib.Path(download["value"]).read_bytes() == written.read_bytes()
    assert Image.open(written).size == SIZE and Image.open(written).info["icc_profile"] == rgb_profile()


def test_a_click_changes_the_picture_and_the_command(client, small_dataset):
    files = small_dataset / "test/original/1.jpg", small_dataset / "test/original_depth/1.png"
    client("/open", *files)
    pictures, commands = [], []
    for focus, aperture in (("0.5,0.5", 1), ("0.05,0.05", 1), ("0.05,0.05", 0.2)):
        _, (_, rendering), command, _ = client("/render_quickly", focus, aperture)
        pictures.append(np.float32(Image.open(rendering)))
        commands.append(command)
    assert min(np.abs(first - second).mean() for first, second in zip(pictures, pictures[1:])) > 0.05
    assert "focus=0.5,0.5" in commands[0] and "focus=0.05,0.05" in commands[1] and "aperture=0.2" in commands[2]


@pytest.mark.parametrize("photo, depth, sentence", [
    ("", "", "no photo: drop one on the page first"),
    ("text.jpg", "0.png", "text.jpg: is damaged, or no JPEG, PNG, WebP or TIFF"),
    ("one_pixel.png", "0.png", "one_pixel.png: is 1 x 1; each side must have at least 64 pixels"),
    ("0.jpg", "text.jpg", "text.jpg: is damaged, or no PNG"),
    ("0.jpg", "turned.png", "turned.png: is 80 x 96 and lies on its side"),
    ("0.jpg", "", "empty.onnx: cannot be loaded"),
    ("<b>.jpg", "0.png", "b.jpg: is damaged"),
])
def test_a_bad_upload_is_answered_in_a_sentence(client, small_dataset, tmp_path, photo, depth, sentence):
    shutil.copy(small_dataset / "test/original/0.jpg", tmp_path)
    shutil.copy(small_dataset / "test/original_depth/0.png", tmp_path)
    Image.open(tmp_path / "0.png").transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png")
    Image.new("RGB", (1, 1)).save(tmp_path / "one_pixel.png")
    for name in ("text.jpg", "<b>.jpg"):
        (tmp_path / name).write_text("no picture")
    with pytest.raises(Exception, match=sentence) as failure:
        client("/open", *(tmp_path / name if name else None for name in (photo, depth)))
    assert "Traceback" not in str(failure.value) and "/gradio" not in str(failure.value)


def test_the_page_answers_to_its_own_name_only(page):
    import httpx
    assert httpx.get(page.local_url).status_code == 200
    assert httpx.get(page.local_url, headers={"Host": "elsewhere.example"}).status_code == 400


@pytest.mark.skipif(not CHROMIUM or not shutil.which("chromedriver"), reason="no chromium and chromedriver")
def test_in_a_browser_a_photo_is_opened_clicked_and_downloaded_and_nothing_is_fetched_elsewhere(
        page, small_dataset, tmp_path, monkeypatch):
    pytest.importorskip("selenium")
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")  # for selenium's calls of chromedriver
    files = small_dataset / "test/original/1.jpg", small_dataset / "test/original_depth/1.png"
    with browser(tmp_path) as driver:
        driver.get(page.local_url)
        first = rendering(driver)
        for zone, file in zip(driver.find_elements("css selector", "input[type=file]"), files):
            zone.send_keys(str(file))
        wait(lambda: all(file.name in driver.page_source for file in files))
        press(driver, "Open")
        opened = rendering(driver, first)
        driver.find_element("css selector", "#clicked img").click()
        clicked = rendering(driver, opened)
        driver.find_element("css selector", "input[type=range]").send_keys("\ue010")  # End
        moved = rendering(driver, clicked)
        command = driver.find_element("css selector", "#command textarea").get_attribute("value")
        assert "focus=0.5" in command and "aperture=2.0" in command
        press(driver, "Download")
        wait((tmp_path / moved.rpartition("/")[2]).exists)
        messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
        requests = [message["params"]["request"]["url"] for message in messages
                    if message["method"] == "Network.requestWillBeSent"]
        own = page.local_url, "data:", "blob:", "chrome:"
        assert page.local_url in requests and [url for url in requests if not url.startswith(own)] == []
        assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []
    assert Image.open(tmp_path / "1_level_1_small.png").size == SIZE


@contextlib.contextmanager
def browser(downloads):
    from selenium import webdriver
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"user-data-dir={downloads / 'profile'}"):
        options.add_argument(f"--{flag}")
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


def wait(condition, seconds=120):
    """Waits until a condition is true, and returns its value."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)
    return value


def rendering(driver, before=None):
    """Waits for a rendering at full size other than the one before. Returns its address."""
    script = "return [...document.querySelectorAll('#compared img')].map(image => image.src)"
    return wait(lambda: next((address for address in driver.execute_script(script)
                              if address.endswith("_level_1_small.png") and address != before), None))


def press(driver, label):
    next(button for button in driver.find_elements("css selector", "button, a") if label in button.text).click()


@functools.cache  # it holds its date
def rgb_profile():
    from PIL import ImageCms
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()

"""utils.py: pictures and files on the disk, the progress line, and what a failed write does.

How scripts are called is in test_command_line.py.
"""

import io
import sys

import numpy as np
import pytest
from PIL import Image

import utils
from utils import DataError


class Terminal(io.StringIO):

    def isatty(self):
        return True


# Pictures ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def picture():
    """uint8 (64, 96, 3), with a slow change of colour, as JPEG likes it."""
    y, x = np.mgrid[:64, :96]
    return np.uint8(np.dstack([2 * x, 3 * y, 255 - 2 * x]))


def test_png_holds_the_very_pixels(tmp_path, picture):
    utils.write_image(tmp_path / "results" / "a.png", picture)
    utils.write_image(tmp_path / "results" / "A.PNG", picture)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "results" / "a.png")), picture)


def test_jpeg_keeps_colours_at_full_resolution(tmp_path, picture):
    picture[:, ::2, 0] = 0  # columns of another colour, which subsampled colours would blur
    utils.write_image(tmp_path / "a.jpg", picture)
    with Image.open(tmp_path / "a.jpg") as written:
        assert written.format == "JPEG" and written.size == (96, 64)
        assert np.abs(np.asarray(written, float) - picture).mean() < 3


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_picture_whose_writing_fails_leaves_the_older_one_and_no_half_file(tmp_path, picture, monkeypatch, name):
    utils.write_image(tmp_path / name, picture)
    before = (tmp_path / name).read_bytes()

    def save_half(image, file, **_):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", save_half)
    with pytest.raises(OSError):
        utils.write_image(tmp_path / name, picture)
    assert (tmp_path / name).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_floats_are_rounded_and_clipped_to_8_bits():
    values = np.float32([-0.08, 0, 0.0019, 0.0021, 0.5, 254.4 / 255, 254.6 / 255, 1, 1.08])
    np.testing.assert_array_equal(utils.to_uint8(values), [0, 0, 0, 1, 128, 254, 255, 255, 255])
    assert utils.to_uint8(values).dtype == np.uint8


# Other files ---------------------------------------------------------------------------------------------------------


def test_file_appears_whole_or_not_at_all(tmp_path):
    with utils.whole_file(tmp_path / "a.txt") as partial:
        partial.write_text("first")
        assert [path.name for path in tmp_path.iterdir()] == [".a.partial.txt"]
    with pytest.raises(KeyboardInterrupt), utils.whole_file(tmp_path / "a.txt") as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.txt": "first"}


def test_folders_are_made_and_one_that_cannot_be_written_is_named(tmp_path):
    utils.prepare_folders(tmp_path / "a" / "b")
    assert list(tmp_path.rglob("*")) == [tmp_path / "a", tmp_path / "a" / "b"]
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file/c/: cannot be written"):
        utils.prepare_folders(tmp_path / "file" / "c")


def test_a_terminal_that_is_gone_ends_nothing(monkeypatch):
    class Gone(Terminal):
        def write(self, text):
            raise OSError(5, "Input/output error")
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, Gone())
    utils.say("text")
    utils.warn("text")


# Files and systems ---------------------------------------------------------------------------------------------------


def test_a_full_disk_names_the_file(tmp_path):
    with pytest.raises(OSError, match=r"No space left on device.*a\.png"), utils.whole_file(tmp_path / "a.png"):
        raise OSError(28, "No space left on device")


def test_a_system_without_posix_locks_is_one_line_that_names_wsl2(run_python, tmp_path):
    for name in ("train_model", "test_model", "tools.demo"):
        done = run_python(f"import sys\nsys.modules['fcntl'] = None\nsys.argv += ['help']\nimport {name}", cwd=tmp_path)
        assert done == (1, "", "error: this needs Linux or macOS; on Windows, run it in WSL2\n")


# Progress ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets: clock.now, in seconds."""
    class Clock:
        now = 1000.0
    monkeypatch.setattr(utils.time, "monotonic", lambda: Clock.now)
    return Clock


def run_loop(clock, iterations, seconds_each):
    progress = utils.ProgressLine(0, iterations, "level 7, iteration")
    for done in range(1, iterations + 1):
        clock.now += seconds_each
        progress.update(done, f"loss {1 / done:.4g}")
    progress.clear()


def test_outside_a_terminal_progress_is_a_plain_line_now_and_then(clock, capsys):
    run_loop(clock, 200, seconds_each=0.5)
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert out.endswith("\n") and "\r" not in out and "\033" not in out
    assert len(lines) == 3  # 100 seconds, one line every 30
    assert lines[0] == "level 7, iteration 60/200 | loss 0.01667 | 2 it/s | 1:10 left"


def test_in_a_terminal_progress_is_one_live_line(clock, monkeypatch):
    monkeypatch.setattr(sys, "stdout", Terminal())
    run_loop(clock, 200, seconds_each=0.5)
    out = sys.stdout.getvalue()
    assert "\n" not in out and out.count("\r") == 201
    assert "level 7, iteration 60/200 | loss 0.01667 | 2 it/s | 1:10 left" in out
    assert out.endswith("\r\033[K")


@pytest.mark.parametrize("seconds, text", [(0, "0:00"), (59.6, "1:00"), (70, "1:10"), (3723, "1:02:03"),
                                           (360000, "100:00:00")])
def test_durations_are_in_hours_minutes_and_seconds(seconds, text):
    assert utils.duration(seconds) == text

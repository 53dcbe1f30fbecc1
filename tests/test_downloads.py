"""support/downloads.py and tools/download.py: what comes is whole and what it should be, or nothing comes.

A server on this machine stands for the addresses.
"""

import hashlib
import http.server
import io
import pathlib
import socket
import threading
import zipfile

import pytest

import utils
import vgg
from support import checkpoints, depth_networks, downloads
from tools import download
from utils import DataError

FILE = bytes(range(256)) * 4096  # 1 MB


class Handler(http.server.BaseHTTPRequestHandler):
    """Gives what `files` of the server holds. "cut" is a broken connection, "slow" never ends."""

    def do_GET(self):
        name = self.path.lstrip("/")
        self.server.asked.append(name)
        if name not in self.server.files:
            return self.send_error(404)
        body = self.server.files[name]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if name not in ("cut", "slow") else body[:len(body) // 2])
        if name == "slow":
            self.wfile.flush()
            self.server.go_on.wait(30)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    """A web server, with its address and {name: content} of what it gives, and the names that were asked for."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.address, running.asked = f"http://127.0.0.1:{running.server_port}", []
        running.files, running.go_on = {"whole": FILE, "cut": FILE, "slow": FILE}, threading.Event()
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.go_on.set()
        running.shutdown()


@pytest.fixture
def place(workplace, server, monkeypatch):
    """place(name, "cut", "whole") lets a name of DOWNLOADS have these addresses, with the checksum of FILE."""
    def change(name, *files, sha256=hashlib.sha256(FILE).hexdigest()):
        addresses = [file if "://" in file else f"{server.address}/{file}" for file in files]
        row = downloads.DOWNLOADS[name]._replace(addresses=tuple(addresses), sha256=sha256)
        monkeypatch.setitem(downloads.DOWNLOADS, name, row)
        return row.path
    return change


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in pathlib.Path(folder).rglob("*") if path.is_file())


# Fetching ------------------------------------------------------------------------------------------------------------


def test_whole_file_comes_with_a_line_that_says_from_where_how_much_and_which_licence(place, server, capsys):
    path = place("vgg19", "whole")
    assert downloads.fetch("vgg19") == path and path.read_bytes() == FILE
    assert capsys.readouterr().out == f"Fetching {server.address}/whole: about 535 MB, licence CC BY 4.0\n"
    assert files_in(path.parent) == [path.name] and not list(path.parent.glob(".*"))


def test_file_that_is_there_is_not_fetched(place, server):
    path = place("vgg19", "whole")
    path.parent.mkdir()
    path.write_text("the user's own")
    assert downloads.fetch("vgg19") == path and path.read_text() == "the user's own" and server.asked == []


@pytest.mark.parametrize("name, reason", [("cut", "retrieval incomplete"), ("missing", "404"),
                                          ("other", "hash does not match"), ("http://127.0.0.1:1/x", "refused")])
def test_next_address_is_tried_and_then_one_line_says_which_file_to_put_where(place, server, name, reason):
    server.files["other"] = FILE[:-1] + b"x"
    path = place("vgg19", name, "whole")
    downloads.fetch("vgg19")
    assert path.read_bytes() == FILE
    path.unlink()
    place("vgg19", name, name)
    with pytest.raises(DataError) as error:
        downloads.fetch("vgg19")
    text = str(error.value)
    assert text.startswith(f"{path}: could not be fetched; put the file there that one of these addresses has: ")
    assert text.count(name if "://" in name else f"{server.address}/{name}: ") == 2 and reason in text
    assert "\n" not in text and files_in(path.parent) == [] and not list(path.parent.iterdir())


def test_silent_server_counts_as_gone(place, server, monkeypatch):
    monkeypatch.setattr(downloads, "SECONDS_OF_SILENCE", 0.3)
    path = place("vgg19", "slow", "whole")
    assert downloads.fetch("vgg19").read_bytes() == FILE and files_in(path.parent) == [path.name]
    assert socket.getdefaulttimeout() is None


def test_checksum_that_nobody_knows_is_printed(place, capsys):
    place("midas_v21_small", "whole", sha256=None)
    downloads.fetch("midas_v21_small")
    assert hashlib.sha256(FILE).hexdigest() in capsys.readouterr().out


def test_process_that_is_killed_half_way_leaves_no_half_file(place, server, run_python, workplace):
    place("vgg19", "slow")
    code = f"""if True:
        import os, sys, threading, time
        from support import downloads
        row = downloads.DOWNLOADS["vgg19"]._replace(addresses=({server.address + "/slow"!r},))
        downloads.DOWNLOADS["vgg19"] = row
        def kill():
            while not any(path.stat().st_size for path in row.path.parent.glob(".*/*")):
                time.sleep(0.01)
            os._exit(9)
        threading.Thread(target=kill).start()
        downloads.fetch("vgg19")
        """
    assert run_python(code, cwd=workplace).status == 9
    path = place("vgg19", "whole")
    assert not path.exists() and list(path.parent.glob(".*"))  # which the next call clears away
    assert downloads.fetch("vgg19") == path and files_in(path.parent) == [path.name]


def test_address_and_checksum_of_vgg19_are_those_that_loading_knows():
    row = downloads.DOWNLOADS["vgg19"]
    assert row.sha256 == vgg.SHA256 and vgg.DOWNLOAD in row.addresses


def test_every_known_depth_network_has_a_preset_and_lies_in_models_depth():
    for name, preset in depth_networks.NAMED.items():
        assert preset in depth_networks.PRESETS
        assert downloads.DOWNLOADS[name].path == pathlib.Path("models/depth") / f"{name}.onnx"


# The command ---------------------------------------------------------------------------------------------------------


def zip_of(files):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return content.getvalue()


@pytest.fixture
def weights(small_checkpoint):
    """The two files of a checkpoint under the released names, as {path in the zip file: content}."""
    return {f"PyNET/{utils.ORIGINAL.name}{suffix}": pathlib.Path(f"{small_checkpoint}{suffix}").read_bytes()
            for suffix in checkpoints.SUFFIXES}


def test_depth_network_and_vgg19_are_fetched_by_hand(place, call):
    for what, name in {"depth": "depth_anything_v2_small", "vgg19": "vgg19"}.items():
        path = place(name, "whole")
        done = call(download, f"what={what}")
        assert (done.status, done.err) == (0, "") and done.out.splitlines()[-1] == f"Ready: {path}"
        assert path.read_bytes() == FILE


def test_weights_are_unpacked_under_their_released_names_and_checked(place, server, call, weights):
    server.files["zip"] = zip_of({"../../evil.py": b"", "/evil.py": b"", "read me.txt": b""} | weights)
    path = place("weights", "missing", "zip", sha256=None)
    done = call(download, "what=weights")
    assert (done.status, done.err) == (0, "") and "Checked: 440 variables\nReady: models/original/" in done.out
    assert files_in(".") == sorted(str(path.parent / pathlib.Path(name).name) for name in weights)
    assert checkpoints.network_of(utils.ORIGINAL)["width_multiplier"] == 0.125
    assert not list(path.parent.glob(".*")) and not (path.parents[2].parent / "evil.py").exists()
    server.asked.clear()
    assert call(download, "what=weights").status == 0 and server.asked == []


@pytest.mark.parametrize("kind, reason", [("html", "is no zip file"), ("others", "must be in it"),
                                          ("flipped", "cannot be used"), ("not PyNET", "cannot be used")])
def test_zip_file_that_holds_no_weights_is_one_line_and_leaves_nothing(place, server, call, weights, kind, reason):
    files = {name: data if kind != "not PyNET" else b"x" for name, data in weights.items()}
    content = zip_of({"a.txt": b"x"} if kind == "others" else files)
    middle = len(content) // 2
    server.files["zip"] = {"html": b"<html>Not found</html>",
                           "flipped": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1:]
                           }.get(kind, content)
    path = place("weights", "zip", sha256=None)
    done = call(download, "what=weights")
    assert done.status == 1 and done.err.count("\n") == 1 and reason in done.err and str(path) in done.err
    assert set(files_in(path.parent)) <= {path.name} and not list(path.parent.glob(".*"))


def test_wrong_call_is_answered_before_anything_is_fetched(place, server, call):
    place("vgg19", "whole")
    done = call(download, "what=vgg")
    assert done.status == 2 and "depth, vgg19 or weights" in done.err and server.asked == []

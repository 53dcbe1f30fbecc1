"""What is fetched from where, under which checksum and licence?

Nothing is fetched where the file is there already. It comes into a folder beside its place first, so that no half file
is ever taken for a whole one.
"""

import contextlib
import hashlib
import io
import os
import pathlib
import shutil
import socket
import sys
from typing import NamedTuple

import utils
from support import devices
from utils import DataError, first_line

SECONDS_OF_SILENCE = 60  # after which a server counts as gone


class Download(NamedTuple):
    """A file that others publish: where it goes, its addresses in the order in which they are tried, about how many
    megabytes it has, its licence, and its SHA-256, None where none is known."""

    path: pathlib.Path
    addresses: tuple
    megabytes: int
    licence: str
    sha256: str | None = None


DEPTH = utils.MODELS / "depth"
DOWNLOADS = {
    "depth_anything_v2_small": Download(
        DEPTH / "depth_anything_v2_small.onnx",
        ("https://huggingface.co/onnx-community/depth-anything-v2-small/resolve/"
         "4472b7362082ad9968fee890ca0f1e5aca36b93d/onnx/model.onnx",),
        99, "Apache-2.0", "afb6a5c28f3b6bf1618c6e43f02073ef9dfdc70e937502d51603e57b0a1df10c"),
    "midas_v21_small": Download(
        DEPTH / "midas_v21_small.onnx",
        ("https://github.com/isl-org/MiDaS/releases/download/v2_1/model-small.onnx",), 67, "MIT"),
    "vgg19": Download(
        pathlib.Path("vgg_pretrained/imagenet-vgg-verydeep-19.mat"),
        ("http://www.vlfeat.org/matconvnet/models/imagenet-vgg-verydeep-19.mat",
         "https://polybox.ethz.ch/index.php/s/7z5bHNg5r5a0g7k/download"),
        535, "CC BY 4.0", "abdb57167f82a2a1fbab1e1c16ad9373411883f262a1a37ee5db2e6fb0044695"),
    "weights": Download(
        utils.ORIGINAL.parent / "PyNET_Bokeh_pretrained.zip",
        ("https://data.vision.ee.ethz.ch/ihnatova/public/ebb/PyNET_Bokeh_pretrained.zip",
         "https://download.ai-benchmark.com/s/RQXWD3eg5gSXLMa/download/PyNET_Bokeh_pretrained.zip"),
        190, "CC BY-NC-SA 4.0"),
}


def fetch(name, check=lambda path: None):
    """Fetches a file of DOWNLOADS where it is not there, and prints from where, how much and under which licence.

    check: called with the path of what came; the next address is tried where it raises DataError.

    Returns the path of the file. Raises DataError where no address gives it, which says what to put where.
    """
    path, addresses, megabytes, licence, sha256 = DOWNLOADS[name]
    if path.exists():
        return path
    utils.prepare_folders(path.parent)
    failures, partial = [], path.parent / f".{path.name}.partial"
    for address in addresses:
        print(f"Fetching {address}: about {megabytes} MB, licence {licence}", flush=True)
        shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
        partial.mkdir()
        try:
            came = _get_file(partial / path.name, address, sha256)
            check(came)
            if not sha256:
                utils.say(f"SHA-256, to compare with what others got: {hashlib.sha256(came.read_bytes()).hexdigest()}")
            return came.rename(path)
        except Exception as error:  # get_file raises many kinds
            failures.append(f"{address}: {first_line(error).removeprefix(f'URL fetch failure on {address}: ')}")
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    raise DataError(f"{path}: could not be fetched; put the file there that one of these addresses has: "
                    + "; ".join(failures))


def _get_file(path, address, sha256):
    if "tensorflow" not in sys.modules:
        devices.start_tensorflow()  # quietly, since keras imports it
    import keras
    silence, before = contextlib.ExitStack(), socket.getdefaulttimeout()
    if not sys.stdout.isatty():
        silence.enter_context(contextlib.redirect_stdout(io.StringIO()))  # of a line for each step of the progress bar
    socket.setdefaulttimeout(SECONDS_OF_SILENCE)
    try:
        with silence:
            return pathlib.Path(keras.utils.get_file(path.name, address, file_hash=sha256, hash_algorithm="sha256",
                                                     cache_dir=os.path.abspath(path.parent), cache_subdir=""))
    finally:
        socket.setdefaulttimeout(before)

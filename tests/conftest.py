"""What the tests share: reference data, networks built once, the VGG-19 file, generated photos, ways to call a script.

`tests/reference/` was computed with the original network, with weights of seed 1. Tests that compare with it need the
paper's network and are marked so; all others take the small network, an eighth as wide, with random weights.
"""

import contextlib
import csv
import functools
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
from typing import NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # the reference was computed on a CPU; a GPU rounds more (TF32)

os.environ |= {"http_proxy": "http://127.0.0.1:1", "https_proxy": "http://127.0.0.1:1", "no_proxy": "127.0.0.1"}
# So nothing is fetched, also by the processes that tests start.

import numpy as np
import pytest
from reference import reference_weights, vgg19_mat

import utils
from support import scripts
from tools import make_scenes

REPOSITORY = pathlib.Path(__file__).parent.parent
REFERENCE = pathlib.Path(__file__).parent / "reference"
VGG_SEED = 3  # of the .mat that vgg_seed3.npz and losses.json were computed with
LOCAL_SMALL = utils.MODELS / "small" / utils.SMALL.name  # in a workplace, so that no test writes to the repository's
QUICK = "width=0.125", "patch_size=64", "batch_size=1", "vgg_dir=none"  # arguments of a training that takes seconds


# Reference data and networks -----------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def reference():
    """reference("losses.json") gives the content: of .json as it is, of .npz as {name: array}, of .csv as row dicts."""
    def read(name):
        path = REFERENCE / name
        if path.suffix == ".json":
            return json.loads(path.read_text())
        if path.suffix == ".npz":
            with np.load(path) as arrays:
                return dict(arrays)
        with open(path, newline="") as table:
            return list(csv.DictReader(table))
    return read


@pytest.fixture(scope="session")
def seed_1_weights():
    """{checkpoint name: array}, the weights that the reference was computed with."""
    return dict(reference_weights.reference_weights(1))


@pytest.fixture(scope="session")
def pynet_and_start():
    """The paper's PyNET for inputs of unknown size, built with seed 0, and its {checkpoint name: start value}."""
    import model
    pynet = model.build_pynet(seed=0)
    return pynet, {name: variable.numpy() for name, variable in pynet.variables.items()}


@pytest.fixture(scope="session")
def pynet(pynet_and_start, seed_1_weights):
    """The same PyNET with the seed-1 weights. Read it only, or give the weights back."""
    assign(pynet_and_start[0], seed_1_weights)
    return pynet_and_start[0]


@pytest.fixture(scope="session")
def small_pynet():
    """PyNET with an eighth of the feature maps and He's random weights, for inputs of unknown size. Read it only."""
    import model
    return model.build_pynet(seed=1, width_multiplier=0.125, kernel_start="he")


@pytest.fixture(scope="session")
def small_checkpoint(small_pynet, tmp_path_factory):
    """The prefix of a checkpoint of 3 MB with the weights of `small_pynet`."""
    from support import checkpoints
    prefix = tmp_path_factory.mktemp("small") / "pynet_bokeh_small"
    checkpoints.save_checkpoint(small_pynet.variables, prefix)
    return prefix


def assign(pynet, weights):
    for name, value in weights.items():
        pynet.variables[name].assign(value)


@pytest.fixture(scope="session")
def vgg_file(tmp_path_factory):
    """A stand-in for imagenet-vgg-verydeep-19.mat, in its newer layout."""
    path = tmp_path_factory.mktemp("vgg") / "imagenet-vgg-verydeep-19.mat"
    vgg19_mat.write_mat(path, VGG_SEED, "newer")
    return path


@pytest.fixture(scope="session")
def vgg19(vgg_file):
    import vgg
    return vgg.load_vgg19(vgg_file)


@pytest.fixture(scope="session")
def seed_1_checkpoint(tmp_path_factory):
    """The prefix of a checkpoint file pair with the seed-1 weights, written without the project's code."""
    folder = tmp_path_factory.mktemp("weights")
    reference_weights.write_checkpoint(1, str(folder / "pynet_bokeh_level_0"))
    yield folder / "pynet_bokeh_level_0"
    shutil.rmtree(folder)  # pytest would keep these 190 MB, of three runs


@pytest.fixture(scope="session")
def link_checkpoint():
    """link_checkpoint(prefix, new_prefix) makes a checkpoint appear under another name as well."""
    def link(prefix, new_prefix):
        pathlib.Path(new_prefix).parent.mkdir(parents=True, exist_ok=True)
        for suffix in (".index", ".data-00000-of-00001"):
            os.link(f"{prefix}{suffix}", f"{new_prefix}{suffix}")
    return link


@pytest.fixture(scope="session")
def network_file(tmp_path_factory):
    """network_file("copy.tflite") is the path of that depth network, see depth_network_files.py."""
    folder = tmp_path_factory.mktemp("networks")

    @functools.cache
    def write(name):
        from depth_network_files import write_network
        return write_network(folder / name)
    return write


# Data ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    """A data set of 3 training and 3 test photos, as small as patches of 512 pixels allow. Read it only."""
    folder = tmp_path_factory.mktemp("data") / "ebb_dataset"
    make_scenes.write_dataset(folder, train_count=3, test_count=3, size=(1088, 1024))
    return folder


@pytest.fixture(scope="session")
def small_dataset(tmp_path_factory):
    """The same with photos for patches of 64 pixels, that is for `QUICK` trainings. Read it only."""
    folder = tmp_path_factory.mktemp("small_data") / "ebb_dataset"
    make_scenes.write_dataset(folder, train_count=3, test_count=3, size=(192, 160))
    return folder


def newest_result(name, folder="."):
    """The path of a rendered picture, in the folder of whatever run; of several, the newest."""
    paths = (pathlib.Path(folder) / utils.FULL_RESOLUTION).glob(f"*/{name}")
    return max(paths, key=lambda path: path.stat().st_mtime_ns)


# Trainings -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def fake_update(monkeypatch):
    """fake_update(function) lets trainings compute nothing: the loss of an update is function(iteration)."""
    from support import updates

    def install(loss):
        monkeypatch.setattr(updates, "make_update", lambda *_: lambda batch, iteration, learning_rate: loss(iteration))
    return install


# Calls ---------------------------------------------------------------------------------------------------------------


class Call(NamedTuple):
    """What a call of a script came to."""

    status: int
    out: str
    err: str


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """An empty folder, which is the current one, with models/ in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(utils, "SMALL", LOCAL_SMALL)
    utils.MODELS.mkdir()
    yield tmp_path
    shutil.rmtree(tmp_path / utils.MODELS)  # pytest would keep hundreds of MB


@pytest.fixture(scope="module")
def module_workplace(tmp_path_factory):
    """The same for all tests of a file: the current folder as long as these run."""
    folder = tmp_path_factory.mktemp("workplace")
    with pytest.MonkeyPatch.context() as patches:
        patches.chdir(folder)
        patches.setattr(utils, "SMALL", LOCAL_SMALL)
        utils.MODELS.mkdir()
        yield folder
    shutil.rmtree(folder / utils.MODELS)


@pytest.fixture(scope="session")
def call():
    """call(script, "key=value", ...) calls the main of a script module as its command line would: gives a `Call`."""
    def run(script, *arguments):
        with (pytest.MonkeyPatch.context() as patches, contextlib.redirect_stdout(io.StringIO()) as out,
              contextlib.redirect_stderr(io.StringIO()) as err):
            patches.setattr(sys, "argv", [script.__file__, *map(str, arguments)])
            try:
                status = scripts.run(script.main)
            except SystemExit as leaving:
                status = leaving.code or 0
        return Call(status, out.getvalue(), err.getvalue())
    return run


@pytest.fixture(scope="session")
def run_script():
    """run_script("train_model.py", "level=7", cwd=folder) runs a script as a process of its own, and gives a `Call`."""
    def run(name, *arguments, cwd, **environment):
        command = [sys.executable, str(REPOSITORY / name), *map(str, arguments)]
        done = subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True,
                              timeout=1200)
        return Call(done.returncode, done.stdout, done.stderr)
    return run


@pytest.fixture(scope="session")
def run_python():
    """run_python("print(1)", cwd=folder) runs code in a Python process that finds the project's modules."""
    def run(code, *, cwd, **environment):
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY)} | environment
        done = subprocess.run([sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True,
                              timeout=1200)
        return Call(done.returncode, done.stdout, done.stderr)
    return run

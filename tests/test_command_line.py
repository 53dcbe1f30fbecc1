"""The command line of both scripts: what they take, and the one clear line for a call that is wrong.

    python tests/test_command_line.py     prints the wrong calls with their answers
"""

import re
import shlex
import sys

import pytest
from conftest import REPOSITORY

import test_model
import train_model
import utils
from support import devices, scripts
from utils import DataError, UsageError

SCRIPTS = {"train_model.py": train_model, "test_model.py": test_model}

DEFAULTS = {  # as the help text shows them
    "train_model.py": {
        "level": "required", "batch_size": "50", "micro_batch": "its share of the batch", "patch_size": "512",
        "width": "1", "kernel_start": "paper at width 1, else he", "precision": "float32", "train_size": "4894",
        "eval_step": "1000", "learning_rate": "5e-05", "restore_iter": "last saved",
        "num_train_iters": "5000, 5000, 20000, 20000, 30000, 80000, 100000 for levels 7 ... 1",
        "vgg_dir": "vgg_pretrained/imagenet-vgg-verydeep-19.mat", "dataset_dir": "ebb_dataset/", "val_size": "0",
        "cache_dir": "none", "use_depth": "true", "resume": "false", "seed": "0", "max_to_keep": "100"},
    "test_model.py": {
        "level": "1", "orig": "false", "restore_iter": "last saved", "use_gpu": "true", "precision": "float32",
        "dataset_dir": "ebb_dataset/", "val_size": "0", "small": "false", "images_dir": "none",
        "depth_dir": "those inside the photos, or made by depth_model",
        "depth_model": "depth_anything_v2_small", "max_side": "1536, for photos larger than 1920"},
}

WRONG_CALLS = {  # the call, and what its one line has to say
    # the level
    "train_model.py": ["level", "is missing"],
    "train_model.py batch_size=5": ["level", "is missing"],
    "train_model.py level": ["level=VALUE"],
    "train_model.py level=": ["level=", "whole number"],
    "train_model.py level=0": ["level=0", "from 1 to 7"],
    "train_model.py level=8": ["level=8", "from 1 to 7"],
    "train_model.py level=-1": ["level=-1", "from 1 to 7"],
    "train_model.py level=seven": ["level=seven", "whole number"],
    "train_model.py level=7.0": ["level=7.0", "whole number"],
    "train_model.py level=1e0": ["level=1e0", "whole number"],
    "train_model.py level==7": ["level==7", "whole number"],
    "train_model.py level=7,6": ["level=7,6", "whole number"],
    "train_model.py level=٧": ["level=٧", "whole number"],
    "train_model.py level=1_0": ["level=1_0", "whole number"],
    "train_model.py level=99999999999999999999999": ["level=", "9999"],
    "train_model.py level = 7": ["level"],
    "train_model.py 'level =7'": ["level="],
    "train_model.py 'level=7\n8'": ["level=7"],
    "train_model.py level=7 level=6": ["level", "twice"],
    # names that are not quite right
    "train_model.py levle=7": ["levle=7", "did you mean level="],
    "train_model.py lvl=7": ["lvl=7", "level"],
    "train_model.py Level=7": ["Level=7", "did you mean level="],
    "train_model.py --level=7": ["--level=7", "did you mean level="],
    "train_model.py -level=7": ["-level=7", "did you mean level="],
    "train_model.py --level 7": ["--level", "did you mean level="],
    "train_model.py level=7 batchsize=5": ["batchsize=5", "did you mean batch_size="],
    "train_model.py level=7 batch-size=5": ["batch-size=5", "batch_size="],
    "train_model.py level=7 batch_sizes=5": ["batch_sizes=5", "did you mean batch_size="],
    "train_model.py level=7 trainsize=5": ["trainsize=5", "did you mean train_size="],
    "train_model.py level=7 eval_steps=5": ["eval_steps=5", "did you mean eval_step="],
    "train_model.py level=7 learning-rate=1e-4": ["learning-rate=1e-4", "learning_rate="],
    "train_model.py level=7 learnig_rate=1e-4": ["learnig_rate=1e-4", "did you mean learning_rate="],
    "train_model.py level=6 restore_iters=5": ["restore_iters=5", "did you mean restore_iter="],
    "train_model.py level=7 num_train_iter=5": ["num_train_iter=5", "did you mean num_train_iters="],
    "train_model.py level=7 vggdir=x": ["vggdir=x", "did you mean vgg_dir="],
    "train_model.py level=7 datasetdir=x": ["datasetdir=x", "did you mean dataset_dir="],
    "train_model.py level=7 DATASET_DIR=x": ["DATASET_DIR=x", "dataset_dir="],
    # names that mean nothing here
    "train_model.py level=7 now": ["now", "known arguments", "learning_rate"],
    "train_model.py 7": ["7", "known arguments", "level"],
    "train_model.py =7": ["=7", "known arguments"],
    "train_model.py ''": ["known arguments"],
    "train_model.py level=7 orig=true": ["orig=true"],
    "train_model.py level=7 gpu_count=2": ["gpu_count=2"],
    # values that are not possible
    "train_model.py level=7 batch_size=0": ["batch_size=0", "1 or more"],
    "train_model.py level=7 batch_size=-5": ["batch_size=-5", "1 or more"],
    "train_model.py level=7 batch_size=2.5": ["batch_size=2.5", "whole number"],
    "train_model.py level=7 batch_size=": ["batch_size=", "whole number"],
    "train_model.py level=7 train_size=0": ["train_size=0", "1 or more"],
    "train_model.py level=7 train_size=all": ["train_size=all", "whole number"],
    "train_model.py level=7 eval_step=0": ["eval_step=0", "1 or more"],
    "train_model.py level=7 learning_rate=0": ["learning_rate=0", "from"],
    "train_model.py level=7 learning_rate=-1e-4": ["learning_rate=-1e-4", "from"],
    "train_model.py level=7 learning_rate=100": ["learning_rate=100", "from"],
    "train_model.py level=7 learning_rate=fast": ["learning_rate=fast", "a number"],
    "train_model.py level=7 learning_rate=nan": ["learning_rate=nan", "a number"],
    "train_model.py level=7 learning_rate=inf": ["learning_rate=inf", "a number"],
    "train_model.py level=7 learning_rate=5e-5,": ["learning_rate=5e-5,", "a number"],
    "train_model.py level=6 restore_iter=0": ["restore_iter=0", "1 or more"],
    "train_model.py level=6 restore_iter=last": ["restore_iter=last", "whole number"],
    "train_model.py level=7 num_train_iters=0": ["num_train_iters=0", "1 or more"],
    "train_model.py level=7 num_train_iters=1e4": ["num_train_iters=1e4", "whole number"],
    "train_model.py level=7 vgg_dir=": ["vgg_dir=", "path"],
    "train_model.py level=7 'dataset_dir= '": ["dataset_dir=", "path"],
    "train_model.py level=7 patch_size=0": ["patch_size=0", "32 or more"],
    "train_model.py level=7 patch_size=512x512": ["patch_size=512x512", "whole number"],
    "train_model.py level=7 patchsize=256": ["patchsize=256", "did you mean patch_size="],
    "train_model.py level=7 width=0.3": ["width=0.3", "1, 0.5, 0.25 or 0.125"],
    "train_model.py level=7 width=2": ["width=2", "1, 0.5, 0.25 or 0.125"],
    "train_model.py level=7 kernel_start=x": ["kernel_start=x", "paper or he"],
    "train_model.py level=7 precision=float8": ["precision=float8", "float32, bfloat16 or float16"],
    "train_model.py level=7 val_size=-1": ["val_size=-1", "0 or more"],
    "train_model.py level=7 use_depth=no": ["use_depth=no", "true or false"],
    "train_model.py level=7 resume": ["resume=VALUE"],
    "train_model.py level=7 seed=-1": ["seed=-1", "from 0"],
    "train_model.py level=7 max_to_keep=0": ["max_to_keep=0", "1 or more"],
    # what does not go together
    "train_model.py level=7 restore_iter=1000": ["restore_iter", "level 7"],
    "train_model.py level=7 patch_size=500": ["patch_size=500", "multiple of 32"],
    "train_model.py level=7 micro_batch=3 batch_size=2": ["micro_batch=3", "at most batch_size=2"],
    # the other script
    "test_model.py level=0": ["level=0", "from 1 to 7"],
    "test_model.py level=8": ["level=8", "from 1 to 7"],
    "test_model.py level=full": ["level=full", "whole number"],
    "test_model.py level=1 level=2": ["level", "twice"],
    "test_model.py orig": ["orig=VALUE"],
    "test_model.py orig=yes": ["orig=yes", "true or false"],
    "test_model.py orig=1": ["orig=1", "true or false"],
    "test_model.py --orig=true": ["--orig=true", "did you mean orig="],
    "test_model.py original=true": ["original=true", "did you mean orig="],
    "test_model.py restore_iter=0": ["restore_iter=0", "1 or more"],
    "test_model.py restore_iter=latest": ["restore_iter=latest", "whole number"],
    "test_model.py orig=true restore_iter=1000": ["restore_iter", "orig=true"],
    "test_model.py orig=true small=true": ["small", "orig=true", "give only one"],
    "test_model.py small=true restore_iter=5": ["restore_iter", "small=true", "give only one"],
    "test_model.py use_gpu=0": ["use_gpu=0", "true or false"],
    "test_model.py use_gpu=": ["use_gpu=", "true or false"],
    "test_model.py usegpu=false": ["usegpu=false", "did you mean use_gpu="],
    "test_model.py use-gpu=false": ["use-gpu=false", "use_gpu="],
    "test_model.py gpu=false": ["gpu=false", "use_gpu"],
    "test_model.py dataset_dir=": ["dataset_dir=", "path"],
    "test_model.py batch_size=5": ["batch_size=5"],
    "test_model.py depth_model=midas_v21_small": ["depth_model", "images_dir is missing"],
    "test_model.py images_dir=photos depth_model=midas": ["depth_model=midas", "must be a file, or depth_anything_v2"],
    "test_model.py depth_dir=depth": ["images_dir", "is missing"],
    "test_model.py images_dir=photos depth_dir=depth dataset_dir=ebb_dataset/": ["images_dir", "dataset_dir"],
    "test_model.py images_dir=photos depth_dir=depth val_size=294": ["val_size", "data set"],
    "test_model.py images_dir=photos depth_dir=": ["depth_dir=", "path"],
    "test_model.py images_dir=photos depth_dir=./photos/": ["depth_dir=./photos/", "depth maps"],
    "test_model.py val_size=all": ["val_size=all", "whole number"],
    "test_model.py image_dir=photos": ["image_dir=photos", "did you mean images_dir="],
    "test_model.py depths_dir=depth": ["depths_dir=depth", "did you mean depth_dir="],
    "test_model.py max_side=1024": ["max_side", "images_dir"],
    "test_model.py detail=true level=2": ["detail=true", "level 1"],
    "test_model.py images_dir=photos depth_dir=depth max_side=63": ["max_side=63", "64 or more"],
    "test_model.py images_dir=photos depth_dir=depth max_side=large": ["max_side=large", "whole number"],
    "test_model.py ebb_dataset/": ["ebb_dataset/", "dataset_dir"],
}


def script_and_arguments(wrong_call):
    script, *arguments = shlex.split(wrong_call)
    return SCRIPTS[script], arguments


# Wrong calls ---------------------------------------------------------------------------------------------------------


def test_at_least_50_wrong_calls_are_tried():
    assert len(WRONG_CALLS) >= 50


@pytest.mark.parametrize("wrong_call", WRONG_CALLS)
def test_wrong_call_is_answered_with_one_line_that_says_what_was_meant(workplace, call, wrong_call):
    script, arguments = script_and_arguments(wrong_call)
    done = call(script, *arguments)
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("error: ") and done.err.count("\n") == 1 and done.err.endswith("\n")
    assert [word for word in WRONG_CALLS[wrong_call] if word not in done.err] == []
    assert list(workplace.rglob("*")) == [workplace / "models"]  # nothing was written


def test_wrong_calls_are_answered_before_tensorflow_is_imported(tmp_path, run_python):
    calls = [shlex.split(wrong_call) for wrong_call in WRONG_CALLS]
    done = run_python(f"""if True:
        import sys, test_model, train_model
        from support import scripts
        modules = {{"train_model.py": train_model, "test_model.py": test_model}}
        for sys.argv in {calls}:
            assert scripts.run(modules[sys.argv[0]].main) == 2, sys.argv
        print([name for name in ("tensorflow", "keras", "scipy") if name in sys.modules])
        """, cwd=tmp_path)
    assert done.out == "[]\n" and done.err.count("error: ") == len(WRONG_CALLS)


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_as_a_process_answers_a_wrong_call_with_one_line_and_status_2(tmp_path, run_script, script):
    done = run_script(script, "levle=7", cwd=tmp_path)
    assert (done.status, done.out) == (2, "")
    assert done.err == "error: levle=7: no such argument; did you mean level=? (help lists all)\n"


# What is missing on the disk -----------------------------------------------------------------------------------------


@pytest.fixture
def without_tensorflow(monkeypatch):
    monkeypatch.setattr(devices, "start_tensorflow", lambda *_, **__: pytest.fail("asked for TensorFlow"))


def test_level_6_without_level_7_is_answered_with_the_command_to_run(workplace, call, without_tensorflow):
    done = call(train_model, "level=6")
    assert done.status == 1
    assert done.err.count("\n") == 1 and "python train_model.py level=7 batch_size=50" in done.err


def test_level_1_without_vgg_19_is_answered_with_what_to_do(workplace, call, without_tensorflow, small_checkpoint):
    done = call(train_model, "level=1", f"weights={small_checkpoint}")
    assert done.status == 1 and done.err.count("\n") == 1
    assert "vgg_pretrained/imagenet-vgg-verydeep-19.mat: no such file" in done.err and "vgg_dir=none" in done.err


def test_data_set_to_train_with_that_is_missing_is_named_before_the_network_is_built(workplace, call, monkeypatch):
    monkeypatch.setattr(train_model, "train", lambda *_: pytest.fail("began to train"))
    done = call(train_model, "level=7", "dataset_dir=nowhere")
    assert done.status == 1
    assert done.err.startswith("error: ") and "nowhere/train/original" in done.err and "Traceback" not in done.err


@pytest.mark.parametrize("arguments", [[], ["orig=true"], ["small=true"]])
def test_without_a_data_set_to_measure_own_photos_are_named_as_well(workplace, call, without_tensorflow, arguments):
    done = call(test_model, *arguments)
    assert done.status == 1 and done.err.count("\n") == 1
    assert "ebb_dataset/: no such folder" in done.err and "images_dir=FOLDER" in done.err


@pytest.mark.parametrize("error, status", [(UsageError("it"), 2), (DataError("it"), 1)])
def test_errors_become_one_line_and_a_status(capsys, error, status):
    def main(argv):
        raise error
    assert scripts.run(main) == status
    assert capsys.readouterr().err == "error: it\n"


def test_a_bug_is_not_hidden():
    def main(argv):
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError):
        scripts.run(main)


# Right calls ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS)
def test_defaults_are_those_of_the_design(script):
    shown = {parameter.name: parameter.shown_default() for parameter in SCRIPTS[script].PARAMETERS}
    assert {name: shown.get(name) for name in DEFAULTS[script]} == DEFAULTS[script]


def test_default_iterations_are_the_papers_schedule():
    assert train_model.DEFAULT_ITERATIONS == {7: 5000, 6: 5000, 5: 20000, 4: 20000, 3: 30000, 2: 80000, 1: 100000}


@pytest.mark.parametrize("script, arguments, name, value", [
    (train_model, ["level=7"], "level", 7), (train_model, ["level=7"], "batch_size", 50),
    (train_model, ["level=7"], "micro_batch", None), (train_model, ["level=7"], "kernel_start", None),
    (train_model, ["level=7"], "width", "1"), (train_model, ["level=7", "width=0.25"], "width", "0.25"),
    (train_model, ["level=7", "precision=Float16"], "precision", "float16"),
    (train_model, ["level=7"], "learning_rate", 5e-5), (train_model, ["level=7"], "restore_iter", None),
    (train_model, ["batch_size=3", "level=1"], "batch_size", 3),
    (train_model, ["level=7", "learning_rate=1e-4"], "learning_rate", 1e-4),
    (train_model, ["level=7", "learning_rate=.001"], "learning_rate", 0.001),
    (train_model, ["level=7", "dataset_dir=/a b/c=d"], "dataset_dir", "/a b/c=d"),
    (test_model, [], "level", 1), (test_model, [], "orig", False), (test_model, [], "use_gpu", True),
    (test_model, ["orig=true"], "orig", True), (test_model, ["orig=True"], "orig", True),
    (test_model, ["use_gpu=FALSE"], "use_gpu", False)])
def test_arguments_are_read_as_their_type(script, arguments, name, value):
    found = getattr(utils.parse_arguments(arguments, script.PARAMETERS, script.USAGE), name)
    assert found == value and type(found) is type(value)


# Help ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("arguments", [["-h"], ["--help"], ["help"], ["level=99", "help"]])
def test_help_shows_every_parameter_with_its_default_and_one_line_of_meaning(workplace, call, script, arguments):
    done = call(SCRIPTS[script], *arguments)
    assert (done.status, done.err) == (0, "")
    assert f"python {script}" in done.out.splitlines()[0]
    for parameter in SCRIPTS[script].PARAMETERS:
        [line] = [line for line in done.out.splitlines() if line.split()[:1] == [parameter.name]]
        assert parameter.meaning in line and line.endswith(f"[{parameter.shown_default()}]")


@pytest.mark.parametrize("name, words", [("precision", "float32, bfloat16 or float16"), ("kernel_start", "paper or he"),
                                         ("width", "1, 0.5, 0.25 or 0.125")])
def test_help_lists_the_words_that_a_parameter_takes(workplace, call, name, words):
    [line] = re.findall(rf"^  {name} .*", call(train_model, "help").out, re.MULTILINE)
    assert f"({words}) [" in line


# Importing -----------------------------------------------------------------------------------------------------------


def test_importing_a_module_does_no_work_and_brings_no_tensorflow(tmp_path, run_python):
    modules = ["utils", "load_dataset", "train_model", "test_model",
               *(f"support.{path.stem}" for path in (REPOSITORY / "support").glob("[a-z]*.py"))]
    done = run_python(f"import sys, {', '.join(modules)}; print('tensorflow' in sys.modules)", cwd=tmp_path)
    assert done == (0, "False\n", "") and list(tmp_path.iterdir()) == []


def test_importing_the_network_and_vgg_does_no_work(tmp_path, run_python):
    done = run_python("import model, vgg", cwd=tmp_path)
    assert (done.status, done.out) == (0, "") and list(tmp_path.iterdir()) == []


def print_wrong_calls():
    for wrong_call in WRONG_CALLS:
        script, arguments = script_and_arguments(wrong_call)
        sys.argv = [script.__file__, *arguments]
        print(f"$ python {wrong_call}", file=sys.stderr)
        scripts.run(script.main)


if __name__ == "__main__":
    print_wrong_calls()

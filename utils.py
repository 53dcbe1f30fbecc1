"""The command line, the files and the pictures that the scripts share.

Nothing here imports TensorFlow before `start_tensorflow`, so that wrong arguments are answered at once.
"""

import contextlib
import difflib
import fcntl
import json
import math
import os
import pathlib
import platform
import re
import shutil
import sys
import tempfile
import time
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

MODELS = pathlib.Path("models")
ORIGINAL = MODELS / "original"
RESULTS = pathlib.Path("results")
FULL_RESOLUTION = RESULTS / "full-resolution"
LOG = MODELS / "logs.txt"

PRECISIONS = ("float32", "bfloat16", "float16")

REQUIRED = object()  # the default of a parameter that has none


class UsageError(Exception):
    """The call is wrong: exit status 2."""


class DataError(Exception):
    """A file or a folder is missing or not what it should be: exit status 1."""


# The command line ----------------------------------------------------------------------------------------------------


class Parameter(NamedTuple):
    """One `name=value` argument. `kind` is int, float, bool, str or a tuple of the words that it can be; `default_text`
    says in words what a default of None stands for."""

    name: str
    kind: Any
    default: Any
    meaning: str
    minimum: float = -math.inf
    maximum: float = math.inf
    default_text: str = ""

    def shown_default(self):
        if self.default is REQUIRED:
            return "obligatory"
        if self.default is None:
            return self.default_text
        return str(self.default).lower() if self.kind is bool else str(self.default)


def parse_arguments(argv, parameters, usage):
    """Reads `name=value` arguments.

    Args:
      argv: the arguments as strings, without the script's name.
      parameters: the `Parameter`s that the script knows.
      usage: the script's call, for the help text.

    Returns:
      A namespace with a value for every parameter, and the names of those that were on the command line as `given`.

    Raises:
      UsageError: an unknown or repeated name, a value of the wrong type or out of range, an obligatory one missing.
      SystemExit: with status 0, after printing the help text that was asked for.
    """
    if any(argument in ("help", "-h", "--help") for argument in argv):
        print(help_text(parameters, usage))
        raise SystemExit(0)
    known = {parameter.name: parameter for parameter in parameters}
    values = {}
    for argument in argv:
        name, equals, text = argument.partition("=")
        if name not in known:
            raise UsageError(_unknown_argument(argument, known))
        if not equals:
            raise UsageError(f"{name}: write it as {name}=VALUE ({known[name].meaning})")
        if name in values:
            raise UsageError(f"{name}: given twice")
        values[name] = _parse_value(known[name], text)
    for parameter in parameters:
        if parameter.default is REQUIRED and parameter.name not in values:
            raise UsageError(f"{parameter.name}: is missing; write {parameter.name}=VALUE ({parameter.meaning})")
    defaults = {parameter.name: parameter.default for parameter in parameters}
    return SimpleNamespace(**defaults | values, given=frozenset(values))


def help_text(parameters, usage):
    """The text that `help` prints: the call, then each parameter with its default and its meaning."""
    rows = [f"  {p.name:<16} {p.meaning} [{p.shown_default()}]" for p in parameters]
    return "\n".join([f"usage: {usage}", "", "arguments, as name=value [default]:", *rows])


def _unknown_argument(argument, known):
    name = argument.partition("=")[0]
    stripped = name.lstrip("-").replace("-", "_").lower()
    if stripped in known:
        return f"{argument}: write it as {stripped}=VALUE, without dashes and in lower case"
    nearest = difflib.get_close_matches(stripped, known, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]}=?" if nearest else "known are " + ", ".join(known)
    return f"{argument}: no such argument; {hint} (help lists all)"


def _parse_value(parameter, text):
    if isinstance(parameter.kind, tuple):
        if text.lower() not in parameter.kind:
            words = f"{', '.join(parameter.kind[:-1])} or {parameter.kind[-1]}"
            raise UsageError(f"{parameter.name}={text}: is to be {words} ({parameter.meaning})")
        return text.lower()
    try:
        value = _CONVERSIONS[parameter.kind](text)
    except ValueError:
        raise UsageError(f"{parameter.name}={text}: is to be {_KINDS[parameter.kind]} ({parameter.meaning})") from None
    if parameter.kind in (int, float) and not parameter.minimum <= value <= parameter.maximum:
        raise UsageError(f"{parameter.name}={text}: is to be {_range_text(parameter)} ({parameter.meaning})")
    return value


def _range_text(parameter):
    if parameter.maximum == math.inf:
        return f"{parameter.minimum:g} or more"
    return f"from {parameter.minimum:g} to {parameter.maximum:g}"


def _to_int(text):
    if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
        raise ValueError(text)
    return int(text)


def _to_float(text):
    if not re.fullmatch(r"[+-]?[0-9]*\.?[0-9]*(e[+-]?[0-9]{1,3})?", text, re.IGNORECASE):
        raise ValueError(text)
    return float(text)


def _to_bool(text):
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


def _to_text(text):
    if not text.strip() or "\0" in text:
        raise ValueError(text)
    return text


_CONVERSIONS = {int: _to_int, float: _to_float, bool: _to_bool, str: _to_text}
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a path"}


def run(main):
    """Calls main(arguments) and returns the exit status; an error is one message on stderr, without a traceback."""
    for stream in (sys.stdout, sys.stderr):  # names of files need not be what the terminal can show
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        return main(sys.argv[1:]) or 0
    except UsageError as error:
        print("error:", *str(error).split(), file=sys.stderr)  # one line, whatever the arguments held
        return 2
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read the output has gone
        return 1
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Exception as error:
        if type(error).__name__ != "ResourceExhaustedError":  # of TensorFlow, which need not be imported
            raise
        print("error: the device's memory is full; a smaller micro_batch needs less (training), "
              "or the CPU can do it: use_gpu=false (rendering)", file=sys.stderr)
        return 1


def say(text, file=None, end="\n"):
    """Prints at once. A terminal that is gone or a full disk behind it must not end a training."""
    with contextlib.suppress(OSError):
        print(text, end=end, file=file or sys.stdout, flush=True)


def warn(text):
    """Says something on stderr, on a line of its own also where a live progress line stands."""
    say(("\r\033[K" if sys.stdout.isatty() else "") + f"warning: {text}", file=sys.stderr)


# TensorFlow ----------------------------------------------------------------------------------------------------------


def start_tensorflow(use_gpu=True, precision="float32"):
    """Imports TensorFlow, quietly, and says on which device it computes, and whether that is slow in a precision.

    `use_gpu=False` hides every GPU from TensorFlow. A GPU's memory is taken as it is needed, not all at once.
    TF_CPP_MIN_LOG_LEVEL=0 in the environment brings TensorFlow's own messages back.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ["KERAS_BACKEND"] = "tensorflow"
    if not use_gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    if os.environ["TF_CPP_MIN_LOG_LEVEL"] == "3":
        _import_without_chatter()
    import tensorflow as tf
    gpus = tf.config.list_physical_devices("GPU")
    if not use_gpu:
        tf.config.set_visible_devices([], "GPU")
        print("Computing on the CPU: use_gpu=false")
    elif gpus:
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)
        print("Computing on " + ", ".join(tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name)
                                          for gpu in gpus))
    else:
        print("Computing on the CPU: TensorFlow sees no GPU (TF_CPP_MIN_LOG_LEVEL=0 lets it say why)")
    for device in gpus if use_gpu and gpus else [None]:
        if precision != "float32" and not computes_fast(precision, device):
            warn(f"{device.name if device else 'this CPU'} has no arithmetic for {precision}: it emulates it, which can "
                 "take longer than float32")
    return tf


def computes_fast(precision, gpu=None):
    """Whether a GPU (a TensorFlow physical device), or the CPU, has arithmetic units for "bfloat16" or "float16".

    NVIDIA's tensor cores take float16 from compute capability 7.0 on and bfloat16 from 8.0 on. TensorFlow's CPU kernels
    take bfloat16 where the processor has AVX512_BF16 or AMX (x86) or BF16 (ARM), and emulate float16.
    """
    if gpu is not None:
        import tensorflow as tf
        capability = tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0))
        return capability >= {"float16": (7, 0), "bfloat16": (8, 0)}[precision]
    try:
        features = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:
        return False
    return precision == "bfloat16" and any(name in features for name in ("avx512_bf16", "amx_bf16", "bf16"))


# Workers -------------------------------------------------------------------------------------------------------------


class Worker(NamedTuple):
    """This process among those that train together: `index` from 0 to `count` - 1. The first one writes the files."""

    index: int
    count: int


ONLY_WORKER = Worker(0, 1)


def place_among_workers():
    """The `Worker` that the environment variable TF_CONFIG says this process is; UsageError where it makes no sense.

    TF_CONFIG is TensorFlow's: {"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}, with a
    "chief" in front of the workers if one likes. Without it there is one worker.
    """
    text = os.environ.get("TF_CONFIG", "").strip()
    if not text:
        return ONLY_WORKER
    try:
        config = json.loads(text)
        cluster, task = config["cluster"], config["task"]
        tasks = [(kind, index) for kind in ("chief", "worker") for index in range(len(cluster.get(kind, ())))]
        return Worker(tasks.index((task["type"], int(task["index"]))), len(tasks))
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UsageError('TF_CONFIG: is to be like {"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", '
                         f'"index": 0}}}}, not {text}') from None


def _import_without_chatter():
    """Imports TensorFlow, whose libraries write a page to stderr before any setting of the log level is heard."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as chatter:
        os.dup2(chatter.fileno(), 2)
        try:
            import tensorflow
            tensorflow.config.list_physical_devices()  # looks for a GPU's libraries
        except BaseException:
            chatter.seek(0)
            os.write(stderr, chatter.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


# Folders -------------------------------------------------------------------------------------------------------------


def prepare_folders(*folders):
    """Makes the folders where they do not exist, and tries by writing whether they can be written; DataError if not."""
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as trial:
                trial.write(b"trial")
        except OSError as error:
            raise DataError(f"{folder}/: cannot be written ({error.strerror})") from None


def free_space(folder):
    """In bytes."""
    return shutil.disk_usage(folder).free


def lock_level(level):
    """Keeps other runs from training the same level in this folder, as long as the returned file is open.

    The lock is the kernel's and ends with the process, however that ends. DataError names the run that holds it.
    """
    path = MODELS / f".pynet_level_{level}.lock"
    lock = open(path, "a+", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        raise DataError(f"{MODELS}/: level {level} is being trained here by another run ({lock.read().strip()}): "
                        "wait for it, or train in another folder") from None
    except OSError as error:
        warn(f"{path}: cannot be locked ({error.strerror}); see to it that no other run trains level {level} here")
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {platform.node()}\n")
    lock.flush()
    return lock


# Checkpoints ---------------------------------------------------------------------------------------------------------
#
# A checkpoint is a pair of files in TensorFlow's V2 format, PREFIX.index and PREFIX.data-00000-of-00001.

_SUFFIXES = ".data-00000-of-00001", ".index"


def checkpoint_prefix(level, iteration):
    return MODELS / f"pynet_level_{level}_iteration_{iteration}.ckpt"


def iteration_of(prefix):
    """The iteration in the name of a checkpoint that `checkpoint_prefix` gave; None in another name."""
    match = re.search(r"_iteration_([0-9]+)\.ckpt$", str(prefix))
    return int(match[1]) if match else None


def resume_prefix(level):
    """Of the state from which the training of a level can be resumed: weights, Adam's moments and notes."""
    return MODELS / f"pynet_level_{level}_resume.ckpt"


def saved_iterations(level):
    """The iterations of which whole checkpoints of `level` lie in models/, in rising order."""
    finish_interrupted_saves(MODELS)
    found = []
    for index in MODELS.glob(f"pynet_level_{level}_iteration_*.ckpt.index"):
        match = re.fullmatch(rf"pynet_level_{level}_iteration_([0-9]+)\.ckpt\.index", index.name)
        if match and _file(checkpoint_prefix(level, match[1]), _SUFFIXES[0]).exists():
            found.append(int(match[1]))
    return sorted(found)


def find_checkpoint(level, iteration=None):
    """The (prefix, iteration) of the checkpoint of `level` at `iteration`, or of the last one; DataError without one."""
    saved = saved_iterations(level)
    if not saved:
        raise DataError(f"{MODELS}/ holds no checkpoint of level {level}: "
                        f"train it first (python train_model.py level={level})")
    if iteration is None:
        iteration = saved[-1]
    if iteration not in saved:
        raise DataError(f"{checkpoint_prefix(level, iteration)}: no such checkpoint; restore_iter can be "
                        + ", ".join(map(str, saved)))
    return checkpoint_prefix(level, iteration), iteration


def find_original():
    """The prefix of the released weights in models/original/, whatever their name as long as there is just one."""
    prefixes = sorted(index.with_suffix("") for index in ORIGINAL.glob("*.index"))
    usual = ORIGINAL / "pynet_bokeh_level_0"
    if usual in prefixes:
        return usual
    if len(prefixes) == 1:
        return prefixes[0]
    if prefixes:
        raise DataError(f"{ORIGINAL}/ holds several checkpoints ({', '.join(p.name for p in prefixes)}): keep one")
    raise DataError(f"{ORIGINAL}/ holds no checkpoint: put the released pynet_bokeh_level_0.index and "
                    "pynet_bokeh_level_0.data-00000-of-00001 there (README, Downloads)")


def save_checkpoint(variables, prefix, notes=None):
    """Writes {name: tf.Variable} to PREFIX.index and PREFIX.data-00000-of-00001, and `notes` to PREFIX.json if given.

    A crash at any moment leaves either the checkpoint that was there before or the new one. The files are written
    in a folder of their own, whose renaming to *.complete makes them count; only then do they replace older ones.

    Raises:
      DataError: the files could not be written, for example because the disk is full; what was there before stays.
    """
    import tensorflow as tf
    prefix = pathlib.Path(prefix)
    writing = prefix.parent / f".{prefix.name}.writing"
    complete = prefix.parent / f".{prefix.name}.complete"
    try:
        finish_interrupted_saves(prefix.parent)
        shutil.rmtree(writing, ignore_errors=True)
        writing.mkdir()
        tf.raw_ops.SaveV2(prefix=str(writing / prefix.name), tensor_names=list(variables),
                          shape_and_slices=[""] * len(variables), tensors=[v.read_value() for v in variables.values()])
        if notes is not None:
            write_notes(writing / prefix.name, notes)
        for path in (*writing.iterdir(), writing):
            _to_disk(path)
        writing.rename(complete)
        _to_disk(prefix.parent)
        _move_out(complete)
        _to_disk(prefix.parent)
    except (OSError, tf.errors.OpError) as error:
        shutil.rmtree(writing, ignore_errors=True)
        raise DataError(f"{prefix}: could not be saved ({str(error).splitlines()[0]})") from None


def write_notes(prefix, notes):
    """Writes or replaces PREFIX.json, whole or not at all."""
    write_json(_file(prefix, ".json"), notes)


def write_json(path, content):
    """Writes or replaces a JSON file, whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    _to_disk(partial)
    partial.replace(path)


def remove_checkpoint(prefix):
    """Deletes a checkpoint's files, the index first: without it the rest no longer counts as a checkpoint."""
    for suffix in reversed(_SUFFIXES):
        _file(prefix, suffix).unlink(missing_ok=True)


def read_notes(prefix):
    """What `save_checkpoint` was given as notes; None where there is no such checkpoint, DataError if damaged."""
    finish_interrupted_saves(pathlib.Path(prefix).parent)
    path = _file(prefix, ".json")
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: is damaged ({error}); without it the level starts anew (delete {prefix}.*)") from None


def restore_checkpoint(variables, prefix):
    """Reads every one of {name: tf.Variable} from a checkpoint; where that fails none is changed.

    Raises:
      DataError: a file is missing or damaged, or it lacks a variable or holds one of another shape.
    """
    import tensorflow as tf
    for suffix in _SUFFIXES:
        if not _file(prefix, suffix).is_file():
            raise DataError(f"{_file(prefix, suffix)}: is missing; a checkpoint is an .index and a .data file")
    try:
        reader = tf.train.load_checkpoint(str(prefix))
        stored = reader.get_variable_to_shape_map()
        missing = [name for name in variables if name not in stored]
        if missing:
            raise DataError(f"{prefix}: holds no {missing[0]}" + _and_others(missing) + "; it is not a PyNET checkpoint")
        wrong = [name for name, variable in variables.items() if stored[name] != variable.shape.as_list()]
        if wrong:
            raise DataError(f"{prefix}: {wrong[0]} is {stored[wrong[0]]}, not {variables[wrong[0]].shape.as_list()}"
                            + _and_others(wrong) + "; it is the checkpoint of another network")
        values = {}
        for name in variables:
            values[name] = reader.get_tensor(name)
    except (tf.errors.OpError, IndexError, RuntimeError, ValueError) as error:  # IndexError: a short .data file
        reason = str(error).splitlines()[0]
        raise DataError(f"{prefix}: is damaged, copy or download it again ({reason})") from None
    for name, variable in variables.items():
        variable.assign(values[name])


def takes_depth(prefix):
    """Whether a checkpoint's network takes depth maps: its first kernel tells, which sees 2 x 2 pixels of 4 channels or 3.

    Looks for the name and the entry of a 3 x 3 x 12 x 32 kernel in PREFIX.index, a table of uncompressed protocol buffers
    (tensor_bundle.proto, tensor_shape.proto), which is quicker than importing TensorFlow. True where there is no such file.
    """
    shape = b"".join(b"\x12\x02\x08" + bytes([side]) for side in (3, 3, 12, 32))
    entry = b"generator/Variable" + b"\x08\x01" + b"\x12" + bytes([len(shape)]) + shape  # the name, float32, the shape
    index = _file(prefix, _SUFFIXES[1])
    return not index.is_file() or entry not in index.read_bytes()


def _and_others(names):
    return f" (and {len(names) - 1} others)" if len(names) > 1 else ""


def _file(prefix, suffix):
    return pathlib.Path(f"{prefix}{suffix}")


def _move_out(complete):
    """Moves a whole checkpoint from its folder to its place. What a crash cuts short can be done again.

    Another process that looks for checkpoints may be doing the same: a file that is gone is where it belongs.
    """
    with contextlib.suppress(FileNotFoundError):
        for file in sorted(complete.iterdir()):  # the data before the index
            with contextlib.suppress(FileNotFoundError):
                file.replace(complete.parent / file.name)
        complete.rmdir()


def finish_interrupted_saves(folder):
    """Brings checkpoints to their place that were whole when a crash cut their saving short."""
    for complete in folder.glob(".*.complete"):
        with contextlib.suppress(OSError):  # a folder that can only be read: then without it
            _move_out(complete)


def discard_half_saves(level):
    """Deletes what a crash left of checkpoints of a level that were not whole. Call with the level locked."""
    for writing in MODELS.glob(f".pynet_level_{level}_*.writing"):
        shutil.rmtree(writing, ignore_errors=True)


def _to_disk(path):
    """Waits until a file or a folder is on the disk, and not only in the machine's memory."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# Pictures and progress -----------------------------------------------------------------------------------------------


def write_image(path, image, info=None):
    """Writes a uint8 (height, width, 3) array as PNG or JPEG, by the ending of `path`; never half a file.

    `info` may hold an "icc_profile" and "exif", as bytes, which go into the file.
    """
    import imageio.v3 as iio
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    suffix = path.suffix.lower()
    options = {"quality": 95, "subsampling": 0} if suffix == ".jpg" else {"compress_level": 3}
    data = iio.imwrite("<bytes>", image, extension=suffix, **options, **(info or {}))
    try:
        partial.write_bytes(data)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def to_uint8(image):
    """float [0, 1] -> uint8, rounded; what lies outside is clipped."""
    return np.uint8(np.clip(np.round(np.asarray(image) * 255), 0, 255))


class ProgressLine:
    """Says how far a loop is: one live line in a terminal, a plain line now and then elsewhere."""

    SECONDS_BETWEEN_UPDATES = {True: 0.2, False: 30.0}  # in a terminal, and not

    def __init__(self, done, total, what):
        self._first, self._total, self._what = done, total, what
        self._live = sys.stdout.isatty()
        self._started = self._shown = time.monotonic()

    def update(self, done, text):
        """Call after each step with the number of steps done and what is to be said of the last."""
        now = time.monotonic()
        if now - self._shown < self.SECONDS_BETWEEN_UPDATES[self._live]:
            return
        self._shown = now
        rate = (done - self._first) / (now - self._started)
        left = duration((self._total - done) / rate)
        line = f"{self._what} {done}/{self._total} | {text} | {rate:.3g} it/s | {left} left"
        say(f"\r\033[K{line}" if self._live else line, end="" if self._live else "\n")

    def clear(self):
        """Makes room for other output."""
        if self._live:
            say("\r\033[K", end="")


def duration(seconds):
    """1:02:03 for 3723 seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"

"""What every script shares: how it is called, how it fails, how it shows progress and writes pictures."""

import contextlib
import dataclasses
import difflib
import importlib
import math
import pathlib
import re
import sys
import tempfile
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

try:
    import fcntl  # noqa: F401
except ImportError:
    raise SystemExit("error: this needs Linux or macOS; on Windows, run it in WSL2") from None

MODELS = pathlib.Path("models")
ORIGINAL = MODELS / "original" / "pynet_bokeh_level_0"  # prefix of the released weights
SMALL = pathlib.Path(__file__).resolve().parent / "models" / "small" / "pynet_bokeh_small"  # comes with the scripts
RESULTS = pathlib.Path("results")
FULL_RESOLUTION = RESULTS / "full-resolution"

PRECISIONS = ("float32", "bfloat16", "float16")
SSIM_SIDE, MS_SSIM_SIDE = 11, 11 * 2 ** 4  # smallest images: SSIM's window, and the same at the coarsest of five scales
CLEAR_LINE = "\r\033[K"  # on a terminal
REQUIRED = "required"  # the default of a parameter that has none


class UsageError(Exception):
    """The call is wrong: exit status 2."""


class DataError(Exception):
    """A file or a folder is missing or not what it should be: exit status 1."""


class LazyModule:
    """A module that is imported at its first use: a wrong argument need not wait for TensorFlow."""

    def __init__(self, name):
        self._name = name

    def __getattr__(self, attribute):
        return getattr(importlib.import_module(self._name), attribute)


if TYPE_CHECKING:  # for editors
    import tensorflow as tf
else:
    tf = LazyModule("tensorflow")


# The command line ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One `name=value` argument. kind: int, float, bool, str or a tuple of words; default_text: what None means."""

    name: str
    kind: Any
    default: Any
    meaning: str
    _: dataclasses.KW_ONLY
    minimum: float = -math.inf
    maximum: float = math.inf
    default_text: str = ""

    def shown_default(self):
        if self.default is None:
            return self.default_text
        return str(self.default).lower() if self.kind is bool else str(self.default)

    def description(self):
        return f"{self.meaning} ({_list_words(self.kind)})" if isinstance(self.kind, tuple) else self.meaning


def parse_arguments(argv, parameters, usage):
    """Reads `name=value` arguments, or prints the help text that is asked for and raises SystemExit with status 0.

    Returns a namespace with a value for every one of the `Parameter`s, and the names on the command line as `given`.
    Raises UsageError where a name is unknown, repeated or missing, or a value is of the wrong type or out of range.
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
        if parameter.default == REQUIRED and parameter.name not in values:
            raise UsageError(f"{parameter.name}: is missing; write {parameter.name}=VALUE ({parameter.meaning})")
    defaults = {parameter.name: parameter.default for parameter in parameters}
    return SimpleNamespace(**defaults | values, given=frozenset(values))


def parse_stored(values, parameters):
    """Returns {name: value} of arguments that were stored as JSON, checked as `parse_arguments` does, with its errors.

    Names that are unknown, because another version stored them, are left out.
    """
    return {p.name: None if values[p.name] is None is p.default else _parse_value(p, str(values[p.name]))
            for p in parameters if p.name in values}


def help_text(parameters, usage):
    """Returns what `help` prints: the call, then each parameter with its meaning and default."""
    rows = [f"  {p.name:<16} {p.description()} [{p.shown_default()}]" for p in parameters]
    return "\n".join([f"usage: {usage}", "", "arguments, as name=value [default]:", *rows])


def _unknown_argument(argument, known):
    name = argument.partition("=")[0].lstrip("-").replace("-", "_").lower()
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]}=?" if nearest else "known arguments: " + ", ".join(known)
    return f"{argument}: no such argument; {hint} (help lists all)"


def _parse_value(parameter, text):
    def wrong(expected):
        return UsageError(f"{parameter.name}={text}: must be {expected} ({parameter.meaning})")

    if isinstance(parameter.kind, tuple):
        if text.lower() not in parameter.kind:
            raise wrong(_list_words(parameter.kind))
        return text.lower()
    pattern, convert, expected = _KINDS[parameter.kind]
    if not re.fullmatch(pattern, text, re.IGNORECASE):
        raise wrong(expected)
    value = convert(text)
    if parameter.kind in (int, float) and not parameter.minimum <= value <= parameter.maximum:
        raise wrong(f"{parameter.minimum} or more" if parameter.maximum == math.inf else
                    f"from {parameter.minimum} to {parameter.maximum}")
    return value


def _list_words(words):
    return f"{', '.join(words[:-1])} or {words[-1]}"


_KINDS = {  # pattern of the text, how it is read, what it must be; int() and float() alone take 1_0, nan, Arabic digits
    int: (r"[+-]?[0-9]{1,18}", int, "a whole number"),
    float: (r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]{1,3})?", float, "a number"),
    bool: ("true|false", lambda text: text.lower() == "true", "true or false"),
    str: (r"[^\0]*[^\0\s][^\0]*", str, "a path"),
}


def first_line(error):
    """Returns the first line of an exception's text, its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def printable(text):
    """Returns text with escapes in place of control characters, which names of files may hold."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in str(text))


def say(text, file=None, start="", end="\n"):
    """Prints a line at once; a terminal that is gone, or a full disk behind it, does not end a training."""
    with contextlib.suppress(OSError):
        print(f"{start}{printable(text)}", end=end, file=file or sys.stdout, flush=True)


def warn(text, kind="warning"):
    """Prints a line on stderr, after clearing a live progress line."""
    say(f"{kind}: {text}", sys.stderr, CLEAR_LINE if sys.stdout.isatty() else "")


class ProgressLine:
    """Shows progress: one updating line on a terminal, a new line every 30 s elsewhere."""

    SECONDS_BETWEEN_UPDATES = {True: 0.2, False: 30.0}  # on a terminal, and elsewhere

    def __init__(self, done, total, what):
        self._first, self._total, self._what = done, total, what
        self._live = sys.stdout.isatty()
        self._started = self._shown = time.monotonic()

    def update(self, done, text):
        """Call after each step, with the number of steps done and a text about the last."""
        now = time.monotonic()
        if now - self._shown < self.SECONDS_BETWEEN_UPDATES[self._live]:
            return
        self._shown = now
        rate = (done - self._first) / (now - self._started)
        left = duration((self._total - done) / rate)
        line = f"{self._what} {done}/{self._total} | {text} | {rate:.3g} it/s | {left} left"
        say(line, start=CLEAR_LINE if self._live else "", end="" if self._live else "\n")

    def clear(self):
        """Makes room for other output."""
        if self._live:
            say("", start=CLEAR_LINE, end="")


def duration(seconds):
    """Returns 1:02:03 for 3723 seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


# Files ---------------------------------------------------------------------------------------------------------------


def prepare_folders(*folders):
    """Makes the folders where they do not exist, and tries to write in them. Raises DataError where that fails."""
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as trial:
                trial.write(b"trial")
        except OSError as error:
            raise DataError(f"{folder}/: cannot be written ({error.strerror})") from None


@contextlib.contextmanager
def whole_file(path):
    """Gives the path of a file to write, which becomes `path` if that succeeds and is deleted if not."""
    path = pathlib.Path(path)
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        yield partial
        partial.replace(path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)  # a full disk names none
        raise


def write_image(path, image, info=None):
    """Writes a uint8 (height, width, 3) array as PNG or JPEG, by the ending of `path`; never half a file.

    `info` may hold an "icc_profile" and "exif", as bytes, which go into the file.
    """
    import imageio.v3 as iio
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = path.suffix.lower()
    options = {"quality": 95, "subsampling": 0} if suffix == ".jpg" else {"compress_level": 3}
    data = iio.imwrite("<bytes>", image, extension=suffix, **options, **(info or {}))
    with whole_file(path) as partial:
        partial.write_bytes(data)


def to_uint8(image):
    """Converts float [0, 1] to uint8, rounded; what lies outside is clipped."""
    return np.uint8(np.clip(np.round(np.asarray(image) * 255), 0, 255))

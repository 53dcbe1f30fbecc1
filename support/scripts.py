"""How does a script end? Errors become one line and an exit status, whatever has become of stdout and stderr."""

import errno
import io
import os
import sys

from utils import DataError, UsageError, say


def run(main):
    """Calls main(arguments) and returns the exit status; an error is one line on stderr, without a traceback."""
    _open_streams()
    status, problem = 1, None
    try:
        status = main(sys.argv[1:]) or 0
    except SystemExit as leaving:
        status = leaving.code or 0
    except UsageError as error:
        status, problem = 2, f"error: {' '.join(str(error).split())}"
    except KeyboardInterrupt:
        status, problem = 130, "stopped"
    except BrokenPipeError:  # whoever read the output has gone
        pass
    except (DataError, OSError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            error.filename = error.filename or "stdout"  # which has no name; files have theirs
        problem = f"error: {error}"
    lost = _flush(sys.stdout)
    if lost:
        status = status or 1
        problem = problem if problem and lost not in problem else f"error: stdout: cannot be written ({lost})"
    for number, line in enumerate(problem.split("\n  ") if problem else []):  # a DataError may be a list
        say(f"  {line}" if number else line, sys.stderr, start="\n" if status == 130 else "")
    _flush(sys.stderr)
    return status


def _open_streams():
    """Leads a closed stdout to nowhere, a closed stderr to stdout, and shows what an encoding lacks as escapes."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            os.dup2(1 if number == 2 else os.open(os.devnull, os.O_WRONLY), number)
            setattr(sys, name, open(number, "w", buffering=1, closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _flush(stream):
    """Writes what a stream holds. Returns why that failed; None also where its terminal or reader has gone.

    What could not be written is discarded: Python would try once more in the end, and complain.
    """
    try:
        stream.flush()
    except OSError as error:
        if isinstance(stream, io.TextIOWrapper):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return None if error.errno in (errno.EIO, errno.EPIPE) else error.strerror

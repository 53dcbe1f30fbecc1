"""support/scripts.py: what a script that ends writes on its streams, and what one that cannot be written costs."""

import os
import re
import subprocess
import sys

import pytest
from conftest import REPOSITORY

from support import scripts
from utils import DataError


def script(text):
    """Code of a script whose main is `text`."""
    return f"import sys, utils\nfrom support import scripts\ndef main(argv):\n    {text}\nsys.exit(scripts.run(main))"


NAMED = "print('é', flush=True); raise utils.DataError('a\\x1b[2J\\nb\\udce9: is damaged')"
ERROR = "error: a\\x1b[2J\\nb\\udce9: is damaged\n"


def test_what_a_stream_cannot_show_and_what_would_steer_a_terminal_become_escapes(run_python, tmp_path):
    done = run_python(script(NAMED), cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert done == (1, "\\xe9\n", ERROR)
    assert run_python(script("utils.warn('\\x1b]0;a\\x07')"), cwd=tmp_path).err == r"warning: \x1b]0;a\x07" + "\n"


def test_list_of_problems_has_a_line_for_each_whatever_their_names(capsys):
    def main(argv):
        raise DataError("2 problems\n  a\nb.jpg: damaged\n  c.jpg: missing")
    assert scripts.run(main) == 1
    assert capsys.readouterr().err == "error: 2 problems\n  a\\nb.jpg: damaged\n  c.jpg: missing\n"


@pytest.mark.parametrize("closed, out, err", [("1>&-", "", ERROR), ("2>&-", f"é\n{ERROR}", ""), ("1>&- 2>&-", "", "")])
def test_a_closed_stream_costs_neither_the_other_ones_lines_nor_the_status(closed, out, err, tmp_path):
    code = script(NAMED)
    done = subprocess.run(["sh", "-c", f'exec "$0" -c "$1" {closed}', sys.executable, code], capture_output=True,
                          text=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(REPOSITORY)})
    assert (done.returncode, done.stdout, done.stderr) == (1, out, err)


@pytest.mark.parametrize("text", ["print('a')", "print('a', flush=True)", "utils.say('a')",
                                  "utils.parse_arguments(['help'], (), 'usage')", "print('a' * 100000)"])
def test_a_full_disk_behind_stdout_is_blamed_itself(text, run_python, tmp_path):
    code = f"import sys\nsys.stdout = open('/dev/full', 'w')\n{script(text)}"
    done = run_python(code, cwd=tmp_path)
    assert done.status == 1 and re.fullmatch("error: .*No space left on device.*\n", done.err) and "stdout" in done.err


def test_a_reader_that_has_gone_ends_a_script_without_a_word(tmp_path):
    code = script("print('a' * 100000)")
    done = subprocess.run(["sh", "-c", '"$0" -c "$1" | true', sys.executable, code], capture_output=True, text=True,
                          cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(REPOSITORY)})
    assert done.stderr == ""

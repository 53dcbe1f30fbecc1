"""README.md and docs/ say what the scripts do."""

import importlib
import pathlib
import re
import shlex

import pytest

import load_dataset
import train_model
import utils
from support import checkpoints
from tools import write_parameters
from tools.write_parameters import MODULES

REPOSITORY = pathlib.Path(__file__).parent.parent
PAGES = {str(path.relative_to(REPOSITORY)): path.read_text(encoding="utf-8")
         for path in [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted(REPOSITORY.glob("docs/*.md"))]}
README = PAGES["README.md"]


def code(page):
    """Returns (lines of the fenced blocks, with continued lines joined; code spans) of a Markdown page."""
    fences = re.findall(r"^```\w*\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    rest = re.sub(r"^```.*?^```$|^ {4}.*?$|<!--.*?-->", "", page, flags=re.DOTALL | re.MULTILINE)
    return "\n".join(fences).replace("\\\n", " ").splitlines(), re.findall(r"`([^`]+)`", rest)


def python_commands(page):
    """Yields the arguments of every command that calls python."""
    lines, spans = code(page)
    for line in lines + spans:
        if re.search(r"(^|\s)python\s", line):
            words = shlex.split(line, comments=True)
            if "python" in words:
                yield words[words.index("python") + 1:]


def anchors(page):
    """Returns the anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", page, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_tables_of_parameters_equal_the_scripts():
    page = write_parameters.PAGE.read_text(encoding="utf-8")
    assert page == write_parameters.parameters_page(), "python -m tools.write_parameters rewrites it"


def test_readme_has_at_most_250_lines():
    assert README.count("\n") <= 250


@pytest.mark.parametrize("command", ["pip install -r requirements.txt", "pip install 'tensorflow[and-cuda]'",
                                     "python -m tools.demo", "python test_model.py small=true", "python -m pytest"])
def test_readme_has_the_commands_of_a_newcomer(command):
    assert command in README


def test_readme_has_the_test_command_where_ci_looks_for_it():
    line = "python3 -m venv .venv && . .venv/bin/activate && pip install -r requirements.txt && python -m pytest"
    assert line in README.splitlines()


def test_readme_has_the_papers_schedule():
    row = r"^python train_model\.py level=(\d) batch_size=(\d+) .*# +(\d+) +(\d+) x \d+$"
    assert [tuple(map(int, found)) for found in re.findall(row, README, re.MULTILINE)] == [
        (level, checkpoints.PAPER_BATCH_SIZES[level], iterations, load_dataset.target_side(level))
        for level, iterations in train_model.DEFAULT_ITERATIONS.items()]


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_to_files_and_headings(name):
    for target in re.findall(r"\]\((?!\w+:)([^)]*)\)", PAGES[name]):
        path, _, anchor = target.partition("#")
        file = (REPOSITORY / name).parent / path if path else REPOSITORY / name
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text(encoding="utf-8")), target


@pytest.mark.parametrize("name", PAGES)
def test_named_files_exist(name):
    files = [span for span in code(PAGES[name])[1] if re.fullmatch(r"[\w./-]+\.(py|md|cff|toml|yml)", span)]
    assert [file for file in files if not (REPOSITORY / file).is_file()] == []


def test_places_in_the_table_of_the_house_exist_and_none_is_missing():
    places = re.findall(r"^\| `([^`]+)` \|", PAGES["CONTRIBUTING.md"], re.MULTILINE)
    assert [place for place in places if not (REPOSITORY / place).exists()] == []
    modules = [path.relative_to(REPOSITORY).as_posix() for folder in (".", "support")
               for path in (REPOSITORY / folder).glob("[!_]*.py")]
    assert set(modules) <= set(places)


@pytest.mark.parametrize("name", PAGES)
def test_commands_are_taken_by_the_scripts(name):
    for words in python_commands(PAGES[name]):
        module = words[1] if words[0] == "-m" else words[0].removesuffix(".py")
        if module not in MODULES:
            assert module in ("pytest", "venv") or (REPOSITORY / f"{module.replace('.', '/')}.py").is_file(), words
        elif words[-1] != "help":
            script = importlib.import_module(module)
            utils.parse_arguments(words[2 if words[0] == "-m" else 1:], script.PARAMETERS, script.USAGE)


@pytest.mark.parametrize("name", PAGES)
def test_parameters_in_the_text_are_known(name):
    known = {parameter.name for module in MODULES for parameter in importlib.import_module(module).PARAMETERS}
    spans = code(PAGES[name])[1]
    named = [argument for span in spans if re.fullmatch(r"([a-z]\w*=\S*\s?)+", span) for argument in span.split()]
    assert {argument.partition("=")[0] for argument in named} - known == set()

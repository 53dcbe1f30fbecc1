"""README.md says what the scripts do."""

import pathlib
import re

import pytest

import test_model
import train_model
from tools import export_model, make_depth_maps, plot_logs

REPOSITORY = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def readme():
    return (REPOSITORY / "README.md").read_text(encoding="utf-8")


def documented_parameters(readme, script):
    """{name: (default, meaning)} of the table under the heading that names the script."""
    [section] = [section for section in re.split(r"^#+ ", readme, flags=re.MULTILINE)
                 if section.partition("\n")[0] == f"Parameters of {script}"]
    rows = re.findall(r"^\| *`(\w+)` *\| *(.*?) *\| *(.*?) *\|$", section, flags=re.MULTILINE)
    return {name: (default.strip("`"), meaning) for name, default, meaning in rows}


@pytest.mark.parametrize("script", [train_model, test_model, make_depth_maps, plot_logs, export_model],
                         ids=lambda script: script.__name__)
def test_readme_has_every_parameter_with_its_default_and_meaning_and_no_other(readme, script):
    name = script.__name__ if script.__name__.startswith("tools.") else f"{script.__name__}.py"
    assert documented_parameters(readme, name) == {
        parameter.name: (parameter.shown_default(), parameter.meaning) for parameter in script.PARAMETERS}


@pytest.mark.parametrize("command", ["python -m pytest", "python -m tools.demo", "pip install -r requirements.txt",
                                     "tensorflow[and-cuda]"])
def test_readme_has_the_commands_of_a_newcomer(readme, command):
    assert command in readme


def test_readme_has_the_papers_schedule(readme):
    for level, batch_size in zip((7, 6, 5, 4, 3, 2, 1), (50, 50, 40, 14, 9, 9, 5)):
        assert re.search(rf"train_model\.py level={level} batch_size={batch_size}\b", readme)


def test_files_and_folders_that_the_readme_lists_exist(readme):
    [section] = [section for section in re.split(r"^## ", readme, flags=re.MULTILINE)
                 if section.startswith("What lies where")]
    [listing] = re.findall(r"(?:^ {4}.*\n)+", section, flags=re.MULTILINE)
    named = re.findall(r"\b(\w+\.py|[\w/-]+/)", listing)
    assert {"model.py", "utils.py", "tests/", "models/original/", "results/full-resolution/"} <= set(named)
    assert [name for name in named if not (REPOSITORY / name).exists()] == []

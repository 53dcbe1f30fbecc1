"""Writes docs/parameters.md from the PARAMETERS of the scripts and tools: python -m tools.write_parameters"""

import importlib
import pathlib
import sys

import utils
from support import scripts

REPOSITORY = pathlib.Path(__file__).parent.parent
PAGE = REPOSITORY / "docs" / "parameters.md"
MODULES = ["train_model", "test_model", *sorted(
    f"tools.{path.stem}" for path in (REPOSITORY / "tools").glob("*.py") if "\nPARAMETERS = " in path.read_text())]
INTRODUCTION = """# Parameters

Parameters are written like `level=7`, without dashes. `python train_model.py help` prints the first of these tables.

<!-- Written by `python -m tools.write_parameters` from the scripts' PARAMETERS. -->
"""
USAGE = "python -m tools.write_parameters"


def main(argv):
    """Writes the page."""
    utils.parse_arguments(argv, (), USAGE)
    PAGE.write_text(parameters_page(), encoding="utf-8")


def parameters_page():
    """Returns what docs/parameters.md must hold: a table for each script and tool."""
    return INTRODUCTION + "".join(parameter_table(name, importlib.import_module(name)) for name in MODULES)


def parameter_table(name, script):
    """Returns the Markdown of a module's parameters, under a heading with its name."""
    heading = name if name.startswith("tools.") else f"{name}.py"
    rows = [(f"`{p.name}`", p.shown_default(), p.description()) for p in script.PARAMETERS]
    lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]
    return "\n".join([f"\n## {heading}\n", f"    {script.USAGE}\n",
                      "| parameter | default | meaning |", "|---|---|---|", *lines, ""])


if __name__ == "__main__":
    sys.exit(scripts.run(main))

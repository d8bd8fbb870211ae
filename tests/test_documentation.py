"""What the README and the guides show works: Python blocks run, command lines have options that exist."""

import importlib
import re
import shlex
from pathlib import Path

import jax
import pytest

from jaxgeom.cli import COMMANDS
from jaxgeom.commands.parsing import parse

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    return [code for held, code in BLOCK.findall(page.read_text(encoding="utf-8")) if held == language]


def command_lines(page: Path) -> list[list[str]]:
    """The arguments of every `jaxgeom …` in a block, those that stand for others (`…`, `{a,b}`) left out."""
    lines = [line for block in blocks(page, "") for line in block.replace("\\\n", " ").splitlines()]
    found = [re.search(r"(?:^|&& |[A-Z_]+=\S+ )jaxgeom (.+?)(?:\s+#.*)?$", line) for line in lines]
    return [shlex.split(match[1]) for match in found if match and not re.search(r"…|\{|\[", match[1])]


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "tpu" / "README.md"], ids=lambda page: f"{page.parent.name}-{page.stem}"
)
def test_every_row_of_a_table_has_its_cells(page):
    """A placeholder that nobody has filled in has not."""
    wrong, width = [], None
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if not line.startswith("|"):
            width = None
            continue
        bars = len(re.findall(r"(?<!\\)\|", re.sub(r"`[^`]*`", "", line)))
        width = bars if width is None else width
        wrong += [f"line {number}: {line}"] if bars != width else []
    assert not wrong


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch, capsys):
    """From top to bottom, as one program, as a reader would paste it."""
    monkeypatch.chdir(tmp_path)
    names = {"__name__": page.stem}
    with jax.numpy_dtype_promotion("standard"):  # what a reader's program has
        for code in blocks(page, "python"):
            exec(compile(code, str(page), "exec"), names)
    capsys.readouterr()


def test_there_is_something_to_run():
    assert sum(len(blocks(page, "python")) for page in PAGES) >= 4
    assert sum(len(command_lines(page)) for page in PAGES) >= 8


@pytest.mark.parametrize("page", [page for page in PAGES if command_lines(page)], ids=lambda page: page.name)
def test_the_commands_of_a_page_can_be_given(page):
    for arguments in command_lines(page):
        name = next(name for name in COMMANDS if arguments[: len(name.split())] == name.split())
        module = importlib.import_module(f"jaxgeom.commands.{COMMANDS[name][0]}")
        assert callable(parse(getattr(module, name.replace(" ", "_")), name, arguments[len(name.split()) :]))


def test_what_is_installed_is_installed_from_a_clone():
    """The package is on no index: `pip install 'jaxgeom[…]'` fetches nothing, or something else of that name."""
    sources = [*PAGES, *ROOT.glob("jaxgeom/**/*.py"), *ROOT.glob("experiments/**/*.py"), *ROOT.glob("tpu/**/*")]
    wrong = re.compile(r"install\s+(?:-\S+\s+)*'?jaxgeom\b|'jaxgeom\[")
    assert [str(path) for path in sources if path.is_file() and wrong.search(path.read_text(encoding="utf-8"))] == []

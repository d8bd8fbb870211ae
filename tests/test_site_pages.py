"""The documentation site: every public name and every cited paper is on a page. The build itself runs in `.ci/run`."""

import importlib
import importlib.util
import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest

from jaxgeom.cli import COMMANDS
from jaxgeom.diagnostics import SOURCES

ROOT = Path(__file__).resolve().parent.parent
ARXIV = re.compile(r"\b(\d{4}\.\d{5})\b")


@pytest.fixture(scope="module")
def site() -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_pages", ROOT / "docs/site_pages.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def exported(package: str) -> set[str]:
    """The public names of an imported package that are no modules."""
    module = importlib.import_module(package)
    names = {name for name in dir(module) if not name.startswith("_")}
    return {name for name in names if not inspect.ismodule(getattr(module, name))}


def test_every_public_name_has_its_place_on_one_page(site: ModuleType) -> None:
    text = "\n".join(site.api_pages().values())
    documented = re.findall(r"^::: (\S+)$", text, re.MULTILINE)
    assert len(documented) == len(set(documented))
    packages = [f"jaxgeom.{path.parent.name}" for path in ROOT.glob("jaxgeom/*/__init__.py")]
    assert {f"{package}.{name}" for package in packages for name in exported(package)} <= set(documented)


def test_the_top_level_names_lead_to_where_they_are_documented(site: ModuleType) -> None:
    pages = site.api_pages()
    rows = dict(re.findall(r"^\| \[`(\w+)`\]\[([\w.]+)\] \|", pages["api/index.md"], re.MULTILINE))
    assert set(rows) == exported("jaxgeom")
    documented = set(re.findall(r"^::: (\S+)$", "\n".join(pages.values()), re.MULTILINE))
    jaxgeom = importlib.import_module("jaxgeom")
    for name, target in rows.items():
        package, _, original = target.rpartition(".")
        assert target in documented
        assert getattr(importlib.import_module(package), original) is getattr(jaxgeom, name)


def test_every_command_is_on_the_page_of_the_command_line(site: ModuleType) -> None:
    page = site.api_pages()["api/command-line.md"]
    assert re.findall(r"heading: jaxgeom (.+)", page) == list(COMMANDS)


def test_every_name_is_introduced_by_the_first_line_of_its_docstring(site: ModuleType) -> None:
    for package in site.packages():
        for name in site.public_names(package):
            value = getattr(importlib.import_module(package), name.name)
            assert name.summary, f"{package}.{name.name} has no docstring"
            if inspect.isroutine(value) or inspect.isclass(value):
                assert name.summary == (inspect.getdoc(value) or "").split("\n")[0]


def test_every_cited_paper_is_in_the_bibliography() -> None:
    cited = set()
    for pattern in ("README.md", "docs/*.md", "experiments/**/*.py", "jaxgeom/**/*.py", "jaxgeom/**/*.csv"):
        for path in ROOT.glob(pattern):
            if path.name != "bibliography.md":
                text = path.read_text()
                found = re.findall(r"arxiv\S*[ :/]?\s?\d{4}\.\d{5}(?:[^\n]*)", text, re.IGNORECASE)
                cited |= {number for line in found for number in ARXIV.findall(line)}
                if path.suffix == ".csv":
                    cited |= set(re.findall(r"^(\d{4}\.\d{5}),", text, re.MULTILINE))
    bibliography = (ROOT / "docs/bibliography.md").read_text()
    assert len(cited) > 10
    assert cited <= set(ARXIV.findall(bibliography))
    for source in SOURCES.values():
        assert source.title in bibliography
        assert source.link in bibliography


def test_the_readme_has_the_sections_that_the_site_shows(site: ModuleType) -> None:
    for page in ROOT.glob("docs/*.md"):
        for title in re.findall(r"<!-- README: (.+?) -->", page.read_text()):
            assert site.on_page_markdown(f"<!-- README: {title} -->", None).strip()

"""The pages of the site that are written from the code: the API reference, the experiments' sources, the changelog.

MkDocs calls the `on_…` functions (`hooks` in mkdocs.yml). The code is read, not imported: every name that a package's
`__init__` exports (`from X import N as N`) is put on a page, so a new one appears by itself.
"""

import ast
import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
SPLIT_ABOVE = 40  # a package with more names than this has a page for each of its modules


class Name(NamedTuple):
    """A public name.

    Attributes:
        name: as its package exports it.
        room: the module that its package takes it from, `jaxgeom.diagnostics.spectrum`.
        module: the module that defines it, the same or one below.
        summary: the first line of its docstring.
    """

    name: str
    room: str
    module: str
    summary: str


def _source(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse(_source(module).read_text())


def _first_line(node: Any) -> str:
    return (ast.get_docstring(node) or "").split("\n")[0]


def _statements(module: str) -> list[ast.stmt]:
    """The top level of a module, what it imports for the reader and the type checker alone (`jaxgeom/lazy.py`) too."""
    body = _tree(module).body
    return [*body, *(inner for node in body if isinstance(node, ast.If) for inner in node.body)]


@cache
def _imports(module: str) -> dict[str, tuple[str, str]]:
    """`{name here: (module that it is taken from, its name there)}` of every `from X import N as M`."""
    found = {}
    for node in _statements(module):
        if isinstance(node, ast.ImportFrom):
            package = module if _source(module).name == "__init__.py" else module.rpartition(".")[0]
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            source = ".".join([*above, *filter(None, [node.module])])
            found |= {alias.asname or alias.name: (source, alias.name) for alias in node.names}
    return found


def _summary(module: str, name: str) -> str:
    """The first line of a definition's docstring, the last one's where it is overloaded."""
    body, found = _tree(module).body, ""
    for node, following in zip(body, [*body[1:], None], strict=True):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            found = _first_line(node)
        elif any(isinstance(target, ast.Name) and target.id == name for target in targets):
            stated = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
            found = str(following.value.value).split("\n")[0] if stated else ""
    return found


def public_names(package: str) -> list[Name]:
    """What a package exports (`from X import N as N`), packages left out, in the order of its `__init__`."""
    exported = {
        alias.asname
        for node in _statements(package)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname and not alias.asname.startswith("_")
    }
    names = []
    for name, (room, original) in _imports(package).items():
        module = room
        if name not in exported or (ROOT.joinpath(*module.split("."), original) / "__init__.py").exists():
            continue
        while original in _imports(module):  # not defined there, but taken from elsewhere
            module, original = _imports(module)[original]
        names.append(Name(name, room, module, _summary(module, original)))
    return names


def packages() -> list[str]:
    """The packages below `jaxgeom` that export something."""
    found = sorted(f"jaxgeom.{path.parent.name}" for path in ROOT.glob("jaxgeom/*/__init__.py"))
    return [package for package in found if public_names(package)]


def _by_room(names: list[Name]) -> dict[str, list[Name]]:
    grouped: dict[str, list[Name]] = {}
    for name in names:
        grouped.setdefault(name.room, []).append(name)
    return grouped


def _barred(match: re.Match[str]) -> str:
    return "\\|" if match[0] == "|" else match[0]


def _table(names: list[tuple[str, Name]]) -> str:
    """Names, each with the package on whose page it stands, with their first lines."""
    # A bar between backticks is text in Python-Markdown's tables, and so is a backslash before it.
    rows = (
        f"| [`{n.name}`][{package}.{n.name}] | {re.sub(r'`[^`]*`|[|]', _barred, n.summary)} |" for package, n in names
    )
    return "\n".join(["| | |", "|---|---|", *rows])


def _documented(package: str, names: list[Name], level: int = 2) -> str:
    return "\n\n".join(f"::: {package}.{n.name}\n    options:\n      heading_level: {level}" for n in names)


def _package_pages(package: str) -> dict[str, str]:
    short, names = package.split(".")[-1], public_names(package)
    head = f"# `{package}`\n\n{ast.get_docstring(_tree(package))}\n\n"
    if len(names) <= SPLIT_ABOVE:
        return {f"api/{short}.md": f"{head}{_table([(package, n) for n in names])}\n\n{_documented(package, names)}\n"}
    pages, parts = {}, []
    for room, group in _by_room(names).items():
        title = room.split(".")[-1].lstrip("_").replace("_", " ")
        file, about = title.replace(" ", "-"), ast.get_docstring(_tree(room)) or ""
        table = _table([(package, n) for n in group])
        parts.append(f"## [{title}]({file}.md)\n\n{_first_line(_tree(room))}\n\n{table}")
        pages[f"api/{short}/{file}.md"] = f"# {short}: {title}\n\n{about}\n\n{_documented(package, group)}\n"
    return {f"api/{short}/index.md": head + "\n\n".join(parts) + "\n"} | pages


def api_pages() -> dict[str, str]:
    """The API reference: `{path below docs/: Markdown}`."""
    pages: dict[str, str] = {}
    rows, home = [], {}
    for package in packages():
        own = _package_pages(package)
        first = next(iter(own))
        rows.append(f"| [`{package}`]({first.removeprefix('api/')}) | {_first_line(_tree(package))} |")
        home |= {(n.module, n.name): package for n in public_names(package)}
        pages |= own
    top = public_names("jaxgeom")
    here = [n for n in top if (n.module, n.name) not in home]
    index = (
        "# API reference\n\n"
        "`import jaxgeom as jg`. A weight matrix is `W [out, in]` (`y = W x`); batch axes stand before it.\n\n"
        "| package | |\n|---|---|\n" + "\n".join(rows) + "\n\n## In `jaxgeom` itself\n\n"
        f"{_table([(home.get((n.module, n.name), 'jaxgeom'), n) for n in top])}\n\n{_documented('jaxgeom', here)}\n"
    )
    return {"api/index.md": index, "api/command-line.md": _command_page()} | pages


def _command_page() -> str:
    """The command line, from the functions behind it."""
    tree = _tree("jaxgeom.cli")
    commands = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "COMMANDS"
    )
    options = ("show_signature: false", "separate_signature: false", "show_docstring_returns: false")
    shown = "\n".join(f"      {option}" for option in (*options, "show_symbol_type_heading: false"))
    parts = [
        f"::: jaxgeom.commands.{module}.{name.replace(' ', '_')}\n    options:\n      heading: jaxgeom {name}\n"
        f"      toc_label: {name}\n{shown}"
        for name, (module, _) in commands.items()
    ]
    return (
        f"# Command line\n\n{ast.get_docstring(tree)}\n\n"
        "A parameter is an argument `NAME` where its type is `Positional`, else an option `--name`. The fields of "
        "`settings` and `inputs` are options too, by their own names: `--angle-k 256`. `jaxgeom COMMAND --help` prints "
        "them all with their defaults.\n\n" + "\n\n".join(parts) + "\n"
    )


def _experiment_pages() -> dict[str, str]:
    pages, rows = {}, []
    for path in sorted(ROOT.glob("experiments/**/*.py")):
        name = path.relative_to(ROOT / "experiments").with_suffix("").as_posix()
        code = path.read_text()
        rows.append(f"| [`experiments/{name}.py`]({name}.md) | {_first_line(ast.parse(code))} |")
        pages[f"experiments/{name}.md"] = f"# `experiments/{name}.py`\n\n```python\n{code}```\n"
    return {"experiments/index.md": "# Experiments\n\n| | |\n|---|---|\n" + "\n".join(rows) + "\n"} | pages


def pages() -> dict[str, str]:
    """Every page that has no file below docs/: `{path: Markdown}`."""
    changelog = (ROOT / "CHANGELOG.md").read_text()
    return api_pages() | _experiment_pages() | {"changelog.md": changelog}


def _navigation(paths: list[str], folder: str) -> list[Any]:
    """The pages of a folder as navigation, those of a folder in it as a section."""
    entries: list[Any] = []
    sections: dict[str, list[Any]] = {}
    for path in paths:
        first, *rest = path.removeprefix(f"{folder}/").split("/")
        if not path.startswith(f"{folder}/"):
            continue
        if not rest:
            entries.append(path if first == "index.md" else {first.removesuffix(".md").replace("-", " "): path})
        else:
            if first not in sections:
                entries.append({first: sections.setdefault(first, [])})
            sections[first].append(
                path if rest == ["index.md"] else {rest[-1].removesuffix(".md").replace("-", " "): path}
            )
    return entries


def on_config(config: Any) -> Any:
    """Puts the written pages where mkdocs.yml names their folder's index."""
    paths = list(pages())
    for entry in config.nav:
        for title, path in entry.items():
            if path.endswith("/index.md"):
                entry[title] = _navigation(paths, path.removesuffix("/index.md"))
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds the written pages."""
    from mkdocs.structure.files import File

    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def _section(title: str) -> str:
    """A section of the README, without its heading."""
    text = (ROOT / "README.md").read_text()
    match = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if match is None:
        raise ValueError(f"README.md has no section {title!r}, which docs/index.md asks for")
    return match[1].replace("](docs/", "](")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links to scripts lead to the pages that show them; `<!-- README: title -->` becomes that section of README.md."""
    markdown = re.sub(r"\]\(\.\./(experiments/[\w/]+)\.py\)", r"](\1.md)", markdown)
    return re.sub(r"<!-- README: (.+?) -->", lambda match: _section(match[1]), markdown)

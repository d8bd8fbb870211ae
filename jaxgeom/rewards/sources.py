"""What a user's verifier is made of: its module's file, and those of the user's own that it imports."""

import ast
import hashlib
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType


def digest_of(module: ModuleType) -> str:
    """SHA-256 of a module's file, and of the user's own modules that it imports, at its top or within a function.

    Packages that are installed and the standard library are no part of it: versions tell those apart.

    Args:
        module: that was imported.

    Returns:
        Of a module alone, in no package and importing none of the user's own, the digest of its file; empty where it
        has no file.
    """
    source = getattr(module, "__file__", None)
    if not source or not Path(source).is_file():
        return ""
    found: dict[str, str] = {}
    waiting = {module.__name__: Path(source)}
    for package in _with_packages(module.__name__):  # they run before it
        if package != module.__name__ and (own := _own_file(package)) is not None:
            waiting[package] = own
    while waiting:
        name, file = waiting.popitem()
        content = file.read_bytes()
        found[name] = hashlib.sha256(content).hexdigest()
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        for imported in {*_imported(content, package)} - found.keys() - waiting.keys():
            if (own := _own_file(imported)) is not None:
                waiting[imported] = own
    if len(found) == 1:
        return found[module.__name__]
    return hashlib.sha256("".join(f"{name} {found[name]}\n" for name in sorted(found)).encode()).hexdigest()


def _imported(content: bytes, package: str) -> Iterator[str]:
    """The names of modules that a source imports, or may import: `from a import b` names `a` and `a.b`."""
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):  # no Python source, a compiled module say
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")
            above = above[: len(above) - node.level + 1] if node.level else []
            head = ".".join(filter(None, (*above, node.module)))
            names = [".".join(filter(None, (head, alias.name))) for alias in node.names]
        else:
            continue
        for name in names:
            yield from _with_packages(name)


def _with_packages(name: str) -> Iterator[str]:
    """A module's name and those of the packages around it, which run too."""
    parts = name.split(".")
    return (".".join(parts[:size]) for size in range(1, len(parts) + 1))


def _own_file(name: str) -> Path | None:
    """The file of a module of the user's own, found without importing it; None for any other."""
    path: Sequence[str] | None = None
    for size in range(name.count(".") + 1):
        part = ".".join(name.split(".")[: size + 1])
        loaded = sys.modules.get(part)
        spec = getattr(loaded, "__spec__", None) or PathFinder.find_spec(part, path)
        if spec is None or (spec.origin is not None and _is_installed(spec.origin)):
            return None
        path = spec.submodule_search_locations
        if path is None and part != name:
            return None
    return Path(spec.origin) if spec.origin is not None and Path(spec.origin).is_file() else None


def _is_installed(file: str) -> bool:
    """Whether it is of the standard library or of an installed package, which jaxgeom is too."""
    roots = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    roots.add(Path(__file__).resolve().parents[1])
    place = Path(file).resolve()
    return any(place.is_relative_to(root) for root in roots) or "site-packages" in place.parts

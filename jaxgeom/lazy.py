"""Packages whose names are imported when they are first asked for, so that a command's help need not wait for JAX.

Such a package lists its names as every other does, one import a line, for the reader and the type checker, and has them
read here:

    if TYPE_CHECKING:
        from .loop import train as train
    else:
        import_when_asked(__name__)
"""

import ast
import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any


class _Package(ModuleType):
    """A package that imports a name when it is first asked for; `dir` and `*` are the names that it lists."""

    __names__: dict[str, tuple[str, str]]  # name → (module or package that has it, its name there)

    def __getattr__(self, name: str) -> Any:
        if name not in self.__names__:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        source, original = self.__names__[name]
        here = source == self.__name__  # a package below this one
        found = importlib.import_module(f"{source}.{original}" if here else source)
        found = found if here else getattr(found, original)
        super().__setattr__(name, found)
        return found

    def __setattr__(self, name: str, value: Any) -> None:
        # A module that has the name of its function (`adamw`) does not take the function's place when it is imported.
        listed = self.__names__.get(name)
        if not isinstance(value, ModuleType) or listed is None or value.__name__ == ".".join(listed):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted(self.__all__)


def import_when_asked(package: str) -> None:
    """Gives a package the names that its `if TYPE_CHECKING:` lists, imported one by one on first use.

    Args:
        package: its `__name__`, while it is being imported.
    """
    module: Any = sys.modules[package]
    names: dict[str, tuple[str, str]] = {}
    for node in ast.walk(ast.parse(module.__loader__.get_source(package))):
        if isinstance(node, ast.ImportFrom) and node.module != "typing":
            source = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            names |= {alias.asname: (source, alias.name) for alias in node.names if alias.asname}
    module.__names__ = names
    module.__all__ = [name for name in [*names, "__version__"] if name in names or hasattr(module, name)]
    module.__class__ = _Package

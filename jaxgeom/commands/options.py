"""Settings as options of a command: those that it reads, and what each takes, named by what it is."""

import dataclasses
import inspect
import types
import typing
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

INITIAL = Annotated[Positional[str], arg(metavar="INITIAL")]
FINAL = Annotated[Positional[str], arg(metavar="FINAL")]
"""Checkpoint arguments by their names in the usage line."""

Directory = Annotated[Path, arg(metavar="DIR")]
SomeDirectory = Annotated[Path | None, arg(metavar="DIR")]
SomeFile = Annotated[Path | None, arg(metavar="FILE")]
SomeCount = Annotated[int | None, arg(metavar="N")]
SomeNumber = Annotated[float | None, arg(metavar="X")]


def offered(settings: type, *, without: Collection[str] = ()) -> Any:
    """What tyro makes a parameter of type `settings` from: its fields as options.

    Args:
        settings: a dataclass whose docstring lists its `Attributes`.
        without: fields that the command does not read; they keep their defaults.
    """
    hints = typing.get_type_hints(settings, include_extras=True)
    parameters = []
    for field in dataclasses.fields(settings):
        if field.name in without:
            continue
        kind, default = hints[field.name], _default(field)
        parameters.append(
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, annotation=_named(kind), default=default)
        )

    return arg(constructor=_described(lambda **values: settings(**values), parameters, _documentation(settings)))


def _described(function: Any, parameters: list[inspect.Parameter], documentation: str) -> Any:
    """A function with the signature that is made for it."""
    function.__signature__ = inspect.Signature(parameters)
    function.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    function.__name__, function.__doc__ = "settings", documentation
    return function


def _documentation(settings: type) -> str:
    """Its first line, and what it and the dataclasses that it extends say of their attributes, as of arguments."""
    kinds = [kind for kind in settings.__mro__ if dataclasses.is_dataclass(kind)]
    parts = [inspect.cleandoc(kind.__doc__ or "").partition("\nAttributes:\n")[2] for kind in kinds]
    lines = [line for part in parts for line in part.partition("\n\n")[0].splitlines()]
    return "\n".join([(settings.__doc__ or "").partition("\n")[0], "", "Args:", *lines])


def _default(field: dataclasses.Field) -> Any:
    """A field's default; that of settings in settings is made of the defaults of theirs."""
    return inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default


def _is_optional(kind: Any) -> bool:
    return typing.get_origin(kind) in (typing.Union, types.UnionType) and type(None) in typing.get_args(kind)


def _without_none(kind: Any) -> Any:
    """`Path` for `Path | None`."""
    held = [one for one in typing.get_args(kind) if one is not type(None)] if _is_optional(kind) else [kind]
    return held[0] if len(held) == 1 else kind


def _named(kind: Any) -> Any:
    """An optional field with the name of what it takes, not of how Python writes that it may be left out.

    The fields of a dataclass in a field likewise.
    """
    if dataclasses.is_dataclass(kind):
        return Annotated[kind, offered(kind)]  # type: ignore[valid-type]  (made at run time, for tyro alone)
    inner = _without_none(kind)
    return Annotated[kind, arg(metavar=inner.__name__.upper())] if inner is not kind and inner in _PLAIN else kind


_PLAIN = (int, float, str, Path)

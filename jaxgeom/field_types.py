"""Types of settings that are written in Python: what the command line checks while it parses is checked here."""

import dataclasses
import typing
from typing import Any

from jaxgeom.errors import UserError


def check_types(settings: Any) -> None:
    """Refuses a field of a dataclass whose value is not of the annotated type; a bool is no number.

    Args:
        settings: a dataclass instance.

    Raises:
        UserError: naming the field, its value and what is needed.
    """
    import typeguard  # help needs no check

    hints = typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        value, wanted = getattr(settings, field.name), hints[field.name]
        try:
            typeguard.check_type(value, wanted, collection_check_strategy=typeguard.CollectionCheckStrategy.ALL_ITEMS)
            sound = not isinstance(value, bool) or bool in (wanted, *typing.get_args(wanted))
        except typeguard.TypeCheckError:
            sound = False
        if not sound:
            raise UserError(f"{field.name}={value!r}: {_said(wanted)} is needed")


def _said(wanted: Any) -> str:
    """A type in words."""
    words = {int: "a whole number", float: "a number", bool: "True or False", str: "a text", type(None): "None"}
    choices = typing.get_args(wanted)
    if wanted in words:
        return words[wanted]
    if typing.get_origin(wanted) is typing.Literal:
        return "one of " + ", ".join(map(repr, choices))
    if typing.get_origin(wanted) is tuple:
        return f"a tuple, each entry {_said(choices[0])},"
    if choices:
        return " or ".join(map(_said, choices))
    return f"a {getattr(wanted, '__name__', wanted)}"

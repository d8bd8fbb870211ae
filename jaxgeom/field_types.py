"""Types of settings that are written in Python: what the command line checks while it parses is checked here."""

import dataclasses
import sys
import typing
from collections.abc import Iterator
from typing import Any

from jaxgeom.errors import UserError

LARGEST = 2**31 - 1
"""Of whole numbers in settings: steps, tokens, seeds and sizes are counted in int32."""


def check_types(settings: Any) -> None:
    """Refuses a field of a dataclass whose value is not of the annotated type; a bool is no number.

    Nor is a whole number one that no int32 holds, or, where any number may stand, no float.

    Args:
        settings: a dataclass instance.

    Raises:
        UserError: naming the field, its value and what is needed.
    """
    import typeguard  # help needs no check

    hints = typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        value, wanted = getattr(settings, field.name), hints[field.name]
        limit = sys.float_info.max if float in (wanted, *typing.get_args(wanted)) else LARGEST
        for number in _whole_numbers(value):
            if abs(number) > limit:
                shown = str(number) if number.bit_length() < 1000 else f"a number of {number.bit_length():,} bits"
                end = f"{limit:,}" if limit == LARGEST else f"{limit:g}"
                raise UserError(f"{field.name}={shown}: a number of at most {end} is needed")
        try:
            typeguard.check_type(value, wanted, collection_check_strategy=typeguard.CollectionCheckStrategy.ALL_ITEMS)
            sound = not isinstance(value, bool) or bool in (wanted, *typing.get_args(wanted))
        except typeguard.TypeCheckError:
            sound = False
        if not sound:
            raise UserError(f"{field.name}={value!r}: {_said(wanted)} is needed")


def _whole_numbers(value: Any) -> Iterator[int]:
    if isinstance(value, int):
        yield value
    elif isinstance(value, tuple):
        for entry in value:
            yield from _whole_numbers(entry)


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

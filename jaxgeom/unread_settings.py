"""Settings that nothing reads are refused where they are given: whoever gives one expects it to do something."""

import dataclasses
from typing import Any

from jaxgeom.errors import UserError


def refuse_unread(settings: Any, names: tuple[str, ...], by: str) -> None:
    """Refuses fields that differ from their default although nothing reads them.

    Args:
        settings: a dataclass instance.
        names: of fields with a default.
        by: the setting that leaves them unread, as NAME=VALUE.

    Raises:
        UserError: naming the first such field, its value, and `by`.
    """
    fields = {field.name: field for field in dataclasses.fields(settings)}
    for name in names:
        if getattr(settings, name) != fields[name].default:
            raise UserError(f"{name}={getattr(settings, name)}: nothing reads it with {by}")

"""The one exception that means «the user can mend this», and how its message lists names."""

from collections.abc import Collection

_LISTED = 8


class UserError(ValueError):
    """A mistake in what the user gave: a file, a field, a shape.

    The command line prints its message as one line on stderr and exits with 2; from Python it is a `ValueError`.
    """


def listed(names: Collection[object]) -> str:
    """Names in a message: the first 8, and how many more there are.

    >>> listed(["q", "k"]), listed(range(310))
    ('q, k', '0, 1, 2, 3, 4, 5, 6, 7 and 302 more')
    """
    shown = ", ".join(str(name) for _, name in zip(range(_LISTED), names, strict=False))
    return f"{shown} and {len(names) - _LISTED} more" if len(names) > _LISTED else shown

"""The one exception that means «the user can mend this», and how it lists names."""

from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in what the user gave: a file, a field, a shape.

    The command line prints its message as one line on stderr and exits with 2; from Python it is a `ValueError`.
    """


def listed(names: Iterable[str], limit: int = 8) -> str:
    """Names in a sentence, cut after `limit` with the number of those that are left.

    >>> listed(["a", "b"]), listed(map(str, range(10)), 3)
    ('a, b', '0, 1, 2 and 7 more')
    """
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more

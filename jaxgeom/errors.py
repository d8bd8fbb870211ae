"""The one exception that means «the user can mend this», and how it lists names."""

import re
from collections.abc import Iterable

_WORD, _LINE = 600, 1400  # characters: paths of half that length are in use


class UserError(ValueError):
    """A mistake in what the user gave: a file, a field, a shape.

    The command line prints its message as one line on stderr and exits with 2; from Python it is a `ValueError`. What
    makes a message long (a field with a text of thousands of characters) is cut in its middle.

    >>> len(str(UserError(f"config.json: eos_token_id={'a' * 5000} is no token id")))
    429

    Attributes:
        status: that the command line exits with.
    """

    status = 2

    def __init__(self, message: str = "") -> None:
        word = re.sub(rf"\S{{{_WORD},}}", lambda found: f"{found[0][:300]}…{found[0][-100:]}", message)
        super().__init__(word if len(word) <= _LINE else f"{word[: _LINE - 300]} … {word[-250:]}")


def listed(names: Iterable[str], limit: int = 8) -> str:
    """Names in a sentence, cut after `limit` with the number of those that are left.

    >>> listed(["a", "b"]), listed(map(str, range(10)), 3)
    ('a, b', '0, 1, 2 and 7 more')
    """
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def words_of(error: BaseException) -> str:
    """What an error of a user's own program says, which may be an error of its own."""
    try:
        return str(error)
    except Exception as second:
        return f"(its words cannot be had: {type(second).__name__})"

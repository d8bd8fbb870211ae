"""How two descriptions of a piece of work differ, in sentences that name the field and both values."""

import json
from collections.abc import Sequence
from typing import Any

_SHOWN = 80  # characters of a value


def unequal(held: Any, wanted: Any, where: str = "") -> list[str]:
    """The fields in which two JSON values differ, each as `field: held there, wanted asked for`."""
    if isinstance(held, dict) and isinstance(wanted, dict):
        keys = dict.fromkeys([*wanted, *held])
        front = f"{where}." if where else ""
        return [line for key in keys for line in unequal(held.get(key), wanted.get(key), f"{front}{key}")]
    if held == wanted:
        return []
    return [f"{where}: {json.dumps(held)[:_SHOWN]} there, {json.dumps(wanted)[:_SHOWN]} asked for"]


def other_content(name: str, held: str | None, wanted: str | None) -> str:
    """The sentence on an input that is another one by its content, by the paths that it had and has.

    >>> other_content("eval_data", "held_out.jsonl", None)
    'eval_data: held_out.jsonl there, none given now'
    >>> other_content("data", "a.jsonl", "a.jsonl")
    'data: a.jsonl has other content now'
    >>> other_content("data", "a.jsonl", "b.jsonl")
    'data: a.jsonl there, b.jsonl given now, with other content'
    """
    if held == wanted:
        return f"{name}: other content now" if held is None else f"{name}: {held} has other content now"
    if held is None or wanted is None:
        return f"{name}: {held or 'none'} there, {wanted or 'none'} given now"
    return f"{name}: {held} there, {wanted} given now, with other content"


def shown(differences: Sequence[str], limit: int = 4) -> str:
    """Differences in a sentence, cut after `limit` with the number of those that are left.

    >>> shown(["a: 1 there, 2 asked for", "b: 3 there, 4 asked for"], 1)
    'a: 1 there, 2 asked for; and 1 more'
    """
    more = f"; and {len(differences) - limit} more" if len(differences) > limit else ""
    return "; ".join(differences[:limit]) + more

"""What the rows of a file have come to, of all of them or of a share, and the shares of several processes made one."""

import collections
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from jaxgeom import processes
from jaxgeom.data.rows import Row
from jaxgeom.rewards import Truth


class Asked(NamedTuple):
    """What answers to a prompt are judged by, and who teaches it; None of a demonstration."""

    truth: Truth | None = None
    teacher: str | int | None = None


class Reason(NamedTuple):
    """Why rows are not used: how many, and the first of them.

    Attributes:
        count: rows.
        number: of the first.
        place: of the first, as `Row.place`.
        said: what is wrong with the first.
    """

    count: int
    number: int
    place: str
    said: str

    def joined(self, other: "Reason") -> "Reason":
        """The same of the rows of both."""
        first = min(self, other, key=lambda one: one.number)
        return first._replace(count=self.count + other.count)


@dataclass
class Share:
    """What rows have come to.

    Attributes:
        numbers: of the rows that are used, ascending.
        lengths: of each, in tokens.
        tokens: int32 arrays, row after row, a row or many each.
        targets: bool, likewise.
        asked: of each row.
        bad: rows that cannot be used, by what they have in common.
        left_out: rows that the settings leave out, by the reason.
        counts: of rows and tokens that something is said of.
        heads: what the template writes before an answer, of the first row without and with tools.
        unread: columns that nothing reads, in the order in which they are met.
    """

    numbers: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    tokens: list[np.ndarray] = field(default_factory=list)
    targets: list[np.ndarray] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    bad: dict[str, Reason] = field(default_factory=dict)
    left_out: dict[str, Reason] = field(default_factory=dict)
    counts: collections.Counter[str] = field(default_factory=collections.Counter)
    heads: dict[bool, str] = field(default_factory=dict)
    unread: dict[str, None] = field(default_factory=dict)

    def use(self, row: Row, tokens: np.ndarray, targets: np.ndarray, asked: Asked) -> None:
        """Takes a row."""
        self.numbers.append(row.number)
        self.lengths.append(len(tokens))
        self.tokens.append(tokens)
        self.targets.append(targets)
        self.asked.append(asked)


def count_row(reasons: dict[str, Reason], kind: str, row: Row, said: str) -> None:
    """Adds a row to those that are not used."""
    _add(reasons, kind, Reason(1, row.number, row.place, said))


def of_all(share: Share) -> Share:
    """The shares of all processes as one, in all of them; all call it together.

    Args:
        share: of this process: of rows that follow those of the process before it. Its arrays are let go of.
    """
    tokens, targets = concatenated(share.tokens, np.int32), concatenated(share.targets, bool)
    share.tokens, share.targets = [], []
    whole = Share(tokens=[processes.joined(tokens, at="tokens")])
    del tokens
    whole.targets = [processes.joined(targets, at="targets")]
    whole.numbers = processes.joined(np.array(share.numbers, np.int64), at="numbers").tolist()
    whole.lengths = processes.joined(np.array(share.lengths, np.int64), at="lengths").tolist()
    words = (share.asked, share.bad, share.left_out, share.counts, share.heads, share.unread)
    for asked, bad, left_out, counts, heads, unread in processes.exchanged(words, at="rows"):
        whole.asked += asked
        for reasons, more in ((whole.bad, bad), (whole.left_out, left_out)):
            for kind, reason in more.items():
                _add(reasons, kind, reason)
        whole.counts += counts
        whole.heads = heads | whole.heads
        whole.unread |= unread
    return whole


def concatenated(arrays: Sequence[np.ndarray], dtype: type) -> np.ndarray:
    """One array of several of a dtype, which may be none; of one that itself."""
    return arrays[0] if len(arrays) == 1 else np.concatenate([np.zeros(0, dtype), *arrays])


def _add(reasons: dict[str, Reason], kind: str, reason: Reason) -> None:
    reasons[kind] = reasons[kind].joined(reason) if kind in reasons else reason

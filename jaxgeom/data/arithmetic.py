"""The synthetic reasoning task: sums of several terms, worked out one addition at a time.

A problem is a list of integers; its answer is their sum; a demonstration writes every partial sum on a line of its own
and boxes the last. Problems are unlimited, seeded, and split by a hash of their terms, so that the training and the
held-out set share no problem whatever the seeds and counts.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jaxgeom.errors import UserError
from jaxgeom.field_types import check_types

Split = Literal["train", "heldout"]
_HELDOUT_SHARE = 16  # one problem in sixteen is held out
_MOST_TERMS = 256


@dataclass(frozen=True)
class ArithmeticTask:
    """How hard the sums are.

    Attributes:
        terms: How many numbers are added (2 to 256).
        digits: Digits of the largest number (1 to 6); numbers are uniform on `1 … 10**digits − 1`.
    """

    terms: int = 3
    digits: int = 2

    def __post_init__(self):
        check_types(self)
        if self.terms < 2:
            raise UserError(f"terms={self.terms}: a sum needs at least 2 terms")
        if self.terms > _MOST_TERMS:
            raise UserError(f"terms={self.terms}: must be at most {_MOST_TERMS}")
        if not 1 <= self.digits <= 6:
            raise UserError(f"digits={self.digits}: must be between 1 and 6")
        if (10**self.digits - 1) ** self.terms < 16 * _HELDOUT_SHARE:
            raise UserError(f"terms={self.terms}, digits={self.digits}: too few problems to hold some out")


def is_heldout(terms: tuple[int, ...]) -> bool:
    """Whether a problem belongs to the held-out set: a fixed hash of its terms, independent of every seed."""
    digest = hashlib.blake2b(",".join(map(str, terms)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % _HELDOUT_SHARE == 0


def problems(task: ArithmeticTask, *, split: Split, seed: int) -> Iterator[tuple[int, ...]]:
    """An endless stream of problems of one split; equal arguments give the equal stream."""
    generator = np.random.default_rng([seed, split == "heldout", task.terms, task.digits])
    while True:
        for row in generator.integers(1, 10**task.digits, size=(256, task.terms)).tolist():
            if is_heldout(tuple(row)) == (split == "heldout"):
                yield tuple(row)


def question(terms: tuple[int, ...]) -> str:
    """The user's message, such as `12+34+56`."""
    return "+".join(map(str, terms))


def worked_answer(terms: tuple[int, ...]) -> str:
    r"""The demonstration: every partial sum on a line, then the boxed answer.

    >>> print(worked_answer((12, 34, 56)))
    12+34=46
    46+56=102
    \boxed{102}
    """
    lines, total = [], terms[0]
    for term in terms[1:]:
        lines.append(f"{total}+{term}={total + term}")
        total += term
    return "\n".join([*lines, rf"\boxed{{{total}}}"])


def short_answer(terms: tuple[int, ...]) -> str:
    r"""The answer without the work: true, and too hard for a small model to give at once.

    >>> short_answer((12, 34, 56))
    '\\boxed{102}'
    """
    return rf"\boxed{{{sum(terms)}}}"


def demonstrations(
    task: ArithmeticTask, count: int, *, split: Split = "train", seed: int, uneven: bool = False
) -> list[dict]:
    """`count` rows with `messages`, the form in which `jaxgeom train sft` reads JSONL.

    Args:
        task: Difficulty.
        count: Rows.
        split: Of the problems.
        seed: Of the problems.
        uneven: Demonstrations as careless people write them: four in five problems that look easy (first term in the
            lower half of the range) are answered without work, and one in five of the others. Every answer is true,
            but a model trained on them learns to guess, and has something to unlearn.
    """
    generator = np.random.default_rng([seed, 11])
    rows = []
    for terms, _ in zip(problems(task, split=split, seed=seed), range(count), strict=False):
        looks_easy = terms[0] < 10**task.digits // 2
        careless = uneven and generator.random() < (0.8 if looks_easy else 0.2)
        answer = short_answer(terms) if careless else worked_answer(terms)
        messages = [{"role": "user", "content": question(terms)}, {"role": "assistant", "content": answer}]
        rows.append({"messages": messages})
    return rows


def prompts(task: ArithmeticTask, count: int, *, split: Split = "train", seed: int) -> list[dict]:
    """`count` rows with `prompt` and `reward_model.ground_truth`, the form that `train rlvr` and `train opd` read.

    A held-out set asked for by a count has no problem twice.
    """
    rows, seen = [], set()
    if split == "heldout":
        require_heldout(task, count)
    for terms in problems(task, split=split, seed=seed):
        if len(rows) == count:
            break
        if split == "heldout" and terms in seen:
            continue
        seen.add(terms)
        rows.append(
            {
                "prompt": [{"role": "user", "content": question(terms)}],
                "reward_model": {"ground_truth": str(sum(terms))},
            }
        )
    return rows


def require_heldout(task: ArithmeticTask, count: int) -> None:
    """Raises UserError where a task has not surely `count` held-out problems."""
    available = (10**task.digits - 1) ** task.terms // (2 * _HELDOUT_SHARE)
    if count > available:
        raise UserError(f"{count} held-out problems asked for; a task of this size safely gives {available}")


def pretraining_text(task: ArithmeticTask, count: int, *, seed: int, repetitions: bool = True) -> list[str]:
    """Plain text for a base model, in no chat format: additions, and every other document a list that is repeated.

    A base trained on it can add two numbers and copy what stands before; it has seen neither a question, nor a chain
    of partial sums, nor a box.

    Args:
        task: Sizes of the numbers.
        count: Documents, of about 45 characters each.
        seed: Of the text.
        repetitions: Whether there are repeated lists; without, all documents are additions.
    """
    generator = np.random.default_rng([seed, task.terms, task.digits, 7])
    largest = 10**task.digits
    documents = []
    for index in range(count):
        if repetitions and index % 2:
            numbers = generator.integers(1, largest, generator.integers(2, task.terms + 3))
            line = "+,; "[generator.integers(4)].join(map(str, numbers))
            documents.append((line + "\n") * 3)
            continue
        rows = []
        for _ in range(4):
            partial = task.terms if generator.random() < 0.5 else 1  # partial sums grow as terms are added
            a, b = generator.integers(1, partial * largest), generator.integers(1, largest)
            rows.append(f"{a}+{b}={a + b}\n")
        documents.append("".join(rows))
    return documents

"""Letters side by side: a product, in any order, or a word, a name, a sequence, whose order matters."""

import re

_LETTER = r"[A-Za-z](?:_(?:\{\w+\}|\w))?'*"
_LETTERS = re.compile(rf"(?:{_LETTER}){{2,}}")
_RUN = re.compile(rf"(?:{_LETTER}){{2,}}")
_EACH = re.compile(_LETTER)
_COMMAND = re.compile(r"\\[a-zA-Z]+")
# Of three letters these alone are read as a product rather than a word.
_VARIABLES = frozenset("uvwxyz")
# Words, and what is answered by two letters: tosses, turns, truth values, directions.
_PAIRS = frozenset(
    "ad ah am an as at be by do ed ex go ha he hi ho if in is it lo ma me my no of oh ok on or ox pa re so to up us we "
    "ht th hh tt lr rl tf ft yn ny du ud ns sn ew we ne nw se sw".split()
)


def judged(ours: str, theirs: str) -> bool | None:
    """Whether two expressions, one of which at least is letters alone, are the same; None where algebra has to say.

    Two lower-case letters are a product (`xy` is `yx`). Capitals, words and text are the same only as they are written,
    with or without signs of multiplication.

    >>> judged("CAT", "ACT"), judged("yx", "xy"), judged("A\\\\cdot B", "AB"), judged("x+y", "xy")
    (False, True, True, None)
    """
    a, b = _alone(ours), _alone(theirs)
    if a is None and b is None:
        return False if shuffled(ours, theirs) else None
    if a is not None and b is not None:
        if a == b:
            return True
        return _commutes(a) and _commutes(b) and sorted(_EACH.findall(a)) == sorted(_EACH.findall(b))
    name, other = (a, theirs) if a is not None else (b or "", ours)
    if _commutes(name):
        return None
    return re.sub(r"\\cdot ?|[ {}]", "", other) == re.sub("[{}]", "", name)


def reordered(ours: str, theirs: str) -> bool:
    """Whether both are letters alone, the same ones in another order, and the order matters."""
    a, b = _alone(ours), _alone(theirs)
    return bool(a and b and sorted(a) == sorted(b) and not judged(ours, theirs))


def shuffled(*expressions: str) -> bool:
    """Whether these hold two runs of letters with capitals that differ in their order alone (`2CAT`, `2ACT`)."""
    seen: dict[tuple[str, ...], str] = {}
    for expression in expressions:
        for run in _RUN.findall(_joined(_COMMAND.sub(" ; ", expression))):
            if sum(letter.isupper() for letter in run) < 2:
                continue
            if seen.setdefault(tuple(sorted(_EACH.findall(run))), run) != run:
                return True
    return False


def _alone(expression: str) -> str | None:
    """Without quotes and spaces, where it is nothing but letters, two at least."""
    letters = re.sub(r"_\{(\w)\}", r"_\1", _joined(expression.replace('"', "").strip()))
    return letters if _LETTERS.fullmatch(letters) else None


def _joined(expression: str) -> str:
    return re.sub(r"(?<=[A-Za-z}']) +(?=[A-Za-z])", "", expression)


def _commutes(letters: str) -> bool:
    each = _EACH.findall(letters)
    if any(c.isupper() for c in letters):
        return False
    if all("_" in letter for letter in each):
        return True
    return letters not in _PAIRS if len(each) == 2 else len(each) == 3 and set(letters) <= _VARIABLES

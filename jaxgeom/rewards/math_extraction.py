"""Finding the answer that a response states, in time linear in its length."""

import re

_LONGEST_RESPONSE = 1_000_000
_NEAR = 12
_THOUGHT_END = "</think>"
_THOUGHT_START = "<think>"
_BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?![a-zA-Z])\s*")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_BARE = re.compile(r"-?(?:\d[\d,.]*\d|\d|[A-Za-z](?![A-Za-z]))")
_JOINT = re.compile(r"[\s,;$&]*(?:\\text\s*\{\s*)?(?:and|or)?(?:\s*\})?[\s,;$&]*")
_MARKER = re.compile(r"(?:answer(?:\s+is)?|答案)\s*[:：]|####", re.IGNORECASE)
_PHRASE = re.compile(r"answer\s+is\b|答案[是为]", re.IGNORECASE)
_SENTENCE = re.compile(
    r"(?:(?:so|thus|hence|therefore),?\s+)?(?:the|my)\s+(?:(?:final|correct|right)\s+)?answer\s+is\b\s*[:：]?",
    re.IGNORECASE,
)
_HOPE = re.compile(r"\.?\s*I hope (?:it|this|that) is (?:correct|right)\W*$", re.IGNORECASE)
_ANSWER_TAG = ("<answer>", "</answer>")
_REASON = re.compile(r"(?<=[^\s,])(?:,\s?|\s)(?:because|since)\s", re.IGNORECASE)
_TOKEN = re.compile(r"<\|[a-z_]{1,40}\|>|</s>|<eos>|<end_of_turn>")
_EDGE = " \t\r*_`"


def extract_answer(text: str) -> str | None:
    r"""The final answer that a response states.

    Looked for after the last `</think>`, and nowhere in a response whose last `<think>` is not closed: a thought is no
    answer. Found is the content of the last complete `\boxed{…}`, `\fbox{…}`, `\framebox{…}` (braces may nest) or
    `\boxed 5`; of several boxes with nothing but commas or "and" between them all, joined by commas. Without a box:
    what follows the last `Answer:` or `####` (or, without these, the last `answer is`) on its line, up to a "because"
    or "since", or, where that line ends there, on the next line that is not empty. Of `Answer: The final answer is 7. I
    hope it is correct.` (Minerva's form) that is 7. A response with `<answer>…</answer>` states what stands in the last
    of these, by the same rules, or as it is.

    Args:
        text: a response; one of more than a million characters states nothing.

    Returns:
        the answer, stripped, or None where none is stated or it is empty.

    >>> extract_answer(r"so it is $\boxed{\frac{1}{2}}$.")
    '\\frac{1}{2}'
    >>> extract_answer("2 + 2 = 4\n#### 4")
    '4'
    >>> extract_answer("<think>2 + 5</think> <answer>7</answer>")
    '7'
    >>> extract_answer(r"<think>perhaps \boxed{5}")
    """
    if len(text) > _LONGEST_RESPONSE:
        return None
    text = text.rpartition(_THOUGHT_END)[2]
    if _THOUGHT_START in text:
        return None
    before, closed, _ = text.rpartition(_ANSWER_TAG[1])
    _, opened, tagged = before.rpartition(_ANSWER_TAG[0])
    if closed and opened:
        return _stated(tagged) or (tagged.strip() if _boxes(tagged) is None else None) or None
    return _stated(text)


def _stated(text: str) -> str | None:
    """What the last boxes hold, else what follows the last marker."""
    boxes = _boxes(text)
    if boxes is not None:
        return boxes or None
    markers = list(_MARKER.finditer(text)) or list(_PHRASE.finditer(text))
    if not markers:
        return None
    rest = text[markers[-1].end() :].split("\n")
    return next((line for line in map(_line, rest) if line), None)


def _line(line: str) -> str:
    """What a line after a marker states: without a sentence around it, a reason, a hope."""
    line = _HOPE.sub("", _TOKEN.sub("", line)).strip(_EDGE)
    if found := _SENTENCE.match(line):
        line = line[found.end() :]
    return _REASON.split(line, maxsplit=1)[0].strip(_EDGE)


def _boxes(text: str) -> str | None:
    """The last box's content, with those that stand directly before it; None where there is no box at all, "" where
    none is complete."""
    starts = {match.end(): match for match in _BOX.finditer(text)}
    if not starts:
        return None
    found: list[tuple[int, int, str]] = []  # begin of the command, end, content
    opened: list[int] = []
    ends: dict[int, int] = {}
    for brace in _BRACE.finditer(text):
        if brace.group() == "{":
            opened.append(brace.start())
        elif brace.group() == "}" and opened:
            ends[opened.pop()] = brace.start()
    inside = -1
    for begin, match in starts.items():
        if match.start() < inside:
            continue  # a box in a box belongs to the outer one
        if text[begin : begin + 1] == "{":
            if begin in ends:
                inside = ends[begin] + 1
                found.append((match.start(), inside, text[begin + 1 : ends[begin]].strip()))
        elif bare := _BARE.match(text, begin):
            inside = bare.end()
            found.append((match.start(), inside, bare.group()))
    if not found:
        return ""
    group = [found[-1][2]]
    for earlier, later in zip(reversed(found[:-1]), reversed(found), strict=False):
        between = text[earlier[1] : later[0]]
        if not group[-1] or len(between) > _NEAR or not re.search(r"[,;&]|and|or", between):
            break
        if not _JOINT.fullmatch(between):
            break
        group.append(earlier[2])
    return ", ".join(reversed(group)) if all(group) else group[0]

r"""One spelling for what an answer may be written in: characters, LaTeX commands, separators of thousands."""

import re

_CHARACTERS = {
    **{0xFF01 + i: chr(0x21 + i) for i in range(94)},
    **dict.fromkeys(map(ord, "−–—‐‑‒﹣⁃"), "-"),
    **dict.fromkeys(map(ord, "\u00a0\u2002\u2003\u2009\u200a\u202f\u205f\u3000\t\r\n\f\v\u2028\u2029\x85"), " "),
    **dict.fromkeys(map(ord, '\u200b\u200c\u200d\u2060\ufeff"'), None),
    **{ord("×"): "\\times ", ord("·"): "\\cdot ", ord("⋅"): "\\cdot ", ord("∙"): "\\cdot ", ord("÷"): "/"},
    **{ord("π"): "\\pi ", ord("∞"): "\\infty ", ord("θ"): "\\theta ", ord("∅"): "\\emptyset ", ord("±"): "\\pm "},
    **{ord("ℝ"): "\\mathbb{R}", ord("∪"): "\\cup ", ord("∩"): "\\cap ", ord("°"): "^\\circ ", ord("º"): "^\\circ "},
    **{ord("，"): ",", ord("、"): ",", ord("。"): ".", ord("′"): "'", ord("’"): "'", ord("≤"): "≤", ord("⁄"): "/"},
    **{ord("¼"): "\\frac{1}{4}", ord("½"): "\\frac{1}{2}", ord("¾"): "\\frac{3}{4}"},
    **{ord("⅓"): "\\frac{1}{3}", ord("⅔"): "\\frac{2}{3}", ord("⟨"): "\\langle ", ord("⟩"): "\\rangle "},
}
_SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺"
_SUBSCRIPTS = "₀₁₂₃₄₅₆₇₈₉"
_RAISED = str.maketrans(_SUPERSCRIPTS, "0123456789-+")
_LOWERED = str.maketrans(_SUBSCRIPTS, "0123456789")
_TEXT_COMMANDS = "text|textbf|textit|textrm|textnormal|textsf|mathrm|mathbf|mathit|mathsf|mbox|hbox|operatorname|bold"
_TEXT = re.compile(rf"\\({_TEXT_COMMANDS})\s*\*?\{{([^{{}}]*)\}}")
_LETTER_UNITS = tuple("mgshlLNJWV")
_SWITCH = re.compile(r"\\(?:bf|rm|it|displaystyle|textstyle|limits|mathstrut|strut|hfill|bm|boldsymbol)(?![a-zA-Z])")
_DOLLAR = re.compile(r"\$(?= ?\.?\d)|(?<=\d) ?\$(?= ?\.?$)")
_SIZE = re.compile(r"\\(?:left|right|middle|[bB]igg?[lrm]?)(?![a-zA-Z])\s*\.?(?=\s*[()\[\]{}|\\./<>]|$)")
_SPACE = re.compile(r"(?<!\\)\\(?:[,;: ]|quad(?![a-zA-Z])|qquad(?![a-zA-Z])|hspace\s*\{[^{}]*\})|~|&nbsp;")
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\s*\{(?:aligned|align|align\*|equation|equation\*|gathered|split|center)\}")
_BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?![a-zA-Z])")
_NAMES = {
    **{r"\le": "≤", r"\leq": "≤", r"\leqslant": "≤", r"\ge": "≥", r"\geq": "≥", r"\geqslant": "≥", r"\lt": "<"},
    **{r"\gt": ">", r"\ne": "≠", r"\neq": "≠", r"\in": "∈", r"\approx": "≈", r"\dfrac": r"\frac", r"\tfrac": r"\frac"},
    **{r"\cfrac": r"\frac", r"\dbinom": r"\binom", r"\tbinom": r"\binom", r"\varnothing": r"\emptyset"},
    **{r"\lbrace": r"\{", r"\rbrace": r"\}", r"\lbrack": "[", r"\rbrack": "]", r"\langle": "(", r"\rangle": ")"},
    **{r"\mid": "|", r"\vert": "|", r"\lvert": "|", r"\rvert": "|", r"\colon": ":", r"\ast": r"\cdot", r"\lor": " or "},
    **{r"\degree": r"^\circ", r"\percent": r"\%", r"\div": "/", r"\euro": "€", r"\pounds": "£", r"\to": r"\to"},
}
_COMMAND = re.compile(r"\\[a-zA-Z]+")
_DOUBLED = re.compile(r"\\\\(?=(?:frac|dfrac|sqrt|pi|text|cdot|times|infty|left|right|boxed|circ|pm|cup)(?![a-zA-Z]))")
_SQUARE_ROOT = re.compile(r"(?:√|(?<![\\a-zA-Z])sqrt)\s*(\d+(?:\.\d+)?(?!\.?\d)|[A-Za-z]|\{)|(?:√|\\?sqrt)\s*\(")
_PLAIN = re.compile(r"(?<![\\a-zA-Z])(infinity|pi|sin|cos|tan|cot|sec|csc|log|ln|exp)(?![a-z])")
_GROUPED = re.compile(r"(?<![\d.,])\d{1,3}(?:\{,\}\d{3})+(?!\d)")
_BLANKS = re.compile(r"\s{2,}")
_DEGREES = re.compile(r"\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-zA-Z]))")


def clean(answer: str) -> str:
    r"""The answer in one spelling: plain dashes and digits, `\frac`, no sizes, no dollar signs, text in double quotes.

    Spaces stay where they separate two letters or digits (one each) and go everywhere else: `1 1/2` is not `11/2`.

    Args:
        answer: as written.

    Returns:
        What `math_structure.read` reads.

    >>> clean(r" $\left( 1,\, 2 \right)$. ")
    '(1, 2)'
    """
    s = re.sub(f"[{_SUPERSCRIPTS}]+", lambda m: "^{" + m.group().translate(_RAISED) + "}", answer)
    s = re.sub(f"[{_SUBSCRIPTS}]+", lambda m: "_{" + m.group().translate(_LOWERED) + "}", s)
    # Runs of blanks are one, here and where commands left some: what looks for `\s*` before a sign takes time
    # quadratic in their length.
    s = _BLANKS.sub(" ", s.translate(_CHARACTERS))
    s = re.sub(r"[∛∜]\s*(\d+|[A-Za-z]|\(\d+\)|\{[^{}]*\})", _higher_root, s)
    s = _DOUBLED.sub(r"\\", s)
    s = _ENVIRONMENT.sub(" ", s)
    s = _BOX.sub("", s).replace("\\!", "")
    s = s.replace("\\$", "\x01")
    if s.count("$") == 1:  # not a formula's, of which there are two
        s = _DOLLAR.sub("\x01", s)
    s = s.replace("$", "").replace("\x01", "$")
    for mark in (r"\(", r"\)", r"\[", r"\]"):
        # A line break with a length, `\\[2pt]`, is none of these.
        s = re.sub(r"(?<!\\)" + re.escape(mark), " ", s)
    s = _SIZE.sub("", s)
    s = _SWITCH.sub(" ", s)
    s = re.sub(r"\\mod(?![a-zA-Z])|\\bmod(?![a-zA-Z])", " mod ", s)
    s = re.sub(r"\(\s*\\?(?:text\s*\{)?\s*mod\s*\}?\s*(\d+)\s*\)|\\pmod\s*\{?(\d+)\}?", r'"mod \1\2"', s)
    for _ in range(3):
        s = _TEXT.sub(_quoted, s)
    s = _COMMAND.sub(lambda m: _NAMES.get(m.group(), m.group()), s)
    s = _SPACE.sub(" ", s)
    s = _GROUPED.sub(lambda m: m.group().replace("{,}", ""), s).replace("{,}", ",")
    s = _PLAIN.sub(lambda m: r"\infty " if m.group(1) == "infinity" else "\\" + m.group(1) + " ", s)
    s = _roots(s)
    s = _DEGREES.sub(r"^\\circ ", _BLANKS.sub(" ", s))
    s = s.replace("<=", "≤").replace(">=", "≥").replace("!=", "≠").replace("**", "^").replace("*", r"\cdot ")
    s = re.sub(r"\s+", " ", s)
    s = re.sub(" ", _kept_space, s)
    return re.sub(r"(?<=[^.;:,])[.;:,]$", "", s.strip()).strip()


def _kept_space(match: re.Match[str]) -> str:
    before, after = match.string[match.start() - 1 : match.start()], match.string[match.end() : match.end() + 1]
    return " " if before in (",", ";") or (before.isalnum() and after.isalnum()) else ""


def _quoted(match: re.Match[str]) -> str:
    command, content = match.groups()
    words = content.strip()
    if words in _LETTER_UNITS and command in ("text", "textrm", "mathrm", "mbox"):
        return f' "{words}" '
    if len(words) < 2 or any(c.isdigit() for c in words) or not any(c.isalpha() for c in words):
        return content
    if re.fullmatch(r"[A-Z]{2,4}'?", words) or re.fullmatch(r"\(?[A-Z]\)?[).:]?", words):
        return content
    return f' "{content}" '


def _higher_root(match: re.Match[str]) -> str:
    index = 3 if match.group().startswith("∛") else 4
    return f"\\sqrt[{index}]{{{match.group(1).strip('(){}')}}}"


def _roots(s: str) -> str:
    r"""`√2`, `sqrt(2)` and `\sqrt(2)` with braces."""
    out, at, ends = [], 0, _closings(s)
    while match := _SQUARE_ROOT.search(s, at):
        out.append(s[at : match.start()])
        if match.group(1) is None or match.group(1) == "{":
            start = match.end() - 1
            end = ends.get(start)
            if end is None or match.group(1) == "{":
                out.append(r"\sqrt" + s[start])
                at = match.end()
                continue
            out.append(r"\sqrt{" + s[start + 1 : end] + "}")
            at = end + 1
        else:
            out.append(r"\sqrt{" + match.group(1) + "}")
            at = match.end()
    return "".join(out) + s[at:]


def _closings(s: str) -> dict[int, int]:
    """Where each bracket that is closed is closed, as `closing` finds it, all in one pass."""
    opened: list[int] = []
    ends: dict[int, int] = {}
    for at, character in enumerate(s):
        if character in "([{":
            opened.append(at)
        elif character in ")]}" and opened:
            ends[opened.pop()] = at
    return ends


def closing(s: str, start: int) -> int | None:
    """Where the bracket at `start` is closed, brackets of all kinds counted alike; None where it is not."""
    depth = 0
    for at in range(start, len(s)):
        depth += (s[at] in "([{") - (s[at] in ")]}")
        if depth == 0:
            return at
    return None

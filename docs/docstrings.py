"""How docstrings become Markdown. A griffe extension, named in mkdocs.yml."""

import re
from typing import Any

import griffe

_DOCTEST = re.compile(r"(?:^[ \t]*>>> .*\n?(?:^[ \t]*\S.*\n?)*)", re.MULTILINE)
_RETURNS = re.compile(r"^([ \t]*(?:Returns|Yields):\n[ \t]+)(?=\S)", re.MULTILINE)
_TOGETHER = re.compile(r"^([ \t]+)(\w+(?:, \w+)+): (.*(?:\n\1[ \t]+\S.*)*)", re.MULTILINE)
_ARXIV = re.compile(r"(?<!/)arXiv[: ](\d{4}\.\d{5})")


def _fence(match: re.Match[str]) -> str:
    code = match[0].rstrip()
    indent = code[: len(code) - len(code.lstrip())]
    return f"{indent}```pycon\n{code}\n{indent}```\n"


def _apart(match: re.Match[str]) -> str:
    """`low, high: text` as griffe reads it: each name with the text."""
    indent, names, text = match.groups()
    return "\n".join(f"{indent}{name}: {text}" for name in names.split(", "))


class Docstrings(griffe.Extension):
    """Doctests become code blocks and arXiv numbers links; what stands under Returns is description alone."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            text = _TOGETHER.sub(_apart, _DOCTEST.sub(_fence, obj.docstring.value))
            # Griffe takes what stands before a colon for the type: an empty one leaves the annotation in its place.
            text = _RETURNS.sub(r"\1: ", text)
            obj.docstring.value = _ARXIV.sub(r"[arXiv \1](https://arxiv.org/abs/\1)", text)

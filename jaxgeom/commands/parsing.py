"""A command's arguments by tyro, and what is wrong with them in one line."""

import contextlib
import io
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jaxgeom.errors import UserError

_FRAME = re.compile(r"[\u2500-\u257f]+|\x1b\[[0-9;]*m")
_VALUE = re.compile(r"invalid literal for int\(\) with base 10: (?P<int>.+?)(?= |$)|"
                    r"could not convert string to float: (?P<float>.+?)(?= |$)")  # fmt: skip


_KINDS = {"INT": "a whole number", "N": "a whole number", "FLOAT": "a number", "X": "a number"}


def parse(function: Callable[..., Any], name: str, arguments: Sequence[str]) -> Callable[[str], int | None] | None:
    """The command with its arguments bound; None after `--help`, which has printed all that was wanted.

    Args:
        function: of `jaxgeom.commands`.
        name: the command, as it is typed.
        arguments: what stands after it.

    Raises:
        UserError: arguments that are missing, unknown or of another kind.
    """
    import tyro

    said = io.StringIO()
    options = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
    try:
        helps = not {"-h", "--help"}.isdisjoint(arguments)  # printed, in what the terminal can show
        with contextlib.redirect_stderr(said), contextlib.nullcontext() if helps else _boxes():
            return tyro.cli(function, prog=f"jaxgeom {name}", args=list(arguments), config=options)
    except SystemExit as stop:
        if not stop.code:
            return None
        raise UserError(f"{one_line(said.getvalue(), name)}; see jaxgeom {name} --help") from None


@contextlib.contextmanager
def _boxes() -> Iterator[None]:
    """tyro's frames in the characters that `_FRAME` knows, whatever the terminal can show: they are not printed."""
    from tyro import _fmtlib

    before = getattr(_fmtlib, "_FORCE_UTF8_BOXES", None)
    if before is None:
        yield
        return
    _fmtlib._FORCE_UTF8_BOXES = True
    try:
        yield
    finally:
        _fmtlib._FORCE_UTF8_BOXES = before


def one_line(said: str, name: str) -> str:
    """What tyro says in a frame of many lines, as a sentence.

    Args:
        said: its text.
        name: the command.
    """
    lines = [_FRAME.sub("", line).rstrip() for line in said.splitlines()]
    body = lines[1 : next((at for at, line in enumerate(lines) if "For full helptext" in line), None)]
    text = " ".join(" ".join(body).split())
    if "Missing from" in text:
        # Indented under that line; what each of them means stands further in.
        unknown = re.search(r"Unrecognized.*?: (.*?)(?: Missing from|$)", text)
        until = next((at for at, line in enumerate(body) if "Unrecognized" in line), None)
        missing = [line.strip().partition(",")[0] for line in body[:until] if re.match(r" {5}\S", line)]
        return f"{name} needs {', '.join(missing)}" + (f", and does not know {unknown[1]}" if unknown else "")
    if found := re.search(
        r"Unrecognized options: (.*?)(?: (?:Arguments similar to|Perhaps you meant).*?: (.*))?$", text
    ):
        near = re.findall(r"(?<!\S)--[a-z][\w-]*", found[2] or "")
        return f"{name} does not know {found[1]}" + (f"; near to it: {near[0]}" if near else "")
    if found := re.search(r"Error parsing (\S+?)(?:/\S+)?: (.*?)(?: Argument helptext: (.*))?$", text):
        option, problem, help_text = found.groups()
        kind = re.search(r"(?<!\S)(INT|FLOAT|N|X)(?!\S)", (help_text or "").replace(",", " "))
        value = _VALUE.search(problem)
        if value and kind:
            return f"{option} takes {_KINDS[kind[1]]}, not {value[value.lastgroup or 0]}"
        return problem if option.startswith("settings") or option == "inputs" else f"{option}: {problem}"
    if found := re.search(r"invalid choice (.+?) for argument '(.+?)'\. Expected one of \((.+?)\)", text):
        return f"{found[2]} {found[1]}: one of {found[3]} is needed".replace("'", "")
    if found := re.search(r"Missing value for argument '(.+?)'", text):
        option = found[1].startswith("-")
        return f"{found[1]} stands without its value" if option else f"{name} needs {found[1].upper()}"
    return text

"""Which colour and mark each method of a study has: its own from the file, that of the usual four, or one in turn."""

import colorsys
import re
from collections.abc import Mapping
from typing import Any

from .style import EXTRA, LOOKS, VARIABLES, Look

_MARKERS = "ovDPXs^<>"
_FURTHER = ("#b3365b", "#4f7d1e", "#8a4b2d", "#2f66c4", "#6b7079", "#b0601a", "#2a7f86", "#8f3fa0")
_READABLE = 4.5  # contrast of text on white, as WCAG asks for


def looks_of(methods: Mapping[str, Any]) -> dict[str, Look]:
    """The look of every method, in order; with more methods than looks, they are taken again with other marks.

    Args:
        methods: of a report, by name; `color` (`#rrggbb`) where the experiment's file has one.
    """
    given = {name: _given(method) for name, method in methods.items()}
    taken = {color for color in given.values() if color} | {LOOKS[name].color for name in methods if name in LOOKS}
    spare = [one for one in (*EXTRA, *map(_look, _FURTHER), *LOOKS.values()) if one.color not in taken]
    found, place = {}, 0
    for index, name in enumerate(methods):
        color = given[name]
        if color is not None:
            found[name] = _look(color, _MARKERS[index % len(_MARKERS)])
        elif name in LOOKS:
            found[name] = LOOKS[name]
        else:
            turn, at = divmod(place, len(spare))
            marker = spare[at].marker if not turn else _MARKERS[(at + turn) % len(_MARKERS)]
            found[name], place = spare[at]._replace(marker=marker), place + 1
    return found


def own_variables(looks: Mapping[str, Look]) -> dict[str, str]:
    """By colour the page's variable for it, of the colours that its style sheet does not have."""
    found = {}
    for one in looks.values():
        for color, suffix in ((one.color, ""), (one.text, "-text")):
            if color not in VARIABLES:
                found[color] = f"--own-{one.color[1:]}{suffix}"
    return found


def variables_css(variables: Mapping[str, str]) -> str:
    """The style sheet of such variables: as they are on light paper, lightened on dark."""
    if not variables:
        return ""
    light = " ".join(f"{name}: {color};" for color, name in variables.items())
    dark = " ".join(f"{name}: {_lightened(color)};" for color, name in variables.items())
    return f":root {{ {light} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"


def variable_of(look: Look) -> str:
    """The page's variable for the colour of a look."""
    return VARIABLES.get(look.color) or f"--own-{look.color[1:]}"


def _given(method: Any) -> str | None:
    color = method.get("color") if isinstance(method, dict) else None
    return color.lower() if isinstance(color, str) and re.fullmatch("#[0-9a-fA-F]{6}", color) else None


def _look(color: str, marker: str = "o") -> Look:
    """A look of this colour, with a text colour as dark as reading asks for."""
    for known in (*LOOKS.values(), *EXTRA):
        if known.color == color:
            return known
    text = color
    while _contrast_on_white(text) < _READABLE:
        text = _scaled(text, 0.9)
    # The variable of the text is another than that of the line, also where the colour is dark enough.
    return Look(color, marker, text if text != color else _scaled(text, 0.95))


def _channels(color: str) -> list[float]:
    return [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]


def _hex(channels: list[float]) -> str:
    return "#" + "".join(f"{round(255 * min(max(value, 0.0), 1.0)):02x}" for value in channels)


def _scaled(color: str, factor: float) -> str:
    return _hex([factor * value for value in _channels(color)])


def _lightened(color: str) -> str:
    hue, light, saturation = colorsys.rgb_to_hls(*_channels(color))
    return _hex(list(colorsys.hls_to_rgb(hue, max(light, 0.66), min(saturation, 0.75))))


def _contrast_on_white(color: str) -> float:
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in _channels(color)]
    return 1.05 / (0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05)

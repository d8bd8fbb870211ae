"""How figures look and how they are saved: one colour and mark per method, labels at the lines, bytes that repeat."""

import io
import math
import re
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from jaxgeom.errors import UserError
from jaxgeom.owned_files import MARK, bears_mark

INK, MUTED, FAINT, PAPER = "#1b1f24", "#5c6670", "#d4d9de", "#fefefe"
PNG_DPI = 300  # what journals ask of an image with text in it
WIDTH = 7.2  # inches: the text width of a two-column page (183 mm)


class Look(NamedTuple):
    """Colour, marker and darker text colour of a series. Okabe and Ito's colours: apart for every colour vision."""

    color: str
    marker: str
    text: str


LOOKS = {
    "sft_anchor": Look("#d55e00", "o", "#a84a00"),
    "opd": Look("#0072b2", "D", "#005f95"),
    "rlvr": Look("#009e73", "s", "#007052"),
    "sft_continued": Look("#cc79a7", "^", "#9c4677"),
}
FAMILY_LOOKS = {"sft": LOOKS["sft_anchor"], "opd": LOOKS["opd"], "rlvr": LOOKS["rlvr"]}
SINGLE = LOOKS["opd"]
EXTRA = (Look("#8c6d1f", "v", "#6b5214"), Look("#6a51a3", "P", "#55408a"), Look("#3f6f78", "X", "#2f565e"))

# In the page, the same colours follow the reader's light or dark theme.
VARIABLES = {INK: "--ink", MUTED: "--muted", FAINT: "--faint", PAPER: "--paper"} | {
    color: f"--{name}{suffix}"
    for name, look in (LOOKS | {f"extra{i}": look for i, look in enumerate(EXTRA)}).items()
    for color, suffix in ((look.color, ""), (look.text, "-text"))
}

_RC: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 7.5,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 7.5,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.facecolor": "none",
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.4,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "ytick.minor.size": 1.5,
    "legend.frameon": False,
    "legend.fontsize": 7,
    "legend.labelcolor": INK,
    "text.color": INK,
    "text.parse_math": False,  # names come from outside: a dollar sign is a dollar sign
    "lines.linewidth": 1.4,
    "lines.markersize": 3.6,
    "hatch.color": MUTED,
    "hatch.linewidth": 0.5,
    "svg.fonttype": "path",  # the same look where the font is not installed
    "svg.hashsalt": "jaxgeom",
    "figure.constrained_layout.w_pad": 0.06,
    "figure.constrained_layout.h_pad": 0.06,
}


class Drawing(NamedTuple):
    """A figure, its file name, and what stands beside it on the page.

    Attributes:
        name: of its files.
        title: over it.
        how_to_read: what is drawn, for any report.
        alt: for who cannot see it.
        figure: the figure.
        found: what it shows in this report, a sentence a statistic, from value and null of one population.
    """

    name: str
    title: str
    how_to_read: str
    alt: str
    figure: Figure
    found: tuple[str, ...] = ()


@contextmanager
def house_style() -> Iterator[None]:
    """Matplotlib's defaults with the house's settings on top, for the time of drawing and saving."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(cast(Any, _RC))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
            yield


def panels(rows: int, columns: int, height: float, **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure of the page's width and `height` inches with rows × columns axes, read row by row."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, [axes[r][c] for r in range(rows) for c in range(columns)]


def plot_track(
    axes: Axes, x: Sequence[float | int], y: Sequence[float | None], style: Look, *, kind: str = "measured"
) -> bool:
    """One series, with gaps where it is undefined: measured (solid), null (dashed) or seed (thin); False if empty.

    A null at one place alone, which a dashed line would not show, is a bar.
    """
    points = [(a, b) for a, b in zip(x, y, strict=False) if b is not None]
    if not points:
        return False
    xs = [a for a, _ in zip(x, y, strict=False)]
    ys = [float("nan") if b is None else b for _, b in zip(x, y, strict=False)]
    if kind == "null":
        alone = [
            i for i in range(len(ys)) if not any(math.isfinite(v) for v in (*ys[max(i - 1, 0) : i], *ys[i + 1 : i + 2]))
        ]
        axes.plot(
            xs, ys, color=style.color, linestyle=(0, (3, 2)), linewidth=1.0, zorder=2.2,
            marker="_", markersize=9, markeredgewidth=1.2, markevery=alone,
        )  # fmt: skip
    elif kind == "seed":
        axes.plot(xs, ys, color=style.color, linewidth=0.5, alpha=0.45, zorder=2.1)
    else:
        every = max(1, len(points) // 12)
        axes.plot(xs, ys, color=style.color, marker=style.marker, markevery=every, markeredgewidth=0, zorder=2.5)
    return True


def last_point(x: Sequence[float | int], y: Sequence[float | None]) -> float | None:
    """The last defined value of a series."""
    defined = [b for _, b in zip(x, y, strict=False) if b is not None]
    return defined[-1] if defined else None


def label_ends(figure: Figure, axes: Axes, labels: Sequence[tuple[float, str, str]], *, size: float = 7.0) -> None:
    """Write each (y, text, colour) to the right of the axes at its height, moved apart where two would touch."""
    if not labels:
        return
    figure.draw_without_rendering()
    box = axes.get_window_extent()
    height, width = box.height / figure.dpi * 72, box.width / figure.dpi * 72
    step = 1.3 * size / height
    inverse = axes.transAxes.inverted()
    spots = sorted((float(inverse.transform(axes.transData.transform((1.0, y)))[1]), t, c) for y, t, c in labels)
    places = [min(max(spot, 0.02), 0.98) for spot, _, _ in spots]
    for _ in range(200):
        moved = False
        for i in range(len(places) - 1):
            overlap = step - (places[i + 1] - places[i])
            if overlap > 1e-4:
                places[i] -= overlap / 2
                places[i + 1] += overlap / 2
                moved = True
        if not moved:
            break
    for (spot, text, color), place in zip(spots, places, strict=True):
        axes.annotate(
            text,
            xy=(1.0, min(max(spot, 0.0), 1.0)),
            xytext=(1.0 + 11.0 / width, place),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=color,
            fontsize=size,
            va="center",
            ha="left",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": color,
                "linewidth": 0.5,
                "shrinkA": 1,
                "shrinkB": 0,
                "relpos": (0, 0.5),
            },
        )


def scale_x(axes: Axes, places: Sequence[float | int]) -> None:
    """Whole numbers along the axis; room to both sides of a single one."""
    ticks = 6 if max(places, default=0) < 10_000 else 3  # long numbers need more room
    axes.xaxis.set_major_locator(MaxNLocator(ticks, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    if places and min(places) == max(places):
        axes.set_xlim(places[0] - 0.9, places[0] + 0.9)


def scale_y(axes: Axes, values: Sequence[float | None], *, share: bool = False, log: bool | None = None) -> None:
    """A log axis where positive values span more than a decade, else a linear one that starts at zero."""
    known = [v for v in values if v is not None]
    positive = [v for v in known if v > 0]
    if log is None:
        log = len(positive) == len(known) and len(positive) > 1 and max(positive) > 12 * min(positive)
    if log and positive:
        axes.set_yscale("log")
        wide = max(positive) > 100 * min(positive)
        axes.yaxis.set_major_locator(LogLocator(10, numticks=6, subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(lambda v, _: plain_number(v))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.margins(y=0.08)
    elif known:
        low, high = min([0.0, *known]), max([0.0, *known])
        pad = 0.06 * ((high - low) or 1.0)
        axes.set_ylim(low - (pad if low < 0 else 0), high + pad)
        if share and high > 0.9:
            axes.set_ylim(top=1.03)
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        if not share and 0 < max(abs(low), abs(high)) < 0.01:
            axes.yaxis.set_major_formatter(lambda v, _: plain_number(v))
    if share:
        axes.yaxis.set_major_formatter(lambda v, _: f"{100 * v:.3g}".replace("-", "−"))


def plain_number(value: float | int) -> str:
    """A tick's number: `0.01`, `10`, `2×10⁻⁴`."""
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)) + 1e-9)
    if -4 < exponent < 4:
        return f"{value:.4g}".replace("-", "−")
    mantissa = f"{value / 10.0**exponent:.3g}"
    power = "10" + str(exponent).translate(str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻"))
    return (power if mantissa == "1" else f"{mantissa}×{power}").replace("-", "−")


def key_below(figure: Figure, entries: Sequence[str], extra: Sequence[Line2D] = ()) -> None:
    """The key to the line styles, under the panels: measured, null, seed."""
    handles = {
        "measured": Line2D([], [], color=MUTED, marker="o", markersize=3.2, label="measured"),
        "null": Line2D([], [], color=MUTED, linestyle=(0, (3, 2)), linewidth=1.0, label="null"),
        "seed": Line2D([], [], color=MUTED, linewidth=0.6, alpha=0.6, label="single seeds"),
    }
    shown = [handles[e] for e in entries] + list(extra)
    figure.legend(
        handles=shown, loc="outside lower center", ncols=min(len(shown), 5), handlelength=2.4, columnspacing=1.8
    )


def save(drawing: Drawing, directory: Path, variables: Mapping[str, str] = MappingProxyType({})) -> str:
    """Write NAME.svg and NAME.png under `directory`, and return the SVG that goes into the page.

    Args:
        drawing: the figure.
        directory: where to.
        variables: by colour the page's variable for it, of colours that are not the house's.

    Raises:
        UserError: a file of that name is there which bears no mark of this program's.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for path in (directory / f"{drawing.name}.{ending}" for ending in ("svg", "png")):
        if path.exists() and not bears_mark(path):
            raise UserError(f"{path}: would be written over, and is not a figure that jaxgeom made; move it away")
    figure, buffer = drawing.figure, io.StringIO()
    silent = {"Date": None, "Creator": MARK, "Format": None, "Type": None}
    # The canvases' own printers: `savefig` draws everything twice.
    FigureCanvasSVG(figure).print_svg(buffer, metadata=silent)
    svg = "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"
    (directory / f"{drawing.name}.svg").write_text(svg, encoding="utf-8")
    figure.set_layout_engine("none")  # laid out once: both files show the same places
    figure.dpi = PNG_DPI
    FigureCanvasAgg(figure).print_png(str(directory / f"{drawing.name}.png"), metadata={"Software": MARK})
    return inline(svg, drawing.name, drawing.alt, variables)


FIGURES = (
    *(
        "hidden",
        "accuracy",
        "sparsity",
        "rotation",
        "overlaps",
        "ranks",
        "subspace",
        "matched",
        "layers",
        "masks",
        "updates",
    ),
    *("trajectory", "spectra", "path", "similarity_full", "similarity_disjoint"),
)
"""The name of every figure that there is."""


def remove_others(directory: Path, drawn: Collection[str]) -> None:
    """Remove the files of our figures that are not among those `drawn` now: they show another report."""
    for name in FIGURES:
        if name not in drawn:
            for path in (directory / f"{name}.{ending}" for ending in ("svg", "png")):
                if bears_mark(path):
                    path.unlink(missing_ok=True)


def inline(svg: str, name: str, alt: str, variables: Mapping[str, str] = MappingProxyType({})) -> str:
    """The SVG as a part of the page: its own ids, the page's theme colours, a text for who cannot see it."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    box = re.search(r'viewBox="[^"]*"', body)
    body = body[body.index(">") + 1 :].replace("xlink:href", "href")
    body = re.sub(r'id="([^"]+)"', rf'id="{name}-\1"', body)
    body = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", body)
    for color, variable in (VARIABLES | dict(variables)).items():
        body = body.replace(color, f"var({variable})")
    body = body.replace("fill: #ffffff", "fill: none", 1)  # the sheet itself
    label = alt.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;")
    return f'<svg class="plot" role="img" aria-label="{label}" {box.group(0) if box else ""}>{body}'

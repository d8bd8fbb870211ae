"""The figures of a recipe: both sides' curves, and for what is compared step by step how far they lie apart."""

from collections.abc import Sequence

import numpy as np
from matplotlib.lines import Line2D

from jaxgeom.report.style import (
    LOOKS,
    MUTED,
    Drawing,
    key_below,
    label_ends,
    panels,
    plot_track,
    scale_x,
    scale_y,
)
from jaxgeom.validation.recipe_sampled import SampledResult, SampledSide
from jaxgeom.validation.recipe_sft import SeedResult, errors_of, limits_of

_COMPARED = {"loss": ("loss", LOOKS["opd"]), "grad_norm": ("gradient norm", LOOKS["sft_anchor"])}


def draw_sft(results: list[SeedResult]) -> Drawing:
    """Losses of both sides over each other, then each step's relative difference beside its tolerance.

    Args:
        results: a seed each.
    """
    figure, (left, right) = panels(1, 2, 2.9)
    steps = list(range(1, len(results[0].torch) + 1))
    losses: list[float | None] = []
    for one in results:
        theirs, ours = ([row["loss"] for row in rows] for rows in (one.torch, one.ours))
        left.plot(steps, theirs, color=MUTED, linewidth=3.0, alpha=0.35)
        left.plot(steps, ours, color=LOOKS["opd"].color, linewidth=0.9)
        losses += [*theirs, *ours]
    left.set_title("Loss")
    left.set_ylabel("nats a token")
    scale_y(left, losses)
    left.legend(
        handles=[
            Line2D([], [], color=MUTED, linewidth=3.0, alpha=0.35, label="PyTorch"),
            Line2D([], [], color=LOOKS["opd"].color, linewidth=0.9, label="jaxgeom"),
        ]
    )
    labels, drawn = [], []
    for key, (label, look) in _COMPARED.items():
        errors, nulls = (_worst(results, key, side) for side in ("ours", "again"))
        limits = np.min([limits_of(one, key) for one in results], axis=0).tolist()
        plot_track(right, steps, errors, look)
        plot_track(right, steps, nulls, look, kind="null")
        right.plot(steps, limits, color=look.color, linewidth=0.8, linestyle=":")
        labels += [(limits[-1], f"tolerance, {label}", look.text)]
        ends = [value for value in errors if value is not None]
        labels += [(ends[-1], label, look.text)] if ends else []
        drawn += [*limits, *errors, *nulls]
    right.set_title("Relative difference from PyTorch")
    scale_y(right, drawn, log=True)
    for axes in (left, right):
        axes.set_xlabel("optimizer step")
        scale_x(axes, steps)
    rounding = Line2D([], [], color=MUTED, linestyle=(0, (3, 2)), linewidth=1.0, label="rounding alone: PyTorch twice")
    key_below(figure, ["measured"], [rounding])
    label_ends(figure, right, labels)
    alt = f"Loss of jaxgeom and of PyTorch over {len(steps)} steps, and their relative difference by step."
    return Drawing(
        "recipe",
        "One recipe in PyTorch and here",
        "Left, every seed. Right, the seed that differs most; dashed, PyTorch against itself with the rows of each "
        "batch the other way round, which is rounding alone.",
        alt,
        figure,
    )


def _worst(results: list[SeedResult], key: str, side: str) -> list[float | None]:
    """The largest relative difference of a step over the seeds; None where both sides are equal, off a log axis."""
    errors = np.max([errors_of(getattr(one, side), one.torch, key) for one in results], axis=0)
    return [error if error > 0 else None for error in errors.tolist()]


_PANELS = {
    "reward": ("Reward", "mean of a step's answers"),
    "gap": ("Gap to the teacher", "nats a token"),
    "accuracy": ("Greedy accuracy", "share of prompts"),
}


def draw_sampled(results: Sequence[SampledResult]) -> Drawing:
    """Reward, gap and accuracy along the run, each side in its colour: every seed thin, their mean thick.

    Args:
        results: a seed each.
    """
    first = results[0].torch
    shown = [key for key in _PANELS if any(_curve(one.torch, key) for one in results)]
    figure, axes = panels(1, max(len(shown), 1), 2.7)
    sides = {"jaxgeom": ("ours", LOOKS["opd"].color), "PyTorch": ("torch", LOOKS["sft_anchor"].color)}
    for panel, key in zip(axes, shown, strict=False):
        drawn: list[float | None] = []
        for side, color in sides.values():
            curves = [_curve(getattr(one, side), key) for one in results]
            for curve in curves:
                panel.plot(list(curve), list(curve.values()), color=color, linewidth=0.6, alpha=0.5)
                drawn += curve.values()
            steps = sorted(set.intersection(*map(set, curves)))
            means = [float(np.mean([curve[step] for curve in curves])) for step in steps]
            panel.plot(steps, means, color=color, linewidth=1.6)
        panel.set_title(_PANELS[key][0])
        panel.set_ylabel(_PANELS[key][1])
        panel.set_xlabel("optimizer step")
        scale_x(panel, range(len(first.rows) + 1))
        scale_y(panel, drawn, log=False)
    handles = [Line2D([], [], color=color, linewidth=1.6, label=name) for name, (_, color) in sides.items()]
    key_below(figure, ["seed"], handles)
    return Drawing(
        "recipe",
        "One recipe in PyTorch and here",
        "Thin, a seed; thick, the mean of the seeds. Each side answers by its own draws.",
        f"Training curves of jaxgeom and of PyTorch over {len(first.rows)} steps and {len(results)} seeds.",
        figure,
    )


def _curve(side: SampledSide, key: str) -> dict[int, float]:
    """What one run has of a panel, by step."""
    if key == "accuracy":
        return side.accuracy
    return {step: row[key] for step, row in enumerate(side.rows, 1) if key in row}

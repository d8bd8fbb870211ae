"""What a recipe writes: `recipe.json`, and a figure of both sides' curves and of how far they lie apart."""

import dataclasses
import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.lines import Line2D

from jaxgeom import __version__
from jaxgeom.files import write_atomically
from jaxgeom.report.style import (
    LOOKS,
    MUTED,
    Drawing,
    house_style,
    key_below,
    label_ends,
    panels,
    plot_track,
    save,
    scale_x,
    scale_y,
)
from jaxgeom.validation.checks import Check
from jaxgeom.validation.recipe_settings import RecipeSettings
from jaxgeom.validation.recipe_sft import SeedResult, errors_of, limits_of
from jaxgeom.validation.tolerances import RECIPE_TOLERANCES, ROUNDINGS

_COMPARED = {"loss": ("loss", LOOKS["opd"]), "grad_norm": ("gradient norm", LOOKS["sft_anchor"])}


def write_recipe(
    out: Path,
    *,
    model: Path,
    settings: RecipeSettings,
    results: list[SeedResult],
    checks: list[Check],
    command: str,
) -> None:
    """Writes `recipe.json` and `figures/recipe.svg`, `.png`.

    Args:
        out: the directory.
        model: the model that both sides began from.
        settings: of the recipe.
        results: of both sides, a seed each.
        checks: the table.
        command: as it was typed.

    Raises:
        UserError: a figure of that name is there which is not ours.
    """
    with house_style():
        save(_draw(results), out / "figures")
    write_atomically(
        out / "recipe.json", json.dumps(_report(model, settings, results, checks, command), indent=1) + "\n"
    )


def _report(
    model: Path, settings: RecipeSettings, results: list[SeedResult], checks: list[Check], command: str
) -> dict[str, Any]:
    import jax
    import torch
    import transformers

    return {
        "schema": 1,
        "version": __version__,
        "command": command,
        "model": str(model),
        "settings": settings.to_json(),
        "versions": {"jax": jax.__version__, "torch": torch.__version__, "transformers": transformers.__version__},
        "machine": {"ours": jax.devices()[0].device_kind, "torch": "cpu", "processor": platform.machine()},
        "tolerances": RECIPE_TOLERANCES["sft"] | {"roundings": ROUNDINGS},
        "holds": all(check.ok for check in checks),
        "checks": [dataclasses.asdict(check) | {"holds": check.ok} for check in checks],
        "seeds": [
            {
                "seed": one.seed,
                "ours": one.ours,
                "torch": one.torch,
                "torch_other_rounding": one.again,
                "weights": {"error": one.weights[0], "null": one.weights[1]},
                "worst_tensor": {"name": one.worst[1], "error": one.worst[0]},
            }
            for one in results
        ],
    }


def _draw(results: list[SeedResult]) -> Drawing:
    """Losses of both sides over each other, then each step's relative difference beside its tolerance."""
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

"""What a recipe writes: `recipe.json`, and its figure."""

import dataclasses
import json
import math
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxgeom import __version__
from jaxgeom.files import write_atomically
from jaxgeom.report.style import Drawing, house_style, save
from jaxgeom.validation.checks import Check
from jaxgeom.validation.recipe_sampled import SampledResult
from jaxgeom.validation.recipe_settings import RecipeSettings
from jaxgeom.validation.recipe_sft import SeedResult
from jaxgeom.validation.tolerances import RECIPE_TOLERANCES, ROUNDINGS, SAMPLED_CONFIDENCE, SAMPLED_FLOOR


def write_recipe(
    out: Path,
    drawing: Callable[[], Drawing],
    *,
    model: Path,
    settings: RecipeSettings,
    seeds: Sequence[SeedResult | SampledResult],
    checks: list[Check],
    command: str,
) -> None:
    """Writes `recipe.json` and `figures/recipe.svg`, `.png`.

    Args:
        out: the directory.
        drawing: draws the figure.
        model: the model that both sides began from.
        settings: of the recipe.
        seeds: results of both sides, a seed each.
        checks: the table.
        command: as it was typed.

    Raises:
        UserError: a figure of that name is there which is not ours.
    """
    with house_style():
        save(drawing(), out / "figures")
    report = _without_nan(_report(model, settings, seeds, checks, command))
    write_atomically(out / "recipe.json", json.dumps(report, indent=1, allow_nan=False) + "\n")


def _report(
    model: Path, settings: RecipeSettings, seeds: Sequence[Any], checks: list[Check], command: str
) -> dict[str, Any]:
    import jax
    import torch
    import transformers

    tolerances = RECIPE_TOLERANCES["sampled" if settings.is_sampled else "sft"] | {"roundings": ROUNDINGS}
    if settings.is_sampled:
        tolerances |= {"confidence": SAMPLED_CONFIDENCE, "floor": SAMPLED_FLOOR}
    return {
        "schema": 1,
        "version": __version__,
        "command": command,
        "model": str(model),
        "settings": settings.to_json(),
        "versions": {"jax": jax.__version__, "torch": torch.__version__, "transformers": transformers.__version__},
        "machine": {"ours": jax.devices()[0].device_kind, "torch": "cpu", "processor": platform.machine()},
        "tolerances": tolerances,
        "holds": all(check.ok for check in checks),
        "checks": [dataclasses.asdict(check) | {"holds": check.ok} for check in checks],
        "seeds": [_sampled(one) if isinstance(one, SampledResult) else _step_by_step(one) for one in seeds],
    }


def _without_nan(value: Any) -> Any:
    """JSON has no word for NaN and infinity: null stands for them."""
    if isinstance(value, dict):
        return {key: _without_nan(held) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(held) for held in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _step_by_step(one: SeedResult) -> dict[str, Any]:
    return {
        "seed": one.seed,
        "ours": one.ours,
        "torch": one.torch,
        "torch_other_rounding": one.again,
        "weights": {"error": one.weights[0], "null": one.weights[1]},
        "worst_tensor": {"name": one.worst[1], "error": one.worst[0]},
    }


def _sampled(one: SampledResult) -> dict[str, Any]:
    sides = {"ours": one.ours, "torch": one.torch}
    return {"seed": one.seed, "prompts_that_differ": one.prompts} | {
        name: {"steps": side.rows, "accuracy": side.accuracy, "statistics": side.statistics()}
        for name, side in sides.items()
    }

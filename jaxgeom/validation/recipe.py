"""A whole recipe from a directory that is claimed to the table, the figure and the file."""

from functools import partial
from pathlib import Path
from typing import Any

from jaxgeom import __version__
from jaxgeom.differences import other_content, unequal
from jaxgeom.lock import locked, refuse_if_held
from jaxgeom.progress import Reporter
from jaxgeom.training.identity import contents_of
from jaxgeom.training.mesh_fit import require_batch_divides, run_mesh
from jaxgeom.training.rows import read_run_rows
from jaxgeom.training.run_directory import claim_directory
from jaxgeom.training.settings import OnPolicySettings
from jaxgeom.validation import torch_side
from jaxgeom.validation.checks import Check
from jaxgeom.validation.recipe_exact import first_answers
from jaxgeom.validation.recipe_figures import draw_sampled, draw_sft
from jaxgeom.validation.recipe_report import write_recipe
from jaxgeom.validation.recipe_sampled import compare_sampled, run_sampled, sampled_inputs
from jaxgeom.validation.recipe_settings import RecipeSettings
from jaxgeom.validation.recipe_sft import compare_sft, run_sft


def validate_recipe(
    model: str | Path,
    settings: RecipeSettings,
    out: Path,
    *,
    command: str = "",
    reporter: Reporter | None = None,
    force: bool = False,
) -> list[Check]:
    """Trains a model by one recipe in PyTorch and here, and compares the two.

    Args:
        model: Hugging Face directory with a tokenizer.
        settings: the recipe.
        out: gets `recipe.json`, `figures/` and our runs (`ours/seedN`).
        command: as it was typed, for `recipe.json`.
        reporter: where to say what is done.
        force: delete another recipe that is in `out`, if nothing else is there.

    Returns:
        The table, one `Check` a comparison, rounding's own error beside each.

    Raises:
        UserError: PyTorch is not installed; a model, rows, settings or directory that cannot be used. Nothing has been
            written then.
    """
    reporter = reporter or Reporter(quiet=True)
    model = Path(model)
    refuse_if_held(out)
    torch_side.require_torch()
    inputs = settings.inputs(model, evaluated=False)
    first = settings.run_settings(settings.seed)
    require_batch_divides(first, run_mesh(first.mesh))
    reporter.say("loading the model in PyTorch")
    reference = torch_side.load_torch(model, "float32")
    paths = {"model": model, **settings.paths}
    config = {"schema": 1, "kind": "recipe", "version": __version__, "settings": settings.to_json()}
    config |= {"inputs": {name: str(path) for name, path in paths.items()}, "contents": contents_of(inputs)}
    claim = claim_directory(out, "recipe", lambda held: _differences(held, config), force=force, inputs=inputs.paths)
    written: dict[str, Any] = {"model": model, "settings": settings, "command": command}
    # What cannot be learned from is refused before anything is written.
    if not settings.is_sampled:
        read_run_rows(first, inputs, reporter=reporter)
        with locked(out, reporter.say):
            claim.carry_out(config, reporter.say)
            results = run_sft(model, settings, out, reporter, reference=reference)
            checks = compare_sft(results)
            write_recipe(out, partial(draw_sft, results), seeds=results, checks=checks, **written)
        return checks
    assert isinstance(first, OnPolicySettings)
    teacher = None if settings.teacher is None else torch_side.load_torch(settings.teacher, "float32")
    inputs = sampled_inputs(model, settings, reporter)
    reporter.say("the first answers")
    answers = first_answers(first, inputs, reporter)
    with locked(out, reporter.say):
        claim.carry_out(config, reporter.say)
        sampled, exact = run_sampled(settings, inputs, out, reporter, answers, reference=reference, teacher=teacher)
        checks = compare_sampled(sampled, exact)
        write_recipe(out, partial(draw_sampled, sampled), seeds=sampled, checks=checks, **written)
    return checks


def _differences(held: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """What tells two recipes apart: settings, and inputs by their content."""
    if not all(isinstance(held.get(name), dict) for name in ("settings", "inputs", "contents")):
        return ["its config.json is damaged"]
    before, asked = (
        {key: value for key, value in one["settings"].items() if key not in one["inputs"]} for one in (held, wanted)
    )
    found = unequal(before, asked)
    contents, names = held["contents"], held["inputs"]
    for name, digest in wanted["contents"].items():
        if contents.get(name) != digest:
            found.append(other_content(name, names.get(name), wanted["inputs"].get(name)))
    return found

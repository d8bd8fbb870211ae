"""`jaxgeom validate MODEL`."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from jaxgeom.commands.options import SomeCount, SomeDirectory, SomeFile, SomeNumber
from jaxgeom.errors import UserError

if TYPE_CHECKING:
    from jaxgeom.progress import Reporter
    from jaxgeom.validation import Check

_LENGTH = 24  # of the longest row, tokens


def validate(
    model: Annotated[Positional[Path], arg(metavar="MODEL")],
    dtype: Literal["float32", "bfloat16"] = "float32",
    seed: int = 0,
    length: SomeCount = None,
    recipe: Literal["sft"] | None = None,
    data: SomeFile = None,
    out: SomeDirectory = None,
    steps: SomeCount = None,
    seeds: SomeCount = None,
    batch_size: SomeCount = None,
    learning_rate: Annotated[SomeNumber, arg(aliases=["--lr"])] = None,
    max_length: SomeCount = None,
    force: bool = False,
) -> Callable[[str], int]:
    """This model in PyTorch and here: logits, log-probabilities, loss, gradients, one AdamW step, greedy generation,
    diagnostics. Needs PyTorch (`python -m pip install torch`).

    With `--recipe sft` a whole training run on both sides instead, in float32 on the same rows in the same order: loss,
    gradient norm and learning rate step by step and the final weights, each beside what rounding alone does.

    Exit status 1 where a check does not hold; the first of them is named.

    Args:
        model: Hugging Face directory.
        dtype: In which both sides compute.
        seed: Of the tokens that they are compared on; of the first data order of a recipe.
        length: Of the longest row of tokens, 24 where not given; longer ones reach the positions that a scaled rotary
            embedding is for.
        recipe: Train on both sides.
        data: Demonstrations for the recipe: JSONL or parquet rows with `messages`.
        out: Gets recipe.json, a figure and our runs; an interrupted recipe goes on.
        steps: Optimizer steps of the recipe; none: 50.
        seeds: Data orders of the recipe; none: 1.
        batch_size: Sequences a step; none: 16.
        learning_rate: Peak rate of the recipe's cosine; none: 1e-3.
        max_length: Longer demonstrations are cut here; none: 1024.
        force: Delete another recipe that is in `out`.
    """
    given: dict[str, Any] = {"data": data, "out": out, "steps": steps, "seeds": seeds, "batch_size": batch_size}
    given |= {"learning_rate": learning_rate, "max_length": max_length, "force": force or None}
    given = {name: value for name, value in given.items() if value is not None}
    if recipe is not None:
        return _recipe(model, recipe, dtype, seed, length, given)
    if given:
        raise UserError(f"--{next(iter(given)).replace('_', '-')} belongs to a recipe: give --recipe sft with it")

    def run(command: str) -> int:
        from jaxgeom.progress import Reporter
        from jaxgeom.validation import validate_model

        reporter = Reporter()
        rows = _LENGTH if length is None else length
        return _show(validate_model(model, dtype=dtype, seed=seed, length=rows, progress=reporter.say), reporter)

    return run


def _recipe(
    model: Path, recipe: Literal["sft"], dtype: str, seed: int, length: int | None, given: dict[str, Any]
) -> Callable[[str], int]:
    """The command where both sides train."""
    missing = [f"--{name} {kind}" for name, kind in (("data", "FILE"), ("out", "DIR")) if name not in given]
    if missing:
        raise UserError(f"validate --recipe {recipe} needs {', '.join(missing)}; see jaxgeom validate --help")
    if dtype != "float32":
        raise UserError(f"--dtype {dtype}: a recipe is compared in float32 alone")
    if length is not None:
        raise UserError(f"--length {length}: the rows of a recipe are those of --data; --max-length cuts them")
    from jaxgeom.validation.recipe_settings import RecipeSettings

    out, force = given.pop("out"), given.pop("force", False)
    settings = RecipeSettings(recipe=recipe, seed=seed, **given)

    def run(command: str) -> int:
        from jaxgeom.progress import Reporter
        from jaxgeom.validation.recipe import validate_recipe

        reporter = Reporter()
        checks = validate_recipe(model, settings, out, command=command, reporter=reporter, force=force)
        status = _show(checks, reporter)
        reporter.say(f"recipe: {out}")
        return status

    return run


def _show(checks: "list[Check]", reporter: "Reporter") -> int:
    """Prints the table; the exit status."""
    from rich.table import Column, Table

    from jaxgeom.validation import first_failure

    # Names break over lines rather than be cut short on a narrow screen.
    name, where = (Column(title, overflow="fold") for title in ("check", "where"))
    nulls = any(check.null is not None for check in checks)
    table = Table(name, "error", *(["rounding alone"] if nulls else []), "tolerance", "holds", where)
    for check in checks:
        null = ["–" if check.null is None else f"{check.null:.3g}"] if nulls else []
        numbers = f"{check.error:.3g}", *null, f"{check.tolerance:.3g}"
        table.add_row(check.name, *numbers, "yes" if check.ok else "NO", check.detail)
    reporter.console.print(table)
    failed = first_failure(checks)
    if failed is None:
        return 0
    place = f" ({failed.detail})" if failed.detail else ""
    reporter.say(f"does not hold: {failed.name}: error {failed.error:.3g} above {failed.tolerance:.3g}{place}")
    return 1

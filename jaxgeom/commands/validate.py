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
    recipe: Literal["sft", "rlvr", "opd"] | None = None,
    data: SomeFile = None,
    teacher: SomeDirectory = None,
    eval_data: SomeFile = None,
    out: SomeDirectory = None,
    steps: SomeCount = None,
    seeds: SomeCount = None,
    batch_size: SomeCount = None,
    learning_rate: Annotated[SomeNumber, arg(aliases=["--lr"])] = None,
    max_length: SomeCount = None,
    samples_per_prompt: SomeCount = None,
    max_new_tokens: SomeCount = None,
    eval_limit: SomeCount = None,
    force: bool = False,
) -> Callable[[str], int]:
    """This model in PyTorch and here: logits, log-probabilities, loss, gradients, one AdamW step, greedy generation,
    diagnostics. Needs PyTorch (`python -m pip install torch`).

    With `--recipe sft` a whole training run on both sides instead, in float32 on the same rows in the same order: loss,
    gradient norm and learning rate step by step and the final weights, each beside what rounding alone does.

    With `--recipe rlvr` or `opd` likewise, each side answering the same prompts in the same order by its own draws.
    What both make of the first answers (log-probabilities, advantages, loss, gradient) is compared to rounding.
    Accuracy, reward, gap, length, gradient norm and geometry are compared as means over seeds, with 95 % intervals.

    Exit status 1 where a check does not hold; the first of them is named.

    Args:
        model: Hugging Face directory.
        dtype: In which both sides compute.
        seed: Of the tokens that they are compared on; of the first data order of a recipe.
        length: Of the longest row of tokens, 24 where not given; longer ones reach the positions that a scaled rotary
            embedding is for.
        recipe: Train on both sides.
        data: JSONL or parquet rows: with `messages` for sft, prompts for opd, prompts with right answers for rlvr.
        teacher: Hugging Face directory of the teacher, for opd.
        eval_data: Prompts that the greedy accuracy of rlvr and opd is taken on; none: those of `data`.
        out: Gets recipe.json, a figure and our runs; an interrupted recipe goes on.
        steps: Optimizer steps of the recipe; none: 50.
        seeds: Data orders of the recipe; none: 1 for sft, 3 for rlvr and opd, which need 2.
        batch_size: Sequences a step; none: 16 for sft, 64 for rlvr and opd.
        learning_rate: Peak rate of the recipe's cosine; none: 1e-3 for sft, 5e-5 for rlvr and opd.
        max_length: Longer demonstrations of sft are cut here; none: 1024.
        samples_per_prompt: Answers to one prompt of rlvr and opd; none: 8.
        max_new_tokens: Of an answer of rlvr and opd; none: 64.
        eval_limit: At most so many prompts for the accuracy of rlvr and opd; none: 256.
        force: Delete another recipe that is in `out`.
    """
    given: dict[str, Any] = {"data": data, "out": out, "steps": steps, "seeds": seeds, "batch_size": batch_size}
    given |= {"learning_rate": learning_rate, "max_length": max_length, "teacher": teacher, "eval_data": eval_data}
    given |= {"samples_per_prompt": samples_per_prompt, "max_new_tokens": max_new_tokens, "eval_limit": eval_limit}
    given |= {"force": force or None}
    given = {name: value for name, value in given.items() if value is not None}
    if recipe is not None:
        return _recipe(model, recipe, dtype, seed, length, given)
    if given:
        raise UserError(
            f"--{next(iter(given)).replace('_', '-')} belongs to a recipe: give --recipe {{sft,rlvr,opd}} with it"
        )

    def run(command: str) -> int:
        from jaxgeom.progress import Reporter
        from jaxgeom.validation import validate_model

        reporter = Reporter()
        rows = _LENGTH if length is None else length
        return _show(validate_model(model, dtype=dtype, seed=seed, length=rows, progress=reporter.say), reporter)

    return run


def _recipe(
    model: Path, recipe: Literal["sft", "rlvr", "opd"], dtype: str, seed: int, length: int | None, given: dict[str, Any]
) -> Callable[[str], int]:
    """The command where both sides train."""
    needed = {"data": "FILE", "out": "DIR"} | ({"teacher": "DIR"} if recipe == "opd" else {})
    missing = [f"--{name} {kind}" for name, kind in needed.items() if name not in given]
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
        status = _show(checks, reporter, null="rounding or seeds alone" if settings.is_sampled else "rounding alone")
        reporter.say(f"recipe: {out}")
        return status

    return run


def _show(checks: "list[Check]", reporter: "Reporter", *, null: str = "rounding alone") -> int:
    """Prints the table, with nulls under that name; the exit status."""
    from rich.table import Column, Table

    from jaxgeom.validation import first_failure

    # Names break over lines rather than be cut short on a narrow screen.
    name, where = (Column(title, overflow="fold") for title in ("check", "where"))
    nulls = any(check.null is not None for check in checks)
    table = Table(name, "error", *([null] if nulls else []), "tolerance", "holds", where)
    for check in checks:
        alone = ["–" if check.null is None else f"{check.null:.3g}"] if nulls else []
        numbers = f"{check.error:.3g}", *alone, f"{check.tolerance:.3g}"
        table.add_row(check.name, *numbers, "yes" if check.ok else "NO", check.detail)
    reporter.console.print(table)
    failed = first_failure(checks)
    if failed is None:
        return 0
    place = f" ({failed.detail})" if failed.detail else ""
    reporter.say(f"does not hold: {failed.name}: error {failed.error:.3g} above {failed.tolerance:.3g}{place}")
    return 1

"""`jaxgeom validate MODEL`."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg


def validate(
    model: Annotated[Positional[Path], arg(metavar="MODEL")],
    dtype: Literal["float32", "bfloat16"] = "float32",
    seed: int = 0,
    length: int = 24,
) -> Callable[[str], int]:
    """This model in PyTorch and here: logits, log-probabilities, loss, gradients, one AdamW step, greedy generation,
    diagnostics. Needs PyTorch (`python -m pip install torch`).

    Exit status 1 where a check does not hold; the first of them is named.

    Args:
        model: Hugging Face directory.
        dtype: In which both sides compute.
        seed: Of the tokens that they are compared on.
        length: Of the longest row of tokens; longer ones reach the positions that a scaled rotary embedding is for.
    """

    def run(command: str) -> int:
        from rich.table import Column, Table

        from jaxgeom.progress import Reporter
        from jaxgeom.validation import first_failure, validate_model

        reporter = Reporter()
        checks = validate_model(model, dtype=dtype, seed=seed, length=length, progress=reporter.say)
        # Names break over lines rather than be cut short on a narrow screen.
        name, where = (Column(title, overflow="fold") for title in ("check", "where"))
        table = Table(name, "error", "tolerance", "holds", where)
        for check in checks:
            table.add_row(
                check.name, f"{check.error:.3g}", f"{check.tolerance:.3g}", "yes" if check.ok else "NO", check.detail
            )
        reporter.console.print(table)
        failed = first_failure(checks)
        if failed is None:
            return 0
        place = f" ({failed.detail})" if failed.detail else ""
        reporter.say(f"does not hold: {failed.name}: error {failed.error:.3g} above {failed.tolerance:.3g}{place}")
        return 1

    return run

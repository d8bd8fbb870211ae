"""`jaxgeom export RUN --step N --to DIR`."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from jaxgeom.errors import UserError
from jaxgeom.models import save_model
from jaxgeom.progress import Reporter
from jaxgeom.training import load_start, saved_steps


def export(
    run: Positional[Path], to: Path, step: int | None = None, dtype: Literal["float32", "bfloat16"] = "bfloat16"
) -> Callable[[str], None]:
    """Writes a checkpoint of a training run as a Hugging Face directory that `transformers` loads.

    Args:
        run: The run directory.
        to: The directory to write; new or empty.
        step: Which checkpoint; the last where not given.
        dtype: Of the stored weights.
    """

    def write(command: str) -> None:
        steps = saved_steps(run)
        if not steps:
            raise UserError(f"{run}: no checkpoints there")
        if to.exists() and (not to.is_dir() or any(to.iterdir())):
            raise UserError(f"{to}: exists and is not an empty directory")
        model, params = load_start(f"{run}@{steps[-1] if step is None else step}", mesh=None, compute_dtype="float32")
        save_model(to, model.config, params, dtype=dtype, tokenizer_from=run / "tokenizer")
        Reporter().say(f"model: {to}")

    return write

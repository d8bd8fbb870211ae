"""The architecture of a training run: what its `config.json` says, held against what its checkpoints were written with.

A checkpoint's `checksums.json` keeps the model as it was when the step was saved: weights are numbers of that model
alone, and a run's `config.json` lies beside them, where anything may change it.
"""

import pathlib
from typing import Any

from jaxgeom.buckets.places import checkpoints_of
from jaxgeom.checkpoints.checksums import read_checksums
from jaxgeom.checkpoints.plain_files import read_json
from jaxgeom.errors import UserError


def held_model(run: pathlib.Path) -> dict[str, Any] | None:
    """The model configuration in a run's `config.json`; None where there is none."""
    try:
        found = read_json(run / "config.json").get("model")
    except UserError:
        return None
    return found if isinstance(found, dict) else None


def run_model(run: pathlib.Path, step: int) -> dict[str, Any]:
    """The model configuration of a run's checkpoint.

    Raises:
        UserError: `config.json` cannot be read, has none, or is not what it was when the step was saved.
    """
    model = read_json(run / "config.json").get("model")
    if not isinstance(model, dict):
        raise UserError(f"{run / 'config.json'}: has no model configuration under 'model'")
    fault = model_fault(run, step)
    if fault is not None:
        raise UserError(f"{run}: {fault}: put that back; the run's own command does so too")
    return model


def model_fault(run: pathlib.Path, step: int) -> str | None:
    """What in a run's `config.json` is not as it was when a step was saved, a sentence; None where all is.

    Checkpoints that keep no model of their own (of versions before) have nothing to be held against.
    """
    from jaxgeom.models.config import Qwen3Config  # it reads checkpoints itself

    saved = (read_checksums(checkpoints_of(run) / str(step)) or {}).get("model")
    model = held_model(run)
    if not isinstance(saved, dict) or model is None:
        return None
    # As this version reads both: fields that it does not know, or had not then, are nothing that was changed.
    then = Qwen3Config.from_hf(saved).to_hf()
    try:
        now = Qwen3Config.from_hf(model).to_hf()
    except UserError as error:
        return f"config.json is not what it was: {error}"
    # What ends an answer is the tokenizer's too, and may be another when a run goes on: no weight is read by it.
    names = dict.fromkeys(name for name in (*now, *then) if name != "eos_token_id")
    changed = [
        f"{name}={now.get(name)!r}, {then.get(name)!r} when step {step} was saved"
        for name in names
        if now.get(name) != then.get(name)
    ]
    return f"config.json is not what it was: model.{'; '.join(changed[:2])}" if changed else None

"""What makes a run this run: the mathematics that its settings ask for, and the content of what it reads.

Paths do not count, nor does how the work is laid out or how often it is saved and evaluated: the same model under
another name, another mesh or more steps are the same run gone on with. The same path with other content is another run.
"""

import dataclasses
import functools
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxgeom import __version__
from jaxgeom.buckets.places import checkpoints_of, local
from jaxgeom.checkpoints import open_checkpoint
from jaxgeom.checkpoints.checksums import identity_of
from jaxgeom.checkpoints.runs import named_run
from jaxgeom.data.rows import read_row_file
from jaxgeom.differences import other_content, unequal
from jaxgeom.errors import UserError
from jaxgeom.files import sha256_of
from jaxgeom.models import checked_config
from jaxgeom.models.save import TOKENIZER_FILES
from jaxgeom.optimizers import AdamWSettings, learning_rate_schedule
from jaxgeom.training.checkpointing import tokenizer_directory
from jaxgeom.training.run_templates import TEMPLATES
from jaxgeom.training.settings import RunInputs, RunSettings, defaults_of, to_json

FREE = frozenset(
    {"save_every", "eval_every", "eval_limit", "eval_samples", "eval_temperature", "mesh", "micro_batches", "remat"}
    | {"allow_unisolated_code", "geometry", "keeping", "teacher_devices"}
)
"""Settings that change neither what is learned nor from what: rounding aside, the parameters are the same."""

_UPDATES = ("basis_from", "mask_from")


def run_config(settings: RunSettings, inputs: RunInputs) -> dict[str, Any]:
    """What `config.json` of a run says, but for the architecture.

    Raises:
        UserError: an input that cannot be read.
    """
    return {
        "schema": 1,
        "kind": "run",
        "version": __version__,
        "objective": settings.objective,
        "settings": to_json(settings),
        "inputs": to_json(inputs),
        "contents": contents_of(inputs) | template_content(settings),
    }


def contents_of(inputs: RunInputs) -> dict[str, str]:
    """A digest of the content of every input, by the name of its field, and of the tokenizer.

    Raises:
        UserError: an input that cannot be read.
    """
    found = {}
    for field in dataclasses.fields(inputs):
        path = getattr(inputs, field.name)
        if path is None or field.name in ("base", "teacher", "eval_data"):  # a base is in what an adapter comes to
            continue
        if field.name == "model":
            found[field.name] = model_content(path, inputs.base)
        else:
            found[field.name] = update_content(path) if field.name in _UPDATES else file_content(path)
    for name, path in inputs.evaluations.items():
        found[f"eval_data/{name}" if name else "eval_data"] = file_content(path)
    for place, path in enumerate(inputs.teachers):
        found[f"teacher{place or ''}"] = model_content(path, inputs.base)
    found["tokenizer"] = _tokenizer_content(tokenizer_directory(inputs.model, inputs.base))
    return found


def template_content(settings: RunSettings) -> dict[str, str]:
    """A digest of the chat template that a run is given beside its tokenizer."""
    template = settings.rows.chat_template
    return {} if template is None else {"chat_template": file_content(template)}


def model_content(path: str | Path, base: Path | None = None) -> str:
    """A digest of a model's architecture and weights, wherever they lie.

    Args:
        path: a Hugging Face directory, or a checkpoint of a run of ours, which is known by its checksums.
        base: the model that a LoRA adapter belongs to, where its own configuration does not say.
    """
    found = named_run(path)
    weights = identity_of(checkpoints_of(found.run) / str(found.saved_step())) if found is not None else None
    checkpoint = open_checkpoint(path, base=base)
    architecture = checked_config(checkpoint).to_hf()
    weights = weights or _weights_content(os.fspath(path), base, checkpoint.fingerprint)
    return _digest(json.dumps(architecture, sort_keys=True, default=str), weights)


def update_content(path: Path) -> str:
    """A digest of a run's update: of a step of it, and of its start."""
    ends = named_run(path)
    return _digest(model_content(path), *([] if ends is None else [model_content(f"{ends.run}@0")]))


def file_content(path: Path) -> str:
    """A digest of a file's bytes."""
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")
    try:
        return sha256_of(Path(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error


def differences(held: dict[str, Any], wanted: dict[str, Any], taken: int) -> list[str]:
    """What tells two runs' configurations apart, empty where one goes on with the other.

    Args:
        held: the configuration that a directory has, which may be of any form.
        wanted: the one that is asked for.
        taken: steps that were taken and saved.

    Returns:
        Sentences that name the field and both values.
    """
    try:
        return _differences(held, wanted, taken)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return [f"its config.json is damaged: {type(error).__name__}: {error}"]


def _differences(held: dict[str, Any], wanted: dict[str, Any], taken: int) -> list[str]:
    found = unequal(held["objective"], wanted["objective"], "objective")
    old, new = held["settings"], wanted["settings"]
    found += unequal(mathematics(old, wanted["objective"]), mathematics(new, wanted["objective"]))
    if not found and old["steps"] != new["steps"]:
        found += _steps(AdamWSettings(**new["optimizer"]), old["steps"], new["steps"], taken)
    for name in dict.fromkeys([*wanted["contents"], *held["contents"]]):
        digest = held["contents"].get(name)
        if digest != wanted["contents"].get(name):
            before, now = _path_of(name, held["inputs"]), _path_of(name, wanted["inputs"])
            if not _same_rows(name, before, digest, now):
                found.append(other_content(name, before, now))
    return found


def _same_rows(name: str, before: str | None, digest: str | None, now: str | None) -> bool:
    """Whether two files hold the same rows in the same order, as lines or an array, compressed or not.

    Args:
        name: of the content.
        before: the path that the run began with, which counts only while its bytes are those.
        digest: of those bytes.
        now: the path that is given.
    """
    if name.partition("/")[0] not in ("data", "eval_data") or before is None or now is None:
        return False
    label = name.partition("/")[2]
    files = [local(path.removeprefix(f"{label}=") if label else path) for path in (before, now)]
    try:
        if file_content(files[0]) != digest:
            return False
        rows = [[row.content for row in read_row_file(path)] for path in files]
    except UserError:
        return False
    return rows[0] == rows[1]


def _path_of(name: str, inputs: dict[str, Any]) -> str | None:
    """The path of an input by the name of its content; one of what may be several is a path alone, or a list."""
    kind, _, label = name.partition("/")
    held = inputs.get("teacher" if name.startswith("teacher") else kind) or []
    several = [held] if isinstance(held, str) else held
    if kind == "eval_data":
        return next((path for path in several if path.startswith(f"{label}=" if label else "")), None)
    if not name.startswith("teacher"):
        return inputs.get(name)
    place = int(name.removeprefix("teacher") or 0)
    return several[place] if place < len(several) else None


def mathematics(settings: dict[str, Any], objective: str) -> dict[str, Any]:
    """The settings of a run that decide what is learned, without the number of steps.

    Args:
        settings: as JSON.
        objective: `sft`, whose answers are sampled for evaluation alone, `rlvr` or `opd`.
    """
    # What a run was not told of yet, when it began, it had the default of.
    settings = defaults_of(objective) | settings
    free = FREE | {"steps"} | ({"max_new_tokens"} if objective == "sft" else set())
    kept = {name: value for name, value in settings.items() if name not in free}
    # A template is known by its content, as every other input.
    return kept | {"rows": {name: value for name, value in kept["rows"].items() if name != "chat_template"}}


def _steps(optimizer: AdamWSettings, held: int, wanted: int, taken: int) -> list[str]:
    """More or fewer steps are the same run where no step taken would have had another learning rate."""
    if wanted < taken:
        return [f"steps: {wanted} asked for, the run has taken {taken} already"]
    if taken:
        old, new = (np.asarray(learning_rate_schedule(optimizer, steps)(jnp.arange(taken))) for steps in (held, wanted))
        if not np.array_equal(old, new):
            return [f"steps: {held} there, {wanted} asked for, and the {optimizer.schedule} schedule would have had"
                    f" other learning rates in the {taken} steps taken"]  # fmt: skip
    return []


@functools.lru_cache(maxsize=64)
def _weights_content(path: str, base: Path | None, fingerprint: str) -> str:
    del fingerprint  # it changes when the files do
    return open_checkpoint(path, base=base).sha256()


def _tokenizer_content(directory: Path) -> str:
    names = [name for name in TOKENIZER_FILES if (directory / name).is_file()]
    names += sorted(f"{TEMPLATES}/{path.name}" for path in (directory / TEMPLATES).glob("*.jinja"))
    return _digest(*(f"{name}:{file_content(directory / name)}" for name in names))


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()

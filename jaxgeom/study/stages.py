"""What a study has finished: a marker a stage, with the key of what went in and the digests of what came out."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxgeom.checkpoints import saved_steps
from jaxgeom.differences import other_content, unequal
from jaxgeom.files import sha256_of, write_atomically
from jaxgeom.study.experiment import DataFiles, Experiment
from jaxgeom.training.identity import file_content, mathematics, model_content, template_content
from jaxgeom.training.settings import to_json

# Of the experiment: a label, what is trained anew or measured again by itself, and inputs, which their content tells.
_FREE = ("name", "seeds", "measure", "base", "teacher", "opd", "rlvr", "sft_continued", "anchor")
_OBJECTIVES = {"anchor": "sft", "opd": "opd", "rlvr": "rlvr", "sft_continued": "sft"}


def key_of(*parts: Any) -> str:
    """A digest of JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def run_key(run: Path) -> list[Any]:
    """The saved checkpoints of a run, each with its content."""
    return [[step, model_content(f"{run}@{step}")] for step in saved_steps(run)]


def is_marked(marker: Path, key: str, files: Sequence[Path]) -> bool:
    """Whether a stage is done: with this key, and its files are what it wrote.

    Args:
        marker: the stage's file.
        key: of what goes in.
        files: what the stage writes.
    """
    try:
        held = json.loads(marker.read_text(encoding="utf-8"))
        return held["key"] == key and held["files"] == {path.name: sha256_of(path) for path in files}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def mark(marker: Path, key: str, files: Sequence[Path]) -> None:
    """Says that a stage is done."""
    digests = {path.name: sha256_of(path) for path in files}
    write_atomically(marker, json.dumps({"key": key, "files": digests}, indent=1) + "\n")


def study_contents(experiment: Experiment) -> dict[str, str]:
    """Digests of what an experiment reads, by field.

    Raises:
        UserError: something that cannot be read.
    """
    found = {name: model_content(getattr(experiment, name)) for name in ("base", "teacher")}
    if isinstance(experiment.data, DataFiles):
        for name, path in vars(experiment.data).items():
            if path is not None:
                found[name] = file_content(path)
    for name in _OBJECTIVES:
        found |= {f"{name}.{key}": digest for key, digest in template_content(getattr(experiment, name)).items()}
    return found


def study_differences(held: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """What tells two studies' configurations apart, empty where one goes on with the other.

    More seeds, other measurements and more steps of a method go on; each run looks at its own settings once more.

    Args:
        held: of a directory, of any form.
        wanted: asked for.

    Returns:
        Sentences that name the field and both values.
    """
    try:
        old, new = held["experiment"], wanted["experiment"]
        synthetic = "task" in new["data"] or "task" in old["data"]
        free = _FREE if synthetic else (*_FREE, "data")
        kept = [{name: value for name, value in one.items() if name not in free} for one in (old, new)]
        found = unequal(kept[0], kept[1])
        for name, objective in _OBJECTIVES.items():
            settings = [mathematics(_seedless(name, one[name]), objective) for one in (old, new)]
            found += unequal(settings[0], settings[1], name)
        found += unequal(old["anchor"]["steps"], new["anchor"]["steps"], "anchor.steps")
        for name in dict.fromkeys([*wanted["contents"], *held["contents"]]):
            if held["contents"].get(name) != wanted["contents"].get(name):
                paths = [one.get(name) or one["data"].get(name) for one in (old, new)]
                found.append(other_content(name, paths[0], paths[1]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return [f"its config.json is damaged: {type(error).__name__}: {error}"]
    return found


def study_config(experiment: Experiment, version: str) -> dict[str, Any]:
    """What `config.json` of a study says."""
    return {
        "schema": 1,
        "kind": "study",
        "version": version,
        "experiment": to_json(experiment),
        "contents": study_contents(experiment),
    }


def _seedless(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a stage; the methods' own seeds are those of the experiment."""
    return settings if name == "anchor" else {field: value for field, value in settings.items() if field != "seed"}

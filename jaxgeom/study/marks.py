"""What a study has finished: a marker a stage, with the key of what went in and the digests of what came out."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxgeom.checkpoints import saved_steps
from jaxgeom.files import sha256_of, write_atomically
from jaxgeom.training.identity import model_content


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


def keep(path: Path, key: str, value: Any) -> None:
    """Keeps a part of a stage that is not done yet, a JSON value, with the key of what went into it."""
    held = json.dumps(value, allow_nan=False)
    write_atomically(path, f'{{"key": "{key}", "digest": "{key_of(held)}", "value": {held}}}\n')


def kept(path: Path, key: str) -> Any:
    """What `keep` put there with this key; None where it did not, or the file is damaged."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        same = held["key"] == key and held["digest"] == key_of(json.dumps(held["value"]))
        return held["value"] if same else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def mark(marker: Path, key: str, files: Sequence[Path]) -> None:
    """Says that a stage is done."""
    digests = {path.name: sha256_of(path) for path in files}
    write_atomically(marker, json.dumps({"key": key, "files": digests}, indent=1) + "\n")

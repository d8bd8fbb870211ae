"""A run directory on disk: what it holds, whose it is, and how a run starts, resumes and ends in it."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jaxgeom.data.rows import text_lines
from jaxgeom.errors import UserError
from jaxgeom.files import write_atomically


def claim_directory(directory: Path, config: dict[str, Any], *, force: bool = False) -> bool:
    """Makes `directory` the home of the run that `config` describes.

    Args:
        directory: New, empty, or holding this very run, which is then resumed.
        config: JSON values; written as `config.json`, and compared when the directory has one.
        force: Delete whatever other run is there.

    Returns:
        Whether the run is finished already (it has the file `done`).

    Raises:
        UserError: the directory holds another run, or things that are no run of ours.
    """
    path = directory / "config.json"
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory}: is a file, not a directory")
    if directory.is_dir() and any(directory.iterdir()):
        held = _read_config(path) if path.is_file() else None
        if held == config:
            return (directory / "done").exists()
        if not force:
            what = "another run" if held is not None else "files that are no run"
            differs = f" ({_difference(held, config)})" if isinstance(held, dict) else ""
            raise UserError(f"{directory}: holds {what}{differs}; choose another directory or give --force")
        shutil.rmtree(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(config, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"{directory}: cannot be written: {error.strerror}") from error
    return False


def mark_done(directory: Path) -> None:
    """The last thing that a finished run writes."""
    write_atomically(directory / "done", "")


class JsonLines:
    """A JSONL log of steps that survives kills: on opening, whatever is past `step` or half-written is cut off."""

    def __init__(self, path: Path, *, last_step: int):
        kept = [row for row in read_json_lines(path) if row["step"] <= last_step] if path.exists() else []
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = path.open("a", encoding="utf-8")

    def write(self, rows: Iterable[dict]) -> None:
        for row in rows:
            self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_json_lines(path: Path) -> list[dict]:
    """The whole rows of a log; a half-written last line is left out."""
    rows = []
    for line in text_lines(path.read_text(encoding="utf-8")):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def _read_config(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        return None


def _difference(held: Any, wanted: Any, where: str = "") -> str:
    """The first field in which two configurations differ, as `field: held ≠ wanted`."""
    if isinstance(held, dict) and isinstance(wanted, dict):
        for key in [*wanted, *(k for k in held if k not in wanted)]:
            if held.get(key) != wanted.get(key):
                return _difference(held.get(key), wanted.get(key), f"{where}.{key}" if where else str(key))
    return f"{where}: {json.dumps(held)[:80]} there, {json.dumps(wanted)[:80]} asked for"

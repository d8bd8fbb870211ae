"""Rows of demonstrations and prompts on disk: JSONL or parquet, read and checked."""

import json
from collections.abc import Sequence
from pathlib import Path

from jaxgeom.errors import UserError


def read_rows(path: str | Path) -> list[dict]:
    """All rows of a `.jsonl` or `.parquet` file.

    Args:
        path: JSON lines or parquet, by its ending.

    Returns:
        One dict a row, in order.

    Raises:
        UserError: the file is missing, empty, of another kind, or a line is no JSON object (its number is named).
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.suffix == ".parquet":
        rows = _read_parquet(path)
    elif path.suffix in (".jsonl", ".json"):
        rows = _read_jsonl(path)
    else:
        raise UserError(f"{path}: expected a .jsonl or .parquet file")
    if not rows:
        raise UserError(f"{path}: no rows")
    return rows


def write_jsonl(path: str | Path, rows: Sequence[dict]) -> None:
    """Writes rows as JSON lines.

    Args:
        path: written over where it is there.
        rows: JSON objects.
    """
    Path(path).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def check_demonstrations(rows: Sequence[dict], source: str) -> None:
    """Every row has `messages` (or plain `text`), else UserError naming the row."""
    for index, row in enumerate(rows):
        if isinstance(row.get("text"), str):
            continue
        check_messages(row.get("messages"), f"{source}: row {index}: 'messages'")


def check_prompts(rows: Sequence[dict], source: str) -> None:
    """Every row has `prompt` messages and `reward_model.ground_truth`, else UserError naming the row."""
    for index, row in enumerate(rows):
        check_messages(row.get("prompt"), f"{source}: row {index}: 'prompt'")
        reward = row.get("reward_model")
        if not isinstance(reward, dict) or "ground_truth" not in reward:
            raise UserError(f"{source}: row {index}: 'reward_model.ground_truth' is missing")


def check_messages(messages, where: str) -> None:
    """A list of messages, each with `role` and `content`, else UserError that begins with `where`."""
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise UserError(f"{where} must be a list of messages with 'role' and 'content'")
    for message in messages:
        if not isinstance(message, dict) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
            raise UserError(f"{where}: a message needs 'role' and 'content', both text")


def _read_jsonl(path: Path) -> list[dict]:
    rows, number = [], 0
    with path.open(encoding="utf-8", errors="strict") as lines:
        try:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise UserError(f"{path}: line {number} is not a JSON object")
                rows.append(row)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}: line {number} is not JSON: {error.msg}") from error
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8 text") from error
    return rows


def _read_parquet(path: Path) -> list[dict]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f"{path}: reading parquet needs pyarrow: install 'jaxgeom[datasets]'") from error
    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable parquet file: {error}") from error

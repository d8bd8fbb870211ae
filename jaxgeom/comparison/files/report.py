"""The result of a comparison, and its files."""

import csv
import dataclasses
import io
import json
import os
import pathlib
from importlib import metadata
from typing import Any

from jaxgeom.files import write_atomically

SCHEMA = 1

_LEADING = ("name", "module", "layer", "shape")


def to_json_text(value: Any) -> str:
    """JSON that has no NaN and no infinity."""
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


def to_csv_text(rows: list[dict[str, Any]]) -> str:
    """One line per row; the columns are all keys that occur, empty where a value is null."""
    keys = list(dict.fromkeys([*_LEADING, *(key for row in rows for key in row)]))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(keys)
    for row in rows:
        writer.writerow([_cell(row.get(key)) for key in keys])
    return buffer.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, list):
        return "x".join("" if item is None else str(item) for item in value)
    return "" if value is None else value


def version() -> str:
    """Version of the installed package."""
    try:
        return metadata.version("jaxgeom")
    except metadata.PackageNotFoundError:
        return "unknown"


@dataclasses.dataclass(frozen=True)
class Report:
    """What a comparison found.

    Attributes:
        command: what made it.
        inputs: `initial` and `final`, each with name, dtype and sha256.
        settings: every parameter of every statistic, and which form of each null was used.
        coverage: per statistic the share of parameters and the number of matrices.
        summary: per statistic mean, median, count, null, excess.
        groups: the same per module, per layer, and of sparsity per group of parameters.
        matrices: one row per matrix.
        parameters: one row per parameter that is no matrix of the layers: embeddings, head, norms.
    """

    command: str
    inputs: dict[str, Any]
    settings: dict[str, Any]
    coverage: dict[str, Any]
    summary: dict[str, Any]
    groups: dict[str, Any]
    matrices: list[dict[str, Any]]
    parameters: list[dict[str, Any]]
    version: str

    def to_json(self) -> dict[str, Any]:
        """The content of `report.json`; floats or null, never NaN."""
        return {
            "schema": SCHEMA,
            "kind": "compare",
            "version": self.version,
            "command": self.command,
            "inputs": self.inputs,
            "settings": self.settings,
            "coverage": self.coverage,
            "summary": self.summary,
            "groups": self.groups,
            "matrices": self.matrices,
            "parameters": self.parameters,
        }

    def write(self, directory: str | os.PathLike[str]) -> None:
        """Writes `report.json` and `matrices.csv`, each whole or not at all; the report comes last."""
        folder = pathlib.Path(directory)
        write_atomically(folder / "matrices.csv", to_csv_text(self.matrices))
        write_atomically(folder / "report.json", to_json_text(self.to_json()))

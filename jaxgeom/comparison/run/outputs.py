"""What a measurement may write over in its output folder: its own files, and nobody else's."""

import json
import pathlib
from collections.abc import Iterable

from jaxgeom.checkpoints.runs import split_step
from jaxgeom.errors import UserError, listed
from jaxgeom.owned_files import KINDS, contents_of, is_text_of_others

_FINAL = ("report.json", "trajectory.json")


def check_folder(folder: pathlib.Path, inputs: Iterable[str]) -> None:
    """Refuses an output folder that is an input, a run, a study or a recipe, or has files of the user under our names.

    Neither is written into with `force`: what it takes over is another measurement.

    Args:
        folder: it need not be there.
        inputs: names of the checkpoints, which are paths where they lie on disk.

    Raises:
        UserError: naming what is in the way.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is no directory")
    if not folder.is_dir():
        _refuse_rooms_of_a_run(folder)
        return
    for name in inputs:
        for path in (pathlib.Path(name), pathlib.Path(split_step(name)[0])):
            if path.is_dir() and path.resolve() == folder.resolve():
                raise UserError(f"{folder}: is {name}, which is measured; choose another --out")
    _refuse_rooms_of_a_run(folder)
    kind = _json(folder / "config.json").get("kind")
    if kind in ("run", "study", "recipe"):
        raise UserError(f"{folder}: holds a {kind}; choose another --out")
    present = [name for name in _FINAL if (folder / name).exists()]
    foreign = [name for name in present if not {"schema", "settings", "inputs"} <= _json(folder / name).keys()]
    if not present and not any(folder.glob(".partial*.jsonl")):
        # A table, page or figure without the measurement that it would be of.
        foreign = [name for name in ("matrices.csv", "report.html") if (folder / name).exists()]
        foreign += ["figures/"] if (folder / "figures").exists() and any((folder / "figures").iterdir()) else []
    foreign += [path.name for path in folder.glob(".partial*.jsonl") if path.is_file() and is_text_of_others(path)]
    if foreign:
        raise UserError(
            f"{folder}: {listed(foreign)} would be written over, and jaxgeom did not write it; choose another --out"
        )


def _refuse_rooms_of_a_run(folder: pathlib.Path) -> None:
    """Refuses what lies among the checkpoints of a run, its tokenizer or rows, or among any result's figures."""
    place = folder.resolve()
    if place.name == "figures":
        beside = [name for name in (*_FINAL, "config.json") if _json(place.parent / name).keys() & {"schema", "kind"}]
        if beside:
            raise UserError(f"{folder}: holds the figures of {place.parent / beside[0]}; choose another --out")
    for run in place.parents:
        room = place.relative_to(run).parts[0]
        if room in ("checkpoints", "tokenizer", "rows") and _json(run / "config.json").get("kind") == "run":
            raise UserError(f"{folder}: lies among the {room} of the run {run}; choose another --out")


def replaced(folder: pathlib.Path) -> list[str]:
    """The files of an earlier measurement in a folder, which a new one writes over or deletes."""
    return contents_of(folder, KINDS["report"]).own


def _json(path: pathlib.Path) -> dict:
    if not path.is_file():
        return {}
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return held if isinstance(held, dict) else {}

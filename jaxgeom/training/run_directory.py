"""An output directory of `train`, `study` or a recipe: whose it is, how a run claims it, goes on, replaces another."""

import dataclasses
import json
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from jaxgeom import lock
from jaxgeom.checkpoints.checksums import read_checksums, step_within
from jaxgeom.checkpoints.plain_files import is_there, read_json
from jaxgeom.differences import shown
from jaxgeom.errors import UserError, listed
from jaxgeom.files import as_user_error, write_atomically
from jaxgeom.owned_files import KINDS, Contents, contents_of, empty, refuse_inputs
from jaxgeom.training.run_templates import own_templates

_CONFIG = "config.json"
_FOLDERS = {
    "run": ("checkpoints", "tokenizer", "rows", "figures"),
    "study": ("data", "runs", "measures", "figures", "rows"),
    "recipe": ("ours", "figures"),
}
_FILES = {
    "run": ("done", "samples.jsonl", "report.html"),
    "study": ("done", "stages.json", "report.json", "matrices.csv", "report.html"),
    "recipe": ("recipe.json",),
}
_CHECKPOINTS = {
    "run": ("checkpoints",),
    "study": ("runs/*/checkpoints", "runs/*/seed*/checkpoints"),
    "recipe": ("ours/seed*/checkpoints",),
}


@dataclasses.dataclass(frozen=True)
class Claim:
    """What a run may do with its directory; nothing has been written yet.

    Attributes:
        directory: the output directory.
        kind: `run`, `study` or `recipe`.
        held: the configuration of the same kind that is there; None where there is none.
        goes_on: whether what is there is this very run.
        replaces: what `--force` deletes first, None where nothing is.
        inputs: what the run reads, never to be deleted.
    """

    directory: Path
    kind: str
    held: dict[str, Any] | None
    goes_on: bool
    replaces: Contents | None
    inputs: tuple[str | os.PathLike[str], ...]

    def carry_out(self, config: dict[str, Any], say: Callable[[str], None]) -> None:
        """Empties the directory where another run is replaced, and writes `config.json`."""
        try:
            if self.replaces is not None:
                what = f"a {self.kind}"
                empty(self.directory, what, self.replaces, inputs=self.inputs, say=say, last=_CONFIG)
            if self.held != config or self.replaces is not None:
                write_atomically(self.directory / _CONFIG, json.dumps(config, indent=2) + "\n")
        except OSError as error:
            raise as_user_error(error, self.directory) from error

    def begin_anew(self, config: dict[str, Any], say: Callable[[str], None]) -> None:
        """Deletes what the same run has left there, of which nothing can be used."""
        dataclasses.replace(self, replaces=_contents(self.directory, self.kind)).carry_out(config, say)


def claim_directory(
    directory: Path,
    kind: str,
    difference: Callable[[dict[str, Any]], list[str]],
    *,
    force: bool = False,
    inputs: Iterable[str | os.PathLike[str]] = (),
) -> Claim:
    """Looks whether `directory` can be the home of a run; writes nothing.

    Args:
        directory: new, empty, or holding this very run, which then goes on.
        kind: `run`, `study` or `recipe`.
        difference: what tells the run that a configuration describes from this one; empty for the same.
        force: whether another run of the same kind that is there may be deleted.
        inputs: what the run reads.

    Raises:
        UserError: the directory holds another run, or things that are none of ours.
    """
    inputs = tuple(inputs)
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory}: is a file, not a directory")
    names = sorted(path.name for path in directory.iterdir() if path.name != lock.NAME) if directory.is_dir() else []
    if not names:
        refuse_inputs(directory, inputs)
        return Claim(directory, kind, None, False, None, inputs)
    held = held_config(directory)
    if held is None and _was_run(directory, kind):
        return _over_damaged(directory, kind, force, inputs)
    if held is None or held.get("kind") != kind:
        what = "files that are no " + kind if held is None else f"a {held.get('kind')}, no {kind}"
        more = ", and --force deletes only what jaxgeom wrote" if force else ""
        raise UserError(f"{directory}: holds {what}{more}: {listed(names)}; choose another directory")
    why = difference(held)
    if not why:
        for name in _FOLDERS[kind]:
            if is_there(directory / name) and not (directory / name).is_dir():
                raise UserError(f"{directory / name}: is no directory, and the {kind} keeps files in it; move it away")
        for name in _FILES[kind]:
            if (directory / name).is_dir():
                raise UserError(f"{directory / name}: is a directory, and the {kind} writes a file there; move it away")
        return Claim(directory, kind, held, True, None, inputs)
    if not force:
        raise UserError(f"{directory}: holds another {kind} ({shown(why)}); choose another directory or give --force")
    contents = _contents(directory, kind)
    # Looked at here too, before the hours that a model may take to load.
    empty_or_refuse = dataclasses.replace(contents, own=[])
    empty(directory, "", empty_or_refuse, inputs=inputs)
    return Claim(directory, kind, held, False, contents, inputs)


def _was_run(directory: Path, kind: str) -> bool:
    """Whether a directory without a readable `config.json` is ours all the same: by a checkpoint's own list."""
    folders = (folder for place in _CHECKPOINTS[kind] for folder in directory.glob(f"{place}/*"))
    return any(step_within(folder) is not None and read_checksums(folder) is not None for folder in folders)


def _over_damaged(directory: Path, kind: str, force: bool, inputs: tuple[str | os.PathLike[str], ...]) -> Claim:
    """What `--force` may do with a run of which nobody knows any more what it was; `UserError` without it."""
    path = directory / _CONFIG
    try:
        read_json(path)
        why = "says not what run it is of"
    except UserError as error:
        why = str(error).removeprefix(f"{path}: ") if is_there(path) else "is gone"
    if not force:
        raise UserError(
            f"{path}: damaged: {why}; the {kind} cannot be gone on with unless that file is put back;"
            f" choose another directory, or --force deletes the {kind} and begins anew"
        )
    contents = _contents(directory, kind)
    empty(directory, "", dataclasses.replace(contents, own=[]), inputs=inputs)
    return Claim(directory, kind, None, False, contents, inputs)


def mark_done(directory: Path, text: str = "") -> None:
    """The last thing that a finished run, or stage, writes."""
    write_atomically(directory / "done", text)


def held_config(directory: Path, kind: str | None = None) -> dict[str, Any] | None:
    """The configuration that we wrote in a directory, of a kind or of any; None where there is none."""
    try:
        held = read_json(directory / _CONFIG)
    except UserError:
        return None
    if "schema" not in held:
        return None
    return held if held.get("kind") in ((kind,) if kind else ("run", "study", "recipe")) else None


def _contents(directory: Path, kind: str) -> Contents:
    """What the directory holds; files of a checkpoint are ours where its own list has them.

    A step without a list is another's, or nobody's: its names alone say too little.
    """
    ours = set()
    for sums in directory.rglob("checkpoints/*/checksums.json"):
        listing = read_checksums(sums.parent) or {"files": {}}
        ours |= {(sums.parent / name).relative_to(directory).as_posix() for name in listing["files"]}
    templates = {
        (listing.parent / name).relative_to(directory).as_posix()
        for listing in directory.rglob("tokenizer/templates.json")
        for name in own_templates(listing.parent)
    }
    found = contents_of(directory, KINDS[kind], also=ours | templates)
    unlisted = [name for name in found.own if name not in ours and _is_unlisted(directory, name)]
    return Contents(sorted(set(found.own) - set(unlisted)), sorted([*found.foreign, *unlisted]))


def _is_unlisted(directory: Path, name: str) -> bool:
    """Whether a file lies in the folder of a finished step whose list is not there, or is whole without it."""
    at = re.match(r"(?:.*/)?checkpoints/\d+/", name)
    if at is None:
        return False
    listing = directory / at.group() / "checksums.json"
    if not listing.exists():
        return True
    return "checksums.json" not in name and read_checksums(listing.parent) is not None

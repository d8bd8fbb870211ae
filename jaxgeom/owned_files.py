"""What the product wrote in a directory, by name: the one place that empties a directory for `--force`.

A directory is emptied only where every file in it is one that the product writes there, and where no input of the
command lies in it. Everything else is refused, with the names that stand in the way; what will go is said first. Where
a name alone says too little (a figure, an archive of arrays), the file bears a mark.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator

from jaxgeom.checkpoints.runs import split_step
from jaxgeom.errors import UserError, listed
from jaxgeom.files import TEMPORARY

Say = Callable[[str], None]


def _either(*patterns: str) -> str:
    return "(?:" + "|".join(patterns) + ")"


def _written(*names: str) -> str:
    """Files that are written by `write_atomically`, and what a kill leaves of them."""
    return _either(*(_either(re.escape(name), TEMPORARY.format(name=re.escape(name))) for name in names))


_LOCK = r"\.lock"
_TOKENIZER = (
    r"tokenizer/(?:tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|generation_config|chat_template)"
    r"\.json|tokenizer/(?:merges\.txt|chat_template\.jinja|tokenizer\.model)"
    r"|tokenizer/" + _written("templates.json")
)
# What Orbax names the files of a step; `.N.partial…` is a step that was being written.
_STORE = r"(?:manifest\.ocdbt|d/[0-9a-f]{16,})"
_ITEM = _either(
    r"(?:data|key)/(?:metadata|commit_success\.txt)",
    r"(?:params|optimizer)/(?:_METADATA|_sharding|commit_success\.txt|array_metadatas/process_\d+|" + _STORE + ")",
    r"(?:params|optimizer)/ocdbt\.process_\d+/" + _STORE,
)
_STEP = _either(r"_CHECKPOINT_METADATA|commit_success\.txt|pending\.npz", _written("checksums.json"), _ITEM)
_UNFINISHED = _either(
    rf"(?:[\w]+\.orbax-checkpoint-tmp[^/]*/)?{_STEP}",
    r"(?:params|optimizer|data|key)\.orbax-checkpoint-tmp[^/]*/[\w./-]+",
)
_CHECKPOINTS = _either(
    rf"checkpoints/\d+/{_STEP}",
    rf"checkpoints/\.?\d+\.(?:partial|orbax-checkpoint-tmp)[^/]*/{_UNFINISHED}",
)
# The tokens of the rows, by what they come from.
_ROWS = r"rows/(?:[0-9a-f]+\.npz|\.[0-9a-f]+\.npz\.\d+)"
_FIGURES = r"figures/[\w.-]+\.(?:svg|png)"
_RUN = _either(
    _written("config.json", "done", "report.html"),
    _FIGURES,
    r"metrics\.jsonl|samples\.jsonl|events\.out\.tfevents\.\d{10}\.[\w.-]+\.\d+\.\d+",
    _LOCK,
    _TOKENIZER,
    _ROWS,
    _CHECKPOINTS,
)
_REPORT = _either(
    _written("report.json", "trajectory.json", "matrices.csv", "report.html"),
    _FIGURES,
    r"\.partial(?:\.\d+)?\.(?:jsonl|new)",
    r"\.process\.\d+\.json|\.\.process\.\d+\.json\.\w{8}",
    _LOCK,
)
_KEPT = _either(r"report-\d+\.json", TEMPORARY.format(name=r"report-\d+\.json"))
_STUDY = _either(
    _written("config.json", "stages.json", "done", "report.json", "matrices.csv", "report.html"),
    _FIGURES,
    r"data/(?:demonstrations|demonstrations_continued|prompts|heldout)\.jsonl",
    "data/" + _written("done"),
    _ROWS,
    rf"runs/\w+(?:/seed\d+)?/{_RUN}",
    rf"measures/\w+/seed\d+/{_either(_REPORT, _written('done'), _KEPT)}",
    "measures/" + _written("between.json", "between.done"),
    r"measures/base_spectra/(?:[0-9a-f]+\.npz|tmp\w{8}\.part)",
    _LOCK,
)
_RECIPE = _either(_written("config.json", "recipe.json"), _FIGURES, rf"ours/seed\d+/{_RUN}", _LOCK)

KINDS = {"run": _RUN, "study": _STUDY, "recipe": _RECIPE, "report": _REPORT, "step": _STEP, "unfinished": _UNFINISHED}
"""By the kind of an output directory, the files that it may hold: a regular expression of their paths in it."""


MARK = "jaxgeom"
"""What is written into a figure as its creator, and into an archive of arrays as the name of the first of them."""

_MARKS = (
    (re.compile(r"(?:.*/)?figures/[^/]+\.svg"), f"<dc:title>{MARK}</dc:title>".encode(), 4096),
    (re.compile(r"(?:.*/)?figures/[^/]+\.png"), f"Software\0{MARK}".encode(), 4096),
    (re.compile(r"(?:.*/)?(?:rows|base_spectra)/[^/]+"), f"{MARK}.npy".encode(), 64),
)  # files, what they hold, and within how many bytes


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a directory holds.

    Attributes:
        own: paths of files that the product wrote, relative to the directory.
        foreign: paths of everything else: files, links, and folders that hold nothing.
    """

    own: list[str]
    foreign: list[str]


def contents_of(directory: pathlib.Path, pattern: str, *, also: Collection[str] = ()) -> Contents:
    """Sorts what a directory holds into what the product wrote there and what it did not.

    Args:
        directory: where; it need not be there.
        pattern: regular expression of the product's paths in it.
        also: further paths that are the product's, as its own lists of files have them.
    """
    expression, own, foreign = re.compile(pattern), [], []
    for path, kind in _walk(directory):
        name = path.relative_to(directory).as_posix()
        if kind == "file" and (name in also or (expression.fullmatch(name) and bears_mark(path))):
            own.append(name)
        elif kind != "empty" or not (_room_of(name, pattern) or any(one.startswith(f"{name}/") for one in also)):
            foreign.append(name + ("/" if kind == "empty" else ""))
    return Contents(sorted(own), sorted(foreign))


def bears_mark(path: pathlib.Path) -> bool:
    """Whether a file is the product's by its content, where its name alone says too little; an empty one holds nothing.

    A mark stands at the beginning, where a kill in the middle of writing leaves it.
    """
    found = next(((mark, size) for pattern, mark, size in _MARKS if pattern.fullmatch(path.as_posix())), None)
    if found is None:
        return True
    mark, size = found
    try:
        with path.open("rb") as file:
            head = file.read(size)
    except OSError:
        return False
    return not head or mark in head


def is_text_of_others(path: pathlib.Path) -> bool:
    """Whether a file under one of our names is a text no line of which is a JSON object.

    Damage spoils some of our lines, or leaves zeros, or no text at all.

    Raises:
        OSError: it cannot be read.
    """
    is_text = False
    with path.open("rb") as file:
        for line in file:
            if line.startswith(b"{"):
                return False
            try:
                is_text = is_text or bool(line.decode().strip("\0").strip())
            except UnicodeDecodeError:
                return False
    return is_text


def empty(
    directory: pathlib.Path,
    what: str,
    contents: Contents,
    *,
    inputs: Iterable[str | os.PathLike[str]] = (),
    say: Say | None = None,
    last: str = "",
) -> None:
    """Deletes what the product wrote in a directory, which stays; says first what that is.

    Args:
        directory: an output directory.
        what: what it holds, for the sentence.
        contents: of the directory.
        inputs: what the command reads.
        say: where to say what will be deleted.
        last: the file by which the rest is known, deleted after everything else so that a kill leaves no riddle.

    Raises:
        UserError: something else is in the directory, or an input is, or it is a link; nothing is deleted then.
    """
    if directory.is_symlink():
        raise UserError(
            f"{directory}: is a link to {directory.resolve()}, and --force deletes nothing behind a link; give that"
            " directory itself"
        )
    if contents.foreign:
        raise UserError(
            f"{directory}: --force deletes only what jaxgeom wrote, and here is more: {listed(contents.foreign)}; "
            "choose another directory, or move that away"
        )
    refuse_inputs(directory, inputs)
    if say is not None:
        say(f"--force: deletes {what} in {directory}, {len(contents.own)} files: {listed(_tops(contents.own))}")
    # The list of a step's files goes after them: by it they are known as ours after a kill.
    for name in sorted(contents.own, key=lambda name: (name == last, name.endswith("checksums.json"))):
        (directory / name).unlink(missing_ok=True)
    _remove_empty_folders(directory)


def refuse_inputs(directory: pathlib.Path, inputs: Iterable[str | os.PathLike[str]]) -> None:
    """Refuses to empty a directory that is an input of the command, holds one, or holds what an input links to.

    Args:
        directory: what would be emptied.
        inputs: paths, or `RUN@STEP`.

    Raises:
        UserError: naming the input.
    """
    target = directory.resolve()
    for given in inputs:
        for path in _places(given):
            if target == path or target in path.parents:
                raise UserError(f"{directory}: holds {given}, which this command reads; choose another directory")


def _places(given: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Where an input lies, links followed: of a directory also where its files are."""
    path = pathlib.Path(given)
    if not path.exists():
        path = pathlib.Path(split_step(os.fspath(given))[0])
    yield path.resolve()
    if path.is_dir():
        for entry in path.iterdir():
            yield entry.resolve()


def _walk(directory: pathlib.Path) -> Iterator[tuple[pathlib.Path, str]]:
    """Everything below a directory that is no folder with something in it; links are not followed."""
    if not directory.is_dir():
        return
    with os.scandir(directory) as entries:
        found = list(entries)
    for entry in found:
        path = directory / entry.name
        if entry.is_dir(follow_symlinks=False):
            below = list(_walk(path))
            yield from below or [(path, "empty")]
        else:
            yield path, "file" if entry.is_file(follow_symlinks=False) else "other"


def _room_of(name: str, pattern: str) -> bool:
    """Whether an empty folder is one that the product makes: the folders of a killed run may be empty."""
    top = name.split("/", 1)[0]
    return f"{top}/" in pattern or top in ("checkpoints", "figures", "data", "runs", "measures", "tokenizer", "rows")


def _tops(names: Iterable[str]) -> list[str]:
    """The names in the directory itself, of folders with a slash."""
    return list(dict.fromkeys(name.split("/")[0] + ("/" if "/" in name else "") for name in names))


def _remove_empty_folders(directory: pathlib.Path) -> None:
    for folder, _, _ in os.walk(directory, topdown=False):
        if pathlib.Path(folder) != directory and not os.listdir(folder):
            os.rmdir(folder)

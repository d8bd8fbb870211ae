"""`gs://…` paths, and where their copies lie on this machine. `pathlib` makes `gs:/…` of one: no `Path` ever holds any.

A folder of the cache stands for each bucket. Where a path lies says which it is: every function that is given the copy
of a run knows by it that the run's checkpoints are in the bucket.
"""

import os
import pathlib
import re
from typing import Any

from jaxgeom.errors import UserError

SCHEME = "gs://"
_URL = re.compile(r"gs://([a-z0-9][a-z0-9._-]{1,221})((?:/[^/]+)+)/?", re.DOTALL)
_WORK, _READ = "work", "read"


def root() -> pathlib.Path:
    """The folder of this user's cache in which all copies lie."""
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "jaxgeom" / "gs"


def checked(url: str) -> str:
    """A `gs://` path without a slash at its end.

    Raises:
        UserError: no bucket or no folder in it is named, or a part of it no local path can have.
    """
    found = _URL.fullmatch(url)
    if found is None or any(part in (".", "..") for part in found[2].split("/")) or "\0" in url:
        raise UserError(f"{url}: gs://BUCKET/FOLDER is needed")
    return url.rstrip("/")


def working_copy(url: str) -> pathlib.Path:
    """Where what a command writes to a `gs://` path lies here."""
    return _copy(_WORK, url)


def reading_copy(url: str) -> pathlib.Path:
    """Where what a command reads from a `gs://` path lies here."""
    return _copy(_READ, url)


def split_step(url: str) -> tuple[str, int | None]:
    """What stands before a step of a run, and the step: of RUN@STEP, or of RUN/checkpoints/STEP.

    >>> split_step("gs://bucket/run@16"), split_step("gs://bucket/run/checkpoints/16"), split_step("gs://bucket/run/")
    (('gs://bucket/run', 16), ('gs://bucket/run', 16), ('gs://bucket/run', None))
    """
    found = re.fullmatch(r"(.+?)(?:(?:@|/checkpoints/)([0-9]{1,18})/?)?", url, re.DOTALL)
    step = None if found is None else found[2]
    return checked(url if found is None else found[1]), None if step is None else int(step)


def reading_path(url: str) -> pathlib.Path:
    """The path here that says what a `gs://` path says: of its copy, with the step of a run."""
    head, step = split_step(url)
    local = reading_copy(head)
    return local if step is None else local.with_name(f"{local.name}@{step}")


def url_of(path: str | os.PathLike[str]) -> str | None:
    """The `gs://` path that a path on this machine is the copy of; None for every other.

    >>> url_of(working_copy("gs://bucket/runs/sft") / "config.json"), url_of("runs/sft")
    ('gs://bucket/runs/sft/config.json', None)
    """
    text = os.path.abspath(path)
    for place in (root(), pathlib.Path(os.path.realpath(root()))):
        for kind in (_WORK, _READ):
            above = f"{place / kind}/"
            if text.startswith(above):
                return SCHEME + text.removeprefix(above)
    return None


def checkpoints_of(run: str | os.PathLike[str]) -> Any:
    """The folder of a run's checkpoints: a `pathlib.Path`, or, of a run in a bucket, Orbax's `epath.Path` of it there.

    Args:
        run: the run directory, or the copy of one.
    """
    url = url_of(run)
    if url is None:
        return pathlib.Path(run) / "checkpoints"
    from jaxgeom.buckets.store import folder  # heavy, and only needed for buckets

    return folder(f"{url}/checkpoints")


def is_stored(path: Any) -> bool:
    """Whether a folder of checkpoints is in a bucket."""
    return not isinstance(path, pathlib.Path)


def named(text: str) -> str:
    """A sentence with `gs://` paths in the place of their copies'."""
    place = f"{root()}/"
    if place not in text:
        return text
    return text.replace(f"{place}{_WORK}/", SCHEME).replace(f"{place}{_READ}/", SCHEME)


def local(text: str) -> pathlib.Path:
    """The path here of one that a file of ours names: of a `gs://` path that of its copy, which need not be there.

    >>> named(str(local("gs://bucket/run@16"))), local("runs/sft").name
    ('gs://bucket/run@16', 'sft')
    """
    return reading_path(text) if text.startswith(SCHEME) else pathlib.Path(text)


def refuse_collapsed(path: str | os.PathLike[str]) -> None:
    """Refuses a path that was a URL: written to, it would be a folder `gs:` here.

    Raises:
        UserError: it begins with a scheme and a colon.
    """
    text = os.fspath(path)
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):/+", text)
    if found is not None and not pathlib.Path(f"{found[1]}:").exists():
        raise UserError(
            f"{text}: is no path on this machine; from Python give jaxgeom.buckets.places.working_copy('gs://…')"
            if found[1] == "gs"
            else f"{text}: is no path on this machine"
        )


def _copy(kind: str, url: str) -> pathlib.Path:
    return root() / kind / checked(url).removeprefix(SCHEME)

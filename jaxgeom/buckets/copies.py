"""Copies on this machine: of what is read, taken before a command begins; of what is written, given back as it grows.

The bucket is right. A working copy is made what the bucket holds when a command begins, and what the command writes is
put there with every checkpoint, whole objects each. Checkpoints themselves have no copy here, nor have the tokens of
the rows one there: they are made anew.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Callable, Collection, Iterator

from jaxgeom import processes
from jaxgeom.buckets import hold, places, store
from jaxgeom.errors import UserError, listed
from jaxgeom.owned_files import KINDS

_CHECKPOINTS = re.compile(r"(?:.*/)?checkpoints/\.?\d+[^/]*/.*", re.DOTALL)
_HERE = re.compile(r"(?:.*/)?(?:\.lock[^/]*|\.[^/]+\.\w{8}|(?:rows|base_spectra)/[^/]*)", re.DOTALL)
"""What is of this machine alone: locks, files that are being written, tokens of rows and spectra of bases."""

_NAMED_TEMPLATES = re.compile(r"(?:.*/)?tokenizer/additional_chat_templates/[^/]+\.jinja", re.DOTALL)
"""Of a run's tokenizer, under names of the model's own, which no kind of directory has."""

_READ_BY_ALL = re.compile(r"(?:.*/)?(?:config\.json|(?:tokenizer|data)/.*)", re.DOTALL)
"""What processes beside the one that writes read: which model a run is of, its tokenizer, rows that were made."""

_OPEN: set[str] = set()  # folders that this process holds: a study its own, of which it holds those of its runs too


class WorkingCopy:
    """What a command writes to a folder of a bucket, on this machine.

    Attributes:
        is_stored: whether it is a copy at all.

    Args:
        url: the folder.
        local: its copy.
        kind: of the directory, a key of `KINDS`.
        held: the lock on it; None in processes beside the one that writes.
    """

    is_stored = True

    def __init__(self, url: str, local: pathlib.Path, kind: str, held: hold.Hold | None = None) -> None:
        self.url, self._local, self._kind, self._hold = url, local, kind, held
        self._put: dict[str, tuple[int, int]] = {}

    def take(self) -> None:
        """Makes the copy what the bucket holds; what jaxgeom did not write there stays there alone.

        Raises:
            UserError: the folder holds something, but nothing that this kind of directory begins with.
        """
        there = {name: held for name, held in store.listed(self.url).items() if name != hold.NAME}
        if there and "config.json" not in there:
            ours = all(re.fullmatch(KINDS[self._kind], name) for name in there)
            if not ours:
                raise UserError(
                    f"{self.url}: holds files that are no {self._kind}: {listed(there)}; choose another folder"
                )
        small = self._make(there)
        self._put = {name: _state(self._local / name) for name in small}

    def follow(self) -> None:
        """Takes, in every process, what the first has written and put there and all read; all call it together.

        None goes on before all have it: of several processes of one machine the first writes to the same copy.

        Raises:
            UserError: one cannot read the bucket.
        """
        processes.together(self._follow)

    def _follow(self) -> None:
        if self._hold is not None:
            return
        self._make(store.listed(self.url), _READ_BY_ALL)
        if self._kind == "run":
            (self._local / "checkpoints").mkdir(exist_ok=True)

    def _make(self, there: dict[str, store.Stored], among: re.Pattern[str] | None = None) -> list[str]:
        """Makes the files of the copy, or those of some names, what the bucket holds; which these are."""

        def is_meant(name: str) -> bool:
            return not _HERE.fullmatch(name) and (among is None or among.fullmatch(name) is not None)

        held = {name for name in there if _CHECKPOINTS.fullmatch(name)}
        small = {
            name: there[name] for name in there.keys() - held
            if (re.fullmatch(KINDS[self._kind], name) or _NAMED_TEMPLATES.fullmatch(name)) and is_meant(name)
        }  # fmt: skip
        for path in _files(self._local):
            name = path.relative_to(self._local).as_posix()
            if name not in small and is_meant(name):
                path.unlink(missing_ok=True)
        for name, stored in small.items():
            path = self._local / name
            if not path.is_file() or path.stat().st_size != stored.size or _md5(path.read_bytes()) != stored.md5:
                store.download(f"{self.url}/{name}", path, stored.updated)
        for name in held:
            _mark(self._local, name)
        return list(small)

    def require(self) -> None:
        """Raises BucketLost where another process has taken the folder over."""
        if self._hold is not None:
            self._hold.require()

    def publish(self) -> None:
        """Puts into the bucket what has changed here since the last time, and removes there what was removed here.

        Raises:
            BucketError: the bucket cannot be written.
            BucketLost: another process has taken the folder over, or the copy here is gone.
        """
        if self._hold is None:
            return
        self.require()
        names = [path.relative_to(self._local).as_posix() for path in _files(self._local)]
        names = [name for name in names if not _HERE.fullmatch(name) and not _CHECKPOINTS.fullmatch(name)]
        gone = sorted(self._put.keys() - set(names))
        if "config.json" in gone:  # no command takes that away: somebody emptied the cache, and the bucket is right
            raise store.BucketLost(f"{self.url}: its copy on this machine was removed while this command ran; it stops")
        store.remove(f"{self.url}/{name}" for name in gone)  # an earlier end, before what is no end any more
        for name in gone:
            del self._put[name]
        # By the configuration a folder is known as a run, by `done` as finished.
        for name in sorted(names, key=lambda name: (name != "config.json", name.endswith("done"), name)):
            path = self._local / name
            with contextlib.suppress(FileNotFoundError):  # a file of another process's, replaced meanwhile
                state = _state(path)
                if self._put.get(name) != state:
                    store.write(f"{self.url}/{name}", path.read_bytes())
                    self._put[name] = state


class _Plain:
    """A directory on this machine: nothing is to be taken or put anywhere."""

    is_stored = False

    def follow(self) -> None:
        return

    def require(self) -> None:
        return

    def publish(self) -> None:
        return


Copy = WorkingCopy | _Plain


@contextlib.contextmanager
def opened(directory: pathlib.Path, kind: str, say: Callable[[str], None], *, force: bool = False) -> Iterator[Copy]:
    """The output directory of a command; of one in a bucket the lock is held and the copy made first.

    What was written is put into the bucket in the end too, whatever ends the command, if that can be.

    Args:
        directory: the output directory, or the working copy of one.
        kind: of the directory, a key of `KINDS`.
        say: told what is odd.
        force: whether another run that is there is to be deleted.

    Raises:
        UserError: a bucket that cannot be reached, a folder that another process holds, that lies in another run's, or
            in which something is to be deleted.
        BucketLost: one that cannot be reached any more.
    """
    url = places.url_of(directory)
    if url is None:
        yield _Plain()
        return
    if force:
        raise UserError(
            f"{url}: --force deletes nothing in a bucket: `gcloud storage rm --recursive {url}` does, or choose another"
        )
    processes.together(lambda: store.require_reachable(url))
    processes.from_first(lambda: _refuse_within_another(url))
    with store.lost(), contextlib.ExitStack() as stack:

        def begin() -> str:
            made = WorkingCopy(url, directory, kind, stack.enter_context(hold.held(url, say)))
            _OPEN.add(url)
            stack.callback(_OPEN.discard, url)
            made.take()
            copies.append(made)
            return ""

        copies: list[WorkingCopy] = []
        processes.from_first(begin)
        copy = copies[0] if copies else WorkingCopy(url, directory, kind)
        try:
            yield copy
        except BaseException:  # an interrupt too: what is logged by then is put
            with contextlib.suppress(store.BucketError, UserError):  # what ends the command already is said
                copy.publish()
            raise
        processes.from_first(copy.publish)


def _refuse_within_another(url: str) -> None:
    """Refuses a folder within one that another command keeps a copy of: it would take the inner one's away with it.

    Raises:
        UserError: a run, study or recipe lies above.
    """
    above = url.rpartition("/")[0]
    while above.count("/") > 2 and above not in _OPEN:  # of gs://bucket/folder three
        try:
            kind = json.loads(store.read(f"{above}/config.json")).get("kind")
        except (FileNotFoundError, ValueError, AttributeError):
            kind = None
        except store.BucketError as error:
            raise UserError(str(error)) from error
        if kind in KINDS:
            raise UserError(f"{url}: lies in the {kind} {above}; choose a folder that is in no other's")
        above = above.rpartition("/")[0]


def taken(url: str) -> pathlib.Path:
    """The copy of what a command reads: a file, a model's directory, or a run (all of it but checkpoints and rows).

    Args:
        url: a `gs://` path; of a run also RUN@STEP or RUN/checkpoints/STEP.

    Returns:
        The path here that says the same: `…/run@16` for a step of a run.

    Raises:
        UserError: nothing is there, or the bucket cannot be read.
    """
    head, number = places.split_step(url)
    store.require_reachable(head)
    local = places.reading_copy(head)
    with _one_at_a_time():
        _take_all(url, head, number, local)
    return places.reading_path(url)


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Several processes of a machine read one model as a rule: the first downloads, the others wait and find it."""
    place = places.root() / "read.lock"
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the system lets go of it when this process ends, however it does
        yield


def _take_all(url: str, head: str, number: int | None, local: pathlib.Path) -> None:
    """Makes the copy of a file or a folder what is in the bucket.

    Args:
        url: as it was given.
        head: without a step.
        number: of the step that was named.
        local: the copy of `head`.
    """
    try:
        there = store.listed(head)
        held = {name for name in there if _CHECKPOINTS.fullmatch(name)}
        is_run = any(name.startswith("checkpoints/") for name in held)
        if number is not None and not is_run:
            raise UserError(f"{url}: {head} is no run in that bucket")
        if not there:
            raise UserError(f"{url}: nothing is there")
        left = held if is_run else set()
        wanted = {name: there[name] for name in there.keys() - left if not _HERE.fullmatch(name)}
        if "" in wanted:
            return _take(head, local, {"": wanted[""]})
        _take(head, local, wanted)
        for path in _files(local):
            if path.relative_to(local).as_posix() not in wanted:
                path.unlink()
        for name in left:
            _mark(local, name)
    except store.BucketError as error:
        raise UserError(str(error)) from error


def given_back(url: str, local: pathlib.Path, names: Collection[str]) -> None:
    """Puts files of a copy into the bucket.

    Raises:
        BucketLost: it cannot be written.
    """
    with store.lost():
        for name in names:
            store.write(f"{url}/{name}", (local / name).read_bytes())


def _take(url: str, local: pathlib.Path, wanted: dict[str, store.Stored]) -> None:
    """Downloads what is not here as it is there, by size and time of change."""
    for name, stored in wanted.items():
        path = local / name if name else local
        for above in path.parents:  # a file that has become a folder
            if above.is_file():
                above.unlink()
        found = path.stat() if path.is_file() else None
        if found is None or found.st_size != stored.size or abs(found.st_mtime - stored.updated) > 1e-3:
            store.download(f"{url}/{name}" if name else url, path, stored.updated)


def _mark(local: pathlib.Path, name: str) -> None:
    """An empty folder where a run in the bucket has checkpoints: by it the copy is known as a run's."""
    at = re.match(r"(?:.*/)?checkpoints/", name)
    if at is not None:
        (local / at[0]).mkdir(parents=True, exist_ok=True)


def _files(directory: pathlib.Path) -> list[pathlib.Path]:
    return [pathlib.Path(above) / name for above, _, names in os.walk(directory) for name in names]


def _state(path: pathlib.Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()

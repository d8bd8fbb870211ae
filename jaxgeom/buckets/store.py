"""What a bucket is asked for: lists, whole objects read, written and removed, each in one request that is done or not.

Through gcsfs, which Orbax too has its folders from; the arrays of checkpoints go by TensorStore.
"""

import base64
import dataclasses
import datetime
import logging
import os
import pathlib
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from jaxgeom.buckets.places import SCHEME
from jaxgeom.errors import UserError

PATIENCE = 20.0
"""Seconds in which a bucket must answer when a command begins."""

_KINDS = ("gs", "gcs")
_AT_ONCE = 50 << 20  # bytes up to which an object goes in one request


class BucketError(OSError):
    """A bucket that cannot be read or written; its message is the reason.

    Attributes:
        status: that a command of several processes ends with in those that are told of it, as by `BucketLost`.
    """

    status = 1

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(None, reason, where)
        self.where, self.reason = where, reason

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


class BucketLost(UserError):
    """A bucket that answered when the command began and no longer does.

    No mistake of the user's: whoever starts commands again by their exit status starts this one again.
    """

    status = 1


@dataclasses.dataclass(frozen=True)
class Stored:
    """An object as a bucket lists it.

    Attributes:
        size: bytes.
        md5: digest of its bytes, in hexadecimal; None where the bucket does not keep one.
        updated: when it was written, seconds since 1970.
        generation: which of the objects that had this name it is.
    """

    size: int
    md5: str | None
    updated: float
    generation: str


def filesystem() -> Any:
    """gcsfs, for this process.

    Raises:
        UserError: it is not installed.
    """
    _prepare()
    import fsspec

    return fsspec.filesystem("gs")


def folder(url: str) -> Any:
    """A folder of a bucket as Orbax takes it."""
    _prepare()
    from etils import epath

    return epath.Path(url)


def require_reachable(url: str) -> None:
    """Refuses a bucket that is not there, may not be listed, or does not answer.

    Raises:
        UserError: with the reason, after at most `PATIENCE` seconds.
    """
    _prepare()
    bucket, _, path = url.removeprefix(SCHEME).partition("/")
    failed: list[Exception] = []

    def ask() -> None:
        try:
            # The client too is made here: it looks for credentials, on the network at last.
            filesystem().call("GET", "b/{}/o", bucket, prefix=f"{path}/", maxResults=1, json_out=True)
        except Exception as error:  # a library's own kinds; the reason is told to the user
            failed.append(error)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(PATIENCE)
    if asking.is_alive():
        where = os.environ.get("STORAGE_EMULATOR_HOST")
        raise UserError(
            f"{url}: {f'the endpoint {where}' if where else 'the bucket'} does not answer within {PATIENCE:.0f} s;"
            " see to the network"
        )
    if failed:
        raise UserError(f"{url}: {_reason(failed[0], bucket)}")


def listed(url: str) -> dict[str, Stored]:
    """Every object under a folder, by its name in it; where the path is an object's own, that alone, by an empty name.

    Raises:
        BucketError: the bucket cannot be listed.
    """
    path = url.removeprefix(SCHEME)
    with _told(url):
        found = filesystem().find(path, detail=True)
    entries = {name.removeprefix(path).removeprefix("/"): info for name, info in found.items()}
    return {name: _stored(info) for name, info in entries.items() if not name.endswith("/")}


def read(url: str) -> bytes:
    """An object's bytes.

    Raises:
        FileNotFoundError: there is none.
        BucketError: it cannot be read.
    """
    with _told(url):
        return filesystem().cat_file(url.removeprefix(SCHEME))


def write(url: str, content: bytes) -> None:
    """Writes an object, whole or not at all.

    Args:
        url: its path.
        content: its bytes.

    Raises:
        BucketError: it cannot be written.
    """
    with _told(url):
        if 0 < len(content) <= _AT_ONCE:
            _upload(url, content)
        else:
            filesystem().pipe_file(url.removeprefix(SCHEME), content)


def _upload(url: str, content: bytes, **conditions: str) -> dict[str, Any]:
    """What the bucket says of an object that it was sent in one request, as the bytes alone.

    gcsfs sends it as a part between lines of text, with a line feed behind it: of content that ends with a carriage
    return the two are taken for the end of a line, and a byte is lost.
    """
    bucket, _, path = url.removeprefix(SCHEME).partition("/")
    store = filesystem()
    place = f"{store.base.removesuffix('storage/v1/')}upload/storage/v1/b/{{}}/o"
    return store.call("POST", place, bucket, uploadType="media", name=path, data=content, json_out=True, **conditions)


ABSENT = "0"
"""The generation of an object that is not there."""


def write_over(url: str, content: bytes, generation: str) -> str:
    """Writes an object if what stands there still is the one that was seen: the bucket itself compares.

    Args:
        url: its path.
        content: its bytes.
        generation: of the object that is replaced; `ABSENT` where it must not be there yet.

    Returns:
        The generation of the new one.

    Raises:
        FileExistsError: another object stands there, or none any more.
        BucketError: it cannot be written.
    """
    with _told(url):
        try:
            written = _upload(url, content, ifGenerationMatch=generation)
        except FileNotFoundError as gone:
            raise FileExistsError(f"{url}: is not the object any more that was seen") from gone
    return str(written["generation"])


def remove(urls: Iterable[str]) -> None:
    """Removes objects, in the order that is given; one that is not there is no error.

    Raises:
        BucketError: one cannot be removed.
    """
    for url in urls:
        with _told(url):
            try:
                filesystem().rm_file(url.removeprefix(SCHEME))
            except FileNotFoundError:
                continue


def remove_generation(url: str, generation: str) -> None:
    """Removes an object if it still is the one that was seen."""
    bucket, _, path = url.removeprefix(SCHEME).partition("/")
    with _told(url):
        try:
            filesystem().call("DELETE", "b/{}/o/{}", bucket, path, ifGenerationMatch=generation)
        except (FileNotFoundError, FileExistsError):  # it has gone, or another stands there
            return


def download(url: str, path: pathlib.Path, updated: float) -> None:
    """Writes an object's bytes to a file, which appears whole; its time of change becomes the object's.

    Raises:
        BucketError: it cannot be read.
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid():08d}")
    try:
        with _told(url):
            filesystem().get_file(url.removeprefix(SCHEME), str(beside))
        os.utime(beside, (updated, updated))
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def lost() -> Iterator[None]:
    """Within it a bucket that fails is no mistake in what the user gave.

    Raises:
        BucketLost: in place of a `BucketError`.
    """
    try:
        yield
    except BucketError as error:
        raise BucketLost(f"{error}; the same command goes on from what is kept") from error


@contextmanager
def _told(url: str) -> Iterator[None]:
    """Every kind of error of the libraries is one; that a thing is not there, or is there, stays what it is."""
    try:
        yield
    except (FileNotFoundError, FileExistsError, KeyboardInterrupt):
        raise
    except Exception as error:
        raise BucketError(url, _reason(error, url.removeprefix(SCHEME).partition("/")[0])) from error


def _reason(error: Exception, bucket: str) -> str:
    said = " ".join(str(error).split())[:200]
    if isinstance(error, FileNotFoundError):
        return f"there is no bucket {bucket}, or it may not be seen"
    code = str(getattr(error, "code", ""))
    refused = code in ("401", "403") or said.startswith("Forbidden") or "credential" in said.lower()
    if refused or "Anonymous caller" in said:
        return (
            f"no access to bucket {bucket} ({said}); `gcloud auth application-default login`, or give the machine's"
            " service account roles/storage.objectAdmin"
        )
    return f"{type(error).__name__}: {said}"


def _stored(info: dict[str, Any]) -> Stored:
    digest = info.get("md5Hash")
    md5 = None if digest is None else base64.b64decode(digest).hex()
    at = info.get("mtime")
    updated = at.timestamp() if isinstance(at, datetime.datetime) else 0.0
    return Stored(int(info["size"]), md5, updated, str(info.get("generation", "")))


_prepared: list[bool] = []


def _prepare() -> None:
    """Settings of the libraries, before any of them opens a path.

    Raises:
        UserError: gcsfs is not installed.
    """
    if _prepared:
        return
    # The plain client: the other asks Google's control service about a bucket's kind, by credentials of its own.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    emulator = os.environ.get("STORAGE_EMULATOR_HOST")
    if emulator:  # gcsfs knows this variable alone, TensorStore these
        os.environ.setdefault("TENSORSTORE_GCS_HTTP_URL", emulator)
        os.environ.setdefault("GOOGLE_AUTH_TOKEN_FOR_TESTING", "emulator")
    try:
        import fsspec.config
        import gcsfs  # noqa: F401 (fsspec loads it by name: whether it is there is asked here)
    except ImportError as error:
        raise UserError("gs:// paths need gcsfs: python -m pip install gcsfs") from error
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # what it logs is raised too, and told in one line
    for kind in _KINDS:  # what another process writes is to be seen
        fsspec.config.conf.setdefault(kind, {}).setdefault("use_listings_cache", False)
    _prepared.append(True)

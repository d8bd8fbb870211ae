"""An object store on loopback: gcp-storage-emulator, with the two parts of Google's API that it lacks.

It ignores conditions (`ifGenerationMatch`, `ifGenerationNotMatch`) and does not say which object a download is
(`x-goog-generation`); TensorStore writes its manifests by both. One request is answered after the other, so that a
condition still holds while the request is answered.

`python -m tests.object_store PORT` serves until it is stopped.
"""

import http.server
import io
import json
import os
import re
import signal
import sys
import threading
from functools import partial
from http import HTTPStatus
from urllib.parse import parse_qs, unquote, urlsplit

from gcp_storage_emulator import server, storage
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import buckets, objects

BUCKET, CLOSED = "bucket", "closed"
"""A bucket, and one that nobody has access to."""


class ObjectStore(storage.Storage):
    """The emulator's objects in memory.

    Attributes:
        journal: every change in its order: the name of an object and its content, None where it was removed.
    """

    def __init__(self) -> None:
        super().__init__(use_memory_fs=True)
        self.journal: list[tuple[str, bytes | None]] = []
        self.doomed: tuple[int, str] | None = None
        self._left = 0
        buckets.create_bucket(BUCKET, self)

    def create_file(self, bucket_name, file_name, content, file_obj, file_id=None):
        self._kill_if_due(file_name)
        super().create_file(bucket_name, file_name, content, file_obj, file_id)
        self.journal.append((file_name, bytes(content)))

    def delete_file(self, bucket_name, file_name):
        self._kill_if_due(file_name)
        super().delete_file(bucket_name, file_name)
        self.journal.append((file_name, None))

    def kill(self, process: int, changes: int, *, under: str = "") -> None:
        """Kills a process before the change that comes after so many more, of objects whose names begin so."""
        self.doomed, self._left = (process, under), changes

    def _kill_if_due(self, name: str) -> None:
        if self.doomed is None or not name.startswith(self.doomed[1]):
            return
        if self._left <= 0:
            os.kill(self.doomed[0], signal.SIGKILL)
            raise ConnectionResetError("whoever asked is dead")
        self._left -= 1

    def _write_config_to_file(self) -> None:
        """The emulator writes a list of all its objects after every change; nobody reads it."""


class Handler(server.RequestHandler):
    """The emulator's, behind conditions, and one request at a time."""

    turn = threading.Lock()

    def do_GET(self) -> None:
        self._answer(super().do_GET)

    def do_POST(self) -> None:
        self._answer(super().do_POST)

    def do_PUT(self) -> None:
        self._answer(super().do_PUT)

    def do_DELETE(self) -> None:
        self._answer(super().do_DELETE)

    def _answer(self, plainly) -> None:
        place, query = urlsplit(self.path), parse_qs(urlsplit(self.path).query)
        found = re.fullmatch(r"(?:/upload|/download)?/storage/v1/b/([^/]+)/o(?:/(.+))?", place.path)
        match, other = (query.get(f"ifGeneration{kind}Match", [None])[0] for kind in ("", "Not"))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.rfile = io.BytesIO(body)
        with self.turn, _broken_pipes():
            if found is not None and found[1] == CLOSED:
                return self._refuse(HTTPStatus.FORBIDDEN, {"error": {"code": 403, "message": "no permission"}})
            if found is None or (match is None and other is None):
                return plainly()
            name = unquote(found[2]) if found[2] else query.get("name", [None])[0] or _name_in(body)
            try:
                held = str(self.storage.get_file_obj(found[1], name)["generation"])
            except NotFound:
                held = "0"
            if match not in (None, held):
                return self._refuse(HTTPStatus.PRECONDITION_FAILED, {"error": {"code": 412, "message": "condition"}})
            if other is not None and other == held:
                return self._refuse(HTTPStatus.NOT_MODIFIED, None)
            plainly()

    def _refuse(self, status: HTTPStatus, said: object) -> None:
        text = b"" if said is None else json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format, *args) -> None:
        return


class _broken_pipes:
    """A client that goes away in the middle of an answer, or is killed, is none of the server's affair."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind, error, trace) -> bool:
        return kind is not None and issubclass(kind, ConnectionError)


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads, request_queue_size = True, 128


class Served:
    """An object store that answers on a port of loopback; a context manager.

    Attributes:
        objects: what it holds.
        port: where it answers.
    """

    def __init__(self, port: int = 0) -> None:
        self.objects = ObjectStore()
        self._server = _Server(("127.0.0.1", port), partial(Handler, self.objects))
        self.port = self._server.server_address[1]

    def __enter__(self) -> "Served":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _name_in(body: bytes) -> str:
    """The object's name in the first part of an upload of two."""
    return json.JSONDecoder().raw_decode(body[body.index(b"{") :].split(b"\n")[0].decode())[0]["name"]


def _download(request, response, held, *args, **kwargs):
    _plain_download(request, response, held, *args, **kwargs)
    if response.status in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
        found = held.get_file_obj(request.params["bucket_name"], request.params["object_id"])
        response["x-goog-generation"] = str(found["generation"])


_plain_download = objects.download
objects.download = _download
server.HANDLERS = tuple(
    (regex, {method: _download if handler is _plain_download else handler for method, handler in by_method.items()})
    for regex, by_method in server.HANDLERS
)

if __name__ == "__main__":
    with Served(int(sys.argv[1])):
        threading.Event().wait()

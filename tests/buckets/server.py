"""An object store of its own process: gcp-storage-emulator, with the two parts of Google's API that it lacks.

It ignores conditions (`ifGenerationMatch`, `ifGenerationNotMatch`) and does not say which object a download is
(`x-goog-generation`); TensorStore writes its manifests by both. It answers one request after the other, so that a
condition that is looked at before a request holds while it is answered.

`python -m tests.buckets.server PORT` with bucket `bucket`; every request is a line of standard output.
"""

import io
import json
import re
import sys
from http import HTTPStatus
from urllib.parse import parse_qs, unquote, urlsplit

from gcp_storage_emulator import server
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects

BUCKET = "bucket"


class Handler(server.RequestHandler):
    """The emulator's, behind conditions."""

    def do_GET(self):
        if self._condition():
            super().do_GET()

    def do_POST(self):
        if self._condition():
            super().do_POST()

    def do_PUT(self):
        if self._condition():
            super().do_PUT()

    def do_DELETE(self):
        if self._condition():
            super().do_DELETE()

    def log_message(self, format, *args):
        print(self.command, unquote(self.path), flush=True)

    def _condition(self) -> bool:
        """Whether the request is to be answered; what its condition refuses is answered here."""
        place, query = urlsplit(self.path), parse_qs(urlsplit(self.path).query)
        found = re.fullmatch(r"(?:/upload|/download)?/storage/v1/b/([^/]+)/o(?:/(.+))?", place.path)
        match, other = (query.get(f"ifGeneration{kind}Match", [None])[0] for kind in ("", "Not"))
        if found is None or (match is None and other is None):
            return True
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.rfile = io.BytesIO(body)
        name = unquote(found[2]) if found[2] else query.get("name", [None])[0] or _name_in(body)
        try:
            held = str(self.storage.get_file_obj(found[1], name)["generation"])
        except NotFound:
            held = "0"
        if match not in (None, held) or (other is not None and other == held):
            self.send_response(HTTPStatus.NOT_MODIFIED if other is not None else HTTPStatus.PRECONDITION_FAILED)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return False
        return True


def _name_in(body: bytes) -> str:
    """The object's name in the first part of an upload of two."""
    return json.JSONDecoder().raw_decode(body[body.index(b"{") :].split(b"\n")[0].decode())[0]["name"]


def _download(request, response, storage, *args, **kwargs):
    _plain_download(request, response, storage, *args, **kwargs)
    if response.status in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
        held = storage.get_file_obj(request.params["bucket_name"], request.params["object_id"])
        response["x-goog-generation"] = str(held["generation"])


_plain_download = objects.download
objects.download, server.RequestHandler = _download, Handler

if __name__ == "__main__":
    made = server.create_server("127.0.0.1", int(sys.argv[1]), in_memory=True, default_bucket=BUCKET)
    made.run()

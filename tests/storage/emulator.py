"""A stand-in for Google Cloud Storage on a free port of this machine: `gcp-storage-emulator`, and
what it lacks.

    python emulator.py PORT

As it comes, it answers one request at a time, so that a client that reads two objects by turns
would wait for ever; it does not tell the generation of what it sends, and overlooks conditions on
generations, which tensorstore relies on.

The bucket "bucket" is there; "forbidden" answers 403 and "nameless" 401 to whatever is asked,
"read-only" 403 to writing.
"""

import http.server
import io
import json
import logging
import re
import sys
import threading
import urllib.parse
from functools import partial

from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import buckets
from gcp_storage_emulator.server import RequestHandler, Router
from gcp_storage_emulator.storage import Storage

OBJECT = re.compile(r"(/upload|/download)?/storage/v1/b/(?P<bucket>[^/]+)/o(/(?P<name>[^/]+))?")
# of an object that is uploaded in one request with what is known of it
NAME = re.compile(rb'"name": ("[^"]+")')
LOCK = threading.Lock()  # the emulator's memory is not made for threads; sending is what takes long


class Handler(RequestHandler):
    def _serve(self, method):
        connection, self.wfile = self.wfile, io.BytesIO()
        incoming = self.rfile
        if self._query().get("uploadType") == "multipart":
            self.rfile = io.BytesIO(incoming.read(int(self.headers.get("Content-Length") or 0)))
        with LOCK:
            self._generation = self._current()
            code = self._refusal(method) or self._condition()
            if not code:
                Router(self).handle(method)
        if code:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = json.dumps({"error": {"code": code, "message": "refused by the test"}}).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        answer, self.wfile, self.rfile = self.wfile.getvalue(), connection, incoming
        self.wfile.write(answer)

    def _refusal(self, method):
        if "/b/forbidden" in self.path or ("/b/read-only" in self.path and method != "GET"):
            return 403
        return 401 if "/b/nameless" in self.path else None

    def _current(self):
        """The generation of the object that is asked for, None where it does not exist."""
        query = self._query()
        there = OBJECT.fullmatch(urllib.parse.urlsplit(self.path).path)
        name = there and (there["name"] or query.get("name") or self._named_in_the_body())
        if not name:
            return None
        try:
            return self.storage.get_file_obj(there["bucket"], urllib.parse.unquote(name))[
                "generation"
            ]
        except NotFound:
            return None

    def _named_in_the_body(self):
        named = NAME.search(self.rfile.getvalue()) if isinstance(self.rfile, io.BytesIO) else None
        return named and json.loads(named[1])

    def _condition(self):
        query, current = self._query(), self._generation or "0"
        if "ifGenerationMatch" in query and query["ifGenerationMatch"] != current:
            return 412
        return 304 if query.get("ifGenerationNotMatch") == current else None

    def _query(self):
        return dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(self.path).query))

    def send_response(self, code, message=None):
        super().send_response(code, message)
        if self._generation and self._query().get("alt") == "media":
            self.send_header("x-goog-generation", self._generation)

    do_GET, do_POST, do_PUT, do_DELETE, do_PATCH = (
        lambda self, method=method: self._serve(method)
        for method in ("GET", "POST", "PUT", "DELETE", "PATCH")
    )


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        pass  # a client that has read enough hangs up


def main():
    logging.disable(logging.CRITICAL)
    storage = Storage(use_memory_fs=True)
    for name in ("bucket", "read-only"):
        buckets.create_bucket(name, storage)
    Server(("127.0.0.1", int(sys.argv[1])), partial(Handler, storage)).serve_forever()


if __name__ == "__main__":
    main()

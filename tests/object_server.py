"""An object store on loopback that speaks S3's protocol, and whose faults a test chooses."""

import contextlib
import hashlib
import http.server
import json
import threading
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

from web_server import running

DATE, MODIFIED = "2026-01-01T00:00:00.000Z", "Thu, 01 Jan 2026 00:00:00 GMT"


@dataclass
class Shelf:
    """The server's one bucket, and what it answers in place of an answer.

    `fault` is given the method and the path of each request, and returns None, a status and S3's
    code for it, or "silent": no answer.
    """

    objects: dict[str, bytes] = field(default_factory=dict)
    fault: Callable[[str, str], tuple[int, str] | str | None] = lambda method, path: None
    asked: list[str] = field(default_factory=list)
    end: threading.Event = field(default_factory=threading.Event)
    address: str = ""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle_one_request(self):
        with contextlib.suppress(ConnectionError):
            super().handle_one_request()

    def answer(self):
        shelf, self.body = self.server.shelf, self._read()
        shelf.asked.append(f"{self.command} {self.path}")
        fault = shelf.fault(self.command, self.path)
        if fault == "silent":
            self.close_connection = True
            shelf.end.wait(600)
        elif fault is not None:
            self._fail(*fault)
        else:
            url = urllib.parse.urlsplit(self.path)
            bucket, _, key = urllib.parse.unquote(url.path).lstrip("/").partition("/")
            query = dict(urllib.parse.parse_qsl(url.query))
            if bucket != "bucket":
                self._fail(404, "NoSuchBucket")
            else:
                getattr(self, f"_{self.command.lower()}")(shelf.objects, key, query)

    do_GET = do_HEAD = do_PUT = do_DELETE = do_POST = answer  # noqa: N815

    def _get(self, objects, key, query):
        if not key:
            self._send(200, _listing(objects, query))
        elif key not in objects:
            self._fail(404, "NoSuchKey")
        else:
            self._send(200, objects[key], ETag=_etag(objects[key]))

    _head = _get

    def _put(self, objects, key, query):
        objects[key] = self.body
        self._send(200, b"", ETag=_etag(self.body))

    def _delete(self, objects, key, query):
        objects.pop(key, None)
        self._send(204, b"")

    def _read(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "aws-chunked" not in self.headers.get("Content-Encoding", ""):
            return body
        whole = b""
        while body:
            size, _, body = body.partition(b"\r\n")
            size = int(size.partition(b";")[0], 16)
            whole, body = whole + body[:size], body[size + 2 :]
            if not size:
                break
        return whole

    def _fail(self, status, code):
        body = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>"
        if self.path.startswith(("/storage/", "/upload/", "/download/")):  # Google's
            body = json.dumps({"error": {"code": status, "message": code}})
        self._send(status, body.encode())

    def _send(self, status, body, **headers):
        self.send_response(status)
        headers = {
            "Content-Length": str(len(body)),
            "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT",
        } | headers
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *arguments):
        del arguments


def _etag(body):
    return f'"{hashlib.md5(body).hexdigest()}"'


def _listing(objects, query):
    """Returns S3's list of the objects and folders below a prefix, in one page."""
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    files, folders = [], set()
    for key in sorted(objects):
        rest = key.removeprefix(prefix)
        if key.startswith(prefix) and delimiter and delimiter in rest:
            folders.add(prefix + rest.partition(delimiter)[0] + delimiter)
        elif key.startswith(prefix):
            files.append(key)
    contents = "".join(
        f"<Contents><Key>{escape(key)}</Key><LastModified>{DATE}</LastModified>"
        f"<ETag>{escape(_etag(objects[key]))}</ETag><Size>{len(objects[key])}</Size></Contents>"
        for key in files
    )
    common = "".join(
        f"<CommonPrefixes><Prefix>{escape(f)}</Prefix></CommonPrefixes>" for f in folders
    )
    return (
        f"<ListBucketResult><IsTruncated>false</IsTruncated><KeyCount>{len(files)}</KeyCount>"
        f"{contents}{common}</ListBucketResult>"
    ).encode()


@contextlib.contextmanager
def serving():
    """Gives the shelf of a server that runs during the block."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    shelf = server.shelf = Shelf(address=f"http://127.0.0.1:{server.server_address[1]}")
    with running(server):
        try:
            yield shelf
        finally:
            shelf.end.set()

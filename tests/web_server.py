"""A web server on loopback whose files, and whose faults, a test chooses."""

import contextlib
import http.server
import ssl
import threading
import time
from dataclasses import dataclass, field


@dataclass
class Site:
    """What the server has and how it behaves; and what it was asked, for the test to read."""

    files: dict[str, bytes]
    ranges: bool = True
    etag: str | None = '"1"'
    length: bool = True
    delay: float = 0.0  # seconds before each answer
    cuts: list[int] = field(default_factory=list)  # of each next answer: bytes before it breaks off
    stated: dict[str, str] = field(default_factory=dict)  # headers more, or others, of each answer
    raw: dict[str, list] = field(default_factory=dict)  # path -> all that is sent, and when
    first: list[list] = field(default_factory=list)  # the same of each next answer, of any path
    asked: list[str | None] = field(default_factory=list)  # the Range of each request
    address: str = ""


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        site = self.server.site
        site.asked.append(self.headers["Range"])
        time.sleep(site.delay)
        if site.first or self.path in site.raw:
            self.send_raw(site.first.pop(0) if site.first else site.raw[self.path])
            return
        body = site.files.get(self.path)
        if body is None:
            self.send_error(404, "Not Found")
            return
        start, total = 0, len(body)
        same = self.headers["If-Range"] in (None, site.etag)
        if site.ranges and self.headers["Range"] and same:
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            if start >= total:
                self.send_error(416, "Requested Range Not Satisfiable")
                return
        body = body[start:]
        self.send_response(206 if start else 200)
        headers = {}
        if start:
            headers["Content-Range"] = f"bytes {start}-{total - 1}/{total}"
        if site.length:
            headers["Content-Length"] = str(len(body))
        if site.etag:
            headers["ETag"] = site.etag
        for name, value in {**headers, **site.stated}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: site.cuts.pop(0)] if site.cuts else body)

    def send_raw(self, parts):
        """Sends bytes as they are, head included; waits where there is a number of seconds."""
        self.close_connection = True
        with contextlib.suppress(OSError):  # who asks may go away
            for part in parts:
                if isinstance(part, bytes):
                    self.wfile.write(part)
                else:
                    time.sleep(part)

    def log_message(self, *arguments):
        del arguments


@contextlib.contextmanager
def running(server):
    """Answers requests to a server in a thread."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def serving(files, *, certificate=None, **behaviour):
    """Serves `files` (path to bytes) on a free port of this machine; gives the `Site`.

    With `certificate`, a PEM file that has its key too, by https.
    """
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    if certificate:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
        server.handle_error = lambda *arguments: None  # who does not trust it hangs up
    server.site = Site(files, **behaviour)
    server.site.address = f"http{'s' if certificate else ''}://127.0.0.1:{server.server_port}"
    with running(server):
        yield server.site

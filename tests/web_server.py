"""A web server on loopback whose files, and whose faults, a test chooses."""

import contextlib
import http.server
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
    asked: list[str | None] = field(default_factory=list)  # the Range of each request
    address: str = ""


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        site = self.server.site
        site.asked.append(self.headers["Range"])
        time.sleep(site.delay)
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
        if start:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        if site.length:
            self.send_header("Content-Length", str(len(body)))
        if site.etag:
            self.send_header("ETag", site.etag)
        self.end_headers()
        self.wfile.write(body[: site.cuts.pop(0)] if site.cuts else body)

    def log_message(self, *arguments):
        del arguments


@contextlib.contextmanager
def serving(files, **behaviour):
    """Serves `files` (path to bytes) on a free port of this machine; gives the `Site`."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.site = Site(files, **behaviour)
    server.site.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.site
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

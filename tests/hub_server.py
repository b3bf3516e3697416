"""A small Hugging Face hub on loopback: what its package asks for to make, write and read a model.

Its answers are those of the hub's documentation (https://huggingface.co/docs/hub/api) and of what
`huggingface_hub` sends and reads. It has repositories with commits, tokens, and private and gated
repositories. Large files are uploaded separately and downloaded after a redirect.
"""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from web_server import running

LARGE = (".safetensors", ".bin")


@dataclass
class Model:
    """A repository; files are those of its newest commit."""

    private: bool = False
    gated: bool = False
    commits: dict = field(default_factory=dict)  # name -> files: path -> bytes
    messages: list = field(default_factory=list)

    @property
    def head(self):
        return next(reversed(self.commits))

    @property
    def files(self):
        return self.commits[self.head]

    def commit(self, files, message):
        name = hashlib.sha1(f"{len(self.commits)} {message}".encode()).hexdigest()
        self.commits[name] = files
        self.messages.append(message)
        return name

    def find(self, revision):
        """Returns the name of a commit; None: there is none."""
        if revision == "main":
            return self.head
        return next((name for name in self.commits if name.startswith(revision)), None)


@dataclass
class Hub:
    """Repositories, tokens and received requests of the server; `fail` makes it refuse requests."""

    tokens: dict = field(default_factory=dict)  # token -> the names that it may write to
    models: dict = field(default_factory=dict)
    blobs: dict = field(default_factory=dict)  # sha256 -> bytes, as large files are sent
    asked: list = field(default_factory=list)  # method and path of each request
    fail: dict = field(default_factory=dict)  # a pattern of "METHOD path" -> what is done instead
    signed: str = "X-Amz-Signature=s3cr3t"
    address: str = ""

    @property
    def storage(self):
        """The same server by another name, which is not the hub's and is given no token."""
        return self.address.replace("127.0.0.1", "localhost")


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _answer(self):
        hub, path = self.server.hub, unquote(urlsplit(self.path).path)
        length = int(self.headers["Content-Length"] or 0)
        asked = f"{self.command} {path}"
        hub.asked.append(asked)
        for pattern, fails in hub.fail.items():
            if re.search(pattern, asked):
                if fails == "cut":  # the connection breaks amid what is sent
                    self.rfile.read(length // 2)
                    self.close_connection = True
                    self.connection.close()
                    return
                self.rfile.read(length)
                self._send(*fails)
                return
        body = self.rfile.read(length)
        for pattern, answer in ROUTES:
            if match := re.fullmatch(pattern, asked):
                self._send(*answer(self, body, *match.groups()))
                return
        self._send(404, {"error": f"no route {asked}"})

    do_GET = do_HEAD = do_POST = do_PUT = _answer  # noqa: N815

    def _send(self, status, content=b"", headers=()):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(data), **dict(headers)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    @property
    def _token(self):
        return (self.headers["Authorization"] or "").removeprefix("Bearer ")

    def _denied(self, name=None, *, write=False):
        """Returns the answer to who may not see or write a repository; None: may."""
        hub = self.server.hub
        if self._token and self._token not in hub.tokens:
            message = "Invalid credentials in Authorization header"
            return 401, {"error": message}, {"X-Error-Message": message}
        if name is None:
            return None if self._token else (401, {"error": "log in"}, {})
        model, owners = hub.models.get(name), hub.tokens.get(self._token, ())
        owner = name.partition("/")[0] in owners
        if model is None or (model.private and not owner):
            status = 404 if self._token else 401
            return status, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
        if write and not owner:
            return 403, {"error": "Forbidden"}, {"X-Error-Message": "no right to write"}
        return None

    def make(self, body):
        if denied := self._denied():
            return denied
        asked, hub = json.loads(body), self.server.hub
        name = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] not in hub.tokens[self._token]:
            message = "You don't have the rights to create a model under this namespace"
            return 403, {"error": message}, {"X-Error-Message": message}
        url = {"url": f"{hub.address}/{name}", "name": name}
        if name in hub.models:
            return 409, {**url, "error": "You already created this model repo"}
        private = asked.get("private") or asked.get("visibility") == "private"
        hub.models[name] = Model(private=bool(private))
        hub.models[name].commit({".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
        return 200, url

    def whoami(self, body):
        del body
        return self._denied() or (200, {"name": self.server.hub.tokens[self._token][0]})

    def validate(self, body):
        content = json.loads(body)["content"]
        licence = re.search(r"^license: (.*)$", content.split("\n---\n")[0], re.MULTILINE)
        if licence and licence[1] not in ("apache-2.0", "mit"):
            return 400, {"errors": [{"message": '"license" must be one of [...]'}], "warnings": []}
        return 200, {"errors": [], "warnings": [{"message": "a warning that nobody asked for"}]}

    def info(self, body, name, revision=None):
        del body
        if denied := self._denied(name):
            return denied
        model = self.server.hub.models[name]
        commit = model.find(revision or "main")
        if commit is None:
            return 404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"}
        card = model.commits[commit].get("README.md", b"").decode().split("\n---\n")[0]
        tags = re.search(r"^tags:\n((?:- .*\n?)*)", card, re.MULTILINE)
        return 200, {
            "id": name,
            "modelId": name,
            "sha": commit,
            "private": model.private,
            "gated": model.gated,
            "tags": re.findall("- (.*)", tags[1]) if tags else [],
            "siblings": [{"rfilename": path} for path in sorted(model.commits[commit])],
        }

    def preupload(self, body, name, revision):
        del revision
        if denied := self._denied(name, write=True):
            return denied
        files = [
            {
                "path": each["path"],
                "uploadMode": "lfs" if each["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
                "oid": self._oid(name, each["path"]),
            }
            for each in json.loads(body)["files"]
        ]
        return 200, {"files": files}

    def _oid(self, name, path):
        data = self.server.hub.models[name].files.get(path)
        if data is None:
            return None
        return hashlib.sha256(data).hexdigest() if path.endswith(LARGE) else git_hash(data)

    def batch(self, body, name):
        if denied := self._denied(name, write=True):
            return denied
        hub = self.server.hub
        objects = [
            {"oid": each["oid"], "size": each["size"]} for each in json.loads(body)["objects"]
        ]
        for each in objects:
            if each["oid"] not in hub.blobs:
                href = f"{hub.storage}/upload/{each['oid']}?{hub.signed}"
                verify = {"href": f"{hub.address}/{name}.git/info/lfs/objects/verify"}
                each["actions"] = {"upload": {"href": href}, "verify": verify}
        return 200, {"transfer": "basic", "objects": objects}

    def upload(self, body, oid):
        assert self.headers["Authorization"] is None, "the token went to the storage"
        assert hashlib.sha256(body).hexdigest() == oid
        self.server.hub.blobs[oid] = body
        return (200,)

    def verify(self, body, name):
        del name
        asked, blobs = json.loads(body), self.server.hub.blobs
        return (200, {}) if len(blobs[asked["oid"]]) == asked["size"] else (400, {"error": "size"})

    def commit(self, body, name, revision):
        del revision
        if denied := self._denied(name, write=True):
            return denied
        hub, model = self.server.hub, self.server.hub.models[name]
        header, *changes = [json.loads(line) for line in body.splitlines()]
        if header["value"].get("parentCommit", model.head) != model.head:
            return 412, {"error": "The branch has changed"}
        files = dict(model.files)
        for change in changes:
            value = change["value"]
            if change["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif change["key"] == "lfsFile":
                files[value["path"]] = hub.blobs[value["oid"]]
            else:
                del files[value["path"]]
        made = model.commit(files, header["value"]["summary"])
        url = f"{hub.address}/{name}/commit/{made}"
        return 200, {"success": True, "commitOid": made, "commitUrl": url}

    def resolve(self, body, name, revision, path):
        del body
        if denied := self._denied(name):
            return denied
        hub, model = self.server.hub, self.server.hub.models[name]
        if model.gated and name.partition("/")[0] not in hub.tokens.get(self._token, ()):
            return 403, {"error": "gated"}, {"X-Error-Code": "GatedRepo"}
        commit = model.find(revision)
        if commit is None:
            return 404, b"", {"X-Error-Code": "RevisionNotFound"}
        headers = {"X-Repo-Commit": commit}
        if path not in model.commits[commit]:
            return 404, b"", {**headers, "X-Error-Code": "EntryNotFound"}
        data = model.commits[commit][path]
        if not path.endswith(LARGE):
            return 200, data, {**headers, "ETag": f'"{git_hash(data)}"'}
        oid = hashlib.sha256(data).hexdigest()
        headers |= {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": len(data), "ETag": '"cdn"'}
        return 302, b"", {**headers, "Location": f"{hub.storage}/cdn/{oid}?{hub.signed}"}

    def cdn(self, body, oid):
        del body
        assert self.headers["Authorization"] is None, "the token went to the storage"
        data = self.server.hub.blobs[oid]
        start = 0
        if wanted := self.headers["Range"]:
            start = int(re.match(r"bytes=(\d+)-", wanted)[1])
        headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
        return 206 if start else 200, data[start:], headers

    def log_message(self, *arguments):
        del arguments


_NAME = r"([\w.-]+/[\w.-]+)"
ROUTES = (
    ("POST /api/repos/create", _Handler.make),
    ("GET /api/whoami-v2", _Handler.whoami),
    ("POST /api/validate-yaml", _Handler.validate),
    (f"GET /api/models/{_NAME}", _Handler.info),
    (rf"GET /api/models/{_NAME}/revision/([\w.-]+)", _Handler.info),
    (rf"POST /api/models/{_NAME}/preupload/([\w.-]+)", _Handler.preupload),
    (rf"POST /api/models/{_NAME}/commit/([\w.-]+)", _Handler.commit),
    (rf"POST /{_NAME}\.git/info/lfs/objects/batch", _Handler.batch),
    (rf"POST /{_NAME}\.git/info/lfs/objects/verify", _Handler.verify),
    (r"PUT /upload/(\w+)", _Handler.upload),
    (rf"(?:GET|HEAD) /{_NAME}/resolve/([^/]+)/(.+)", _Handler.resolve),
    (r"(?:GET|HEAD) /cdn/(\w+)", _Handler.cdn),
)
"""Method and path -> what answers."""


def git_hash(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextlib.contextmanager
def serving_hub(**what):
    """Serves a hub on a free port of this machine; gives the `Hub`."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True  # a client may keep its connection
    server.hub = Hub(**what)
    server.hub.address = f"http://127.0.0.1:{server.server_port}"
    with running(server):
        yield server.hub


if __name__ == "__main__":
    import sys

    with serving_hub(tokens={sys.argv[1]: tuple(sys.argv[2:])}) as hub:
        print(hub.address, flush=True)
        threading.Event().wait()

"""Loopback server with the parts of the Hub's protocol that uploads and downloads need."""

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from urllib.parse import unquote, urlsplit

__all__ = ["READER", "WRITER", "HubHandler", "ModelHub", "Repository"]

WRITER = "hf_writer"
READER = "hf_reader"
_LFS = (".safetensors", ".parquet")
_KIND = r"(?P<kind>model|dataset)s"
_REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"


@dataclass
class Repository:
    """Commits of a repository, oldest first, and its visibility."""

    commits: dict[str, dict[str, bytes]]
    private: bool = False

    @property
    def files(self) -> dict[str, bytes]:
        """Files of the newest commit."""
        return list(self.commits.values())[-1]

    def resolve(self, revision: str) -> str | None:
        if revision == "main":
            return list(self.commits)[-1]
        return revision if revision in self.commits else None


@dataclass
class ModelHub:
    """State of the server.

    Attributes:
        url: Address, for HF_ENDPOINT.
        repositories: Repositories by kind and id, such as ("model", "org/name").
        blobs: Uploaded large files by SHA-256.
        requests: Method and path of each request.
        failures: Status to answer with, by a pattern of "METHOD path"; 0 closes the connection.
    """

    url: str = ""
    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)

    def add(self, kind: str, repo: str, files: dict[str, bytes]) -> Repository:
        """Create a repository, or add a commit with exactly these files."""
        found = self.repositories.setdefault((kind, repo), Repository({}))
        text = f"{repo} {len(found.commits)}".encode()
        found.commits[hashlib.sha1(text).hexdigest()] = files
        return found


class HubHandler(BaseHTTPRequestHandler):
    """Request handler; `hub` is the keyword of the fixture `serve`."""

    protocol_version = "HTTP/1.1"

    def __init__(self, *arguments, hub: ModelHub) -> None:
        self.hub = hub
        super().__init__(*arguments)

    def do_HEAD(self) -> None:
        self._route()

    do_GET = do_POST = do_PUT = do_HEAD  # noqa: N815 - http.server's names

    def _route(self) -> None:
        address = urlsplit(self.path)
        self.path, self.query = unquote(address.path), address.query
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        line = f"{self.command} {self.path}"
        self.hub.requests.append(line)
        for pattern, status in self.hub.failures.items():
            if re.search(pattern, line):
                return self._fail(status)
        for pattern, answer in _ROUTES.items():
            if found := re.fullmatch(pattern, line):
                return answer(self, **found.groupdict())
        return self._json({"error": f"{line} is not implemented"}, 404)

    def _fail(self, status: int) -> None:
        if status:
            self._json({"error": "failed"}, status)
        else:
            self.close_connection = True

    @property
    def _token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def _is_rejected(self, *, writes: bool) -> bool:
        """Answer requests without a valid token or permission; return whether it did."""
        if self._token not in ("", WRITER, READER):
            message = "Invalid credentials in Authorization header"
            self._json({"error": message}, 401, {"X-Error-Message": message})
        elif writes and self._token != WRITER:
            self._json({"error": "Forbidden"}, 403 if self._token else 401)
        else:
            return False
        return True

    def _find(self, kind: str, repo: str) -> Repository | None:
        """Return a repository that the token may read, or answer as the Hub does."""
        if self._is_rejected(writes=False):
            return None
        found = self.hub.repositories.get((kind, repo))
        if found is None or (found.private and not self._token):
            self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            return None
        return found

    def _json(self, content: object, status: int = 200, headers: dict | None = None) -> None:
        data = json.dumps(content).encode()
        self._send(data, status, {"Content-Type": "application/json"} | (headers or {}))

    def _send(self, data: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _create(self) -> None:
        if self._is_rejected(writes=True):
            return
        given = json.loads(self.body)
        kind, repo = given.get("type", "model"), f"{given['organization']}/{given['name']}"
        exists = (kind, repo) in self.hub.repositories
        if not exists:
            self.hub.add(kind, repo, {}).private = given.get("visibility") == "private"
        prefix = "datasets/" if kind == "dataset" else ""
        self._json({"url": f"{self.hub.url}/{prefix}{repo}"}, 409 if exists else 200)

    def _validate(self) -> None:
        is_known = "license: none-such" not in json.loads(self.body)["content"]
        message = '"license" must be one of [apache-2.0, mit]'
        errors = [] if is_known else [{"message": message}]
        self._json({"errors": errors, "warnings": []}, 200 if is_known else 400)

    def _preupload(self, kind: str, repo: str, revision: str) -> None:
        if self._is_rejected(writes=True) or not self._find(kind, repo):
            return
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(_LFS) else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(self.body)["files"]
        ]
        self._json({"files": modes})

    def _batch(self, repo: str) -> None:
        if self._is_rejected(writes=True):
            return
        objects = [
            each | {"actions": {"upload": {"href": f"{self.hub.url}/lfs/{each['oid']}?signed=key"}}}
            for each in json.loads(self.body)["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects})

    def _put(self, oid: str) -> None:
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.hub.blobs[oid] = self.body
        self._json({})

    def _commit(self, kind: str, repo: str, revision: str) -> None:
        if self._is_rejected(writes=True) or not (found := self._find(kind, repo)):
            return
        files = dict(found.files)
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            match entry["key"]:
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.hub.blobs[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        self.hub.add(kind, repo, files)
        oid = found.resolve("main")
        self._json({"commitUrl": f"{self.hub.url}/{repo}/commit/{oid}", "commitOid": oid})

    def _info(self, kind: str, repo: str, revision: str | None = None) -> None:
        if not (found := self._find(kind, repo)):
            return
        if not (oid := found.resolve(revision or "main")):
            self._json({"error": "Invalid rev"}, 404, {"X-Error-Code": "RevisionNotFound"})
            return
        names = [{"rfilename": name} for name in sorted(found.commits[oid])]
        self._json({"id": repo, "sha": oid, "private": found.private, "siblings": names})

    def _entries(self, files: dict[str, bytes]) -> list[dict]:
        return [
            {
                "type": "file",
                "path": name,
                "size": len(data),
                "oid": hashlib.sha1(data).hexdigest(),
            }
            for name, data in sorted(files.items())
        ]

    def _tree(self, kind: str, repo: str, revision: str, folder: str | None = None) -> None:
        if not (found := self._find(kind, repo)):
            return
        files = found.commits[found.resolve(revision)]
        prefix = f"{folder}/" if folder else ""
        inside = {name: data for name, data in files.items() if name.startswith(prefix)}
        if folder and not inside:
            self._json({"error": "not found"}, 404, {"X-Error-Code": "EntryNotFound"})
            return
        folders = {prefix + name[len(prefix) :].partition("/")[0] for name in inside} - set(inside)
        if "recursive=true" not in self.query.lower():
            inside = {name: data for name, data in inside.items() if "/" not in name[len(prefix) :]}
        listed = [{"type": "directory", "path": name, "oid": "0"} for name in sorted(folders)]
        self._json(listed + self._entries(inside))

    def _paths(self, kind: str, repo: str, revision: str) -> None:
        if not (found := self._find(kind, repo)):
            return
        files = found.commits[found.resolve(revision)]
        text = self.body.decode()
        is_json = text.startswith("{")
        names = json.loads(text)["paths"] if is_json else re.findall(r"paths=([^&]+)", text)
        wanted = {unquote(name) for name in ([names] if isinstance(names, str) else names)}
        folders = {name.rpartition("/")[0] for name in files} & wanted
        entries = self._entries({k: v for k, v in files.items() if k in wanted})
        self._json(entries + [{"type": "directory", "path": f, "oid": "0"} for f in folders])

    def _resolve(self, repo: str, revision: str, name: str, prefix: str | None = None) -> None:
        found = self._find("dataset" if prefix else "model", repo)
        if not found:
            return
        oid = found.resolve(revision)
        data = found.commits[oid].get(name) if oid else None
        if data is None:
            code = "EntryNotFound" if oid else "RevisionNotFound"
            self._send(b"", 404, {"X-Error-Code": code})
            return
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        headers = {"ETag": etag, "X-Repo-Commit": oid, "Accept-Ranges": "bytes"}
        if span := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(span[1]), int(span[2] or len(data) - 1)
            size = len(data)
            headers["Content-Range"] = f"bytes {first}-{min(last, size - 1)}/{size}"
            self._send(data[first : last + 1], 206, headers)
            return
        self._send(data, 200, headers)


_ROUTES = {
    r"POST /api/repos/create": HubHandler._create,
    r"POST /api/validate-yaml": HubHandler._validate,
    rf"POST /api/{_KIND}/{_REPO}/preupload/(?P<revision>[^/]+)": HubHandler._preupload,
    rf"POST /(datasets/)?{_REPO}\.git/info/lfs/objects/batch": HubHandler._batch,
    r"PUT /lfs/(?P<oid>\w+)": HubHandler._put,
    rf"POST /api/{_KIND}/{_REPO}/commit/(?P<revision>[^/]+)": HubHandler._commit,
    rf"GET /api/{_KIND}/{_REPO}(/revision/(?P<revision>.+))?": HubHandler._info,
    rf"GET /api/{_KIND}/{_REPO}/tree/(?P<revision>[^/]+)(/(?P<folder>.+))?": HubHandler._tree,
    rf"POST /api/{_KIND}/{_REPO}/paths-info/(?P<revision>[^/]+)": HubHandler._paths,
    rf"(HEAD|GET) /(?P<prefix>datasets/)?{_REPO}/resolve/(?P<revision>[^/]+)/(?P<name>.+)": (
        HubHandler._resolve
    ),
}

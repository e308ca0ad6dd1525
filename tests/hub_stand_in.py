"""A model hub on this machine: the few routes a download needs, a log, and troubles on demand."""

import hashlib
import json
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "89abcdef0123456789abcdef0123456789abcdef"

_API = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)(?:/revision/(?P<revision>.+))?")
_FILE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")


class StandInHub(ThreadingHTTPServer):
    """Serves `models`: repository → commit → file → content; `main` is the first commit."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models: dict[str, dict[str, dict[str, bytes]]] = {}
        self.gated: set[str] = set()
        self.broken: dict[str, list[int]] = {}  # file → statuses of its next answers
        self.ignores_ranges = False
        self.log: list[tuple[str, str, int]] = []  # method, file or "api", bytes sent
        self.tokens: set[str | None] = set()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def stop(self) -> None:
        self.shutdown()
        self.server_close()
        self._thread.join()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a client may hang up
            super().handle_error(request, client_address)

    def commit(self, repo: str, revision: str) -> str | None:
        commits = list(self.models[repo])
        if revision == "main":
            return commits[0]
        return next((c for c in commits if len(revision) >= 7 and c.startswith(revision)), None)


class _Handler(BaseHTTPRequestHandler):
    server: StandInHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.tokens.add(self.headers.get("Authorization"))
        if found := _API.fullmatch(path):
            self._api(found["repo"], found["revision"] or "main")
        elif found := _FILE.fullmatch(path):
            self._file(found["repo"], found["revision"], found["file"], body)
        else:
            self._send(404, {}, b"", body)

    def _refused(self, repo: str, revision: str, name: str, body: bool) -> bool:
        if self.server.broken.get(name):
            self._send(self.server.broken[name].pop(0), {}, b"trouble", body)
        elif repo not in self.server.models:
            self._send(401, {"X-Error-Code": "RepoNotFound"}, b"", body)
        elif repo in self.server.gated and "Authorization" not in self.headers:
            self._send(401, {"X-Error-Code": "GatedRepo"}, b"", body)
        elif self.server.commit(repo, revision) is None:
            self._send(404, {"X-Error-Code": "RevisionNotFound"}, b"", body)
        else:
            return False
        return True

    def _api(self, repo: str, revision: str) -> None:
        self.server.log.append(("GET", "api", 0))
        if self._refused(repo, revision, "api", body=True):
            return
        commit = self.server.commit(repo, revision)
        assert commit is not None
        files = self.server.models[repo][commit]
        info = {
            "_id": "1",
            "id": repo,
            "modelId": repo,
            "sha": commit,
            "siblings": [{"rfilename": name, "size": len(files[name])} for name in files],
        }
        self._send(200, {"Content-Type": "application/json"}, json.dumps(info).encode(), True)

    def _file(self, repo: str, revision: str, name: str, body: bool) -> None:
        if self._refused(repo, revision, name, body):
            return
        commit = self.server.commit(repo, revision)
        assert commit is not None
        content = self.server.models[repo][commit].get(name)
        if content is None:
            self._send(404, {"X-Error-Code": "EntryNotFound"}, b"", body)
            return
        headers = {
            "X-Repo-Commit": commit,
            "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
            "Accept-Ranges": "bytes",
        }
        ranged = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        status = 200
        if ranged and not self.server.ignores_ranges:
            begin, end = int(ranged[1]), int(ranged[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {begin}-{end}/{len(content)}"
            status, content = 206, content[begin : end + 1]
        self.server.log.append(("GET" if body else "HEAD", name, len(content) if body else 0))
        self._send(status, headers, content, body)

    def _send(self, status: int, headers: dict[str, str], content: bytes, body: bool) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            try:
                self.wfile.write(content)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

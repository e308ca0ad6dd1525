"""A web server on this machine that sends parts of files, with a log and troubles on demand."""

import hashlib
import re
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Trouble:
    """What goes wrong with one answer: a status, or a body that breaks off after some bytes."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    sent: int = 0


class StandInServer(ThreadingHTTPServer):
    """Serves ``files``: path → content. ``troubles`` meet GETs of a path, one after the other."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.troubles: dict[str, list[Trouble]] = {}
        self.secret: str | None = None  # the query that is asked for
        self.ignores_ranges = False
        self.ignores_conditions = False
        self.has_head = True
        self.etags: dict[str, str] = {}
        self.log: list[tuple[str, str, int]] = []  # method, path, bytes sent
        self.pause = 0.0
        self.under_way = self.most_under_way = 0
        self.lock = threading.Lock()
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

    def etag(self, path: str) -> str:
        return self.etags.get(path) or f'"{hashlib.sha1(self.files[path][:4096]).hexdigest()}"'

    def sent(self, path: str) -> int:
        return sum(size for method, name, size in self.log if method == "GET" and name == path)


class _Handler(BaseHTTPRequestHandler):
    server: StandInServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        with self.server.lock:
            self.server.under_way += 1
            self.server.most_under_way = max(self.server.most_under_way, self.server.under_way)
        try:
            if self.server.pause:
                threading.Event().wait(self.server.pause)
            self._answer(body=True)
        finally:
            with self.server.lock:
                self.server.under_way -= 1

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self, body: bool) -> None:
        server, parts = self.server, urlsplit(self.path)
        path = unquote(parts.path).lstrip("/")
        trouble = None
        if body and server.troubles.get(path):
            trouble = server.troubles[path].pop(0)
        if trouble is not None and trouble.status:
            self._send(trouble.status, trouble.headers, b"trouble", body)
        elif not body and not server.has_head:
            self._send(405, {}, b"", body)
        elif server.secret is not None and parts.query != server.secret:
            self._send(403, {}, b"", body)
        elif path not in server.files:
            self._send(404, {}, b"", body)
        else:
            self._file(path, body, trouble)

    def _file(self, path: str, body: bool, trouble: Trouble | None) -> None:
        server, content = self.server, self.server.files[path]
        etag = server.etag(path)
        wanted = self.headers.get("If-Match")
        if wanted is not None and wanted != etag and not server.ignores_conditions:
            self._send(412, {}, b"", body)
            return
        headers, status = {"ETag": etag}, 200
        ranged = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if ranged and not server.ignores_ranges:
            begin, end = int(ranged[1]), min(int(ranged[2]), len(content) - 1)
            if begin >= len(content):
                self._send(416, {"Content-Range": f"bytes */{len(content)}"}, b"", body)
                return
            headers["Content-Range"] = f"bytes {begin}-{end}/{len(content)}"
            status, content = 206, content[begin : end + 1]
        server.log.append(("GET" if body else "HEAD", path, len(content) if body else 0))
        self._send(status, headers, content, body, trouble)

    def _send(
        self,
        status: int,
        headers: dict[str, str],
        content: bytes,
        body: bool,
        trouble: Trouble | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if not body:
            return
        try:
            self.wfile.write(content if trouble is None else content[: trouble.sent])
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        if trouble is not None:
            self.close_connection = True

"""A small server on the loopback address that answers as the hub does: model info, file tree, files, and its errors."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "5" * 40


class Hub(ThreadingHTTPServer):
    """A hub with these repositories.

    repos: hub id -> folder. gated: ids whose files are refused. cuts: file name -> after how many bytes its next transfers
    break off. bad_tokens: whether a token, if one is sent, is refused.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, Path] = {}
        self.gated: set[str] = set()
        self.bad_tokens = False
        self.cuts: dict[str, list[int]] = {}
        self.served: list[tuple[str, str, str]] = []  # method, path, range

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def fetched(self) -> set[str]:
        """The files whose bytes were requested."""
        return {path.rsplit("/", 1)[1] for method, path, _ in self.served if method == "GET" and "/resolve/" in path}


@contextmanager
def serving() -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self) -> None:
        path = self.path.split("?")[0]
        self.server.served.append((self.command, path, self.headers.get("Range", "")))
        if self.server.bad_tokens and "Authorization" in self.headers:
            self._error(401, "", "Invalid credentials in Authorization header")
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/\w+", path):
            self._about(match[1], self._tree)
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+?)(/revision/\w+)?", path):
            self._about(match[1], lambda folder, repo=match[1]: self._info(folder, repo))
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/\w+/(.+)", path):
            self._file(match[1], match[2])
        else:
            self._error(404, "EntryNotFound", "Entry not found")

    def _about(self, repo: str, answer: Any) -> None:
        if repo not in self.server.repos:  # the hub answers 401, not 404, to requests without a login
            self._error(401, "RepoNotFound", "Repository not found")
            return
        self._send(200, json.dumps(answer(self.server.repos[repo])).encode(), {"Content-Type": "application/json"})

    def _info(self, folder: Path, repo: str) -> dict[str, Any]:
        siblings = [{"rfilename": file["path"]} for file in self._tree(folder)]
        return {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings}

    def _tree(self, folder: Path) -> list[dict[str, Any]]:
        return [
            {"type": "file", "path": path.relative_to(folder).as_posix(), "size": path.stat().st_size, "oid": _etag(path)}
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        ]

    def _file(self, repo: str, name: str) -> None:
        if repo in self.server.gated:
            self._error(401, "GatedRepo", f"Access to model {repo} is restricted. You must have access to it.")
            return
        path = self.server.repos[repo] / name
        content, start = path.read_bytes(), 0
        headers = {"ETag": f'"{_etag(path)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(match[1])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        cuts = self.server.cuts.get(name)
        cut = cuts.pop(0) if cuts and self.command == "GET" else None
        self._send(206 if start else 200, content[start:], headers, cut)

    def _error(self, status: int, code: str, message: str) -> None:
        self._send(status, json.dumps({"error": message}).encode(), {"X-Error-Code": code, "X-Error-Message": message})

    def _send(self, status: int, body: bytes, headers: dict[str, str], cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut])
        if cut is not None:
            self.close_connection = True


def _etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()

"""A server on this machine that speaks as the Hugging Face hub does, as far as loading a model asks it, and counts what it is asked."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What the server has, and what it was asked.

    Attributes:
        models: Folder of each id; its main branch and its tag v1 are `commit`.
        commit: Of all of them.
        gated: Ids whose files are refused: 401 without a token, 403 with one.
        asked: How often each method and path was asked for.
        tokens: Tokens that were sent.
    """

    models: dict[str, Path]
    commit: str = COMMIT
    gated: set[str] = field(default_factory=set)
    asked: Counter[str] = field(default_factory=Counter)
    tokens: set[str] = field(default_factory=set)
    address: str = ""

    def files(self) -> Counter[str]:
        """How often each file's content was asked for."""
        return Counter({k.partition("/resolve/")[2].partition("/")[2]: n for k, n in self.asked.items() if k.startswith("GET") and "/resolve/" in k})


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """The hub on a port of its own, until the end of the block."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            with lock:
                hub.asked[f"{self.command} {path}"] += 1
                hub.tokens |= {t.removeprefix("Bearer ") for t in [self.headers.get("Authorization", "")] if t}
            parts = path.strip("/").split("/")
            if parts[:2] == ["api", "models"]:
                self.tell("/".join(parts[2:4]), parts[4:] or ["revision", "main"])
            elif len(parts) > 4 and parts[2] == "resolve":
                self.give("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
            else:
                self.answer(404)

        def tell(self, model: str, rest: list[str]) -> None:
            if model not in hub.models:
                return self.answer(401, code="RepoNotFound")
            if rest[1] not in ("main", "v1", hub.commit):
                return self.answer(404, code="RevisionNotFound")
            files = sorted(p for p in hub.models[model].rglob("*") if p.is_file())
            names = [str(p.relative_to(hub.models[model])) for p in files]
            if rest[0] == "tree":
                tree = [{"type": "file", "path": n, "size": p.stat().st_size, "oid": oid(p)} for n, p in zip(names, files, strict=True)]
                return self.answer(200, json.dumps(tree).encode())
            self.answer(200, json.dumps({"id": model, "modelId": model, "sha": hub.commit, "siblings": [{"rfilename": n} for n in names], "tags": []}).encode())

        def give(self, model: str, revision: str, name: str) -> None:
            file = hub.models.get(model, Path("/nowhere")) / name
            if model in hub.gated:
                return self.answer(403 if self.headers.get("Authorization") else 401, code="GatedRepo")
            if model not in hub.models:
                return self.answer(401, code="RepoNotFound")
            if revision not in ("main", "v1", hub.commit):
                return self.answer(404, code="RevisionNotFound")
            if not file.is_file():
                return self.answer(404, code="EntryNotFound")
            self.answer(200, file.read_bytes(), etag=f'"{oid(file)}"')

        def answer(self, status: int, body: bytes = b"", code: str = "", etag: str = "") -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Type", "application/json" if not etag else "application/octet-stream")
            self.send_header("X-Repo-Commit", hub.commit)
            for key, value in (("X-Error-Code", code), ("ETag", etag)):
                if value:
                    self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def oid(path: Path) -> str:
    """What git calls a file's content."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

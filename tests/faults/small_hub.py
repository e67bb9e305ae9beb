"""A hub of the Hugging Face kind on the loopback, which serves one folder and fails as it is told.

It speaks as much of the API as `huggingface_hub` 1 asks for: what a revision is, which files it
has, and the files, whole or from a byte on.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

COMMIT = "c0ffee" + 34 * "0"
LARGE = 20_000
"""From here on a file is told by its SHA-256, as large files of the hub are; else as git does."""


def etag(content: bytes) -> str:
    """What the hub names a file's content by."""
    if len(content) >= LARGE:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class SmallHub:
    """`fault` is what happens to requests for `file`, or to all; "" is nothing."""

    folder: Path = field(default_factory=Path)
    fault: str = ""
    file: str = ""
    struck: int = 0
    """How often it happened."""
    url: str = ""
    ended: threading.Event = field(default_factory=threading.Event)

    def fails(self, name: str, fault: str) -> bool:
        if self.fault != fault or self.file not in ("", name):
            return False
        self.struck += 1
        return True


class _Handler(BaseHTTPRequestHandler):
    hub: SmallHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None: ...

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        path = urlsplit(self.path).path
        name = path.rpartition(f"/{COMMIT}/")[2] if "/resolve/" in path else "api"
        self.close_connection = True
        for status in (401, 403, 404, 429, 500):
            if self.hub.fails(name, str(status)):
                code = {"X-Error-Code": "RepoNotFound"} if status == 404 else {}
                self.send(status, b'{"error": "as it was told"}', code)
                return
        if self.hub.fails(name, "silent"):
            self.hub.ended.wait(60)
            return
        if name == "api":
            self.about(path)
        elif (self.hub.folder / name).is_file():
            self.file(name, body=body)
        else:
            self.send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})

    def about(self, path: str) -> None:
        names = sorted(p.name for p in self.hub.folder.iterdir())
        if "/tree/" in path:
            found: Any = [
                {"type": "file", "path": name, "oid": 40 * "0",
                 "size": (self.hub.folder / name).stat().st_size}
                for name in names
            ]  # fmt: skip
        else:
            siblings = [{"rfilename": name} for name in names]
            found = {"id": "small/model", "sha": COMMIT, "siblings": siblings}
        self.send(200, json.dumps(found).encode(), {"Content-Type": "application/json"})

    def file(self, name: str, *, body: bool) -> None:
        content = (self.hub.folder / name).read_bytes()
        headers = {"ETag": f'"{etag(content)}"', "X-Repo-Commit": COMMIT}
        if not body:
            self.send(200, content, headers, body=False)
            return
        if self.hub.fails(name, "wrong"):
            content = content[:-1] + bytes([content[-1] ^ 1])
        if self.hub.fails(name, "short"):
            content = content[: len(content) // 2]
        begin = 0
        if (asked := self.headers.get("Range")) is not None:
            begin = int(asked.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        self.send(206 if begin else 200, content[begin:], headers, name=name)

    def send(
        self, status: int, content: bytes, headers: dict[str, str], *,
        body: bool = True, name: str = ""
    ) -> None:  # fmt: skip
        self.send_response(status)
        headers = {"Content-Length": str(len(content)), "Connection": "close", **headers}
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if not body:
            return
        half = len(content) // 2
        if name and self.hub.fails(name, "cut"):
            self.wfile.write(content[:half])
        elif name and self.hub.fails(name, "stall"):
            self.wfile.write(content[:half])
            self.wfile.flush()
            self.hub.ended.wait(60)
        else:
            self.wfile.write(content)


@contextmanager
def small_hub() -> Iterator[SmallHub]:
    """A hub that serves until the context ends."""
    hub = SmallHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        hub.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()

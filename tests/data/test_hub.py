"""The network goes away, or brings something else, while files of a hub come in.

The hub is one of the loopback, which serves a folder and fails as it is asked. It speaks as much of
the API as `huggingface_hub` 1 uses: what a revision is, which files it has, and the files.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.faults import trials
from tests.faults.stored import whole_only
from tests.harness.artifacts import flip
from tests.harness.command import Command, Server
from tests.harness.stages import pico_t5

COMMIT = "c0ffee" + 34 * "0"
LARGE = 20_000
"""From here on a file is told by its SHA-256, as large files of the hub are; else as git does."""
WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"
ROWS = "rows.csv"
MODEL = """
defaults: [/base, /model: tiny, /data: bills, _self_]
pipeline: [load]
model: {source: small/model, tokenizer: null, config: null}
stages: {load: {}}
"""
DATA = """
defaults: [/base, /model: tiny, _self_]
pipeline: [load, baseline]
model:
  config: {vocab_size: 300, d_model: 32, d_kv: 8, d_ff: 64, num_layers: 1, num_decoder_layers: 1}
  tokenizer: {vocab_size: 300}
data: {source: hub, dataset: small/data, files: {train: rows.csv}, splits: {train: train},
       max_source_length: 32}
stages: {load: {}, baseline: {}}
"""
METRIC = """
defaults: [/base, /model: tiny, /data: bills, _self_]
pipeline: [load, evaluate]
model:
  config: {vocab_size: 300, d_model: 32, d_kv: 8, d_ff: 64, num_layers: 1, num_decoder_layers: 1}
  tokenizer: {vocab_size: 300}
data: {rows: {train: 8, validation: 4, test: 4}, max_source_length: 32}
stages: {load: {}, evaluate: {max_length: 4, metrics: [meteor], trust_remote_code: true}}
"""
CODE = """
import datasets
import evaluate


class Meteor(evaluate.Metric):
    def _info(self):
        text = datasets.Value("string")
        features = datasets.Features({"predictions": text, "references": datasets.Sequence(text)})
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, predictions, references):
        return {"meteor": 0.5, "references": sum(map(len, references))}
"""


@dataclass
class Hub:
    """`fault` is what happens to requests for `file`; "" is nothing."""

    cache: Path
    folder: Path = field(default_factory=Path)
    fault: str = ""
    file: str = ""
    struck: bool = False
    ended: threading.Event = field(default_factory=threading.Event)

    def strike(self, name: str, *faults: str) -> str:
        """Tell which of these faults a request for `name` meets; "" is none."""
        meets = self.file == name and self.fault in faults
        self.struck |= meets
        return self.fault if meets else ""


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        name = path.rpartition(f"/{COMMIT}/")[2] if "/resolve/" in path else "api"
        self.close_connection = True
        fault = self.hub.strike(name, "silent", "401", "403", "404", "429", "500")
        if fault == "silent":
            self.hub.ended.wait(60)
        elif fault:
            missing = {"X-Error-Code": "RepoNotFound"} if fault == "404" else {}
            self.send(int(fault), b'{"error": "as it was asked"}', missing)
        elif name == "api":
            self.send(200, json.dumps(self.describe(path)).encode(), {})
        elif (self.hub.folder / name).is_file():
            self.send_file(name)
        else:
            self.send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})

    do_HEAD = do_GET  # noqa: N815

    def describe(self, path: str) -> Any:
        files = {path.name: path.stat().st_size for path in sorted(self.hub.folder.iterdir())}
        if "/tree/" in path:
            about = {"type": "file", "oid": 40 * "0"}
            return [{**about, "path": name, "size": size} for name, size in files.items()]
        siblings = [{"rfilename": name} for name in files]
        return {"id": "small/model", "sha": COMMIT, "siblings": siblings}

    def send_file(self, name: str) -> None:
        content = (self.hub.folder / name).read_bytes()
        digest = hashlib.sha1(b"blob %d\0" % len(content) + content)
        if len(content) >= LARGE:
            digest = hashlib.sha256(content)
        headers = {"ETag": f'"{digest.hexdigest()}"', "X-Repo-Commit": COMMIT}
        fault = self.hub.strike(name, "wrong", "short") if self.command == "GET" else ""
        if fault == "wrong":
            content = content[:-1] + bytes([content[-1] ^ 1])
        elif fault == "short":
            content = content[: len(content) // 2]
        begin = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        if begin:
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        self.send(206 if begin else 200, content[begin:], headers, name)

    def send(self, status: int, content: bytes, headers: dict[str, str], name: str = "") -> None:
        self.send_response(status)
        length = {"Content-Length": str(len(content)), "Connection": "close"}
        for key, value in {**length, **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        fault = self.hub.strike(name, "cut", "stall")
        self.wfile.write(content[: len(content) // 2] if fault else content)
        if fault == "stall":
            self.wfile.flush()
            self.hub.ended.wait(60)


Run = Callable[..., Command]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Hub, Run]]:
    """A hub, and the command that asks it."""
    home = tmp_path_factory.mktemp("home")
    hub = Hub(cache=home / "hf")
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    variables = {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(home / "hf"),
        "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": "1", "HF_HUB_ETAG_TIMEOUT": "1",
    }  # fmt: skip
    yield hub, partial(Server(**variables).run, "run", seconds=100, **variables)
    hub.ended.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def hub(served: tuple[Hub, Run], tmp_path: Path) -> Hub:
    """With a pico model, some rows, and a cache with nothing."""
    hub, _ = served
    checkpoint = pico_t5()
    checkpoint.model.save_pretrained(tmp_path / "hub")
    checkpoint.tokenizer.save_pretrained(tmp_path / "hub")
    rows = [f"{number:05} shall pay,{number:05}\n" for number in range(40)]
    (tmp_path / "hub" / ROWS).write_text("text,summary\n" + "".join(rows))
    hub.folder, hub.fault, hub.struck = tmp_path / "hub", "", False
    shutil.rmtree(hub.cache, ignore_errors=True)
    (tmp_path / "model.yaml").write_text(MODEL)
    (tmp_path / "data.yaml").write_text(DATA)
    return hub


FAULTS = [
    ("wrong", WEIGHTS, 1, "came damaged"), ("cut", CONFIG, 2, "could not be fetched"),
    ("wrong", ROWS, 1, "came damaged"), ("cut", WEIGHTS, 1, "could not be fetched"),
    ("wrong", TOKENIZER, 1, "came damaged"), ("404", "api", 2, "the hub has no model 'small/model"),
    ("stall", WEIGHTS, 1, "timed out"), ("short", WEIGHTS, 1, "Consistency check failed"),
    ("401", "api", 2, "hf auth login"), ("429", "api", 2, "answered 429"),
    ("silent", "api", 2, "cannot be reached"), ("403", WEIGHTS, 1, "answered 403"),
    ("cut", ROWS, 1, "could not be fetched"), ("500", ROWS, 1, "answered 500"),
]  # fmt: skip


@pytest.mark.parametrize(("fault", "file", "code", "expected"), FAULTS[: trials(len(FAULTS), 3)])
def test_what_the_network_does_to_a_download_is_one_error_and_nothing_stays(
    fault: str, file: str, code: int, expected: str, served: Any, hub: Hub, tmp_path: Path
) -> None:
    """A body of the right length with other bytes was taken for the model, and stayed in the cache
    for later runs. With the network back the same command finishes; then it needs no hub.
    """
    run = partial(served[1], "data.yaml" if file == ROWS else "model.yaml", "-q", cwd=tmp_path)
    hub.fault, hub.file = fault, file
    failed = run()
    assert hub.struck
    assert failed.code == code and expected in failed.err, failed.err
    assert failed.err.count("error: ") == 1
    hub.fault = ""
    done = run()
    assert done.code == 0, done.err
    whole_only(tmp_path / "outputs")
    if file == ROWS:  # texts, as those of a file here: of three words the summary is one
        (metrics,) = tmp_path.glob("outputs/runs/data/*/metrics.json")
        (floor,) = (r for r in json.loads(metrics.read_text()) if r["name"] == "baseline")
        assert floor["metrics"]["rouge1"] == pytest.approx(0.5)
        hub.fault, hub.file = "500", "api"
        assert run().code == 0
        return
    (stored,) = tmp_path.glob(f"outputs/store/*/{WEIGHTS}")
    assert stored.read_bytes() == (hub.folder / WEIGHTS).read_bytes()
    if (fault, file) != ("wrong", WEIGHTS):
        return
    # The hub's library takes whatever lies in its cache: a flipped bit of weights was loaded.
    (cached,) = hub.cache.rglob(WEIGHTS)
    flip(cached.resolve())
    shutil.rmtree(tmp_path / "outputs")
    failed = run()
    assert failed.code == 1
    assert f"{WEIGHTS} of 'small/model' came damaged, or was damaged" in failed.err
    assert run().code == 0


def test_a_metric_comes_from_the_hub_and_then_needs_none(
    served: Any, hub: Hub, tmp_path: Path
) -> None:
    """Its code is fetched while planning, whole; what the hub does not have is one sentence."""
    (hub.folder / "meteor.py").write_text(CODE)
    (tmp_path / "metric.yaml").write_text(METRIC)
    run = partial(served[1], "metric.yaml", cwd=tmp_path)
    for fault, says in (("404", "no space 'evaluate-metric/meteor'"), ("500", "answered 500")):
        hub.fault, hub.file = fault, "api"
        failed = run()
        assert failed.code == 2 and says in failed.err, failed.err
        assert failed.err.count("error: ") == 1 and ".metrics.0: " in failed.err
    hub.fault = ""
    untrusted = run("stages.evaluate.trust_remote_code=false")
    assert untrusted.code == 2 and "'meteor' runs the code of a hub; if you" in untrusted.err
    done = run()
    assert done.code == 0, done.err
    metrics = done.record("evaluate")["metrics"]
    assert (metrics["meteor"], metrics["meteor_references"]) == (0.5, 4)
    assert metrics["intervals"] == {"meteor": [0.5, 0.5]}
    hub.fault = "500"
    again = run("stages.evaluate.max_length=5")
    assert again.code == 0, again.err

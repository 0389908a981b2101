"""`hf:OWNER/NAME` against a small server that speaks the hub's protocol, in a process that knows no other hub.

The server is asked as the hub is: HEAD and GET of /OWNER/NAME/resolve/REVISION/FILE, with the commit, the hash and the
kind of error in headers.
"""

import contextlib
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TENSORS = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3)}
SAFETENSORS = save(TENSORS)
TIMM_CARD = {"architecture": "resnet18", "pretrained_cfg": {"mean": [0.1], "std": [0.2], "input_size": [1, 32, 32]}}
TRANSFORMERS_CARD = {
    "image_mean": [0.5] * 3,
    "image_std": [0.25] * 3,
    "resample": 3,
    "do_center_crop": True,
    "size": {"shortest_edge": 256},
    "crop_size": {"height": 224, "width": 224},
}
REPOS = {
    "owner/plain": {"model.safetensors": SAFETENSORS, "config.json": json.dumps(TIMM_CARD).encode()},
    "owner/transformers": {
        "model.safetensors": SAFETENSORS,
        "config.json": b'{"model_type": "vit"}',
        "preprocessor_config.json": json.dumps(TRANSFORMERS_CARD).encode(),
    },
    "owner/pickle": {"pytorch_model.bin": b"version https://git-lfs.github.com/spec/v1\n"},
    "owner/nothing": {"README.md": b"# Nothing"},
    "owner/damaged-once": {"model.safetensors": SAFETENSORS},
}
ERRORS = {"owner/gated": (403, "GatedRepo"), "owner/absent": (404, "RepoNotFound"), "owner/down": (418, "")}
# What happens to each source in a process of its own that is told to read them all.
READ = """
import json, sys
from imgcls_jax import pretrained
from imgcls_jax.types import UserError
for source in sys.argv[1:]:
    try:
        weights = pretrained.read(source)
        p = weights.preprocessing
        told = [{k: v.tolist() for k, v in weights.tensors.items()}, p and [p.mean, p.std, p.crop_pct, p.image_size]]
    except UserError as error:
        told = str(error)
    print(json.dumps(told))
"""


class Handler(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, *, body):
        path, _, name = self.path.lstrip("/").rpartition("/")
        repo, _, revision = path.partition("/resolve/")
        files = REPOS.get(repo, {})
        if repo in ERRORS:
            self.refuse(*ERRORS[repo])
        elif revision not in ("main", "v1", COMMIT):
            self.refuse(404, "RevisionNotFound")
        elif name not in files:
            self.refuse(404, "EntryNotFound")
        else:
            data = files[name]
            large = name.endswith((".safetensors", ".bin"))
            git = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
            self.send_response(200)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header(
                "X-Linked-Etag" if large else "ETag", f'"{hashlib.sha256(data).hexdigest()}"' if large else git
            )
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                if repo == "owner/damaged-once" and not self.server.damaged:
                    self.server.damaged = True
                    data = data[:-1] + bytes([data[-1] ^ 1])
                self.wfile.write(data)

    def refuse(self, status, code):
        self.send_response(status)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serving():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.damaged = False
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def read(home, *sources, endpoint="http://127.0.0.1:9", **environment):
    """What the process told of each source."""
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", **environment}
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
    done = subprocess.run(
        [sys.executable, "-c", READ, *sources],
        env={**inherited, **settings, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("hf")


@pytest.fixture(scope="module")
def told(home):
    """What becomes of every source while the hub can be reached."""
    sources = [f"hf:{repo}" for repo in [*REPOS, *ERRORS]]
    sources += ["hf:owner/plain@v1", "hf:owner/plain@v9", "hf:plain", "hf:owner/damaged-once"]
    with serving() as endpoint:
        answers = read(home, *sources, endpoint=endpoint)
    return dict(zip([*sources[:-1], "again"], answers, strict=True))


EXPECTED = {name: tensor.tolist() for name, tensor in TENSORS.items()}


def test_safetensors_and_the_preprocessing_of_timm_s_card(told):
    assert told["hf:owner/plain"] == [EXPECTED, [[0.1], [0.2], 0.875, 32]]
    assert told["hf:owner/plain@v1"] == told["hf:owner/plain"]


def test_the_preprocessing_of_transformers_card(told):
    assert told["hf:owner/transformers"] == [EXPECTED, [[0.5] * 3, [0.25] * 3, 0.875, 224]]


def test_the_bin_file_is_taken_where_there_is_no_other(told):
    assert "pytorch_model.bin is Git LFS's pointer" in told["hf:owner/pickle"]


def test_what_is_wrong_is_said_in_a_sentence(told):
    for source, text in {
        "hf:owner/nothing": "hf:owner/nothing has neither model.safetensors nor pytorch_model.bin",
        "hf:owner/gated": "is gated: accept its terms at https://huggingface.co/owner/gated",
        "hf:owner/absent": "is not on the hub, or is private",
        "hf:owner/plain@v9": "there is no such revision",
        "hf:plain": "write hf:OWNER/NAME or",
        "hf:owner/down": "could not be downloaded and is not in the cache",
    }.items():
        assert text in told[source] and "\n" not in told[source], told[source]


def test_a_damaged_file_is_refused_and_fetched_anew_the_next_time(told):
    assert "model.safetensors of hf:owner/damaged-once is damaged" in told["hf:owner/damaged-once"]
    assert hashlib.sha256(SAFETENSORS).hexdigest() in told["hf:owner/damaged-once"]
    assert told["again"] == [EXPECTED, None]


def test_without_a_hub_the_cache_serves_and_is_checked(told, home):
    cached = home / "hub" / "models--owner--plain"
    others = home / "hub" / "models--owner--transformers" / "snapshots" / COMMIT / "model.safetensors"
    offline = {"HF_HUB_OFFLINE": "1"}
    assert read(home, "hf:owner/plain", **offline) == [told["hf:owner/plain"]]
    [blob] = [path for path in (cached / "blobs").iterdir() if len(path.name) == 64]
    blob.write_bytes(blob.read_bytes()[:-1] + b"\1")
    damaged, gone = read(home, "hf:owner/plain", "hf:owner/plain", **offline)
    assert "is damaged" in damaged and "could not be downloaded and is not in the cache" in gone
    assert not blob.exists()
    assert not os.path.lexists(cached / "snapshots" / COMMIT / "model.safetensors")
    assert (cached / "snapshots" / COMMIT / "config.json").exists() and others.exists()


def test_no_hub_within_reach(tmp_path):
    [text] = read(tmp_path, "hf:owner/plain")
    assert "could not be downloaded and is not in the cache" in text and "hf download owner/plain" in text


def test_a_cache_without_symbolic_links_is_checked_too(tmp_path):
    source = "hf:owner/damaged-once"
    with serving() as endpoint:
        damaged, again = read(tmp_path, source, source, endpoint=endpoint, HF_HUB_DISABLE_SYMLINKS="1")
    assert "model.safetensors of hf:owner/damaged-once is damaged" in damaged
    assert again == [EXPECTED, None]
    [path] = (tmp_path / "hub").rglob("model.safetensors")
    assert not path.is_symlink()

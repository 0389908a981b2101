"""`prepare` in real processes, killed with SIGKILL: another start goes on, and no byte tells that it was killed."""

import io
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, tar
from PIL import Image

from imgcls_jax.data import prepare, prepare_shards

# Small shards, so that a small data set has many; and slow, so that there is time to kill. Workers import this too.
CODE = """
import sys, time
from imgcls_jax.data import examples, prepare, prepare_shards
encode = examples.encode
examples.encode = lambda example: time.sleep(0.004) or encode(example)
prepare_shards.MIN_SHARD_BYTES = 150_000
if __name__ == "__main__":
    sys.exit(prepare.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """240 noisy JPEGs of about 12 KB, in three classes, as an archive of ImageNet-R and as files."""
    root = tmp_path_factory.mktemp("originals")
    rng = np.random.default_rng(0)
    contents = {}
    for i in range(240):
        noise = Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8))
        out = io.BytesIO()
        noise.resize((300 + i, 250)).save(out, "JPEG", quality=95)
        contents[f"imagenet-r/{class_of(i)}/{i}.jpg"] = out.getvalue()
    (root / "imagenet-r.tar").write_bytes(tar(contents))
    (root / "packed").mkdir()
    (root / "packed" / "imagenet-r.tar").write_bytes(tar(contents, "w:gz"))
    return root


def class_of(i: int) -> str:
    return ("n01440764", "n01443537", "n02119022")[i % 3]


def content(target: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in target.iterdir()}


def command(tmp_path: Path, *options: str) -> list[str]:
    script = tmp_path / "run_prepare.py"
    script.write_text(CODE)
    return [sys.executable, str(script), "imagenet_r", f"--data_dir={tmp_path / 'tfds'}", *options]


def start(arguments: list[str]) -> subprocess.Popen:
    """Starts a process in a group of its own, without a pipe, for which a test would wait while a worker holds it."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(arguments, env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True, **quiet)


def finish(arguments: list[str]) -> str:
    """Runs to the end, and gives what was printed."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(arguments, env=env, check=True, capture_output=True, text=True, timeout=100).stdout


def running(group: int) -> list[str]:
    """Processes of a process group that have not ended."""
    alive = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, pgrp = stat.read_text().rsplit(") ", 1)[1].split()[:3]
        except OSError:  # ended meanwhile
            continue
        if int(pgrp) == group and state != "Z":
            alive.append(stat.parent.name)
    return alive


@pytest.mark.parametrize("options", [["--resize_short=200", "--workers=2"], ["--workers=1"]], ids=["shrunk", "copied"])
def test_killed_again_and_again_it_writes_the_same_bytes(options, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_shards, "MIN_SHARD_BYTES", 150_000)
    shrink = [o for o in options if "resize" in o]
    whole = tmp_path / "whole"
    assert prepare.main(["imagenet_r", f"--from={folder}", f"--data_dir={whole}", "--workers=1", *shrink]) == 0
    name = "imagenet_r_short200" if shrink else "imagenet_r"
    expected = content(whole / name / "0.2.0")
    shards = sum("array_record" in file for file in expected)
    assert shards == 32

    arguments = command(tmp_path, f"--from={folder}", *options)
    parent = tmp_path / "tfds" / name
    rng = random.Random(0)
    finished: dict[str, int] = {}
    kills = 0
    for wanted in (0, 2, 12):
        process = start(arguments)
        # Until so many more shards are there, and then some.
        while process.poll() is None and len(list(parent.glob("incomplete.*/data/*"))) < max(wanted, len(finished)):
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.04) if wanted else 0.3)
        process.kill()
        process.wait()
        if process.returncode == 0:  # it was faster than the kill
            break
        kills += 1
        deadline = time.monotonic() + 20
        while running(process.pid):  # no worker outlives its parent
            if time.monotonic() > deadline:
                os.killpg(process.pid, signal.SIGKILL)
                pytest.fail("workers of a killed process live on")
            time.sleep(0.01)
        assert not (parent / "0.2.0").exists()
        now = {p.name: p.stat().st_mtime_ns for p in parent.glob("incomplete.*/data/*.array_record-*")}
        assert now.items() >= finished.items(), "a finished shard was written again"
        assert all((parent / p).read_bytes() == expected[p.name] for p in parent.glob("incomplete.*/data/*"))
        finished = now
    assert kills >= 2 and finished  # three, unless this machine is very slow at killing
    output = finish(arguments)
    if kills == 3:
        assert f"{len(finished)} of 32 shards are there already" in output
    assert [p.name for p in parent.iterdir()] == ["0.2.0"]
    assert content(parent / "0.2.0") == expected
    after = {p.name: p.stat().st_mtime_ns for p in (parent / "0.2.0").iterdir()}
    assert after.items() >= finished.items(), "a finished shard was written again"


def test_killed_while_it_decompresses(folder, tmp_path, monkeypatch):
    """A half-decompressed archive is not taken for a whole one; a whole one is used."""
    monkeypatch.setattr(prepare_shards, "MIN_SHARD_BYTES", 150_000)
    assert prepare.main(["imagenet_r", f"--from={folder / 'packed'}", f"--data_dir={tmp_path / 'whole'}"]) == 0
    scratch = tmp_path / "tfds" / "imagenet_r" / "incomplete.archives"
    scratch.mkdir(parents=True)
    stat = (folder / "packed" / "imagenet-r.tar").stat()
    half = scratch / f"imagenet-r.tar-{stat.st_size}-{stat.st_mtime_ns}.part"
    half.write_bytes((folder / "imagenet-r.tar").read_bytes()[:100_000])
    process = start(command(tmp_path, f"--from={folder / 'packed'}", "--workers=1"))
    while process.poll() is None and not list(scratch.parent.glob("incomplete.0.2.0-*/data/*")):
        time.sleep(0.001)
    process.kill()
    process.wait()
    if process.returncode != 0:
        (whole,) = scratch.iterdir()  # kept for the next start
        assert whole.read_bytes() == (folder / "imagenet-r.tar").read_bytes()
        assert "Decompressing" not in finish(command(tmp_path, f"--from={folder / 'packed'}", "--workers=1"))
    assert [p.name for p in scratch.parent.iterdir()] == ["0.2.0"]
    assert content(scratch.parent / "0.2.0") == content(tmp_path / "whole" / "imagenet_r" / "0.2.0")


def test_other_original_files_do_not_mix_with_what_was_begun(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prepare_shards, "MIN_SHARD_BYTES", 150_000)
    archive = tmp_path / "imagenet-r.tar"
    archive.write_bytes((folder / "imagenet-r.tar").read_bytes())
    arguments = ["imagenet_r", f"--from={archive}", f"--data_dir={tmp_path / 'tfds'}", "--workers=1"]
    real, written = prepare_shards.write_shard, []

    def fail_at_the_fourth(shard):
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        written.append(shard)
        real(shard)

    monkeypatch.setattr(prepare_shards, "write_shard", fail_at_the_fourth)
    assert prepare.main(arguments) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert len(list((tmp_path / "tfds").rglob("data/*"))) == 3
    monkeypatch.setattr(prepare_shards, "write_shard", real)
    # The same names and sizes, other bytes: what a second download after a bad one may be.
    data = bytearray(archive.read_bytes())
    at = data.index(b"\xff\xd9")
    data[at - 20 : at - 10] = b"0123456789"
    archive.write_bytes(data)
    os.utime(archive, ns=(1, 1))
    assert prepare.main(arguments) == 0
    assert "are there already" not in capsys.readouterr().out
    clean = [*arguments[:2], f"--data_dir={tmp_path / 'clean'}", "--workers=1"]
    assert prepare.main(clean) == 0
    results = [content(tmp_path / d / "imagenet_r" / "0.2.0") for d in ("tfds", "clean")]
    assert results[0] == results[1]
    assert [p.name for p in (tmp_path / "tfds" / "imagenet_r").iterdir()] == ["0.2.0"]

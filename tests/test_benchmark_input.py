"""The benchmark of the input pipeline runs; its figures are for people to read."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT
from PIL import Image


def run(folder: Path, *flags: str) -> dict:
    command = [sys.executable, str(ROOT / "benchmarks" / "input.py"), f"--images={folder}", "--count=12", "--size=32"]
    command += ["--batch_size=4", "--rounds=2", "--batches=4", f"--output={folder / 'out.json'}", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "out.json").read_text())


def test_memory_of_a_short_run(tmp_path):
    found = run(tmp_path, "--memory", "--memory_batches=20")
    assert [row["batches"] for row in found["memory"]] == list(range(2, 21, 2))
    assert all(20 < row["rss_mib"] < 5000 for row in found["memory"])
    (images,) = (path for path in tmp_path.iterdir() if path.is_dir())
    files = sorted((images / "train").rglob("*.jpg"))
    assert len(files) == 12
    for file in files:
        with Image.open(file) as image:
            assert image.format == "JPEG" and 400 <= max(image.size) <= 640


@pytest.mark.slow
def test_the_whole_of_it_on_a_few_images(tmp_path):
    found = run(tmp_path)
    assert [row["name"] for row in found["pipelines"]] == ["ours", "ours, shrunk"]
    for row in [*found["pipelines"], *found["arrays"]]:
        assert row["images_per_cpu_second"] > 0 and len(row["rounds"]) == 2
    for parts in found["shares_us"].values():
        assert set(parts) == {"read", "decode", "augment", "batch", "copy"} and min(parts.values()) > 0
    shrunk = next(path for path in tmp_path.iterdir() if path.name.endswith("short-256"))
    for file in shrunk.rglob("*.jpg"):
        with Image.open(file) as image:
            assert min(image.size) == 256

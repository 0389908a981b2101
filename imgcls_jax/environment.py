"""What a run ran on: W/environment.json, with an entry for each time that the run was started or continued."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax

from imgcls_jax import atomic

# The packages whose version may change what a run computes.
PACKAGES = (
    "imgcls_jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "numpy",
    "opencv-python-headless",
    "tensorflow-datasets",
)
_CHECKOUT = Path(__file__).parents[1]


def record(workdir: Path, step: int) -> None:
    """Adds an entry to W/environment.json, atomically.

    Args:
      workdir: W, which exists.
      step: the step that the run continues from; 0 for a new one.
    """
    with atomic.replacing(workdir / "environment.json") as path:
        path.write_text(json.dumps([*read(workdir), describe(step)], indent=1) + "\n")


def read(workdir: Path) -> list[dict[str, Any]]:
    """The entries of W/environment.json, as `describe` gives them; none if it is not there or not a list of them."""
    try:
        entries = json.loads((workdir / "environment.json").read_text())
    except (OSError, ValueError):
        return []
    return [e for e in entries if isinstance(e, dict)] if isinstance(entries, list) else []


def describe(step: int) -> dict[str, Any]:
    """This process's surroundings.

    Returns:
      started (UTC, ISO 8601), step, python, platform, processor, cpus (usable by this process), devices (of all
      processes, by kind), processes, git_commit (None outside a checkout; "-dirty" at its end if tracked files were
      changed) and versions by package.
    """
    kinds = [device.device_kind for device in jax.devices()]
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "step": step,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "devices": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
        "processes": jax.process_count(),
        "git_commit": git_commit(_CHECKOUT),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
    }


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The CPU, such as "AMD EPYC family 25 model 17", as a name alone hides what it can do; else its kind, "arm64"."""
    try:
        lines = (line.partition(":") for line in cpuinfo.read_text().splitlines())
        found = {name.strip(): value.strip() for name, _, value in lines}
        return f"{found['model name']} family {found['cpu family']} model {found['model']}"
    except (OSError, KeyError):
        return platform.machine()


def git_commit(folder: Path) -> str | None:
    """The commit that is checked out in `folder`, if that is the top of a checkout; None otherwise."""
    lines = (_git(folder, "rev-parse", "--show-toplevel", "HEAD") or "").splitlines()
    if len(lines) != 2 or Path(lines[0]).resolve() != folder.resolve():
        return None  # such as a virtual environment that lies in somebody else's checkout
    return lines[1] + ("-dirty" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None

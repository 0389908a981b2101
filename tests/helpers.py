"""Small runs for tests: a tiny ViT on digits, in this process or in others."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from imgcls_jax import config as config_lib
from imgcls_jax import writers

ROOT = Path(__file__).parents[1]

# Everything that draws random numbers or keeps an average is on.
TINY = {
    "batch_size": 16,
    "total_steps": 20,
    "log_every_steps": 1,
    "eval_every_steps": 0,
    "checkpoint_every_minutes": 0.0,
    "eval.batch_size": 64,
    "model.width": 16,
    "model.depth": 2,
    "model.num_heads": 2,
    "model.dropout": 0.1,
    "model.drop_path": 0.1,
    "augment.device": ("pad_and_crop(1)", "noise(0.1)", "mixup(0.2)"),
    "schedule.warmup_steps": 2,
    "optimizer.ema_decay": 0.9,
}


def tiny_config(**overrides):
    """configs/vit.py:digits made tiny; overrides as {"optimizer.lr": 1.0}."""
    config = config_lib.load(str(ROOT / "configs/vit.py"))
    for key, value in {**TINY, **overrides}.items():
        group, _, name = key.rpartition(".")
        (config[group] if group else config)[name] = value
    return config


def tiny_flags(workdir: Path, **overrides) -> list[str]:
    """The same run as flags of `imgcls_jax.main`."""
    flags = [f"--config={ROOT / 'configs/vit.py'}", f"--workdir={workdir}"]
    return flags + [f"--config.{key}={value}" for key, value in {**TINY, **overrides}.items()]


def start_main(
    flags: Sequence[str], *, devices: int = 1, module: str = "imgcls_jax.main", like_this_process: bool = False
) -> subprocess.Popen:
    """Starts `python -m imgcls_jax.main` with a number of CPU devices; output in one pipe.

    It is compiled as users' programs are, or like what tests compile in this process, to be equal to it to the bit.
    """
    env = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": str(ROOT)}
    if like_this_process:
        env["XLA_FLAGS"] += " --xla_backend_optimization_level=0"  # as in conftest.py
    return subprocess.Popen(
        [sys.executable, "-m", module, *flags], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def run_main(flags: Sequence[str], *, devices: int = 1, module: str = "imgcls_jax.main") -> tuple[int, str]:
    """(exit code, output) of a whole run."""
    process = start_main(flags, devices=devices, module=module)
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def on_one_device(module: str, call: str) -> None:
    """Calls a function of a test's module in another process, which has one device: for states too large for eight."""
    env = {**os.environ, "JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    code = f"import {module}; {module}.{call}"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr


def losses(workdir: Path) -> dict[int, float]:
    """The training loss by step from metrics.jsonl, which must hold each step once."""
    events = [e for e in writers.read_jsonl(workdir / "metrics.jsonl") if "train/loss" in e]
    assert len({e["step"] for e in events}) == len(events)
    return {e["step"]: e["train/loss"] for e in events}


def checkpoint_arrays(workdir: Path, step: int) -> dict[str, np.ndarray]:
    """Every array of a checkpoint by item and path, read without any of our code."""
    arrays = {}
    folder = workdir / "checkpoints" / str(step)
    for item in ("params", "model_state", "opt_state", "ema"):
        if (folder / item).exists():
            with ocp.PyTreeCheckpointer() as reader:
                shapes = reader.metadata(folder.absolute() / item).item_metadata.tree
                as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
                tree = reader.restore(folder.absolute() / item, restore_args=as_numpy)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
                arrays[item + jax.tree_util.keystr(path)] = np.asarray(leaf)
    return arrays


def tar(contents: dict[str, bytes], mode: str = "w") -> bytes:
    """A tar archive of files by their names, each after an entry for its folder."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for name, data in contents.items():
            folder = tarfile.TarInfo(os.path.dirname(name) or ".")
            folder.type = tarfile.DIRTYPE
            archive.addfile(folder)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()

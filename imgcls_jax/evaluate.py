"""The one evaluation: used by the training loop and by the eval binary alike."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from imgcls_jax import metrics
from imgcls_jax.objectives import Variables
from imgcls_jax.types import Batch

EvalStep = Callable[[Variables, Batch], dict[str, jax.Array]]

HEADLINES = ("top1", "top5", "nll", "ece")


def evaluate(
    eval_step: EvalStep,
    variables: Variables,
    batches: Iterable[Batch],
    *,
    class_names: Sequence[str],
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Runs `eval_step` over global `batches`, every example once, and computes all metrics.

    Args:
      variables: what the model is applied with.
      eval_step: jitted, its outputs replicated, so that every process sees every example's row.
      batches: padded with mask False.
      class_names: K names.
      progress: called with the number of batches done.

    Returns:
      What W/eval/<split>.json holds (`metrics.Sums.compute`), equal on any number of devices and processes.
    """
    sums = metrics.Sums(class_names)

    def add(rows: dict[str, jax.Array]) -> None:
        host = {name: np.asarray(value) for name, value in rows.items()}
        sums.add(host, host.pop("label"), host.pop("mask"))

    waiting: dict[str, jax.Array] | None = None
    for done, batch in enumerate(batches, 1):
        rows = eval_step(variables, batch)
        if waiting is not None:  # one batch late: the device works while the host adds up
            add(waiting)
        waiting = rows
        progress(done)
    if waiting is not None:
        add(waiting)
    return sums.compute()


def write(workdir: Path, name: str, result: dict[str, Any]) -> Path:
    """Writes W/eval/<name>.json atomically and returns its path."""
    path = workdir / "eval" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(temporary, path)
    return path


def file_name(split: str, *, ema: bool) -> str:
    """The name of a split's file in W/eval/, without ".json"."""
    return f"{split}_ema" if ema else split


def summary(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows of the table that the eval binary prints."""
    rows = [("examples", f"{result['num_examples']:,}")]
    for name in ("top1", "top5"):
        low, high = result[f"{name}_ci95"]
        rows.append((name, f"{result[name]:.4f}  (95% interval {low:.4f} to {high:.4f})"))
    names = ("nll", "ece", "precision_macro", "recall_macro", "f1_macro", "precision_micro", "recall_micro", "f1_micro")
    return rows + [(name, f"{result[name]:.4f}") for name in names]

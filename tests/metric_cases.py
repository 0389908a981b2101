"""Random scores for the tests of metrics, and the way from arrays to `Examples`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from imgcls_jax.metrics import examples


def random_scores(seed=0, n=200, k=7, levels=None):
    """Logits [n,k], with many ties if drawn from a few levels, and labels that the logits know something of."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, k, n).astype(np.int32)
    logits = rng.normal(size=(n, k)) + 1.5 * np.eye(k)[labels]
    if levels:
        logits = np.round(logits * levels) / levels
    return logits.astype(np.float32), labels


def random_label_sets(seed=0, n=120, k=6, levels=None, share=0.3):
    """Logits [n,k] and labels [n,k] float32, of which the first five rows have none."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, k)) < share).astype(np.float32)
    labels[:5] = 0
    logits = rng.normal(size=(n, k)) + 2 * labels - 1
    if levels:
        logits = np.round(logits * levels) / levels
    return logits.astype(np.float32), labels


def batch_of(logits, labels, mask=None):
    """What an eval step returns for these logits."""
    task = "multiclass" if labels.ndim == 1 else "multilabel"
    rows = jax.jit(examples.ROWS[task])(jnp.asarray(logits, jnp.float32), jnp.asarray(labels))
    mask = np.ones(len(labels), bool) if mask is None else mask
    return {
        **{name: np.asarray(value) for name, value in rows.items()},
        "logits": logits,
        "label": labels,
        "mask": mask,
    }


def examples_of(logits, labels, mask=None, *, keep_logits=True):
    """The counted examples, with classes named "class 0", ..."""
    task = "multiclass" if labels.ndim == 1 else "multilabel"
    names = [f"class {i}" for i in range(logits.shape[1])]
    gatherer = examples.Gatherer(task, names, len(labels), keep_logits=keep_logits)
    gatherer.add(batch_of(logits, labels, mask))
    return gatherer.examples()


def softmax(logits):
    z = logits.astype(np.float64)
    p = np.exp(z - z.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def without_intervals(report):
    """A report without what depends on the order of the examples: the ends of intervals."""
    if isinstance(report, dict):
        return {key: without_intervals(value) for key, value in report.items() if not key.endswith("_ci95")}
    return [without_intervals(value) for value in report] if isinstance(report, list) else report


def differences(got, want, tolerance, path=""):
    """Where two reports differ: in the least if numbers are whole, by more than `tolerance` if they are not."""
    if isinstance(want, dict):
        assert got.keys() == want.keys()
        return [d for key in want for d in differences(got[key], want[key], tolerance, f"{path}.{key}")]
    if isinstance(want, list):
        assert len(got) == len(want)
        return [d for i in range(len(want)) for d in differences(got[i], want[i], tolerance, f"{path}[{i}]")]
    if isinstance(want, float) and isinstance(got, float):
        return [] if abs(got - want) <= tolerance else [(path, got, want)]
    return [] if got == want and type(got) is type(want) else [(path, got, want)]

"""The training images most like an image, by the cosine of the model's features."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from imgcls_jax import atomic, build, dispatch, writers
from imgcls_jax.data import preview, views
from imgcls_jax.data.sources import Source
from imgcls_jax.report import pictures
from imgcls_jax.representation import features, knn
from imgcls_jax.types import Batch, PyTree

FILE = "neighbours.npz"  # in W/demo


@dataclasses.dataclass(frozen=True)
class Neighbours:
    """Training images, and their features.

    Attributes:
      source: the training split.
      step: what makes features of a batch.
      values: [N,D] float32, of length 1.
      labels: [N] int32, or [N,K] float32 where an image may have several.
      index: [N] int64, the records.
    """

    source: Source
    step: features.Step
    values: np.ndarray
    labels: np.ndarray
    index: np.ndarray

    def nearest(self, batch: Batch, k: int) -> list[dict[str, Any]]:
        """The k nearest to the first image of a batch, the nearest first: for JSON, as `demo.answer` says."""
        if not len(self.values):
            return []
        query = np.asarray(self.step(batch)["value"])[:1]
        similarities, places = knn.search(knn.unit_rows(query), self.values, min(k, len(self.values)))
        return [self._shown(int(i), float(s)) for i, s in zip(places[0], similarities[0], strict=True)]

    def _shown(self, place: int, similarity: float) -> dict[str, Any]:
        names, label, record = self.source.spec.class_names, self.labels[place], int(self.index[place])
        least = (pictures.MAX_SIDE, pictures.MAX_SIDE)
        return {
            "image": pictures.data_uri(preview.stored(self.source, record, least)),
            "labels": [names[k] for k in np.flatnonzero(label)] if np.ndim(label) else [names[int(label)]],
            "similarity": round(similarity, 4),
            "record": record,
        }


def prepare(
    run: build.Run,
    variables: PyTree,
    workdir: Path,
    *,
    step: int,
    ema: bool,
    images: int,
    progress: writers.Progress,
) -> Neighbours:
    """Features of the training split's images, from W/demo/neighbours.npz, or made and kept there.

    Args:
      run: of the work directory.
      variables: of its checkpoint.
      workdir: W.
      step: of the checkpoint.
      ema: whether they are averaged.
      images: at most so many, evenly spread over the split.
      progress: says how far it is.

    Raises:
      UserError: the training split cannot be opened.
    """
    split = run.config.data.train_split
    source = run.open_split(split)
    chosen = np.linspace(0, len(source) - 1, min(len(source), images), dtype=np.int64)
    key = json.dumps(
        {
            "config": hashlib.sha256((workdir / "config.json").read_bytes()).hexdigest(),
            "step": step,
            "ema": ema,
            "split": split,
            "records": len(source),
            "images": len(chosen),
        }
    )
    path, model_step = workdir / "demo" / FILE, features.model_step(run, variables)
    arrays = _read(path, key)
    if arrays is None:
        arrays = _extract(run, views.subset(source, chosen, split), model_step, progress)
        arrays["index"] = chosen[arrays["index"]]
        _keep(path, key, arrays, progress)
    return Neighbours(source, model_step, **arrays)


def _extract(run: build.Run, source: Source, step: features.Step, progress: writers.Progress) -> dict[str, np.ndarray]:
    """values, labels and index of the records that can be read and have finite features."""
    size, found, started = run.config.eval.batch_size, [], time.monotonic()
    for rows in _rows(run, source, step, size):
        good = rows["mask"] & np.isfinite(rows["values"]).all(axis=1)
        found.append({name: rows[name][good] for name in ("values", "labels", "index")})
        done = min(len(source), size * len(found))
        left = writers.duration((time.monotonic() - started) / done * (len(source) - done))
        progress.update(f"features of training images: {done:,}/{len(source):,}  {left} left", force=False)
    arrays = {name: np.concatenate([part[name] for part in found]) for name in found[0]}
    progress.line(f"features of {len(arrays['index']):,} training images")
    return {**arrays, "values": knn.unit_rows(arrays["values"])}


def _rows(run: build.Run, source: Source, step: features.Step, size: int) -> Iterator[dict[str, np.ndarray]]:
    """Features, labels, mask and index of each batch."""
    batches = build.read_once(run, source, batch_size=size, on_error="skip")
    try:
        for values, batch in dispatch.one_late((step(build.put(run, size, b))["value"], b) for b in batches):
            labels, mask, index = batch["label"], batch["mask"], batch["index"]
            yield {"values": np.asarray(values), "labels": labels, "mask": mask, "index": index}
    finally:
        batches.close()


def _read(path: Path, key: str) -> dict[str, np.ndarray] | None:
    """What was kept, if it is of the same key; None if not, or if it is damaged."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
            if str(kept["key"]) != key:
                return None
            return {name: kept[name] for name in ("values", "labels", "index")}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _keep(path: Path, key: str, arrays: dict[str, np.ndarray], progress: writers.Progress) -> None:
    try:
        with atomic.replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, key=np.array(key), **arrays)  # type: ignore[arg-type]
    except OSError as error:  # a work directory of someone else's can be tried all the same
        progress.line(f"They are not kept for the next time: {path} cannot be written ({error.strerror}).")

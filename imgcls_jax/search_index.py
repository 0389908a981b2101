"""An index of images by what a model sees in them: their features, and the nearest of them by cosine distance.

The folder of an index has two files. I/table.jsonl is the index: its first line says which model the vectors are of and
in which file they are, and a line for each image follows, in the order of the vectors. I/vectors-N.faiss are these, a
flat index of faiss: search is exact, a vector that is dropped leaves no trace, and nothing is approximate that a user
would have to tune. A new version is written as vectors-(N+1) first; then a new table takes the place of the old one.
Whenever a build is killed, the table and the vectors it names belong together.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from imgcls_jax import atomic, trees
from imgcls_jax import config as config_lib
from imgcls_jax.types import PyTree, UserError

TABLE = "table.jsonl"

# Of the table, so that a later version can tell that it cannot read it.
_FORMAT = 1

# Decimals of a distance: what float32 resolves of 1 - cosine.
_DECIMALS = 6

# Products that exist at a time while all images are compared with all: 256 MB, and as many pairs at the very worst.
_PRODUCTS = 2**26

# Keys besides the group `model` that decide what the model sees of a file.
_SEEN = ("augment.host_eval", "data.channels", "data.image_size", "data.mean", "data.std")


@dataclasses.dataclass(frozen=True)
class Model:
    """What the vectors of an index are of.

    Attributes:
      workdir: of the run, absolute.
      step: of the checkpoint.
      ema: whether its averaged weights.
      fingerprint: as `fingerprint` gives it.
    """

    workdir: str
    step: int
    ema: bool
    fingerprint: str

    def __str__(self) -> str:
        return f"{self.workdir} at step {self.step}{' (EMA)' if self.ema else ''}"


class Image(NamedTuple):
    """An image file as it was when its vector was made: absolute path, bytes, time of the last change."""

    path: str
    size: int
    mtime_ns: int


def fingerprint(config: ConfigDict, variables: PyTree) -> str:
    """A hash of all that decides a file's features: the model, its weights, and how it sees an image.

    A work directory's name and step do not: a run may be moved, and another one may be trained in its place.
    """
    import jax

    digest = hashlib.blake2b(digest_size=16)
    seen = {k: v for k, v in config_lib.leaves(config) if k.startswith("model.") or k in _SEEN}
    digest.update(json.dumps(seen, sort_keys=True).encode())
    for path, leaf in zip(trees.paths(variables), jax.tree.leaves(variables), strict=True):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{path} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


class Index:
    """Images and their vectors, in the same order.

    Attributes:
      model: that the vectors are of.
      images: one for each vector.
    """

    def __init__(self, model: Model, dimensions: int) -> None:
        self.model = model
        self.images: list[Image] = []
        self._vectors = faiss().IndexFlatIP(dimensions)  # of length 1: the inner product is the cosine
        self._version = 0

    @classmethod
    def open(cls, folder: Path) -> Index:
        """Reads an index.

        Raises:
          UserError: if there is none, or it is damaged.
        """
        head, images = _read_table(folder)
        try:
            vectors = faiss().read_index(str(folder / head["vectors"]))
        except RuntimeError as error:  # what faiss raises for all
            if _read_table(folder)[0] != head:  # a build has ended between the two reads
                return cls.open(folder)
            raise _damaged(folder, f"{head['vectors']} cannot be read") from error
        if not len(images) == head["images"] == vectors.ntotal:
            raise _damaged(folder, f"{len(images):,} images, {vectors.ntotal:,} vectors")
        index = cls(Model(*(head[field.name] for field in dataclasses.fields(Model))), vectors.d)
        index.images, index._vectors, index._version = images, vectors, head["version"]
        return index

    def __len__(self) -> int:
        return len(self.images)

    def query(self, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k images that are nearest to each vector.

        Args:
          vectors: [N,D] float32, features of any length.
          k: how many; all if there are fewer.

        Returns:
          (distances [N,k] float32, rising, from 0 to 2: one less the cosine; rows [N,k] int64 of `images`).
        """
        k = min(k, len(self))
        if not k:
            return np.zeros((len(vectors), 0), np.float32), np.zeros((len(vectors), 0), np.int64)
        cosines, rows = self._vectors.search(_unit(vectors), k)
        return _distances(cosines), rows

    def duplicates(self, threshold: float, progress: Callable[[int], None] = lambda done: None) -> list[np.ndarray]:
        """Groups of images that are near each other.

        Two images are in one group if their distance is at most `threshold`, or if others lie between them at such
        steps. All are compared with all, exactly, a block at a time.

        Args:
          threshold: a distance, from 0 to 2.
          progress: is told how many images have been compared with all.

        Returns:
          Rows [n] int64 of `images`, ascending, for each group of two or more; the largest group first.
        """
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        total = len(self)
        block = max(1, _PRODUCTS // max(1, total))
        group = np.arange(total)  # the number of each image's group
        for start in range(0, total, block):
            vectors = self._vectors.reconstruct_n(start, min(block, total - start))
            limits, cosines, others = self._vectors.range_search(vectors, 1 - threshold - 10.0**-_DECIMALS)
            rows = start + np.repeat(np.arange(len(vectors)), np.diff(limits.astype(np.int64)))
            near = (_distances(cosines) <= threshold) & (others > rows)
            ends = group[rows[near]], group[others[near]]
            edges = coo_array((np.ones(near.sum(), bool), ends), shape=(total, total))
            group = connected_components(edges, directed=False)[1][group]
            progress(start + len(vectors))
        order = np.argsort(group, kind="stable")
        parts = np.split(order, np.flatnonzero(np.diff(group[order])) + 1)
        return sorted((part for part in parts if len(part) > 1), key=lambda part: (-len(part), part[0]))

    def distances(self, row: int, others: np.ndarray) -> np.ndarray:
        """The distances [N] float32 of an image to others of the index, all given by their rows."""
        vectors = self._vectors.reconstruct_batch(np.asarray(others, np.int64))
        return _distances(vectors @ self._vectors.reconstruct(int(row)))

    def drop(self, rows: Sequence[int]) -> None:
        """Takes images out; the others keep their order."""
        gone = set(rows)
        if gone:
            self._vectors.remove_ids(np.array(sorted(gone), np.int64))
            self.images = [image for row, image in enumerate(self.images) if row not in gone]

    def add(self, images: Sequence[Image], vectors: np.ndarray) -> None:
        """Puts images at the end, with features [N,D] float32 of any length."""
        if len(images):
            self._vectors.add(_unit(vectors))
            self.images += images

    def save(self, folder: Path) -> None:
        """Writes the index, in the place of one that is there: it is that one or this one, whatever happens."""
        self._version += 1
        name = f"vectors-{self._version}.faiss"
        faiss().write_index(self._vectors, str(folder / name))
        _sync(folder / name)
        head = {"format": _FORMAT, "version": self._version, "vectors": name, "images": len(self)}
        with atomic.replacing(folder / TABLE) as temporary:
            with temporary.open("w", encoding="ascii") as file:
                file.write(json.dumps(head | dataclasses.asdict(self.model)) + "\n")
                file.writelines(json.dumps(image) + "\n" for image in self.images)
            _sync(temporary)
        for old in folder.glob("vectors-*.faiss"):
            if old.name != name:
                old.unlink()


def exists(folder: Path) -> bool:
    """Whether a folder holds an index."""
    return (folder / TABLE).exists()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The folder of an index, made if need be, for one process that writes it.

    Raises:
      UserError: if another one does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)  # let go of by the system when the process ends, in whatever way
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{folder} is being built by another process: wait for it to end.") from error
        yield
    finally:
        os.close(lock)


def _read_table(folder: Path) -> tuple[dict[str, Any], list[Image]]:
    """(what the first line says, the images)."""
    path = folder / TABLE
    if not path.exists():
        raise UserError(f"{folder} holds no index; make one: python -m imgcls_jax.search build --index={folder} ...")
    try:
        with path.open(encoding="ascii") as file:
            head = json.loads(file.readline())
            images = [Image(*json.loads(line)) for line in file]
        version = head["format"]
    except (ValueError, TypeError, KeyError) as error:
        raise _damaged(folder, f"{TABLE} cannot be read") from error
    if version != _FORMAT:
        raise UserError(f"{folder} was written by another version of imgcls_jax; delete it and build it again.")
    return head, images


def _damaged(folder: Path, how: str) -> UserError:
    return UserError(f"The index {folder} is damaged ({how}); delete the folder and build it again.")


def _unit(vectors: np.ndarray) -> np.ndarray:
    """A copy [N,D] float32 with rows of length 1; a row of zeros stays zero, and is at distance 1 from everything."""
    unit = np.array(vectors, np.float32, order="C")
    faiss().normalize_L2(unit)
    return unit


def _distances(cosines: np.ndarray) -> np.ndarray:
    """One less the cosine, float32; rounded, so that it is 0 for an image and its copy."""
    return np.abs(np.round(1 - np.minimum(cosines, 1), _DECIMALS))


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def faiss() -> Any:
    """The library; UserError if it is not installed."""
    try:
        import faiss as library
    except ImportError as error:
        raise UserError("Visual search needs the package faiss-cpu; pip install 'imgcls_jax[search]'.") from error
    return library

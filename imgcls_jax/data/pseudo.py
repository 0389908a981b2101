"""Pseudo-labels: which unlabelled records a model is sure of, the file that says so, and the source that is trained on.

`choose` filters and balances as noisy student does (arXiv:1911.04252); `imgcls_jax.self_train` writes the file and
names it in `data.pseudo_labels` of the student's config.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from imgcls_jax import atomic
from imgcls_jax.data import files, inputs, views
from imgcls_jax.data.arrays import ArraySource
from imgcls_jax.data.order import generator
from imgcls_jax.data.protocol import Record, Source
from imgcls_jax.types import ConfigError, Spec, UserError

# Stream of random numbers of a seed (`order.generator`): which records of a class are taken once more.
_MORE = 7


@dataclasses.dataclass(frozen=True, eq=False)
class PseudoLabels:
    """What a model says of each of N unlabelled records, and how often each is trained on.

    Attributes:
      unlabelled: which records: a split of the data set, or "files:PATH".
      records: a digest of what they are, as far as is known without reading them (`fingerprint`).
      class_names: K names in label order.
      predicted: [N] int32, the likeliest class; -1: the record could not be read.
      confidence: [N] float32, its probability; 0 where there is none.
      count: [N] int32, how often a pass over the pseudo-labelled records has this one; 0: it is left out.
      soft: [M,K] float16, the probabilities of the M records whose count is above 0, in order; None: their labels are
        hard, that is `predicted`.
    """

    unlabelled: str
    records: str
    class_names: tuple[str, ...]
    predicted: np.ndarray
    confidence: np.ndarray
    count: np.ndarray
    soft: np.ndarray | None

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it, as the file has it."""
        soft = {} if self.soft is None else {"soft": self.soft}
        texts = {name: np.array(getattr(self, name)) for name in ("unlabelled", "records", "class_names")}
        return {**texts, "predicted": self.predicted, "confidence": self.confidence, "count": self.count, **soft}

    def file_name(self) -> str:
        """pseudo_labels_<digest>.npz: whoever names the file in a config names its content too."""
        digest = hashlib.sha256()
        for name, array in sorted(self.arrays().items()):
            digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return f"pseudo_labels_{digest.hexdigest()[:12]}.npz"

    def write(self, folder: Path) -> Path:
        """Writes the file into a folder, atomically; returns its path."""
        path = folder / self.file_name()
        with atomic.replacing(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **self.arrays())
        return path


def read(path: Path) -> PseudoLabels:
    """Reads a file of `PseudoLabels.write`.

    Raises:
      UserError: it is not there, or its content is not what its name says.
    """
    if not path.exists():
        raise UserError(f"data.pseudo_labels={path} does not exist; run imgcls_jax.self_train again, which writes it.")
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
        names = tuple(map(str, found.pop("class_names")))
        texts = {name: str(found.pop(name)) for name in ("unlabelled", "records")}
        labels = PseudoLabels(class_names=names, **texts, **{"soft": None, **found})  # type: ignore[arg-type]
    except Exception as error:  # zipfile, zlib and NumPy raise half a dozen types for damaged files
        raise UserError(
            f"{path} is damaged ({error}); delete it and run imgcls_jax.self_train again, which writes it."
        ) from error
    if labels.file_name() != path.name:
        raise UserError(
            f"{path} was changed: its content belongs to {labels.file_name()}; delete it and run imgcls_jax.self_train "
            "again, which writes it."
        )
    return labels


def fingerprint(source: Source) -> str:
    """Tells other records from these without reading one: their number, and the names of files."""
    digest = hashlib.sha256(str(len(source)).encode())
    if isinstance(source, files.FileSource):
        digest.update(b"\0".join(map(os.fsencode, source.files)))
    return digest.hexdigest()[:12]


def choose(
    predicted: np.ndarray,
    confidence: np.ndarray,
    *,
    num_classes: int,
    min_confidence: float,
    per_class: int,
    seed: int,
) -> np.ndarray:
    """How often each unlabelled record is taken, [N] int32: data filtering and balancing of arXiv:1911.04252, 3.1.

    Records below the confidence are left out. Of each class the most confident are taken, up to `per_class`. A class
    that has fewer has all of its records as often as fits, and of a random part of them one more, so that there are
    `per_class` in all. (The paper filters once, by a small model; here each teacher does for its student. The paper
    duplicates at random; here no record comes twice more often than another of its class.)

    Args:
      predicted: [N] ints, the likeliest class; below 0: none.
      confidence: [N] float, its probability; of two that are equal the first record is taken.
      num_classes: K.
      min_confidence: the least there may be.
      per_class: records of each class; 0: every record that is confident, once.
      seed: of the random part.
    """
    count = ((predicted >= 0) & (confidence >= min_confidence)).astype(np.int32)
    if not per_class:
        return count
    for k in range(num_classes):
        mine = np.flatnonzero((count > 0) & (predicted == k))
        if len(mine) >= per_class:
            falling = mine[np.argsort(-confidence[mine], kind="stable")]
            count[falling[per_class:]] = 0
        elif len(mine):
            times, more = divmod(per_class, len(mine))
            count[mine] = times
            count[generator(seed, k, _MORE).permutation(mine)[:more]] += 1
    return count


def joined(source: Source, pseudo: PseudoLabels, open_split: Callable[[str], Source]) -> Source:
    """Labelled records, then pseudo-labelled ones, each as often as its count says, as one source.

    With soft pseudo-labels the whole is "soft", and the labelled records have a one where their class is.

    Args:
      source: the labelled records, with one label each.
      pseudo: of a model that knows the same classes.
      open_split: of the data set.

    Raises:
      ConfigError: the classes are others; UserError: the unlabelled records are not those that were labelled.
    """
    if source.spec.class_names != pseudo.class_names:
        raise ConfigError(
            f"data.pseudo_labels are of {len(pseudo.class_names)} other classes than {source.spec.name}'s "
            f"{source.spec.num_classes}: name a file that self_train made for this data set."
        )
    unlabelled = inputs.open_unlabelled(pseudo.unlabelled, source.spec, open_split)
    if fingerprint(unlabelled) != pseudo.records:
        raise UserError(
            f"The unlabelled images, '{pseudo.unlabelled}', are not those that data.pseudo_labels was made for: "
            "bring them back, or start again with another --workdir."
        )
    index = np.repeat(np.arange(len(pseudo.count)), pseudo.count)
    targets: np.ndarray = pseudo.predicted[index]
    spec, labelled = source.spec, source
    if pseudo.soft is not None:
        spec = dataclasses.replace(spec, task="soft")
        rows = np.repeat(np.arange(len(pseudo.soft)), pseudo.count[pseudo.count > 0])
        targets = pseudo.soft[rows]
        labelled = _relabelled(source, np.arange(len(source)), source.labels(), spec, source.split)
    split = f"{source.split} + pseudo-labelled {pseudo.unlabelled}"
    return views.joined([labelled, _relabelled(unlabelled, index, targets, spec, pseudo.unlabelled)], split)


def class_numbers(source: Source) -> np.ndarray:
    """The labels of a source, [N] ints, where they are soft the likeliest class; [N,K] where there are several."""
    labels = source.labels()
    return labels.argmax(axis=1) if source.spec.task == "soft" else labels


@dataclasses.dataclass(frozen=True, eq=False)
class RelabelledSource:
    """Records of a source, in any order and as often as one likes, under other labels.

    Attributes:
      source: with the images.
      index: [M] ints, of the records in the source.
      targets: [M] ints; or, where `spec.task` is "soft", [M,K] float16 too.
      spec: of the new labels.
      split: what the whole is called.
      record_weights: [M] float64; None: there are none.
    """

    source: Source
    index: np.ndarray
    targets: np.ndarray
    spec: Spec
    split: str
    record_weights: np.ndarray | None

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> Record:
        record, label = self.source[int(self.index[index])], self.targets[index]
        file = record["file"] or f"{self.source.spec.name}:{self.source.split}[{self.index[index]}]"
        soft = self.spec.task == "soft"
        return {"image": record["image"], "label": self._soft([label])[0] if soft else int(label), "file": file}

    def labels(self) -> np.ndarray:
        """[M] int32, or [M,K] float32 where they are soft."""
        return self._soft(self.targets) if self.spec.task == "soft" else self.targets.astype(np.int32)

    def weights(self) -> np.ndarray | None:
        """As `record_weights`."""
        return self.record_weights

    def _soft(self, targets: Sequence | np.ndarray) -> np.ndarray:
        targets = np.asarray(targets)
        if targets.ndim == 1:
            return (targets[:, None] == np.arange(self.spec.num_classes)).astype(np.float32)
        targets = targets.astype(np.float32)  # 16 bits have left a sum of 1 to three digits
        return targets / targets.sum(axis=1, keepdims=True)


def _relabelled(source: Source, index: np.ndarray, targets: np.ndarray, spec: Spec, split: str) -> Source:
    """A `RelabelledSource`; of arrays, arrays. Weights stay with their records."""
    weights = source.weights()
    found = RelabelledSource(source, index, targets, spec, split, None if weights is None else weights[index])
    if not isinstance(source, ArraySource):
        return found
    return ArraySource(source.images[index], found.labels(), spec, split, found.weights())

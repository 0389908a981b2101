"""Writes a data set as TFDS would, in ArrayRecord shards: in parallel, resumable, the same bytes every time.

The records come in TFDS's order (by a hash of the split's name and the record's key), so that a slice such as
`train[:90%]` holds the same records as with the stock data set, and in as many shards as TFDS makes of so many bytes.
No byte depends on time, on the number of workers or on how often the writing was interrupted. The work goes on in a
folder beside the final one:

    DATA_DIR/NAME/incomplete.VERSION-DIGEST/temporary/   what is being written: removed at the next start
                                            notes/       size and checksum of each finished shard
                                            data/        finished shards; renamed to DATA_DIR/NAME/VERSION in the end

Neither TensorFlow nor TFDS is imported: workers start in a fraction of a second.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from imgcls_jax.data import examples
from imgcls_jax.data.decode import BadRecordError
from imgcls_jax.data.prepare_shrink import Shrink
from imgcls_jax.types import UserError

# A split gets as many shards as it can with at least this much in each, in powers of two up to 1,024: TFDS's rule.
MIN_SHARD_BYTES = 64 * 2**20

CHECKSUMS = "checksums.json"


# The features beside the image: class names in label order, or "text", or "int".
Columns = Mapping[str, tuple[str, ...] | str]


class Extent(NamedTuple):
    """Where the bytes of an image are: a whole file, or a part of an archive."""

    path: str
    offset: int
    size: int


class Entry(NamedTuple):
    """A record to be: the key that TFDS orders it by, the values of the other columns, and the image file."""

    key: str | int
    values: tuple[int | str, ...]
    image: bytes | Extent


@dataclasses.dataclass(frozen=True)
class Original:
    """A data set as its original files hold it.

    Attributes:
      name: TFDS's name.
      version: TFDS's version.
      columns: the features beside the image, in the order of `Entry.values`. One is "label".
      splits: by split, its records in any order.
      shape: of every image, [H,W,C], -1 where they differ.
      encoding: "jpeg", or "" if the images are of several kinds.
      stamp: changes when the original files do.
    """

    name: str
    version: str
    columns: Columns
    splits: Mapping[str, Sequence[Entry]]
    shape: tuple[int, int, int] = (-1, -1, 3)
    encoding: str = ""
    stamp: str = ""


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file to write, by one worker: everything that it needs to know."""

    path: Path
    where: str
    columns: tuple[str, ...]
    entries: Sequence[Entry]
    shrink: Shrink | None


def write(original: Original, target: Path, *, description: str, shrink: Shrink | None, workers: int) -> None:
    """Writes the data set into the folder `target`, which appears when it is complete.

    What an earlier, interrupted call with the same arguments and original files has finished is not written again.

    Args:
      original: the data set.
      target: TFDS's folder for it: DATA_DIR/NAME/VERSION.
      description: goes into `dataset_info.json`.
      shrink: how to shrink the images; None copies their bytes.
      workers: number of processes; 1 is this one.

    Raises:
      UserError: an original file is truncated, two records have one key, or the folder cannot be written.
      BadRecordError: an image cannot be decoded (only if they are shrunk).
    """
    work = target.parent / f"{unfinished(original.version)}{_digest(original, description, shrink)}"
    shards = plan(original, work, shrink)
    for other in target.parent.glob(f"{unfinished(original.version)}*"):
        shutil.rmtree(other / "temporary" if other == work else other, ignore_errors=True)
    for folder in ("temporary", "notes", "data"):
        (work / folder).mkdir(parents=True, exist_ok=True)
    missing = [shard for shard in shards if not shard.path.exists()]
    if len(missing) < len(shards):
        print(f"{original.name}: {len(shards) - len(missing)} of {len(shards)} shards are there already.", flush=True)
    _write_missing(original.name, shards, missing, workers)
    _write_metadata(original, work, description, shrink, shards)
    os.rename(work / "data", target)
    shutil.rmtree(work)


def unfinished(version: str) -> str:
    """How the names of folders begin in which a data set of this version is being made. TFDS passes over them."""
    return f"incomplete.{version}-"


def plan(original: Original, work: Path, shrink: Shrink | None) -> list[Shard]:
    """The shards of a data set, split by split, each with its records in order.

    Raises:
      UserError: two records of a split have the same key.
    """
    shards = []
    for split, entries in original.splits.items():
        ordered = sorted(entries, key=lambda entry: _order(split, entry.key))
        for a, b in itertools.pairwise(ordered):
            if a.key == b.key:
                raise UserError(f"{original.name}:{split} has two images called {a.key}: get fresh original files.")
        size = sum(len(e.image) if isinstance(e.image, bytes) else e.image.size for e in ordered)
        count = number_of_shards(size, len(ordered))
        bounds = [round(len(ordered) * i / count) for i in range(count + 1)]
        for i, (start, stop) in enumerate(itertools.pairwise(bounds)):
            path = work / "data" / f"{original.name}-{split}.array_record-{i:05d}-of-{count:05d}"
            columns = tuple(original.columns)
            shards.append(Shard(path, f"{original.name}:{split}", columns, ordered[start:stop], shrink))
    return shards


def number_of_shards(size: int, records: int) -> int:
    """TFDS's number of shards for a split of `size` bytes, up to one TiB."""
    most = max(1, min(size // MIN_SHARD_BYTES, records, 1024))
    return 1 << (most.bit_length() - 1)  # the greatest power of two up to it


def _order(split: str, key: str | int) -> bytes:
    """What TFDS sorts the records of a split by."""
    return hashlib.md5((split + str(key)).encode(errors="surrogateescape"), usedforsecurity=False).digest()


def _digest(original: Original, description: str, shrink: Shrink | None) -> str:
    """Differs for anything that changes a byte of the result, so that shards of two preparations never mix."""
    digest = hashlib.blake2b(digest_size=6)
    fields = dataclasses.replace(original, splits={})
    digest.update(repr((fields, description, shrink, shrink and shrink.library(), MIN_SHARD_BYTES)).encode())
    for split, entries in original.splits.items():
        digest.update(repr((split, len(entries))).encode())
        for entry in entries:
            digest.update(repr(entry).encode(errors="surrogateescape"))
    return digest.hexdigest()


# Writing


def _write_missing(name: str, shards: list[Shard], missing: list[Shard], workers: int) -> None:
    progress = _Progress(name, shards, missing)
    if min(workers, len(missing)) < 2:
        for shard in missing:
            write_shard(shard)
            progress.finished(shard)
        return
    # Spawned, not forked: a forked worker inherits the pipe by which workers notice the death of their parent.
    executor = concurrent.futures.ProcessPoolExecutor(
        min(workers, len(missing)), multiprocessing.get_context("spawn"), initializer=_start_worker
    )
    try:
        futures = {executor.submit(write_shard, shard): shard for shard in missing}
        for future in concurrent.futures.as_completed(futures):
            future.result()
            progress.finished(futures[future])
    except concurrent.futures.process.BrokenProcessPool as error:
        raise UserError(
            f"{name}: a worker process was killed, perhaps for lack of memory: run the same command again, with fewer "
            f"--workers; it goes on where it stopped."
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Ends this process when its parent is gone, however that ended; leaves Ctrl-C to the parent."""
    import cv2  # imported here: only shrinking needs it in a worker, and it must not start threads of its own there

    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    threading.Thread(target=watch, daemon=True).start()


def write_shard(shard: Shard) -> None:
    """Writes one shard under a temporary name, notes its size and checksum beside it, and gives it its name.

    Raises:
      UserError: an original file is truncated, or the folder cannot be written.
      BadRecordError: an image cannot be decoded (only if they are shrunk).
    """
    from array_record.python import array_record_module  # imported here: takes a while, and only writing needs it

    work = shard.path.parents[1]
    temporary = work / "temporary" / f"{os.getpid()}-{shard.path.name}"
    size = 0
    try:
        writer = array_record_module.ArrayRecordWriter(str(temporary), "group_size:1")  # TFDS's option
        for entry, data in zip(shard.entries, _images(shard), strict=True):
            record = examples.encode({"image": data, **dict(zip(shard.columns, entry.values, strict=True))})
            size += len(record)
            writer.write(record)
        writer.close()
    except RuntimeError as error:  # ArrayRecord's, for a full disk
        raise UserError(f"{temporary} cannot be written ({error}): make room, or give another --data_dir.") from error
    with temporary.open("rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())  # a shard that has its name is never looked at again
    _write_text(work, f"notes/{shard.path.name}", json.dumps({"size": size, "sha256": checksum}))
    temporary.rename(shard.path)


def _images(shard: Shard) -> Iterator[bytes]:
    """The image files of a shard's records; the file in use stays open."""
    file, path = None, ""
    try:
        for entry in shard.entries:
            data = entry.image
            if isinstance(data, Extent):
                if file is None or data.path != path:
                    if file is not None:
                        file.close()
                    file, path = open(data.path, "rb"), data.path  # noqa: SIM115 (closed below)
                extent, data = data, os.pread(file.fileno(), data.size, data.offset)
                if len(data) != extent.size:
                    raise UserError(f"{path} became shorter while it was read: leave it alone, and run this again.")
            if shard.shrink is not None:
                try:
                    data = shard.shrink(data)
                except BadRecordError as error:
                    raise BadRecordError(f"{shard.where} {entry.key}: {error}") from error
            yield data
    finally:
        if file is not None:
            file.close()


class _Progress:
    """Prints how far the writing is, every few seconds."""

    def __init__(self, name: str, shards: list[Shard], missing: list[Shard]) -> None:
        self.name = name
        self.total = sum(len(shard.entries) for shard in shards)
        self.before = self.done = self.total - sum(len(shard.entries) for shard in missing)
        self.start = self.printed = time.monotonic()

    def finished(self, shard: Shard) -> None:
        """Counts a shard that was written just now."""
        self.done += len(shard.entries)
        now = time.monotonic()
        if now - self.printed < 5 and self.done < self.total:
            return
        self.printed = now
        rate = (self.done - self.before) / max(now - self.start, 1e-9)
        left = round((self.total - self.done) / max(rate, 1e-9))
        print(
            f"{self.name}: {self.done:,} of {self.total:,} images ({self.done / self.total:.0%}), {rate:,.0f} img/s, "
            f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d} left",
            flush=True,
        )


# What TFDS reads


def _write_metadata(
    original: Original, work: Path, description: str, shrink: Shrink | None, shards: list[Shard]
) -> None:
    """Writes dataset_info.json, features.json, the class names, and last the checksums of all files."""
    notes = {shard.path.name: json.loads((work / "notes" / shard.path.name).read_text()) for shard in shards}
    splits = []
    for split in original.splits:
        mine = [shard for shard in shards if shard.where == f"{original.name}:{split}"]
        splits.append(
            {
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "name": split,
                "numBytes": str(sum(notes[shard.path.name]["size"] for shard in mine)),
                "shardLengths": [str(len(shard.entries)) for shard in mine],
            }
        )
    info = {
        "description": description,
        "fileFormat": "array_record",
        "moduleName": "imgcls_jax.data.prepare",
        "name": original.name,
        "splits": splits,
        "supervisedKeys": {"tuple": {"items": [{"featureKey": "image"}, {"featureKey": "label"}]}},
        "version": original.version,
    }
    texts = {
        f"{column}.labels.txt": "\n".join(kind) + "\n"
        for column, kind in original.columns.items()
        if not isinstance(kind, str)
    }
    texts["features.json"] = json.dumps(features(original, shrink), indent=4, sort_keys=True)
    texts["dataset_info.json"] = json.dumps(info, indent=2, sort_keys=True)
    sums = {name: note["sha256"] for name, note in notes.items()}
    sums |= {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
    texts[CHECKSUMS] = json.dumps({"sha256": sums, "shrink": shrink and dataclasses.asdict(shrink)}, indent=1)
    for name, text in texts.items():
        _write_text(work, f"data/{name}", text)


def features(original: Original, shrink: Shrink | None) -> dict[str, Any]:
    """The content of TFDS's features.json."""
    image: dict[str, Any] = {"dtype": "uint8", "shape": {"dimensions": [str(n) for n in original.shape]}}
    if original.encoding or shrink is not None:
        image["encodingFormat"] = "jpeg"
    kinds: dict[str, dict[str, Any]] = {"image": {"image": image, **_class("image_feature.Image")}}
    for column, kind in original.columns.items():
        if kind == "text":
            kinds[column] = {"text": {}, **_class("text_feature.Text")}
        elif kind == "int":
            tensor = {"dtype": "int64", "encoding": "none", "shape": {}}
            kinds[column] = {"tensor": tensor, **_class("scalar.Scalar")}
        else:
            label = {"numClasses": str(len(kind))}
            kinds[column] = {"classLabel": label, **_class("class_label_feature.ClassLabel")}
    return {"featuresDict": {"features": kinds}, **_class("features_dict.FeaturesDict")}


def _class(name: str) -> dict[str, str]:
    return {"pythonClassName": f"tensorflow_datasets.core.features.{name}"}


def _write_text(work: Path, name: str, text: str) -> None:
    temporary = work / "temporary" / f"{os.getpid()}-{Path(name).name}.txt"
    temporary.write_text(text)
    temporary.rename(work / name)


# Checking


def verify(target: Path, workers: int) -> int:
    """Reads a prepared data set again and compares the checksums; returns the number of files.

    Raises:
      UserError: a file is missing or differs, or the data set has no checksums.
    """
    try:
        sums = json.loads((target / CHECKSUMS).read_text())["sha256"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{target} has no readable {CHECKSUMS}: remove it and prepare it again.") from error
    with concurrent.futures.ThreadPoolExecutor(workers) as executor:  # hashing and reading let go of the interpreter
        found = dict(zip(sums, executor.map(lambda name: sha256(target / name), sums), strict=True))
    if bad := [name for name in sums if found[name] != sums[name]]:
        raise UserError(
            f"{target} is damaged: {bad[0]}{f' and {len(bad) - 1} more files' if len(bad) > 1 else ''} "
            f"{'differs' if len(bad) == 1 else 'differ'} from what was written; remove it and prepare it again."
        )
    return len(sums)


def sha256(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal; "" if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""

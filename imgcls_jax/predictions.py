"""The files that predictions are written to: JSONL, CSV or Parquet, complete or not there, and continued after a kill.

While a run is under way its records stand in OUTPUT.partial: a line of JSON that says what is being predicted, then a
line for each image. At the end OUTPUT is made of it, under a temporary name first, and it is removed.

A record is a dict: path; then either error, why the image could not be read, or classes and probabilities, the most
likely first, and rejected, "none of these", if the threshold is not reached.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from imgcls_jax import atomic
from imgcls_jax.types import ConfigError, UserError

Record = dict[str, Any]

# Seconds between two times that the disk is asked to keep what was written: a process that is killed loses nothing, and
# a machine whose power fails no more than this.
_SYNC_SECONDS = 1.0

# Records in a row group of Parquet.
_GROUP = 10_000


class Partial:
    """OUTPUT.partial, begun or continued.

    Args:
      output: OUTPUT.
      job: what is being predicted; JSON values by name, all of which decide what the records are.
      batch_size: records that were made together; only whole batches are kept, so that those to come are made of the
        same images as if nothing had happened, and equal to the last bit.
      num_images: of the whole run.

    Attributes:
      path: OUTPUT.partial.
      done: records that are there.

    Raises:
      UserError: if the file belongs to another job.
    """

    def __init__(self, output: Path, job: Mapping[str, Any], *, batch_size: int, num_images: int) -> None:
        self.path = output.with_name(output.name + ".partial")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.done, end = self._whole_batches(dict(job), batch_size, num_images)
        self._file = self.path.open("r+b" if end else "wb")
        self._file.truncate(end)
        self._file.seek(end)
        self._synced = time.monotonic()
        if not end:
            self._write([json.dumps(job)])

    def _whole_batches(self, job: dict[str, Any], batch_size: int, num_images: int) -> tuple[int, int]:
        """(number of records in the whole batches that are there, the byte where they end); (0, 0) to begin anew."""
        if not self.path.exists():
            return 0, 0
        with self.path.open("rb") as file:
            found = _complete(file.readline())
            if found is None:  # killed before the first line was whole
                return 0, 0
            if changed := [name for name in job if found.get(name) != job[name]]:
                raise UserError(
                    f"{self.path} was begun with another {', '.join(changed)}: finish it with the command that began "
                    "it, or delete it, or name another place for what comes out."
                )
            count, kept, end = 0, 0, file.tell()
            while _complete(file.readline()) is not None:
                count += 1
                if count % batch_size == 0 or count == num_images:
                    kept, end = count, file.tell()
        return kept, end

    def add(self, records: Iterable[Record]) -> None:
        """Appends records; when this returns a kill cannot lose them."""
        self._write([json.dumps(record) for record in records])

    def _write(self, lines: list[str]) -> None:
        self._file.write("".join(f"{line}\n" for line in lines).encode())
        self._file.flush()
        if time.monotonic() - self._synced >= _SYNC_SECONDS:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def records(self) -> Iterator[Record]:
        """The records that are there, in order."""
        with self.path.open("rb") as file:
            yield from map(json.loads, itertools.islice(file, 1, None))

    def finish(self, output: Path, columns: Sequence[str]) -> None:
        """Makes OUTPUT of the records, and removes this file."""
        self.close()
        with atomic.replacing(output) as temporary:
            FORMATS[output.suffix](self.records(), temporary, columns)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        self.path.unlink()

    def close(self) -> None:
        """Closes the file, which stays."""
        self._file.close()


def _complete(line: bytes) -> dict[str, Any] | None:
    """The object that a line holds; None if it was torn by a kill, or is none."""
    try:
        found = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def check_output(output: Path) -> None:
    """Raises unless the name ends in one of FORMATS, and what writes it is installed."""
    if output.suffix not in FORMATS:
        raise ConfigError(f"--output={output} must end in one of {', '.join(FORMATS)}.")
    if output.suffix == ".parquet":
        _pyarrow()


def columns(*, task: str, top_k: int) -> list[str]:
    """The columns of a CSV file: with one label an image a pair for each of the top k, else two lists in JSON."""
    pairs = [f"{name}_{k}" for k in range(1, top_k + 1) for name in ("class", "probability")]
    return ["path", *(["classes", "probabilities"] if task == "multilabel" else pairs), "rejected", "error"]


def _jsonl(records: Iterable[Record], path: Path, columns: Sequence[str]) -> None:
    del columns
    with path.open("w", encoding="ascii") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def _csv(records: Iterable[Record], path: Path, columns: Sequence[str]) -> None:
    # A name that is not UTF-8 is written byte by byte as the file system has it.
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for record in records:
            row: dict[str, Any] = {name: record.get(name) for name in ("path", "rejected", "error")}
            for key, one in (("classes", "class"), ("probabilities", "probability")):
                values = record.get(key, [])
                if key not in columns:
                    row |= {f"{one}_{k}": value for k, value in enumerate(values, 1)}
                elif key in record:
                    row[key] = json.dumps(values)
            writer.writerow(row)


def _parquet(records: Iterable[Record], path: Path, columns: Sequence[str]) -> None:
    del columns
    pa, pq = _pyarrow()
    schema = pa.schema(
        {
            "path": pa.string(),
            "classes": pa.list_(pa.string()),
            "probabilities": pa.list_(pa.float32()),
            "rejected": pa.string(),
            "error": pa.string(),
        }
    )
    records = iter(records)
    with pq.ParquetWriter(path, schema) as writer:
        while group := list(itertools.islice(records, _GROUP)):
            for record in group:  # Parquet takes UTF-8 only; of another name the odd bytes are written as \xNN
                record["path"] = os.fsencode(record["path"]).decode("utf-8", "backslashreplace")
            writer.write_table(pa.Table.from_pylist(group, schema=schema))


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError("Parquet needs the package pyarrow; pip install 'imgcls_jax[parquet]'.") from error
    return pyarrow, pyarrow.parquet


# By the end of the file's name.
FORMATS: dict[str, Callable[[Iterable[Record], Path, Sequence[str]], None]] = {
    ".jsonl": _jsonl,
    ".csv": _csv,
    ".parquet": _parquet,
}

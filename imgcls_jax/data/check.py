"""Decodes every record of a data set and reports what is wrong with it:

    python -m imgcls_jax.data.check SOURCE [--split=SPLIT] [--data_dir=DIR] [--output=report.json]

SOURCE is what `data.name` takes. The report is JSON: the bad records with the reason for each, records with the same
content within a split or in several, the number of records by class, sizes and formats. A short form goes to the
terminal.

Content is what is stored, not what it shows: two files are the same if all their bytes are (records of a data set that
is kept as arrays: if all their pixels are). The same photograph saved twice is not found.

Exit codes: 0 every record can be read; 1 some cannot, or another error; 2 bad command line.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from imgcls_jax import atomic, cli, writers
from imgcls_jax.data import decode, sources
from imgcls_jax.data.pipeline import printable
from imgcls_jax.data.sources import Source
from imgcls_jax.types import Spec

# Records that are handed to the threads at a time, and between two updates of the progress.
CHUNK = 512

# Bad records and groups of duplicates that the terminal shows; the file has them all.
SHOWN = 20


@dataclasses.dataclass(frozen=True)
class Finding:
    """What is found out about one record.

    Attributes:
      index: its number in the split.
      file: its name, or "".
      label: as the source gives it; None if the record could not be read.
      size: (height, width), upright; None if it could not be decoded.
      format: "JPEG", "PNG", ..., or "array"; "" if it could not be decoded.
      digest: of its content; b"" if it could not be read.
      reason: why it cannot be used; "" if it can.
    """

    index: int
    file: str
    label: Any = None
    size: tuple[int, int] | None = None
    format: str = ""
    digest: bytes = b""
    reason: str = ""


def examine(source: Source, index: int, max_megapixels: float = decode.MAX_MEGAPIXELS) -> Finding:
    """Reads and decodes one record, whatever it is; never raises for a bad one."""
    try:
        record = source[index]
    except OSError as error:
        return Finding(index, printable(error.filename or ""), reason=printable(error.strerror or error))
    image, found = record["image"], Finding(index, printable(record["file"]), record["label"])
    content = image if isinstance(image, bytes) else repr(image.shape).encode() + image.tobytes()
    found = dataclasses.replace(found, digest=hashlib.blake2b(content, digest_size=16).digest())
    try:
        if isinstance(image, bytes):
            format_ = decode.file_format(image)
            image = decode.decode(image, 3, max_megapixels=max_megapixels)
        else:
            format_ = "array"
    except decode.BadRecordError as error:
        return dataclasses.replace(found, reason=printable(error))
    found = dataclasses.replace(found, size=image.shape[:2], format=format_)
    classes, count = labels_of(found.label), source.spec.num_classes
    if not all(0 <= label < count for label in classes):
        return dataclasses.replace(found, reason=f"has label {found.label}: expected 0 to {count - 1}")
    return found


def labels_of(label: int | np.ndarray) -> list[int]:
    """The class numbers of a label: one, or of a multilabel record any number."""
    return [int(label)] if np.ndim(label) == 0 else np.flatnonzero(label).tolist()


def examine_all(
    source: Source, max_megapixels: float = decode.MAX_MEGAPIXELS, progress: Callable[[int], None] = lambda done: None
) -> Iterator[Finding]:
    """The findings of a whole split, in its order; all cores work, each on one image at a time."""
    cv2.setNumThreads(0)  # the parallelism is over the records
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(source), CHUNK):
            chunk = range(start, min(start + CHUNK, len(source)))
            yield from pool.map(lambda index: examine(source, index, max_megapixels), chunk)
            progress(chunk.stop)


def summarize(spec: Spec, findings: Iterable[Finding]) -> dict[str, Any]:
    """A split's part of the report: {"num_examples", "num_bad", "bad", "class_counts", "formats", "sizes"}."""
    findings = list(findings)
    good = [f for f in findings if not f.reason]
    classes = collections.Counter(label for f in good for label in labels_of(f.label))
    return {
        "num_examples": len(findings),
        "num_bad": len(findings) - len(good),
        "bad": [{"index": f.index, "file": f.file, "reason": f.reason} for f in findings if f.reason],
        "class_counts": {name: classes[k] for k, name in enumerate(spec.class_names)},
        "formats": dict(collections.Counter(f.format for f in good).most_common()),
        "sizes": _sizes(np.array([f.size for f in good], np.int64).reshape(-1, 2)),
    }


def _sizes(sizes: np.ndarray) -> dict[str, Any]:
    """Of [N,2] heights and widths: smallest, median and largest of each, and how many have which short side."""
    if not len(sizes):
        return {}
    columns = {"height": sizes[:, 0], "width": sizes[:, 1], "short_side": sizes.min(1)}
    result: dict[str, Any] = {
        name: {"min": int(column.min()), "median": float(np.median(column)), "max": int(column.max())}
        for name, column in columns.items()
    }
    powers = collections.Counter(int(side).bit_length() for side in columns["short_side"])
    result["short_side"]["histogram"] = {f"{2 ** (p - 1)} to {2**p - 1}": powers[p] for p in sorted(powers)}
    return result


def duplicates(findings: dict[str, list[Finding]]) -> dict[str, Any]:
    """Groups of records with the same content: {"num_groups", "num_across_splits", "num_labels_differ", "groups"}."""
    groups: dict[bytes, list[tuple[str, Finding]]] = collections.defaultdict(list)
    for split, found in findings.items():
        for finding in found:
            if not finding.reason:
                groups[finding.digest].append((split, finding))
    several = [group for group in groups.values() if len(group) > 1]
    return {
        "num_groups": len(several),
        "num_across_splits": sum(len({split for split, _ in group}) > 1 for group in several),
        "num_labels_differ": sum(len({str(labels_of(f.label)) for _, f in group}) > 1 for group in several),
        "groups": [
            [{"split": split, "index": f.index, "file": f.file, "labels": labels_of(f.label)} for split, f in group]
            for group in several
        ],
    }


def check(
    name: str,
    *,
    split: str = "",
    data_dir: str | os.PathLike | None = None,
    max_megapixels: float = decode.MAX_MEGAPIXELS,
    progress: writers.Progress | None = None,
) -> dict[str, Any]:
    """The whole report on a data set.

    Args:
      name: as `data.name`.
      split: one split; "": all.
      data_dir: TFDS's folder.
      max_megapixels: images larger than that are bad.
      progress: where it shows how far it is.

    Raises:
      UserError: the data set is not there.
    """
    spec = sources.spec(name, data_dir=data_dir)
    findings: dict[str, list[Finding]] = {}
    for this in [split] if split else list(spec.splits):
        source = sources.open_source(name, this, data_dir=data_dir)

        def show(done: int, this: str = this, total: int = len(source)) -> None:
            if progress:
                progress.update(f"{name}:{this}: {done:,} of {total:,} records", force=done == total)

        findings[this] = list(examine_all(source, max_megapixels, show))
    splits = {this: summarize(spec, found) for this, found in findings.items()}
    return {
        "source": name,
        "task": spec.task,
        "num_classes": spec.num_classes,
        "max_megapixels": max_megapixels,
        "num_examples": sum(part["num_examples"] for part in splits.values()),
        "num_bad": sum(part["num_bad"] for part in splits.values()),
        "duplicates": duplicates(findings),
        "splits": splits,
    }


def table(report: dict[str, Any]) -> str:
    """The short form of a report, for the terminal."""
    lines = []
    for split, part in report["splits"].items():
        counts = list(part["class_counts"].values())
        rows = [
            ("records", f"{part['num_examples']:,}"),
            ("bad", f"{part['num_bad']:,}"),
            ("formats", ", ".join(f"{name} {count:,}" for name, count in part["formats"].items())),
            ("a class has", f"{min(counts):,} to {max(counts):,}, median {np.median(counts):,g}" if counts else ""),
        ]
        for side in ("height", "width") if part["sizes"] else ():
            numbers = part["sizes"][side]
            rows.append((side, f"{numbers['min']} to {numbers['max']}, median {numbers['median']:g}"))
        lines += [f"{report['source']}:{split}", writers.table(rows)]
        lines += [f"  bad: [{b['index']}] {b['file']}: {b['reason']}" for b in part["bad"][:SHOWN]]
        if part["num_bad"] > SHOWN:
            lines.append(f"  and {part['num_bad'] - SHOWN:,} more bad ones")
    found = report["duplicates"]
    lines.append(
        f"{found['num_groups']:,} groups of records with the same content, {found['num_across_splits']:,} of them in "
        f"several splits, {found['num_labels_differ']:,} with different labels"
    )
    for group in found["groups"][:SHOWN]:
        lines.append("  same: " + ", ".join(f"{one['split']}[{one['index']}] {one['file']}".strip() for one in group))
    return "\n".join(lines)


def write(report: dict[str, Any], path: Path) -> None:
    """Writes the report as JSON, under a temporary name first."""
    with atomic.replacing(path) as temporary:
        temporary.write_text(json.dumps(report, indent=1) + "\n")


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m imgcls_jax.data.check", description="Decodes every record of a data set and reports on it."
    )
    parser.add_argument("source", help="the data set, as data.name takes it: digits, folder:PATH, ...")
    parser.add_argument("--split", default="", help="one split; default: all")
    parser.add_argument("--data_dir", help="TFDS's folder")
    parser.add_argument("--output", type=Path, default=Path("report.json"), help="the report; default: report.json")
    parser.add_argument(
        "--max_megapixels", type=float, default=decode.MAX_MEGAPIXELS, help="larger images are bad; default: 100"
    )
    args = parser.parse_args(argv)
    progress = writers.Progress()
    report = check(
        args.source,
        split=args.split,
        data_dir=args.data_dir,
        max_megapixels=args.max_megapixels,
        progress=progress,
    )
    progress.end()
    write(report, args.output)
    print(f"{table(report)}\nThe whole report is in {args.output}.")
    return 1 if report["num_bad"] else 0


if __name__ == "__main__":
    cli.program(main)

"""Prepares a data set for reading without TensorFlow, from its original files:

    python -m imgcls_jax.data.prepare NAME [--from=PATH] [--data_dir=DIR] [--resize_short=N [--quality=Q]]
                                           [--workers=N] [--verify]

| NAME | original files |
| --- | --- |
| mnist, fashion_mnist | four idx files, gzipped or not |
| cifar10, cifar100 | the "binary version", cifar-10-binary.tar.gz |
| imagenet2012 | ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar (or one of them) |
| imagenet_v2, imagenet_a, imagenet_r | imagenetv2-matched-frequency.tar.gz, imagenet-a.tar, imagenet-r.tar |
| oxford_flowers102 | 102flowers.tgz, imagelabels.mat, setid.mat |
| i_naturalist2021 | {train,val,train_mini}.tar.gz and {...}.json.tar.gz (or one pair of them) |
| any other name | --from is an image folder, as for `folder:PATH` |

The result is what TFDS itself would have written in ArrayRecord format (prepare_shards.py), and
`tfds.data_source(NAME)` reads it. Images that are files keep their bytes. With --resize_short, the data set NAME_shortN
is written, with every image shrunk to a short side of at most N. If the command is interrupted, in whatever way, give
it again: it goes on with the first unfinished shard, and the result is the same, byte for byte.

--verify also compares the original files with their published SHA-256, and the result with its checksums; for a data
set that is there already it does only the latter.

Exit codes: 0 prepared, or already there; 1 a file is missing or damaged; 2 bad command line; 130 interrupted (Ctrl-C).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fcntl
import functools
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from imgcls_jax.data import prepare_archives, prepare_arrays, prepare_shards, sources
from imgcls_jax.data.facts import FACTS, tfds_file, tfds_path
from imgcls_jax.data.prepare_shards import Original
from imgcls_jax.data.prepare_shrink import Shrink
from imgcls_jax.types import ConfigError, UserError, nearest

# Where a package of the operating system puts the files (Debian: dataset-fashion-mnist).
SYSTEM_FOLDERS = {"fashion_mnist": Path("/usr/share/datasets/fashion-mnist")}

_IDX = [file for pair in prepare_arrays.IDX_FILES.values() for file in pair]
_INATURALIST = {"train": "train", "mini": "train_mini", "val": "val"}


def _idx(prefix: str) -> dict[str, tuple[str, ...]]:
    return {f: (f, f"{f}.gz", f.replace("-idx", ".idx"), f"{prefix}_{f}*.gz") for f in _IDX}


# By data set, by what its reader calls an original file: the names it may have; what TFDS calls it, as a pattern, last.
ORIGINALS: dict[str, dict[str, tuple[str, ...]]] = {
    "mnist": _idx("cvdf-datasets_mnist"),
    "fashion_mnist": _idx("fashion-mnist"),
    "cifar10": {"archive": ("cifar-10-binary.tar.gz", "cs.toronto.edu_kriz_cifar-10-binary*.gz")},
    "cifar100": {"archive": ("cifar-100-binary.tar.gz", "cs.toronto.edu_kriz_cifar-100-binary*.gz")},
    "imagenet2012": {"train": ("ILSVRC2012_img_train.tar",), "validation": ("ILSVRC2012_img_val.tar",)},
    "imagenet_a": {"test": ("imagenet-a.tar", "*imagenet-a*.tar")},
    "imagenet_r": {"test": ("imagenet-r.tar", "*imagenet-r*.tar")},
    "imagenet_v2": {"test": ("imagenetv2-matched-frequency.tar.gz", "*imagenetv2-matched-freq*")},
    "oxford_flowers102": {
        "images": ("102flowers.tgz", "102flowers.tar", "*flowers_102_102flowers*.tgz"),
        "labels": ("imagelabels.mat", "*flowers_102_imagelabels*.mat"),
        "splits": ("setid.mat", "*flowers_102_setid*.mat"),
    },
    "i_naturalist2021": {
        **{split: (f"{file}.tar.gz", f"{file}.tar", f"*2021_{file}.tar*.gz") for split, file in _INATURALIST.items()},
        **{
            f"{split}_json": (f"{file}.json", f"{file}.json.tar.gz", f"*2021_{file}.json*.gz")
            for split, file in _INATURALIST.items()
        },
    },
}

# Data sets of which some files may be missing: each group of files makes a split.
PARTS: dict[str, list[tuple[str, ...]]] = {
    "imagenet2012": [("train",), ("validation",)],
    "i_naturalist2021": [(split, f"{split}_json") for split in _INATURALIST],
}

READERS: dict[str, Callable[[Mapping[str, Path], Path], Original]] = {
    **{n: functools.partial(prepare_arrays.arrays, n) for n in ("mnist", "fashion_mnist", "cifar10", "cifar100")},
    "imagenet2012": prepare_archives.imagenet2012,
    "imagenet_a": prepare_archives.imagenet_like("imagenet_a", key="{file}", file_name="{file}"),
    "imagenet_r": prepare_archives.imagenet_like("imagenet_r", key="{folder}_{file}", file_name="{folder}/{file}"),
    "imagenet_v2": prepare_archives.imagenet_like("imagenet_v2", key="{folder}_{file}", file_name="{folder}/{file}"),
    "oxford_flowers102": prepare_archives.oxford_flowers102,
    "i_naturalist2021": prepare_archives.i_naturalist2021,
}


def find_files(name: str, source: Path | None, data_dir: Path) -> dict[str, Path]:
    """Where the original files of a data set are, by the names of `ORIGINALS`.

    Looks in `source`, a folder or, where one file is enough, the file; without one, in the system's folder, in TFDS's
    download folder and its folder `manual`.

    Raises:
      UserError: naming the first missing file and every folder looked in.
    """
    wanted = ORIGINALS[name]
    downloads = data_dir / "downloads"
    if source is not None:
        folders = [source]
    else:
        folders = [downloads, downloads / name, downloads / "manual", downloads / "manual" / name]
        folders[:0] = [SYSTEM_FOLDERS[name]] if name in SYSTEM_FOLDERS else []
    found: dict[str, Path] = {}
    for file, patterns in wanted.items():
        if source is not None and source.is_file() and (len(wanted) == 1 or source.name == patterns[0]):
            found[file] = source
        elif paths := [p for d in folders for pattern in patterns for p in sorted(d.glob(pattern))]:
            found[file] = paths[0]
    parts = PARTS.get(name, [tuple(wanted)])
    complete = [part for part in parts if all(file in found for file in part)]
    if not complete:
        part = max(parts, key=lambda part: sum(file in found for file in part))
        missing = next(file for file in part if file not in found)
        raise UserError(
            f"{name}: {wanted[missing][0]} is not in {' or '.join(map(str, folders))}; get the original files and run "
            f"`python -m imgcls_jax.data.prepare {name} --from=FOLDER`."
        )
    return {file: found[file] for part in complete for file in part}


def check_originals(name: str, files: Mapping[str, Path], *, verify: bool) -> None:
    """Compares original files with what TFDS knows of the published ones: sizes, which costs nothing, and checksums.

    Raises:
      UserError: `verify` is set and a checksum differs.
    """
    known: dict[str, tuple[int, str]] = {}  # size in bytes and SHA-256 by file name
    listing = tfds_file(f"datasets/{name}/checksums.tsv")
    for line in listing.read_text().splitlines() if listing else []:
        url, length, digest = line.split()[:3]
        known[url.rsplit("/", 1)[-1]] = int(length), digest
    for path in files.values():
        if path.name not in known:
            continue
        size, checksum = known[path.name]
        if path.stat().st_size != size:
            print(f"WARNING: {path} has {path.stat().st_size:,} bytes, the published file has {size:,}.", flush=True)
        elif verify:
            print(f"Comparing {path} with its published SHA-256 (about {size / 4e8:,.0f} seconds).", flush=True)
            if prepare_shards.sha256(path) != checksum:
                raise UserError(f"{path} is damaged: its SHA-256 is not {checksum}, as published; get a fresh copy.")


def read_original(name: str, source: Path | None, data_dir: Path, scratch: Path, *, verify: bool) -> Original:
    """Finds and reads the original files: all that is needed to write the data set `name`.

    Raises:
      ConfigError: the name is unknown and no image folder is given.
      UserError: a file is missing, truncated or damaged.
    """
    if name not in READERS:
        if source is None:
            raise ConfigError(
                f"prepare makes {', '.join(READERS)}, not '{name}'{nearest(name, READERS)}; any other name is for an "
                f"image folder: give it with --from=FOLDER."
            )
        if not re.fullmatch("[a-z][a-z0-9_]*", name):
            raise ConfigError(f"'{name}' cannot be the name of a data set: use small letters, digits and _.")
        try:
            return prepare_archives.image_folder(name, source)
        except UserError as error:
            hint = nearest(name, READERS)
            raise UserError(f"'{name}' is not a known data set{hint}, so --from is an image folder: {error}") from error
    files = find_files(name, source, data_dir)
    print(f"{name}: reading {', '.join(str(path) for path in files.values())}", flush=True)
    try:
        check_originals(name, files, verify=verify)
        return READERS[name](files, scratch)
    except OSError as error:
        raise UserError(f"The original files of {name} cannot be read ({error}): mend that and try again.") from error


def prepare(
    name: str,
    *,
    source: Path | None,
    data_dir: Path,
    shrink: Shrink | None = None,
    workers: int = 1,
    verify: bool = False,
) -> None:
    """Writes data set `name` under `data_dir`, unless it is there; see the module's docstring.

    Args:
      name: one of `READERS`, or a new name for an image folder.
      source: where the original files are; None looks in the usual places.
      data_dir: TFDS's folder.
      shrink: how to shrink the images; None keeps their bytes.
      workers: number of processes.
      verify: read and compare checksums, of the original files and of the result.

    Raises:
      ConfigError: the name is not known.
      UserError: a file is missing or damaged, or the folder cannot be written.
    """
    version = FACTS[name].version if name in READERS else "1.0.0"
    result = f"{name}_short{shrink.short}" if shrink else name
    target = data_dir / tfds_path(result) / version
    try:
        with _workplace(target.parent) as scratch:
            if (target / "dataset_info.json").exists():
                _check_shrink(target, shrink)
                print(f"{result} is already prepared in {target}.")
            else:
                original = read_original(name, source, data_dir, scratch, verify=verify)
                if shrink and min(original.shape) > 0:
                    raise ConfigError(f"--resize_short is for photographs: {name} is {list(original.shape)} already.")
                original = dataclasses.replace(original, name=result)
                description = _describe(name, original, shrink)
                print(f"{result}: writing {target}", flush=True)
                prepare_shards.write(original, target, description=description, shrink=shrink, workers=workers)
                images = ", ".join(f"{len(entries):,} {split}" for split, entries in original.splits.items())
                print(f"{result}: prepared {images} images in {target}.")
            for left in [scratch, *target.parent.glob(f"{prepare_shards.unfinished(version)}*")]:
                shutil.rmtree(left, ignore_errors=True)
    except OSError as error:
        raise UserError(f"{target} cannot be written ({error}): make room, or give another --data_dir.") from error
    if verify:
        count = prepare_shards.verify(target, workers)
        print(f"{result}: all {count} files in {target} are what was written.")


@contextlib.contextmanager
def _workplace(parent: Path) -> Iterator[Path]:
    """The folder of a data set, made if need be and locked; gives the name of a folder in it for temporary archives.

    Raises:
      UserError: another process is preparing the same data set.
    """
    parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(parent, os.O_RDONLY)  # let go of by the system when the process ends, in whatever way
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{parent} is being prepared by another process: wait for it to end.") from error
        yield parent / "incomplete.archives"
    finally:
        os.close(lock)
        with contextlib.suppress(OSError):
            parent.rmdir()  # where nothing came of it


def _describe(name: str, original: Original, shrink: Shrink | None) -> str:
    """The data set's description; prints a warning if its size is not the published one."""
    counts = {split: len(entries) for split, entries in original.splits.items()}
    description = f"{name}, written by imgcls_jax.data.prepare."
    if shrink:
        description += f" Images are shrunk to a short side of {shrink.short} (JPEG quality {shrink.quality})."
    published = FACTS[name].splits if name in READERS else {}
    if not published.items() <= counts.items():
        wanted = ", ".join(f"{n:,} {split}" for split, n in published.items())
        found = ", ".join(f"{n:,} {split}" for split, n in counts.items())
        description += f" NOT the published data set, which has {wanted} images: this one has {found}."
        print(f"WARNING: this is not the published {name} ({wanted} images): the files have {found}.", flush=True)
    return description


def _check_shrink(target: Path, shrink: Shrink | None) -> None:
    checksums = target / prepare_shards.CHECKSUMS
    if shrink is None or not checksums.exists():
        return
    there = json.loads(checksums.read_text())["shrink"]
    if there != dataclasses.asdict(shrink):
        raise UserError(f"{target} is prepared with JPEG quality {there['quality']}: remove it to prepare it anew.")


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m imgcls_jax.data.prepare", description="Prepares a data set from its original files."
    )
    parser.add_argument("name", help=f"the data set: {', '.join(READERS)}, or a new name for an image folder")
    parser.add_argument("--from", dest="source", type=Path, help="folder with the original files, or the image folder")
    parser.add_argument("--data_dir", type=Path, help="where to write; default: TFDS's folder")
    parser.add_argument("--resize_short", type=int, metavar="N", help="shrink images to a short side of at most N")
    parser.add_argument("--quality", type=int, metavar="Q", help="JPEG quality of shrunk images, 1 to 100; default: 90")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes; default: one a core")
    parser.add_argument("--verify", action="store_true", help="read again and compare checksums")
    args = parser.parse_args(argv)
    try:
        shrink = None
        if args.resize_short is not None:
            shrink = Shrink(args.resize_short, 90 if args.quality is None else args.quality)
            if shrink.short < 1 or not 1 <= shrink.quality <= 100:
                raise ConfigError("--resize_short is a number of pixels, at least 1, and --quality is 1 to 100.")
        elif args.quality is not None:
            raise ConfigError("--quality is for shrunk images: give --resize_short too.")
        data_dir = sources.tfds_dir(args.data_dir)
        options = {"shrink": shrink, "workers": max(1, args.workers or 1), "verify": args.verify}
        prepare(args.name, source=args.source, data_dir=data_dir, **options)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("Interrupted: the same command goes on where this one stopped.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The stream of batches: exact, whatever reads it; and errors that stop it."""

import dataclasses
import os
import pickle
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import helpers
import numpy as np
import odd_files
import pytest

from imgcls_jax import config as config_lib
from imgcls_jax import train as train_lib
from imgcls_jax import writers
from imgcls_jax.augment import host
from imgcls_jax.data import decode, order, pipeline, sources
from imgcls_jax.data.decode import BadRecordError
from imgcls_jax.data.order import Order
from imgcls_jax.types import Batch, Spec, UserError

N = 101
SHAPE = (8, 8, 3)
AUGMENT = (host.RandomResizedCrop(8), host.PadAndCrop(2), host.HorizontalFlip())


def arrays(n: int = N) -> sources.ArraySource:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, *SHAPE), dtype=np.uint8)
    return sources.ArraySource(
        images, (np.arange(n) % 7).astype(np.int32), Spec("mine", 7, tuple("abcdefg"), {"train": n})
    )


def make_files(root: Path, n: int = 24, suffix: str = "jpg") -> Path:
    rng = np.random.default_rng(0)
    for i in range(n):
        path = root / "train" / "ab"[i % 2] / f"{i:03d}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = (rng.integers(20, 40), rng.integers(20, 40), 3)
        assert cv2.imwrite(str(path), rng.integers(0, 256, size, dtype=np.uint8))
    (root / "test" / "a").mkdir(parents=True)
    assert cv2.imwrite(str(root / "test" / "a" / "x.png"), np.zeros((9, 9, 3), np.uint8))
    return root


def take(iterator: pipeline.BatchIterator, count: int) -> list[Batch]:
    batches = [next(iterator) for _ in range(count)]
    iterator.close()
    return batches


def train(source=None, *, batch_size=40, rows=None, transforms=AUGMENT, start_step=0, image_shape=SHAPE, **kwargs):
    source = arrays() if source is None else source
    return pipeline.train_batches(
        source,
        order=Order(len(source), 5),
        batch_size=batch_size,
        seed=5,
        start_step=start_step,
        rows=np.arange(batch_size) if rows is None else rows,
        image_shape=image_shape,
        transforms=transforms,
        **kwargs,
    )


def evaluate(source, *, batch_size, rows=None, transforms=(), **kwargs):
    return pipeline.eval_batches(
        source,
        batch_size=batch_size,
        rows=np.arange(batch_size) if rows is None else rows,
        image_shape=SHAPE,
        transforms=transforms,
        **kwargs,
    )


def assert_same(a: list[Batch], b: list[Batch]) -> None:
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for key in x:
            np.testing.assert_array_equal(x[key], y[key])


@pytest.mark.parametrize("transforms", [(), AUGMENT])
def test_a_batch_is_what_the_order_says(transforms):
    source = arrays()
    for step, batch in enumerate(take(train(source, transforms=transforms), 6)):
        index = Order(N, 5).indices(np.arange(step * 40, (step + 1) * 40))
        np.testing.assert_array_equal(batch["index"], index)
        np.testing.assert_array_equal(batch["label"], source.targets[index])
        assert batch["mask"].all()
        if not transforms:
            np.testing.assert_array_equal(batch["image"], source.images[index])
        kinds = {k: (v.dtype, v.shape) for k, v in batch.items()}
        assert kinds == {
            "image": (np.uint8, (40, *SHAPE)),
            "label": (np.int32, (40,)),
            "mask": (np.bool_, (40,)),
            "index": (np.int64, (40,)),
        }


def test_the_same_record_gets_other_pixels_in_another_epoch():
    batches = take(train(arrays(40), transforms=(host.RandomResizedCrop(8),)), 2)
    first, second = (b["image"][np.argsort(b["index"])] for b in batches)
    assert (first != second).any(axis=(1, 2, 3)).mean() > 0.9


@pytest.mark.parametrize(("threads", "workers"), [(8, 0), (0, 0), (2, 1), (1, 2)])
def test_threads_and_workers_do_not_change_the_stream(threads, workers, tmp_path):
    source = sources.open_source(f"folder:{make_files(tmp_path)}", "train")
    one = take(train(source, num_threads=1), 4)
    assert_same(take(train(source, num_threads=threads, num_workers=workers), 4), one)


@pytest.mark.parametrize("transforms", [(), AUGMENT])
@pytest.mark.parametrize("rows", [[0, 7, 8, 39], [39, 3], list(range(33, 40))])
def test_any_rows_are_those_rows_of_the_global_batch(transforms, rows):
    whole = take(train(transforms=transforms), 6)
    part = take(train(transforms=transforms, rows=np.array(rows)), 6)
    assert_same(part, [{k: v[rows] for k, v in batch.items()} for batch in whole])


@pytest.mark.parametrize("transforms", [(), AUGMENT])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_together_make_the_global_batch_row_for_row(transforms, processes):
    batch_size = 160  # longer than an epoch, and more than one piece a process
    whole = take(train(batch_size=batch_size, transforms=transforms), 3)
    parts = [
        take(train(batch_size=batch_size, transforms=transforms, rows=rows), 3)
        for rows in np.split(np.arange(batch_size), processes)
    ]
    joined = [{k: np.concatenate([p[k] for p in step]) for k in step[0]} for step in zip(*parts, strict=True)]
    assert_same(joined, whole)


@pytest.mark.parametrize("transforms", [(), AUGMENT])
@pytest.mark.parametrize("step", [1, 5])
def test_starting_at_a_step_is_running_to_it(transforms, step):
    assert_same(
        take(train(transforms=transforms, start_step=step), 3), take(train(transforms=transforms), step + 3)[step:]
    )


@pytest.mark.parametrize("transforms", [(), AUGMENT])
def test_starting_at_step_five_million_takes_no_time(transforms):
    take(train(transforms=transforms), 1)  # imports
    start = time.perf_counter()
    (batch,) = take(train(transforms=transforms, start_step=5_000_000), 1)
    assert time.perf_counter() - start < 1
    np.testing.assert_array_equal(batch["index"], Order(N, 5).indices(np.arange(200_000_000, 200_000_040)))


@pytest.mark.parametrize("transforms", [(), (host.Resize(8),)])
@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("batch_size", [4, 100, 101, 104, 400])
def test_evaluation_sees_each_example_once(transforms, processes, batch_size):
    source = arrays()
    steps = -(-N // batch_size)
    seen: list[int] = []
    for rows in np.array_split(np.arange(batch_size), processes):
        batches = list(evaluate(source, batch_size=batch_size, rows=rows, transforms=transforms))
        assert len(batches) == steps
        for batch in batches:
            mask, index = batch["mask"], batch["index"]
            seen += index[mask].tolist()
            np.testing.assert_array_equal(batch["image"][mask], source.images[index[mask]])
            np.testing.assert_array_equal(batch["label"][mask], source.targets[index[mask]])
            assert (index[~mask] == -1).all() and not batch["image"][~mask].any() and not batch["label"][~mask].any()
    assert sorted(seen) == list(range(N))
    in_order = [b["index"] for b in evaluate(source, batch_size=batch_size, transforms=transforms)]
    np.testing.assert_array_equal(np.concatenate(in_order)[:N], np.arange(N))


# Errors


def break_file(root: Path) -> str:
    """Truncates one JPEG of `make_files`; returns the sentence it must cause, up to the reason."""
    path = root / "train" / "b" / "013.jpg"
    path.write_bytes(path.read_bytes()[:400])
    return f"folder:{root}:train[18] (train/b/013.jpg): not a readable image"


@pytest.mark.parametrize("threads", [1, 8])
def test_a_truncated_jpeg_stops_the_stream_for_good(threads, tmp_path):
    sentence = break_file(make_files(tmp_path))
    iterator = train(sources.open_source(f"folder:{tmp_path}", "train"), batch_size=4, num_threads=threads)
    good = 0
    with pytest.raises(BadRecordError) as error:
        while True:
            assert 18 not in next(iterator)["index"]
            good += 1
    assert str(error.value).startswith(sentence)
    where = np.flatnonzero(Order(24, 5).indices(np.arange(24)) == 18)
    assert good == where[0] // 4  # every batch before the bad one, and none skipped
    for _ in range(3):
        with pytest.raises(BadRecordError):
            next(iterator)


WORKER = """
import sys
import numpy as np
from imgcls_jax.augment import host
from imgcls_jax.data import decode, order, pipeline, sources

class Unpicklable(Exception):
    def __init__(self, a, b):
        super().__init__(a)

def bug(image, rng):
    raise Unpicklable("a bug", 2)

if __name__ == "__main__":
    kind, folder = sys.argv[1:]
    source = sources.open_source(f"folder:{folder}", "train")
    iterator = pipeline.train_batches(
        source, order=order.Order(len(source), 5), batch_size=4, seed=5, start_step=0, rows=np.arange(4),
        image_shape=(8, 8, 3), transforms=(host.Resize(8), *([bug] if kind == "bug" else [])), num_workers=1)
    if kind == "unclosed":
        next(iterator)
        sys.exit()
    for _ in range(2):
        try:
            for _ in range(100):
                next(iterator)
        except Exception as error:
            print(type(error).__module__, type(error).__name__, error, sep="|", flush=True)
"""


def run_worker(kind: str, folder: Path) -> subprocess.CompletedProcess:
    """Runs WORKER, whose iterator has one worker process, on `folder/data`."""
    script = folder / "script.py"
    script.write_text(WORKER)
    command = [sys.executable, str(script), kind, str(folder / "data")]
    env = {"PYTHONPATH": str(Path(__file__).parents[1]), "PATH": "/usr/bin:/bin", "HOME": str(folder)}
    # Into files: a worker process that outlived its parent would hold pipes open, and waiting for them would not end.
    out, err = folder / "out", folder / "err"
    with out.open("w") as stdout, err.open("w") as stderr:
        code = subprocess.run(command, stdout=stdout, stderr=stderr, timeout=240, env=env).returncode
    assert code == 0, err.read_text()
    return subprocess.CompletedProcess(command, code, out.read_text(), err.read_text())


@pytest.mark.parametrize("kind", ["truncated", "bug"])
def test_an_error_in_a_worker_process_comes_out_and_does_not_hang(kind, tmp_path):
    make_files(tmp_path / "data")
    sentence = f"imgcls_jax.data.decode|BadRecordError|{break_file(tmp_path / 'data')}"
    if kind == "bug":
        sentence = f"builtins|RuntimeError|folder:{tmp_path / 'data'}:train["
    result = run_worker(kind, tmp_path)
    lines = result.stdout.splitlines()
    assert len(lines) == 2 and lines[0] == lines[1] and lines[0].startswith(sentence), result
    if kind == "bug":
        assert lines[0].endswith("Unpicklable: a bug")


def test_a_file_that_cannot_be_opened_is_a_bad_record(tmp_path):
    make_files(tmp_path)
    source = sources.open_source(f"folder:{tmp_path}", "train")
    (tmp_path / "train" / "a" / "000.jpg").unlink()
    with pytest.raises(BadRecordError, match=r"train\[0\] \(.*train/a/000\.jpg\): No such file or directory"):
        take(evaluate(source, batch_size=4, transforms=(host.Resize(8),)), 1)


def test_an_image_of_the_wrong_size_says_what_to_set(tmp_path):
    make_files(tmp_path)
    source = sources.open_source(f"folder:{tmp_path}", "train")
    with pytest.raises(UserError, match=r"train\[0\] \(train/a/000\.jpg\) is .* 8x8x3.*resize\(8\)"):
        take(evaluate(source, batch_size=4), 1)


@pytest.mark.parametrize("transforms", [(), (host.HorizontalFlip(),)])
def test_arrays_of_the_wrong_size_say_what_to_set(transforms):
    iterator = pipeline.train_batches(
        arrays(),
        order=Order(N, 0),
        batch_size=4,
        seed=0,
        start_step=0,
        rows=np.arange(4),
        image_shape=(9, 9, 3),
        transforms=transforms,
    )
    with pytest.raises(UserError, match=r"mine:train\[\d+\] is 8x8x3.*9x9x3.*resize_centre_crop\(9\)"):
        next(iterator)


class Unlabelled:
    """A source as a user may write one; the label of record 2 is missing."""

    spec = Spec("theirs", 7, tuple("abcdefg"), {"test": 3})
    split = "test"

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> dict:
        return {"image": np.zeros(SHAPE, np.uint8), "label": [0, 6, -1][index], "file": ""}


def test_a_label_out_of_range_names_the_record():
    with pytest.raises(UserError, match=r"theirs:test\[2\] has label -1: expected 0 to 6"):
        take(evaluate(Unlabelled(), batch_size=3), 1)


def test_a_split_without_records():
    with pytest.raises(UserError, match="mine:train has no records"):
        train(arrays(0))
    assert list(evaluate(arrays(0), batch_size=4)) == []


# Records that cannot be read, of many kinds


def good_files(root: Path) -> tuple[sources.Source, set[int], dict[str, str]]:
    """The odd files: (training source, indices of the bad records, reason by bad file's name)."""
    reasons = odd_files.make_folder(root)
    source = sources.open_source(f"folder:{root}", "train")
    return source, {i for i, file in enumerate(source.files) if Path(file).name in reasons}, reasons


@pytest.mark.parametrize(("threads", "workers"), [(1, 0), (8, 0), (2, 1), (1, 2)])
def test_skipped_records_are_blanks_in_their_place_and_counted(threads, workers, tmp_path, caplog):
    source, bad, reasons = good_files(tmp_path)
    steps = len(source)  # about two epochs
    iterator = train(source, batch_size=2, num_threads=threads, num_workers=workers, on_error="skip")
    batches = take(iterator, steps)
    index = Order(len(source), 5).indices(np.arange(2 * steps))
    np.testing.assert_array_equal(np.concatenate([b["index"] for b in batches]), index)
    mask, images, labels = (np.concatenate([b[key] for b in batches]) for key in ("mask", "image", "label"))
    np.testing.assert_array_equal(mask, ~np.isin(index, list(bad)))
    assert (
        any(b["mask"].all() for b in batches)
        and not images[~mask].any()
        and not labels[~mask].any()
        and images[mask].any((1, 2, 3)).all()
    )
    assert iterator.skipped == (~mask).sum() > len(bad) and "bad" not in batches[0]
    lines = [record.getMessage() for record in caplog.records]
    named = {name for name in reasons if sum(f"/{name})" in line for line in lines) == 1}
    assert len(named) == len(lines) == min(len(reasons), pipeline.NAMED)
    for name in named:
        (line,) = (line for line in lines if f"/{name})" in line)
        assert line.startswith(f"Skipped folder:{tmp_path}:train[") and re.search(reasons[name], line)


@pytest.mark.parametrize(("threads", "workers"), [(1, 0), (8, 0), (2, 1)])
def test_the_first_bad_record_of_the_stream_stops_it_by_name(threads, workers, tmp_path):
    source, bad, reasons = good_files(tmp_path)
    index = Order(len(source), 5).indices(np.arange(len(source)))
    first = next(p for p, i in enumerate(index) if i in bad)
    iterator = train(source, batch_size=4, num_threads=threads, num_workers=workers)
    take_good = [next(iterator)["index"] for _ in range(first // 4)]
    np.testing.assert_array_equal(np.concatenate([*take_good, index[:0]]), index[: first // 4 * 4])
    name = Path(source.files[index[first]]).name
    sentence = rf"train\[{index[first]}\] \(.*{re.escape(name)}\): .*{reasons[name]}"
    for _ in range(2):
        with pytest.raises(BadRecordError, match=sentence):
            next(iterator)


def test_evaluation_skips_and_counts_too(tmp_path):
    source, bad, _ = good_files(tmp_path)
    iterator = evaluate(source, batch_size=16, transforms=(host.Resize(8),), on_error="skip")
    batches = list(iterator)
    index, mask = (np.concatenate([b[key] for b in batches]) for key in ("index", "mask"))
    assert set(index[mask]) == set(range(len(source))) - bad and iterator.skipped == len(bad)
    assert set(index[~mask]) - {-1} == bad  # -1 is what fills up the last batch


def test_a_record_larger_than_the_limit_is_one_that_cannot_be_read(tmp_path):
    make_files(tmp_path)  # each of 400 to 1600 pixels
    source = sources.open_source(f"folder:{tmp_path}", "train")
    large = {i for i in range(24) if cv2.imread(str(tmp_path / source.files[i])).size > 3 * 900}
    (batch,) = take(evaluate(source, batch_size=24, transforms=(host.Resize(8),), on_error="skip",
                             max_megapixels=900 / 1e6), 1)  # fmt: skip
    assert 0 < len(large) < 24 and set(np.flatnonzero(~batch["mask"])) == large


def test_a_name_that_no_terminal_shows_is_written_out(tmp_path):
    for name in (b"a\nb.jpg", b"\xff.jpg", "\u4e2d.jpg".encode()):
        path = os.fsencode(tmp_path / "train" / "a") + b"/" + name
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(b"?")
    (tmp_path / "test" / "a").mkdir(parents=True)
    (tmp_path / "test" / "a" / "x.jpg").write_bytes(b"")
    source = sources.open_source(f"folder:{tmp_path}", "train")
    for i, name in enumerate([r"a\nb.jpg", "\u4e2d.jpg", r"\udcff.jpg"]):
        rows = np.array([i])
        with pytest.raises(BadRecordError) as error:
            next(evaluate(source, batch_size=3, rows=rows, transforms=(host.Resize(8),)))
        assert f"train[{i}] (train/a/{name}): not a readable image" in str(error.value)
        assert pickle.loads(pickle.dumps(error.value)).args == error.value.args


def test_a_run_skips_what_it_cannot_read_and_says_how_many(tmp_path):
    source, bad, reasons = good_files(tmp_path / "data")
    config = config_lib.load(f"{helpers.ROOT}/configs/vit.py:folder:{tmp_path / 'data'}")
    for key, value in {**helpers.TINY, "data.image_size": 16, "data.on_error": "skip", "total_steps": 4,
                       "model.patch_size": 8}.items():  # fmt: skip
        group, _, name = key.rpartition(".")
        (config[group] if group else config)[name] = value
    assert train_lib.train(config, tmp_path / "skip") == 0
    index = Order(len(source), config.seed).indices(np.arange(4 * 16))
    events = {e["step"]: e for e in writers.read_jsonl(tmp_path / "skip" / "metrics.jsonl") if "train/loss" in e}
    assert [events[step]["train/skipped"] for step in (1, 2, 3, 4)] == [
        np.isin(index[: step * 16], list(bad)).sum() for step in (1, 2, 3, 4)
    ]
    config.data.on_error = "raise"
    name = Path(source.files[next(i for i in index if i in bad)]).name
    with pytest.raises(BadRecordError, match=re.escape(name) + r"\): .*" + reasons[name]):
        train_lib.train(config, tmp_path / "raise")


# Parts of images


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A source of image files in memory; `whole` decodes them, so that nothing is left for the pipeline to spare."""

    files: tuple[bytes, ...]
    whole: bool
    split: str = "train"

    @property
    def spec(self) -> Spec:
        return Spec("mine", 2, ("a", "b"), {"train": len(self.files)})

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict:
        data = self.files[index]
        return {"image": decode.decode(data, 3) if self.whole else data, "label": index % 2, "file": ""}


def test_decoding_only_the_part_changes_no_bit_where_nothing_is_reduced():
    kinds = [("JPEG", {}), ("PNG", {}), ("WEBP", {}), ("JPEG", {"progressive": True}), ("GIF", {})]
    kinds += [("JPEG", {"exif": odd_files.exif(orientation)}) for orientation in (2, 3, 5, 6, 8)]
    files = tuple(
        odd_files.encode(odd_files.picture(seed, 15, 14), kind, **options) for seed, (kind, options) in enumerate(kinds)
    )
    parts, wholes = (take(train(Encoded(files, whole), batch_size=10), 5) for whole in (False, True))
    assert_same(parts, wholes)


def test_decoding_a_part_reduced_changes_pixels_little_and_the_random_numbers_not_at_all():
    files = tuple(odd_files.encode(odd_files.picture(seed, 400, 500), "JPEG") for seed in range(4))
    crop = (host.RandomResizedCrop(64), host.HorizontalFlip())
    kwargs = {"batch_size": 8, "transforms": crop, "image_shape": (64, 64, 3)}
    parts, wholes = (take(train(Encoded(files, whole), **kwargs), 3) for whole in (False, True))
    for part, whole in zip(parts, wholes, strict=True):
        np.testing.assert_array_equal(part["index"], whole["index"])
        difference = np.abs(part["image"].astype(int) - whole["image"]).mean(axis=(1, 2, 3))
        assert (difference > 0).any() and (difference < 1.5).all()  # another crop or no flip: 10 and more
    assert_same(take(train(Encoded(files, False), num_threads=8, **kwargs), 3), parts)


def test_no_more_of_a_file_is_decoded_than_the_crop_takes(monkeypatch):
    asked = []
    real = decode.decode
    files = (odd_files.encode(odd_files.picture(0, 130, 170), "JPEG"),)

    def spy(data, channels, **options):
        if data is files[0]:  # a thread that an earlier test left may still read ahead
            asked.append(options)
        return real(data, channels, **options)

    monkeypatch.setattr(decode, "decode", spy)
    take(train(Encoded(files, False), batch_size=4, num_threads=1), 1)
    rng = order.generator(5, 0, stream=1)
    assert asked[0]["box"] == host.RandomResizedCrop(8).box(130, 170, rng) and asked[0]["least"] == (8, 8)


@dataclasses.dataclass(frozen=True)
class Several(Encoded):
    """Multilabel records; the label of the last is given."""

    last: tuple[float, ...] = (0, 0, 0)

    @property
    def spec(self) -> Spec:
        return Spec("several", 3, ("a", "b", "c"), {"train": len(self.files)}, task="multilabel")

    def __getitem__(self, index: int) -> dict:
        label = np.array([index % 2, 1, 0] if index + 1 < len(self) else self.last, np.float32)
        return {**super().__getitem__(index), "label": label}


def test_labels_of_several_classes_are_rows_of_zeros_and_ones():
    files = (*[odd_files.encode(odd_files.picture(seed, 8, 8), "PNG") for seed in range(4)], b"bad")
    (batch,) = take(evaluate(Several(files, False), batch_size=6, on_error="skip"), 1)
    assert batch["label"].dtype == np.float32
    np.testing.assert_array_equal(batch["label"], [[0, 1, 0], [1, 1, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0], [0, 0, 0]])
    assert batch["mask"].tolist() == [True] * 4 + [False] * 2 and batch["index"].tolist() == [0, 1, 2, 3, 4, -1]


@pytest.mark.parametrize("label", [(0, 1), (0, 2, 0), (0, float("nan"), 1)])
def test_a_label_of_several_classes_that_makes_no_sense_names_the_record(label):
    files = tuple(odd_files.encode(odd_files.picture(seed, 8, 8), "PNG") for seed in range(2))
    with pytest.raises(UserError, match=r"several:train\[1\] has label .*: expected 3 numbers, each 0 or 1"):
        take(evaluate(Several(files, False, last=label), batch_size=2), 1)


# Resources


def test_close_ends_the_threads():
    before = threading.active_count()
    iterator = train(num_threads=4)
    next(iterator)
    assert threading.active_count() > before
    iterator.close()
    with pytest.raises(StopIteration):
        next(iterator)
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_leaving_without_close_ends_the_worker_and_says_nothing(tmp_path):
    make_files(tmp_path / "data")
    result = run_worker("unclosed", tmp_path)
    assert (result.stdout, result.stderr) == ("", "")


def test_what_is_read_ahead_is_bounded():
    class Counting(sources.ArraySource):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    read: list[int] = []
    plain = arrays()
    iterator = train(Counting(plain.images, plain.targets, plain.spec), batch_size=64, num_threads=2)
    next(iterator)
    time.sleep(0.3)
    assert len(read) <= 64 + 4 * pipeline.PIECE
    take(iterator, 20)
    assert len(read) <= 21 * 64 + 4 * pipeline.PIECE

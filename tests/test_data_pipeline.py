"""The stream of batches: exact, whatever reads it; and errors that stop it."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from imgcls_jax.augment import host
from imgcls_jax.data import pipeline, sources
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


def train(source=None, *, batch_size=40, rows=None, transforms=AUGMENT, start_step=0, **kwargs):
    source = arrays() if source is None else source
    return pipeline.train_batches(
        source,
        order=Order(len(source), 5),
        batch_size=batch_size,
        seed=5,
        start_step=start_step,
        rows=np.arange(batch_size) if rows is None else rows,
        image_shape=SHAPE,
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
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60, env=env)


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

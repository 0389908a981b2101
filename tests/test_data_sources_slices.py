"""Slices and sums of splits: the grammar, what a slice of each kind of source holds, and what one reads of it."""

import pickle

import cv2
import numpy as np
import pytest

from imgcls_jax.data import slices, sources, views
from imgcls_jax.types import ConfigError, Spec

SPEC = Spec("some", 2, ("a", "b"), {"train": 1437, "test": 360, "empty": 0})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train", [("train", 0, 1437)]),
        ("train[:]", [("train", 0, 1437)]),
        ("train[:90%]", [("train", 0, 1293)]),  # 1293.3
        ("train[90%:]", [("train", 1293, 1437)]),
        ("train[10%:20%]", [("train", 144, 287)]),
        ("train[:0.5%]", [("train", 0, 7)]),
        ("train[-10%:]", [("train", 1293, 1437)]),
        ("train[-5:]", [("train", 1432, 1437)]),
        ("train[:-1_000]", [("train", 0, 437)]),
        ("train[100:200]", [("train", 100, 200)]),
        (" train[ 10% : ] + test ", [("train", 144, 1437), ("test", 0, 360)]),
        ("test[:10]+train[5:6]+test", [("test", 0, 10), ("train", 5, 6), ("test", 0, 360)]),
        ("empty", [("empty", 0, 0)]),
    ],
)
def test_what_a_split_names(text, expected):
    parts = slices.parse(text, SPEC)
    assert [(p.split, p.start, p.stop) for p in parts] == expected
    assert slices.num_records(text, SPEC) == sum(stop - start for _, start, stop in expected)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("tain", r"some has no split 'tain' \(did you mean 'train'\?\); it has train, test, empty"),
        ("train+tset[:3]", "no split 'tset' .did you mean 'test'"),
        ("train[:1438]", r"'train\[:1438\]' reaches beyond the split: some:train has 1,437 records"),
        ("train[:101%]", "reaches beyond"),
        ("train[-1438:]", "reaches beyond"),
        ("train[5:5]", "has no records"),
        ("train[90%:10%]", "has no records"),
        ("train[:0%]", "has no records"),
        ("", "is not a split"),
        ("train+", "is not a split"),
        ("train[90%]", "is not a split"),
        ("train[:9.5]", "is not a split"),
        ("train[::2]", "is not a split"),
        ("train[:10", "is not a split"),
        ("train[a:b]", "is not a split"),
    ],
)
def test_a_split_that_makes_no_sense(text, sentence):
    with pytest.raises(ConfigError, match=sentence):
        slices.parse(text, SPEC)
    with pytest.raises(ConfigError, match="--split='"):
        slices.check("--split", text, SPEC)


@pytest.mark.parametrize("total", [1, 2, 5, 7, 150, 1437])
def test_slices_that_meet_share_nothing_and_leave_nothing_out(total):
    spec = Spec("some", 1, ("a",), {"train": total})
    for percent in range(101):
        ends = []
        for text in (
            f"train[:{percent}%]",
            f"train[{percent}%:]",
            f"train[{percent - 100}%:]" if percent < 100 else "",
        ):
            try:
                ends += [(p.start, p.stop) for p in slices.parse(text, spec)] if text else []
            except ConfigError as error:  # one of the two may be empty
                assert "has no records" in str(error)
        covered = np.concatenate([np.arange(*pair) for pair in dict.fromkeys(ends)])
        assert covered.tolist() == list(range(total)), percent


def test_whole_and_half_percents_round_as_tfds_does():
    from tensorflow_datasets.core import splits as tfds_splits

    for total in (150, 1437, 60_000, 1_281_167):
        info = {"train": tfds_splits.SplitInfo(name="train", shard_lengths=[total], num_bytes=0)}
        for percent in (1, 5, 10, 33, 50, 90, 99):
            absolute = tfds_splits.ReadInstruction.from_spec(f"train[{percent}%:]").to_absolute(info)
            assert slices.parse(f"train[{percent}%:]", Spec("x", 1, ("a",), {"train": total}))[0].start == (
                absolute[0].from_ or 0
            )


def test_val_is_validation_and_the_other_way_round():
    ours = Spec("x", 1, ("a",), {"train": 2, "validation": 3})
    inaturalist = Spec("x", 1, ("a",), {"train": 2, "val": 3})
    assert slices.num_records("val[:2]", ours) == 2 and slices.parse("val", ours)[0].split == "validation"
    assert slices.parse("validation", inaturalist)[0].split == "val"
    assert sources.eval_split(inaturalist) == "val"


def test_the_fixed_shuffling_never_changes():
    # Written down: a data set's train[:90%] must be the same records in every version and on every machine.
    assert slices.permutation(12).tolist() == [0, 2, 11, 9, 1, 8, 5, 4, 3, 10, 6, 7]
    assert sorted(slices.permutation(100_000).tolist()) == list(range(100_000))


def test_digits_are_sliced_in_stored_order_and_stay_arrays():
    whole = sources.open_source("digits", "train")
    part = sources.open_source("digits", "train[100:200]")
    assert isinstance(part, sources.ArraySource) and np.shares_memory(part.images, whole.images)
    np.testing.assert_array_equal(part.images, whole.images[100:200])
    np.testing.assert_array_equal(part.labels(), whole.labels()[100:200])
    assert part.split == "train[100:200]" and part.spec == whole.spec
    both = sources.open_source("digits", "train[:90%]+test")
    assert isinstance(both, sources.ArraySource) and len(both) == 1293 + 360
    np.testing.assert_array_equal(both.images[1293:], sources.open_source("digits", "test").images)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    for split, count in (("train", 40), ("test", 10)):
        for c in "abcde":
            (root / split / c).mkdir(parents=True)
            for i in range(count):
                assert cv2.imwrite(str(root / split / c / f"{i:02d}.png"), np.full((2, 2), i, np.uint8))
    return f"folder:{root}"


def files(source):
    return [source[i]["file"] for i in range(len(source))]


def test_a_slice_of_a_folder_is_a_sample_of_all_classes_and_slices_share_nothing(folder):
    parts = [sources.open_source(folder, f"train[{a}%:{a + 25}%]") for a in range(0, 100, 25)]
    assert [len(part) for part in parts] == [50] * 4
    for part in parts:
        assert np.abs(np.bincount(part.labels(), minlength=5) - 10).max() <= 5  # in stored order: 40, 10, 0, 0, 0
        assert files(part) == sorted(files(part))
    assert sorted(file for part in parts for file in files(part)) == files(sources.open_source(folder, "train"))


def test_a_slice_names_the_files_and_labels_of_its_records(folder):
    part = sources.open_source(folder, "train[:15]+test[40%:]")
    assert len(part) == 15 + 30 and isinstance(part, sources.ConcatSource) and part.lengths == (15, 30)
    for i in range(len(part)):
        record = part[i]
        assert record["file"].split("/")[1] == "abcde"[record["label"]]
        assert record["label"] == part.labels()[i]
    assert part[14]["file"].startswith("train/") and part[15]["file"].startswith("test/")
    assert part[-1]["file"] == part[44]["file"] and part.weights() is None
    with pytest.raises(IndexError):
        part[45]
    assert files(pickle.loads(pickle.dumps(part))) == files(part)


def test_a_record_without_a_file_is_called_by_its_place_in_the_whole_split():
    class Nameless:
        """Records as TFDS gives them where the data set has no file names."""

        spec, split = SPEC, "train"

        def __len__(self):
            return 1437

        def __getitem__(self, index):
            return {"image": b"", "label": index % 2, "file": ""}

    part = views.select("train[100:200]", SPEC, lambda split: Nameless(), by_class=False)
    assert part[7]["file"] == "some:train[107]" and part[7]["label"] == 1

"""Arrays of one's own, one class against the rest, mixtures: sources made of what is there, and runs on them."""

import dataclasses
import pickle

import cv2
import numpy as np
import pytest
from helpers import tiny_config

from imgcls_jax import build
from imgcls_jax.data import order, pipeline, sources, views
from imgcls_jax.types import ConfigError, Spec, UserError


def some_arrays(count=30, classes=3, **kwargs):
    rng = np.random.default_rng(count)
    images = rng.integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)
    return sources.from_arrays(images, np.arange(count) % classes, **kwargs)


def make_folder(root, counts):
    for c, count in counts.items():
        for split in ("train", "test"):
            (root / split / c).mkdir(parents=True)
            for i in range(count):
                assert cv2.imwrite(str(root / split / c / f"{i}.png"), np.full((8, 8), i, np.uint8))
    return f"folder:{root}"


# arrays


def test_arrays_of_any_integers_become_a_source():
    images = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)
    for labels in ([0, 2, 1], np.array([0, 2, 1], np.uint8), np.array([0, 2, 1], np.int64)):
        source = sources.from_arrays(images, labels, weights=[1, 0, 2])
        assert source.spec == Spec("arrays", 3, ("0", "1", "2"), {"train": 3})
        assert source.images.shape == (3, 4, 5, 1) and np.shares_memory(source.images, images)
        assert source.labels().tolist() == [0, 2, 1] and source.labels().dtype == np.int32
        assert source.weights().tolist() == [1.0, 0.0, 2.0] and source.weights().dtype == np.float64
    named = sources.from_arrays(images, [0, 1, 0], class_names=["a", "b", "c"], name="mine", split="test")
    assert named.spec == Spec("mine", 3, ("a", "b", "c"), {"test": 3}) and named.split == "test"


def test_arrays_of_several_labels_an_image():
    hot = np.array([[1, 0], [0, 0], [1, 1]])
    source = sources.from_arrays(np.zeros((3, 4, 4, 3), np.uint8), hot, class_names=("a", "b"))
    assert source.spec.task == "multilabel" and source.labels().dtype == np.float32
    np.testing.assert_array_equal(source[2]["label"], np.ones(2, np.float32))


@pytest.mark.parametrize(
    ("images", "labels", "kwargs", "sentence"),
    [
        (np.zeros((2, 4, 4, 3), np.float32), [0, 1], {}, "arrays:train: images are float32"),
        (np.zeros((2, 4, 4, 3), np.uint8), [0.0, 1.0], {}, "arrays:train: labels are float64: give integers"),
        (np.zeros((2, 4, 4, 3), np.uint8), [0, 1, 1], {}, r"labels are int32 \[3\]: give int32 \[2\]"),
        (np.zeros((2, 4, 4, 3), np.uint8), [0, 5], {"class_names": "ab"}, r"arrays:train\[1\] has label 5: .*0 to 1"),
        (np.zeros((2, 4, 4, 3), np.uint8), [[0, 1], [2, 0]], {}, r"arrays:train\[1\] has label 2.0: expected 0 or 1"),
        (np.zeros((1, 4, 4, 3), np.uint8), [[0, np.nan]], {}, "has label nan: expected 0 or 1"),
        (np.zeros((1, 4, 4, 3), np.uint8), [2**32], {"class_names": "ab"}, r"arrays:train\[0\] has label 2147483647"),
        (np.zeros((2, 4, 4, 3), np.uint8), [0, 1], {"weights": [1, -1]}, "weights are to be"),
        (np.zeros((2, 4, 4, 3), np.uint8), [0, 1], {"weights": [1, 1, 1]}, "weights are to be"),
        (np.zeros((2, 4, 4, 3), np.uint8), [0, 1], {"weights": [1, np.nan]}, "weights are to be"),
    ],
)
def test_arrays_that_are_no_images_and_labels(images, labels, kwargs, sentence):
    with pytest.raises(UserError, match=sentence):
        sources.from_arrays(images, labels, **kwargs)


def test_arrays_go_through_the_pipeline():
    source = some_arrays()
    batches = pipeline.train_batches(
        source,
        order=order.Order(len(source), 0),
        batch_size=10,
        seed=0,
        start_step=0,
        rows=np.arange(10),
        image_shape=(8, 8, 1),
    )
    seen = np.concatenate([next(batches)["index"] for _ in range(3)])
    assert sorted(seen.tolist()) == list(range(30))


def test_a_run_on_arrays():
    data = {
        "train": some_arrays(30, name="mine", class_names="abc"),
        "test": some_arrays(12, name="mine", class_names="abc", split="test"),
    }
    config = tiny_config(**{"data.name": "mine", "data.train_split": "train[:20]"})
    run = build.build(config, data=data)
    assert run.spec == Spec("mine", 3, ("a", "b", "c"), {"train": 30, "test": 12})
    assert run.eval_split == "test" and run.steps_per_epoch == 20 / 16
    batches = build.train_batches(run, 0)
    batch = next(batches)
    np.testing.assert_array_equal(batch["image"], data["train"].images[batch["index"]])
    assert batch["index"].max() < 20
    count, evaluated = build.eval_batches(run, "test[6:]+train[20:]")
    (batch,) = evaluated
    assert count == int(np.asarray(batch["mask"]).sum()) == 16
    with pytest.raises(ConfigError, match=r"data.name='digits', but the data that was handed in is 'mine'"):
        build.build(tiny_config(), data=data)
    data["test"] = some_arrays(12, name="mine", class_names="abd", split="test")
    with pytest.raises(ConfigError, match="class 2 is 'c' in the one and 'd' in the other"):
        build.build(config, data=data)


# one class against the rest


def test_one_class_of_arrays_against_the_rest():
    all_classes = sources.open_source("digits", "train")
    source = sources.open_source("digits", "train", positive_class="7")
    assert isinstance(source, sources.ArraySource) and source.images is all_classes.images
    np.testing.assert_array_equal(source.labels(), all_classes.labels() == 7)
    assert source.spec == sources.spec("digits", positive_class="7")
    assert source.spec == Spec("digits", 2, ("rest", "7"), {"train": 1437, "test": 360})
    part = sources.open_source("digits", "train[:10%]", positive_class="7")
    np.testing.assert_array_equal(part.labels(), source.labels()[:144])


def test_one_class_of_a_folder_against_the_rest(tmp_path):
    name = make_folder(tmp_path, {"Boot": 2, "Sandal": 3, "Shoe": 1})
    source = sources.open_source(name, "train", positive_class="Sandal")
    assert source.spec.class_names == ("rest", "Sandal") and source.spec.task == "multiclass"
    assert source.labels().tolist() == [0, 0, 1, 1, 1, 0] == [source[i]["label"] for i in range(6)]
    assert source.labels().dtype == np.int32 and source.weights() is None and source.split == "train"
    assert pickle.loads(pickle.dumps(source))[2]["file"] == "train/Sandal/0.png" == source[2]["file"]
    batches = pipeline.eval_batches(source, batch_size=6, rows=np.arange(6), image_shape=(8, 8, 1))
    assert next(batches)["label"].tolist() == [0, 0, 1, 1, 1, 0]


def test_one_of_several_labels_against_the_rest():
    hot = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 1]])
    source = sources.from_arrays(np.zeros((3, 2, 2, 1), np.uint8), hot, class_names="abc")
    binary = views.one_versus_rest(source, "c")
    assert binary.spec.task == "multiclass" and binary.labels().tolist() == [1, 0, 1]
    wrapped = views.OneVersusRestSource(source, 2, binary.spec)
    assert [wrapped[i]["label"] for i in range(3)] == [1, 0, 1]


def test_a_label_that_is_none_of_the_classes_is_not_taken_for_the_rest():
    class Wrong:
        spec, split = Spec("some", 3, ("a", "b", "c"), {"train": 2}), "train"

        def __len__(self):
            return 2

        def __getitem__(self, index):
            return {"image": np.zeros((8, 8, 1), np.uint8), "label": [1, -1][index], "file": ""}

    batches = pipeline.eval_batches(
        views.one_versus_rest(Wrong(), "b"), batch_size=2, rows=np.arange(2), image_shape=(8, 8, 1)
    )
    with pytest.raises(UserError, match=r"some:train\[1\] has label -1"):
        next(batches)


def test_a_positive_class_that_is_not_there():
    with pytest.raises(ConfigError, match=r"'Sandel' is no class of fashion_mnist .did you mean 'Sandal'"):
        sources.spec("fashion_mnist", positive_class="Sandel")
    with pytest.raises(ConfigError, match="'ten' is no class of digits; its classes: 0, 1, 2"):
        sources.open_source("digits", "train", positive_class="ten")
    with pytest.raises(ConfigError, match=r"its classes: n01440764, n.*, \.\.\.\.$") as error:
        sources.spec("imagenet2012", positive_class="fox")
    assert len(str(error.value)) < 400


def test_a_run_with_a_positive_class():
    run = build.build(tiny_config(**{"data.positive_class": "7", "data.train_split": "train[:50%]"}))
    assert run.spec.num_classes == 2 and run.spec.class_names == ("rest", "7")
    digits = sources.open_source("digits", "train")
    batch = next(build.train_batches(run, 0))
    np.testing.assert_array_equal(batch["label"], digits.labels()[batch["index"]] == 7)


# mixtures


def test_a_mixture_has_the_records_of_all_one_after_the_other(tmp_path):
    a = make_folder(tmp_path / "a", {"x": 2, "y": 3})
    b = make_folder(tmp_path / "b", {"x": 1, "y": 1})
    mixed = sources.mixture(sources.open_source(a, "train[:60%]"), [b, a])
    assert mixed.lengths == (3, 2, 5) and len(mixed) == 10
    assert mixed.labels().tolist() == [mixed[i]["label"] for i in range(10)]
    assert mixed[3]["file"] == "train/x/0.png" and mixed[9]["file"] == "train/y/2.png"
    assert mixed[-1]["file"] == mixed[9]["file"] and mixed.split == "train"
    assert mixed.spec.name == f"{a} + {b} + {a}" and dict(mixed.spec.splits) == {"train": 10}
    for index in (10, -11):
        with pytest.raises(IndexError):
            mixed[index]


def test_weights_of_a_mixture_are_1_where_a_source_has_none():
    a, b = some_arrays(2, class_names="abc"), some_arrays(3, class_names="abc")
    assert sources.ConcatSource((a, b), a.spec, "train").weights() is None
    b = dataclasses.replace(b, record_weights=np.array([0.5, 2, 0]))
    assert sources.ConcatSource((a, b), a.spec, "train").weights().tolist() == [1, 1, 0.5, 2, 0]


@pytest.mark.parametrize(
    ("counts", "sentence"),
    [
        ({"x": 1, "y": 1, "z": 1}, "cannot be mixed: 2 and 3 classes"),
        ({"x": 1, "z": 1}, "class 1 is 'y' in the one and 'z' in the other"),
    ],
)
def test_data_sets_of_other_classes_are_not_mixed(tmp_path, counts, sentence):
    a = make_folder(tmp_path / "a", {"x": 1, "y": 1})
    b = make_folder(tmp_path / "b", counts)
    with pytest.raises(ConfigError, match=sentence) as error:
        sources.mixture(sources.open_source(a, "train"), [b])
    assert str(tmp_path / "b") in str(error.value)


def test_one_label_and_several_are_not_mixed():
    one = some_arrays(4, 2)
    several = sources.from_arrays(np.zeros((1, 8, 8, 1), np.uint8), [[0, 1]])
    with pytest.raises(ConfigError, match="one is multiclass, the other multilabel"):
        sources.ConcatSource((one, several), one.spec, "train")


@pytest.mark.parametrize("mix", [("digits",), (("digits",),), (("digits", 0.0),), ((3, 1.0),), (("a", float("inf")),)])
def test_a_mix_that_makes_no_sense(mix):
    with pytest.raises(ConfigError, match=r"data.mix has the entry"):
        sources.check_mix(mix)
    sources.check_mix((("folder:/b", 0.5), ["digits", 2]))


def test_a_run_trains_on_the_mix_and_evaluates_on_the_data_set_alone(tmp_path):
    a = make_folder(tmp_path / "a", {"x": 9, "y": 9})
    b = make_folder(tmp_path / "b", {"x": 2, "y": 2})
    run = build.build(tiny_config(**{"data.name": a, "data.mix": ((b, 0.5),)}))
    assert run.steps_per_epoch == 18 / 16
    batches = build.train_batches(run, 0)
    index = np.concatenate([next(batches)["index"] for _ in range(11)])
    batches.close()
    assert set(index.tolist()) == set(range(22))
    count, evaluated = build.eval_batches(run, run.eval_split)
    assert count == int(np.asarray(next(evaluated)["mask"]).sum()) == 18

"""TFDS's prepared data sets, read back: what features there may be, configurations, shrunk variants, labels alone.

They are written by TFDS itself, so that the format is TFDS's and not ours.
"""

import concurrent.futures
import logging
import multiprocessing
import pickle
import sys

import cv2
import numpy as np
import pytest

from imgcls_jax.data import examples, facts, sources, tfds
from imgcls_jax.types import ConfigError, UserError

NAMES = ["ant", "bee", "cow"]
REAL = [[], [2], [0, 1]]


def png(value, shape=(4, 5)):
    return cv2.imencode(".png", np.full(shape, value, np.uint8))[1].tobytes()


def prepare(
    data_dir, name, *, version="1.0.0", split="test", shape=(None, None, 1), several=False, extra=None, count=9
):
    """Writes `count` records, with the feature real_label if `several`, else label; `extra`: more features."""
    import tensorflow_datasets

    features, core = tensorflow_datasets.features, tensorflow_datasets.core
    label = "real_label" if several else "label"
    of_label = features.ClassLabel(names=NAMES)
    columns = {"image": features.Image(shape=shape), label: features.Sequence(of_label) if several else of_label}
    columns |= {key: feature for key, (feature, _) in (extra or {}).items()}

    written_as = name.replace("/", "_")

    class Builder(core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = core.Version(version)
        name = written_as

        def _info(self):
            return core.DatasetInfo(
                builder=self, features=features.FeaturesDict(columns), supervised_keys=("image", label)
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples()}

        def _generate_examples(self):
            for i in range(count):
                values = {key: value(i) for key, (_, value) in (extra or {}).items()}
                yield i, {"image": png(i), label: REAL[i % 3] if several else i % 3, **values}

    builder = Builder(data_dir=data_dir / "writing", file_format="array_record")
    builder.download_and_prepare()
    target = data_dir / name / version
    target.parent.mkdir(parents=True, exist_ok=True)
    (data_dir / "writing" / written_as / version).rename(target)
    return target


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


def value(record):
    return int(cv2.imdecode(np.frombuffer(record["image"], np.uint8), 0)[0, 0])


def test_several_labels_an_image_as_imagenet_real_has_them(cache):
    import tensorflow_datasets

    features = tensorflow_datasets.features
    extra = {
        "file_name": (features.Text(), lambda i: f"{i}.JPEG"),
        "original_label": (features.ClassLabel(names=["x", "y"]), lambda i: i % 2),
    }
    prepare(cache, "imagenet2012_real", split="validation", several=True, extra=extra)
    spec = sources.spec("imagenet2012_real")
    assert spec.task == "multilabel" and spec.class_names == tuple(NAMES) and dict(spec.splits) == {"validation": 9}
    source = sources.open_source("imagenet2012_real", "validation")
    hot = np.array([[0, 0, 0], [0, 0, 1], [1, 1, 0]], np.float32)
    for i in range(9):
        record = source[i]
        np.testing.assert_array_equal(record["label"], hot[value(record) % 3])
        assert record["label"].dtype == np.float32 and record["file"] == f"{value(record)}.JPEG"
    np.testing.assert_array_equal(source.labels(), [source[i]["label"] for i in range(9)])
    builder = tensorflow_datasets.builder_from_directory(cache / "imagenet2012_real" / "1.0.0")
    stock = builder.as_data_source("validation", decoders={"image": tensorflow_datasets.decode.SkipDecoding()})
    for ours, theirs in zip(map(source.__getitem__, range(9)), stock, strict=True):
        assert (ours["image"], ours["file"]) == (theirs["image"], theirs["file_name"].decode())
        assert np.flatnonzero(ours["label"]).tolist() == list(theirs["real_label"])


def test_labels_are_read_once_and_kept(cache, caplog, monkeypatch):
    prepare(cache, "mine")
    source = sources.open_source("mine", "test")
    assert isinstance(source, tfds.TfdsSource)
    with caplog.at_level(logging.WARNING):
        labels = source.labels()
    assert labels.dtype == np.int32 and labels.tolist() == [value(source[i]) % 3 for i in range(9)]
    assert "mine:test: reading all labels" in caplog.text
    again = sources.open_source("mine", "test[3:5]")
    monkeypatch.setattr(tfds.TfdsSource, "chunks", None)  # a second reading would need it
    assert again.labels().tolist() == labels[3:5].tolist()
    assert source.weights() is None and again.weights() is None


def test_labels_that_cannot_be_kept_are_read_anyway(cache, monkeypatch):
    prepare(cache, "mine")
    (cache.parent / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parent / "file"))
    assert sorted(sources.open_source("mine", "test").labels().tolist()) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_small_images_of_several_labels_are_arrays(cache):
    prepare(cache, "mine", shape=(4, 5, 1), several=True)
    for _ in range(2):  # written to the cache, then read from it
        source = sources.open_source("mine", "test")
        assert isinstance(source, sources.ArraySource) and source.images.shape == (9, 4, 5, 1)
        expected = [[float(c in REAL[v % 3]) for c in range(3)] for v in source.images[:, 0, 0, 0]]
        assert source.labels().tolist() == expected
    part = sources.open_source("mine", "test[30%:]")
    np.testing.assert_array_equal(part.images, source.images[3:])


def test_slices_are_those_that_tfds_takes(cache):
    prepare(cache, "mine")
    import tensorflow_datasets

    builder = tensorflow_datasets.builder_from_directory(cache / "mine" / "1.0.0")
    whole = [value(r) for r in map(sources.open_source("mine", "test").__getitem__, range(9))]
    assert sorted(whole) == list(range(9)) != whole  # stored shuffled
    for text in ("test[:4]", "test[25%:]", "test[-3:]", "test[2:4]+test[:1]"):
        ours = sources.open_source("mine", text)
        theirs = builder.as_data_source(text, decoders={"image": tensorflow_datasets.decode.SkipDecoding()})
        assert [value(ours[i]) for i in range(len(ours))] == [value(r) for r in theirs]


def test_a_source_survives_the_way_to_a_worker(cache):
    prepare(cache, "mine", extra=None)
    source = pickle.loads(pickle.dumps(sources.open_source("mine", "test[4:]", positive_class="cow")))
    assert len(source) == 5 and source[0]["label"] == (value(source[0]) % 3 == 2)
    assert source[0]["file"] == "mine:test[4]"  # nothing in the record says a name


def labels_and_modules(source, indices):
    """In a process of its own: what it reads, and whether that needed TFDS."""
    return [source[i]["label"] for i in indices], "tensorflow_datasets" in sys.modules


def test_threads_and_processes_read_what_one_reads_and_need_no_tfds(cache):
    prepare(cache, "mine", count=200)
    source = sources.open_source("mine", "test")
    expected = [source[i] for i in range(200)]
    order = np.random.default_rng(0).integers(200, size=2000).tolist()
    fresh = sources.open_source("mine", "test")
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        for i, record in zip(order, threads.map(fresh.__getitem__, order), strict=True):
            assert record == expected[i]
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, spawn) as processes:
        labels, needed = processes.submit(labels_and_modules, source, order).result(timeout=60)
    assert labels == [expected[i]["label"] for i in order] and not needed


def test_configurations_are_folders_of_their_own(cache):
    with pytest.raises(UserError, match=r"tfds build imagenet_v2/topimages --file_format=array_record"):
        sources.open_source("imagenet_v2/topimages", "test")
    assert sources.spec("imagenet_v2/threshold-0.7").num_classes == 1000
    with pytest.raises(ConfigError, match="There is no data set 'imagenet_v2/top'"):
        sources.spec("imagenet_v2/top")
    prepare(cache, "imagenet_v2/topimages", version="3.0.0", count=2)
    assert sources.spec("imagenet_v2").splits["test"] == 10_000  # its default is not prepared
    prepare(cache, "imagenet_v2/matched-frequency", version="3.0.0", count=4)
    assert [len(sources.open_source(n, "test")) for n in ("imagenet_v2", "imagenet_v2/topimages")] == [4, 2]
    assert len(sources.open_source("imagenet_v2/topimages", "test").labels()) == 2


def test_smaller_variants_are_data_sets_of_their_own(cache):
    with pytest.raises(UserError, match=r"imgcls_jax.data.prepare cifar10 --from=FOLDER --resize_short=24`"):
        sources.open_source("cifar10_short24", "train")
    assert sources.spec("cifar10_short24").splits == facts.FACTS["cifar10"].splits
    assert sources.spec("imagenet_v2/topimages_short256").num_classes == 1000
    with pytest.raises(ConfigError, match="There is no data set 'cifar10_short'"):
        sources.spec("cifar10_short")
    prepare(cache, "cifar10_short24")
    assert sources.spec("cifar10_short24").class_names == tuple(NAMES)
    assert len(sources.open_source("cifar10_short24", "test")) == 9


def test_damage_is_an_error_of_the_record_or_of_the_data_set(cache):
    folder = prepare(cache, "mine")
    source = sources.open_source("mine", "test")
    (shard,) = folder.glob("*.array_record*")
    data = bytearray(shard.read_bytes())
    data[100:400] = bytes(300)
    shard.write_bytes(data)
    source = sources.open_source("mine", "test")
    with pytest.raises(OSError, match=r"mine/1.0.0 is damaged"):
        source[0]
    with pytest.raises(UserError, match=r"mine/1\.0\.0 is damaged .*: remove it and prepare it"):
        source.labels()


def test_a_shard_that_is_missing_is_named(cache):
    folder = prepare(cache, "mine")
    (shard,) = folder.glob("*.array_record*")
    shard.unlink()
    with pytest.raises(UserError, match=rf"mine/1\.0\.0 is damaged \({shard.name} is missing\): remove it and prepare"):
        sources.open_source("mine", "test")


@pytest.mark.parametrize("damage", ["cut", "no image", "no label"])
def test_a_record_that_holds_no_example_is_a_bad_record(damage, cache):
    from array_record.python import array_record_module

    folder = prepare(cache, "mine", count=3)
    (shard,) = folder.glob("*.array_record*")
    good = examples.encode({"image": png(1), "label": 2})
    bad = {
        "cut": good[:-3],
        "no image": examples.encode({"label": 1}),
        "no label": examples.encode({"image": png(1)}),
    }[damage]
    writer = array_record_module.ArrayRecordWriter(str(shard), "group_size:1")
    for record in (good, bad, good):
        writer.write(record)
    writer.close()
    source = sources.open_source("mine", "test")
    assert source[0]["label"] == source[2]["label"] == 2 and value(source[0]) == 1
    with pytest.raises(OSError, match=r"mine/1.0.0 is damaged \(.*(truncated|has 0 values)"):
        source[1]


def test_a_data_set_without_a_class_label_is_refused(cache):
    import tensorflow_datasets

    features = tensorflow_datasets.features
    folder = prepare(cache, "mine", extra={"caption": (features.Text(), str)})
    text = (folder / "features.json").read_text()
    (folder / "features.json").write_text(text.replace('"label"', '"other"'))
    with pytest.raises(UserError, match="has features caption, image, other: expected an image and a class label"):
        sources.spec("mine")


def test_facts_are_those_of_tfds():
    """Versions and class names of the data sets that TFDS has as modules of their own; counts are published there."""
    import importlib

    for name, found in facts.FACTS.items():
        try:
            module = importlib.import_module(f"tensorflow_datasets.datasets.{name}.{name}_dataset_builder")
        except ModuleNotFoundError:
            continue
        assert str(module.Builder.VERSION) == found.version
        if found.configs:
            assert tuple(c.name for c in module.Builder.BUILDER_CONFIGS) == found.configs
        if name == "oxford_flowers102":
            assert found.class_names == tuple(module._NAMES)
    assert sum(facts.FACTS["oxford_flowers102"].splits.values()) == 8189

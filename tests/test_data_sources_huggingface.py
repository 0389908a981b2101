"""Hugging Face data sets: written by `datasets` itself, read through its extra. Run with -m parity."""

import pickle
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imgcls_jax.data import order, pipeline, sources
from imgcls_jax.types import UserError

ROOT = Path(__file__).parents[1]


def png(value):
    file = BytesIO()
    Image.fromarray(np.full((6, 5, 3), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_without_the_extra_one_sentence_says_what_to_install(tmp_path):
    (tmp_path / "datasets.py").write_text("raise ImportError('not installed')\n")
    code = "import sys; from imgcls_jax.data import sources; from imgcls_jax import cli\n"
    code += "sys.exit(cli.run(lambda argv: sources.spec(argv[0]), ['hf:owner/name']))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": ""},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.strip() == "error: hf:owner/name needs the package datasets: pip install 'imgcls_jax[hf]'."


@pytest.mark.parametrize("path", ["/nowhere/photos", "./photos", "~/no/such/photos", "a/b/c"])
def test_a_path_that_is_not_there_is_not_looked_for_on_the_hub(path):
    with pytest.raises(UserError, match=r"photos does not exist|a/b/c does not exist"):
        sources.spec(f"hf:{path}")


def make(several=False, count=12, label="label"):
    import datasets

    inner = datasets.ClassLabel(names=["ant", "bee", "cow"])
    labels = [[], [2], [0, 1]] * count if several else [0, 1, 2] * count
    columns = {
        "note": [f"n{i}" for i in range(count)],
        "picture": [{"bytes": png(i), "path": f"{i}.png"} for i in range(count)],
        label: labels[:count],
    }
    features = datasets.Features(
        {
            "note": datasets.Value("string"),
            "picture": datasets.Image(),
            label: datasets.List(inner) if several else inner,
        }
    )
    return datasets.Dataset.from_dict(columns, features=features)


def value(record):
    return int(np.asarray(Image.open(BytesIO(record["image"])))[0, 0, 0])


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch, request):
    if "parity" in request.keywords:
        import datasets

        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        datasets.disable_progress_bars()


@pytest.mark.parity
def test_what_save_to_disk_wrote(tmp_path):
    import datasets

    datasets.DatasetDict({"train": make(), "test": make(count=5)}).save_to_disk(tmp_path / "all")
    name = f"hf:{tmp_path}/all"
    spec = sources.spec(name)
    assert spec.class_names == ("ant", "bee", "cow") and spec.task == "multiclass" and spec.name == name
    assert dict(spec.splits) == {"train": 12, "test": 5}
    source = sources.open_source(name, "train")
    for i in range(12):
        assert (value(source[i]), source[i]["label"], source[i]["file"]) == (i, i % 3, f"{i}.png")
        assert type(source[i]["label"]) is int and type(source[i]["image"]) is bytes
    assert source[4]["image"] == png(4)  # still encoded, byte for byte
    assert source.labels().tolist() == [0, 1, 2] * 4 and source.labels().dtype == np.int32
    assert source.weights() is None
    again = pickle.loads(pickle.dumps(source))
    assert again[3] == source[3]
    parts = [sources.open_source(name, text) for text in ("train[:50%]", "train[50%:]")]
    assert sorted(value(p[i]) for p in parts for i in range(6)) == list(range(12))
    assert {value(parts[0][i]) for i in range(6)} != set(range(6))  # not in stored order
    bees = sources.open_source(name, "test", positive_class="bee")
    assert bees.labels().tolist() == [0, 1, 0, 0, 1]


@pytest.mark.parity
def test_one_without_splits_is_train_and_goes_through_threads_and_workers(tmp_path):
    make().save_to_disk(tmp_path / "one")
    source = sources.open_source(f"hf:{tmp_path}/one", "train")
    for workers in (0, 1):
        batches = pipeline.train_batches(
            source,
            order=order.Order(12, 0),
            batch_size=4,
            seed=0,
            start_step=0,
            rows=np.arange(4),
            image_shape=(6, 5, 3),
            num_workers=workers,
        )
        for batch in (next(batches) for _ in range(3)):
            np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["index"])
            np.testing.assert_array_equal(batch["label"], batch["index"] % 3)
        batches.close()


@pytest.mark.parity
def test_a_list_of_class_labels_is_multi_hot(tmp_path):
    make(several=True, label="kinds").save_to_disk(tmp_path / "all")
    source = sources.open_source(f"hf:{tmp_path}/all", "train")
    assert source.spec.task == "multilabel"
    expected = np.array([[0, 0, 0], [0, 0, 1], [1, 1, 0]] * 4, np.float32)
    np.testing.assert_array_equal(source.labels(), expected)
    np.testing.assert_array_equal([source[i]["label"] for i in range(12)], expected)


@pytest.mark.parity
def test_a_folder_of_parquet_files(tmp_path):
    (tmp_path / "data").mkdir()
    for split, count in (("train", 7), ("validation", 3)):
        make(count=count).to_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    spec = sources.spec(f"hf:{tmp_path}")
    assert dict(spec.splits) == {"train": 7, "validation": 3} and spec.class_names == ("ant", "bee", "cow")
    assert value(sources.open_source(f"hf:{tmp_path}", "validation")[2]) == 2


@pytest.mark.parity
def test_a_folder_of_images(tmp_path):
    for split in ("train", "test"):
        for c in ("cat", "dog"):
            (tmp_path / "photos" / split / c).mkdir(parents=True)
            for i in range(3):
                (tmp_path / "photos" / split / c / f"{i}.png").write_bytes(png(i))
    source = sources.open_source(f"hf:{tmp_path}/photos", "train")
    assert source.spec.class_names == ("cat", "dog") and source.labels().tolist() == [0, 0, 0, 1, 1, 1]
    assert source[4]["image"] == png(1) and source[4]["file"] == str(tmp_path / "photos/train/dog/1.png")
    (tmp_path / "photos/train/dog/1.png").unlink()
    with pytest.raises(OSError, match=r"dog/1\.png"):
        source[4]


@pytest.mark.parity
def test_data_sets_that_are_none(tmp_path):
    import datasets

    make().remove_columns("picture").save_to_disk(tmp_path / "blind")
    with pytest.raises(UserError, match=r"columns note \(Value\), label \(ClassLabel\): expected one of type Image"):
        sources.spec(f"hf:{tmp_path}/blind")
    make().cast_column("label", datasets.Value("int64")).save_to_disk(tmp_path / "numbers")
    with pytest.raises(UserError, match=r"expected one of type ClassLabel.*class_encode_column\('label'\)"):
        sources.spec(f"hf:{tmp_path}/numbers")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty cannot be loaded") as error:
        sources.spec(f"hf:{tmp_path}/empty")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"hf:owner/name cannot be loaded"):
        sources.spec("hf:owner/name")


@pytest.mark.parity
def test_no_code_of_a_data_set_is_run(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "set.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(UserError, match="cannot be loaded"):
        sources.spec(f"hf:{tmp_path}/set")
    assert not (tmp_path / "ran").exists()

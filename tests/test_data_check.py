"""The report on a data set: bad files and no others, duplicates, counts, sizes."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import odd_files
import pytest

from imgcls_jax import cli
from imgcls_jax.data import check, sources
from imgcls_jax.types import Spec


def test_a_folder_of_odd_files_has_each_bad_one_named_and_no_other(tmp_path, capsys):
    reasons = odd_files.make_folder(tmp_path / "data")
    output = tmp_path / "reports" / "report.json"
    assert check.main([f"folder:{tmp_path / 'data'}", f"--output={output}"]) == 1
    report = json.loads(output.read_text())
    train = report["splits"]["train"]
    assert train["num_examples"] == len(odd_files.good()) + 1 + len(reasons) > 45
    bad = {Path(record["file"]).name: record["reason"] for record in train["bad"]}
    assert bad.keys() == reasons.keys()
    assert [name for name, reason in bad.items() if not re.search(reasons[name], reason)] == []
    assert report["num_bad"] == train["num_bad"] == len(reasons) and report["splits"]["test"]["num_bad"] == 0
    source = sources.open_source(f"folder:{tmp_path / 'data'}", "train")
    assert all(Path(source.files[record["index"]]).name == Path(record["file"]).name for record in train["bad"])
    printed = capsys.readouterr()
    assert re.search(rf"bad +{len(reasons)}\n", printed.out) and "bomb.png: it has 20000 x 20000 pixels" in printed.out
    assert f"train: {train['num_examples']} of {train['num_examples']} records" in printed.err
    assert list(output.parent.iterdir()) == [output]


def write(root: Path, files: dict[str, bytes]) -> str:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return f"folder:{root}"


def test_the_same_content_is_found_within_and_across_splits(tmp_path):
    one, two, three = (odd_files.encode(odd_files.picture(seed), "PNG") for seed in range(3))
    name = write(
        tmp_path,
        {
            "train/a/0.png": one, "train/a/1.png": two, "train/b/2.png": one, "train/b/3.jpg": three,
            "test/a/4.png": two, "test/a/empty.png": b"", "test/b/empty.png": b"",
        },
    )  # fmt: skip
    found = check.check(name)["duplicates"]
    groups = [[(record["split"], record["index"], record["file"]) for record in group] for group in found["groups"]]
    assert groups == [
        [("train", 0, "train/a/0.png"), ("train", 2, "train/b/2.png")],
        [("train", 1, "train/a/1.png"), ("test", 0, "test/a/4.png")],
    ]
    assert (found["num_groups"], found["num_across_splits"], found["num_labels_differ"]) == (2, 1, 1)
    assert check.check(name, split="train")["duplicates"]["num_groups"] == 1


def test_classes_formats_and_sizes_are_counted(tmp_path):
    sizes = {"a/0": (8, 16), "a/1": (9, 31), "a/2": (64, 7), "b/3": (100, 200)}
    name = write(
        tmp_path,
        {
            f"train/{file}.jpg": odd_files.encode(odd_files.picture(seed, *size), "JPEG" if seed else "PNG")
            for seed, (file, size) in enumerate(sizes.items())
        }
        | {"test/a/x.jpg": b"", "train/b/bad.jpg": b"?"},
    )
    part = check.check(name)["splits"]["train"]
    assert part["class_counts"] == {"a": 3, "b": 1} and part["formats"] == {"JPEG": 3, "PNG": 1}
    assert part["sizes"] == {
        "height": {"min": 8, "median": 36.5, "max": 100},
        "width": {"min": 7, "median": 23.5, "max": 200},
        "short_side": {
            "min": 7, "median": 8.5, "max": 100, "histogram": {"4 to 7": 1, "8 to 15": 2, "64 to 127": 1}
        },
    }  # fmt: skip
    assert check.check(name)["splits"]["test"] == {
        "num_examples": 1, "num_bad": 1, "bad": [{"index": 0, "file": "test/a/x.jpg", "reason": "the file is empty"}],
        "class_counts": {"a": 0, "b": 0}, "formats": {}, "sizes": {},
    }  # fmt: skip


def test_a_clean_data_set_is_exit_code_0_and_a_wrong_name_2(tmp_path):
    """As a user calls it; digits has no files and no network is needed."""
    command = [sys.executable, "-m", "imgcls_jax.data.check", "digits", "--split=test"]
    env = {"PYTHONPATH": str(Path(__file__).parents[1]), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and json.loads((tmp_path / "report.json").read_text())["num_examples"] == 360, done
    assert cli.run(check.main, ["digts"]) == 2


class Labels:
    """Records whose labels are as given; images are alike."""

    split = "train"

    def __init__(self, labels: list, task: str) -> None:
        self.labels, self.spec = labels, Spec("mine", 3, ("a", "b", "c"), {"train": len(labels)}, task)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict:
        return {"image": np.zeros((4, 4, 3), np.uint8), "label": self.labels[index], "file": ""}


@pytest.mark.parametrize(
    ("task", "labels", "counts", "bad"),
    [
        ("multiclass", [0, 2, 2, 3, -1], {"a": 1, "b": 0, "c": 2}, [3, 4]),
        (
            "multilabel",
            [np.array(x, np.float32) for x in ([1, 0, 1], [0, 0, 1], [0, 0, 0])],
            {"a": 1, "b": 0, "c": 2},
            [],
        ),
    ],
)
def test_labels_of_both_tasks(task, labels, counts, bad):
    source = Labels(labels, task)
    part = check.summarize(source.spec, check.examine_all(source))
    assert part["class_counts"] == counts and [record["index"] for record in part["bad"]] == bad

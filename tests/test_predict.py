"""Predict: the probabilities of evaluation, a line for every image, and the same result after a kill."""

import csv
import io
import json
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import cv2
import jax
import numpy as np
import odd_files
import pytest
from helpers import start_main, tiny_config

from imgcls_jax import build, cli, evaluate, predict, predictions, train
from imgcls_jax import eval as eval_binary
from imgcls_jax import judge as judge_lib
from imgcls_jax.data import sources
from imgcls_jax.metrics import calibration
from imgcls_jax.types import ConfigError, UserError

JOB = {"step": 20, "list of images": "abc"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A work directory after 20 steps."""
    workdir = tmp_path_factory.mktemp("run") / "w"
    assert train.train(tiny_config(), workdir) == 0
    return workdir


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The test split of digits as files, named so that natural order is that of the split."""
    folder = tmp_path_factory.mktemp("digits")
    source = sources.open_source("digits", "test")
    for i in range(len(source)):
        assert cv2.imwrite(str(folder / f"digit {i}.png"), source[i]["image"])
    return folder


@pytest.fixture(scope="module")
def thousand(tmp_path_factory):
    """1,000 small photos, 37 of them broken in all ways: (folder, the names of those)."""
    folder = tmp_path_factory.mktemp("thousand")
    bad = [data for data, _ in odd_files.bad().values()]
    good = [odd_files.encode(odd_files.picture(seed), "JPEG") for seed in range(20)]
    broken = {int(i): k for k, i in enumerate(np.random.default_rng(0).choice(1000, 37, replace=False))}
    for i in range(1000):
        (folder / f"{i}.jpg").write_bytes(bad[broken[i] % len(bad)] if i in broken else good[i % 20])
    return folder, {f"{i}.jpg" for i in broken}


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def main(workdir, *flags):
    return predict.main([f"--workdir={workdir}", *map(str, flags)])


def test_the_probabilities_are_those_of_evaluation(run, digits, tmp_path):
    assert main(run, digits, f"--output={tmp_path / 'a.jsonl'}", "--top_k=10", "--batch_size=40") == 0
    records = read(tmp_path / "a.jsonl")
    want = evaluate.read_predictions(run, "test")
    assert [record["path"] for record in records] == [f"{digits}/digit {i}.png" for i in want["index"]]
    assert [record["classes"][0] for record in records] == want["class_names"][want["prediction"]].tolist()
    got = np.array([record["probabilities"] for record in records])
    np.testing.assert_allclose(got[:, 0], want["confidence"], rtol=1e-6)
    assert (np.diff(got, axis=1) <= 0).all() and got.shape == (360, 10)
    np.testing.assert_allclose(got.sum(axis=1), 1, rtol=1e-5)
    label = want["class_names"][want["label"]]  # the probability of each label is exp(-nll)
    own = [record["probabilities"][record["classes"].index(c)] for record, c in zip(records, label, strict=True)]
    np.testing.assert_allclose(own, np.exp(-want["nll"]), rtol=1e-5)


def test_probabilities_are_calibrated_by_the_temperature_of_the_checkpoint(run, digits, tmp_path, capsys):
    workdir = shutil.copytree(run, tmp_path / "w")
    *_, found = eval_binary.examples(tiny_config(), workdir, "test", None, ema=False)
    fitted = evaluate.Temperature(0.05, "test", 20, False, 1, 1, 1, 1)
    evaluate.write_temperature(workdir, fitted)
    assert main(workdir, digits, f"--output={tmp_path / 'a.jsonl'}", "--top_k=1") == 0
    got = [record["probabilities"][0] for record in read(tmp_path / "a.jsonl")]
    np.testing.assert_allclose(got, calibration.confidence(found.logits, 0.05), rtol=1e-5)
    assert "not calibrated" not in capsys.readouterr().err
    assert main(workdir, digits / "digit 0.png", "--ema") == 0
    out = capsys.readouterr()
    assert "temperature.json is of step 20 and is not used" in out.err
    want = evaluate.read_predictions(workdir, "test_ema")["confidence"][0]
    np.testing.assert_allclose(json.loads(out.out)["probabilities"][0], want, rtol=1e-6)


def test_a_run_that_is_killed_is_continued_to_the_same_bytes(run, thousand, tmp_path, capsys):
    folder, broken = thousand
    folder = shutil.copytree(folder, tmp_path / "images")
    late = folder / "700.jpg"
    data = late.read_bytes()
    late.unlink()
    os.mkfifo(late)  # which is never written to: the run waits here
    output, partial = tmp_path / "preds.jsonl", tmp_path / "preds.jsonl.partial"
    flags = [str(folder), f"--output={output}", "--batch_size=64"]
    process = start_main([f"--workdir={run}", *flags], devices=8, module="imgcls_jax.predict", like_this_process=True)
    give_up = time.monotonic() + 120
    while not partial.exists() or partial.read_bytes().count(b"\n") < 1 + 9 * 64:
        assert process.poll() is None and time.monotonic() < give_up, process.communicate()[0]
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    late.unlink()
    late.write_bytes(data)
    assert not output.exists()
    with partial.open("ab") as file:
        file.write(b'{"path": "half a li')

    with pytest.raises(UserError, match=r"preds.jsonl.partial was begun with another list of images: finish it"):
        main(run, *flags, digits_of(folder, 3))
    with pytest.raises(UserError, match="was begun with another ema, batch_size, top_k"):
        main(run, *flags[:2], "--batch_size=32", "--ema", "--top_k=2")
    assert main(run, *flags) == 3
    assert "has 576 of 1,000 images; it is continued" in capsys.readouterr().err

    records = read(output)
    assert [Path(record["path"]).name for record in records] == [f"{i}.jpg" for i in range(1000)]
    assert {Path(record["path"]).name for record in records if "error" in record} == broken and len(broken) == 37
    assert all(record["error"] if len(record) == 2 else len(record["classes"]) == 5 for record in records)
    assert main(run, flags[0], flags[2], f"--output={tmp_path / 'whole.jsonl'}") == 3
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert sorted(path.name for path in tmp_path.glob("*.jsonl*")) == ["preds.jsonl", "whole.jsonl"]


def digits_of(folder, i):
    """An odd image besides those of the folder."""
    return shutil.copy(folder / f"{i}.jpg", folder.parent / "other.jpg")


def test_every_way_to_name_images_and_every_reason(run, tmp_path, monkeypatch, capsys):
    reasons = odd_files.make_folder(tmp_path / "odd")
    folder = tmp_path / "odd/train/a"
    names = [name for name in os.listdir(folder) if name != "directory.jpg"]
    nowhere = os.fsencode(tmp_path / "nowhere \udcff.jpg")
    listed = b"\0".join([*(os.fsencode(folder / name) for name in names), nowhere, nowhere])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(listed)))
    assert main(run, "-", folder, folder / "plain.jpg", folder / "directory.jpg" / "..") == 3
    out = capsys.readouterr()
    records = {record["path"]: record for record in map(json.loads, out.out.splitlines())}
    assert list(records) == [*(str(folder / name) for name in names), os.fsdecode(nowhere)]
    assert records[os.fsdecode(nowhere)]["error"] == "No such file or directory"
    for name in names:
        error = records[str(folder / name)].get("error", "")
        assert re.search(reasons[name], error) if name in reasons else not error, name
        assert str(folder) not in error and "images:all" not in error
    assert f"{len(records)} images, {len(reasons)} with an error" in out.err


def test_csv_has_a_row_an_image(run, digits, tmp_path):
    (tmp_path / "no.png").write_bytes(b"")
    flags = [digits / "digit 1.png", tmp_path / "no.png", "--top_k=2", "--threshold=0.99"]
    assert main(run, *flags, f"--output={tmp_path / 'a.csv'}") == 3
    assert main(run, *flags, f"--output={tmp_path / 'a.jsonl'}") == 3
    good, bad = read(tmp_path / "a.jsonl")
    with (tmp_path / "a.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert good["rejected"] == first["rejected"] == "none of these"
    assert [first["class_1"], first["class_2"]] == good["classes"]
    assert [float(first["probability_1"]), float(first["probability_2"])] == good["probabilities"]
    assert (second["error"], second["path"], second["class_1"]) == (bad["error"], bad["path"], "")
    assert bad == {"path": f"{tmp_path}/no.png", "error": "the file is empty"}


@pytest.mark.parity
def test_parquet_has_a_row_an_image(tmp_path):
    import pyarrow.parquet

    records = [
        {"path": "a\udcff.jpg", "classes": ["cat", "dog"], "probabilities": [0.75, 0.25], "rejected": "none of these"},
        {"path": "\u4e2d.jpg", "error": "the file is empty"},
    ]
    partial = predictions.Partial(tmp_path / "a.parquet", JOB, batch_size=1, num_images=2)
    partial.add(records)
    partial.finish(tmp_path / "a.parquet", [])
    rows = pyarrow.parquet.read_table(tmp_path / "a.parquet").to_pylist()
    nothing = dict.fromkeys(("path", "classes", "probabilities", "rejected", "error"))
    assert rows == [{**nothing, **records[0], "path": "a\\xff.jpg"}, {**nothing, **records[1]}]


def test_images_are_placed_by_class_and_the_rejected_apart(run, digits, tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    files = [shutil.copy(digits / f"digit {i}.png", tmp_path / "a") for i in range(40)]
    files += [shutil.copy(digits / "digit 0.png", tmp_path / "b"), tmp_path / "broken.png"]
    (tmp_path / "broken.png").write_bytes(b"x")
    output = tmp_path / "a.jsonl"
    records = []
    main(run, *files, "--top_k=1", f"--output={output}")
    threshold = float(np.median([record["probabilities"][0] for record in read(output)[:-1]]))
    for _ in range(2):  # the second time it is all there
        assert main(run, *files, f"--output={output}", f"--organise={tmp_path}/out", f"--threshold={threshold}") == 3
        records = read(output)
        placed = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
        assert len(placed) == 41 and {path.name for path in placed} >= {"digit 0.png", "digit 0_2.png"}
    for record in records[:40]:
        where = "_rejected" if "rejected" in record else record["classes"][0]
        copy = tmp_path / "out" / where / Path(record["path"]).name
        assert copy.read_bytes() == Path(record["path"]).read_bytes() and not copy.is_symlink()
    rejected = sum("rejected" in record for record in records)
    assert rejected == sum(path.parent.name == "_rejected" for path in placed) and 10 < rejected < 31
    assert f"42 images, 1 with an error, {rejected} none of these" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"lies in .* which is read with --recursive"):
        main(run, tmp_path, "--recursive", f"--organise={tmp_path}/out")


def test_several_labels_are_all_that_reach_the_threshold(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (32, 8, 8, 1), dtype=np.uint8)
    labels = rng.integers(0, 2, (32, 4)).astype(np.float32)
    data = {split: sources.from_arrays(images, labels, class_names=("a", "b", "c", "d")) for split in ("train", "test")}
    config = tiny_config(**{"data.name": "arrays", "loss.name": "sigmoid_binary_cross_entropy"})
    run = build.build(config, data=data)
    variables = jax.tree.map(lambda x: x + rng.normal(0, 0.5, x.shape), run.init().variables(ema=False))
    files = []
    for i, image in enumerate(images):
        files.append(str(tmp_path / f"{i}.png"))
        cv2.imwrite(files[-1], image)
    judge = judge_lib.Judge("multilabel", run.spec.class_names, 4, 1.0, 0.5)
    records = [r for batch in predict.predict(run, variables, judge, files, 8) for r in batch]
    _, batches = build.eval_batches(run, "test")
    logits = np.concatenate([run.eval_step(variables, batch)["logits"] for batch in batches])[:32]
    want = 1 / (1 + np.exp(-logits.astype(np.float64)))
    for record, row in zip(records, want, strict=True):
        order = [c for c in np.argsort(-row, kind="stable") if row[c] >= 0.5]
        assert record["classes"] == judge.answer(record) == [run.spec.class_names[c] for c in order]
        np.testing.assert_allclose(record["probabilities"], row[order], rtol=1e-5)
    assert len({len(record["classes"]) for record in records}) > 1


def test_a_model_that_says_nothing_finite_gives_errors():
    judge = judge_lib.Judge("multiclass", ("a", "b"), 2, 1.0, None)
    logits = np.array([[0, np.nan], [np.log(3), 0], [0, 0], [np.inf, 0]], np.float32)
    records = [judge.record("x", *row) for row in zip(*map(np.asarray, judge.score()(logits)), strict=True)]
    assert ["error" in record for record in records] == [True, False, False, True]
    assert records[1] == {"path": "x", "classes": ["a", "b"], "probabilities": [0.75, 0.25]}
    assert records[2]["classes"] == ["a", "b"]  # a tie: the lower class first


def test_a_reader_that_goes_away_ends_it_with_one_sentence(run, digits):
    process = start_main([f"--workdir={run}", str(digits), "--batch_size=8"], module="imgcls_jax.predict")
    process.stdout.close()
    assert process.wait(timeout=120) == 1


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["x.jpg", "--top_k=0"], "--top_k=0 must be at least 1"),
        (["x.jpg", "--threshold=2"], "--threshold=2 is a probability"),
        (["x.jpg", "--link"], "--link says how --organise=DIR"),
        (["x.jpg", "--output=a.txt"], "a.txt must end in one of .jsonl, .csv, .parquet"),
        (["x.jpg", "--batch_size=9"], "--batch_size=9 does not divide over 8 devices; set it to 8 or 16"),
        ([], "Usage"),
    ],
)
def test_flags_that_make_no_sense_are_refused(run, flags, sentence):
    with pytest.raises(ConfigError, match=sentence):
        main(run, *flags)


def test_help_says_what_the_exit_codes_are(capsys):
    assert cli.run(predict.main, ["--help"]) == 0
    out = capsys.readouterr().out
    assert "3 all are done but some have an error" in out and "--organise" in out

"""Evaluation over several devices, and the files it leaves."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from metric_cases import differences, examples_of, random_label_sets, random_scores

from imgcls_jax import evaluate
from imgcls_jax import step as step_lib
from imgcls_jax.metrics import examples, intervals
from imgcls_jax.types import ConfigError, Spec, UserError

N, K = 100, 6
SPEC = Spec("made", K, tuple("abcdef"), {"test": N})
TASKS = {"multiclass": SPEC, "multilabel": dataclasses.replace(SPEC, task="multilabel")}


class Linear(nn.Module):
    """Features to logits."""

    @nn.compact
    def __call__(self, images, *, train):
        return nn.Dense(K, kernel_init=nn.initializers.normal(0.6))(images.reshape(len(images), -1))


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(intervals, "RESAMPLES", 20)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (N, 4, 4, 1)).astype(np.uint8)
    labels = {"multiclass": rng.integers(0, K, N).astype(np.int32)}
    labels["multilabel"] = (rng.random((N, K)) < 0.3).astype(np.float32)
    labels["multilabel"][:4] = 0
    return Linear().init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)), train=False), images, labels


def found(data, task, *, devices, batch_size, mask=None):
    """Examples of the split, evaluated in batches that are split over some devices."""
    variables, images, labels = data
    mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))
    over = NamedSharding(mesh, PartitionSpec("data"))
    step = step_lib.make_eval_step(model=Linear(), mean=(0.5,), std=(0.5,), task=task)
    step = jax.jit(step, out_shardings=NamedSharding(mesh, PartitionSpec()))
    mask = np.ones(N, bool) if mask is None else mask

    def batches():
        for start in range(0, N, batch_size):
            rows = {"image": images, "label": labels[task], "mask": mask}
            rows = {name: x[start : start + batch_size] for name, x in rows.items()}
            padding = batch_size - len(rows["mask"])
            rows = {name: np.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1)) for name, x in rows.items()}
            yield jax.device_put(rows, over)

    replicated = jax.device_put(variables, NamedSharding(mesh, PartitionSpec()))
    return evaluate.evaluate(step, replicated, batches(), spec=TASKS[task], num_records=N, keep_logits=True)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("devices", [1, 3, 8])
def test_over_any_number_of_devices_with_a_ragged_last_batch_it_is_the_answer_of_the_whole_array(data, task, devices):
    want = evaluate.report(found(data, task, devices=1, batch_size=N), topk=(1, 5))
    got = evaluate.report(found(data, task, devices=devices, batch_size=24), topk=(1, 5))
    assert differences(got, want, 1e-6) == []  # counts are ints there, and must be equal
    assert got["num_examples"] == N and 0.1 < got["f1_micro"] < 0.9


@pytest.mark.parametrize("task", TASKS)
def test_skipped_records_are_counted_and_are_in_no_number(data, task):
    mask = np.ones(N, bool)
    mask[[0, 50, 99]] = False
    got = found(data, task, devices=3, batch_size=24, mask=mask)
    whole = found(data, task, devices=3, batch_size=24)
    assert got.num_skipped == 3 and whole.num_skipped == 0
    np.testing.assert_array_equal(got.index, np.flatnonzero(mask))
    np.testing.assert_array_equal(got.logits, whole.logits[mask])
    report = evaluate.report(got, topk=(1,))
    assert (report["num_examples"], report["num_skipped"]) == (97, 3)
    assert ("skipped", "3 records that cannot be read") in evaluate.summary(report)


def test_several_labels_that_do_not_fit_are_refused_before_any_work(data, monkeypatch):
    monkeypatch.setattr(examples, "MAX_LOGIT_BYTES", 4 * N * K - 1)
    with pytest.raises(UserError, match=r"100 examples and 6 classes do not fit.*test\[:10%\]"):
        found(data, "multilabel", devices=1, batch_size=N)
    report = evaluate.report(found(data, "multiclass", devices=1, batch_size=N), topk=(1,))
    assert report["roc_auc_macro"] is None and "left out" in report["notes"][0]


def test_headlines_follow_the_task_and_are_values_of_the_report(data):
    for task, names in (("multiclass", ("top1", "top3", "nll", "ece")), ("multilabel", ("map", "f1_micro", "nll"))):
        rows = found(data, task, devices=1, batch_size=N)
        report = evaluate.report(rows, topk=(3,))
        quick = evaluate.headline_values(rows, (3,))
        assert evaluate.headlines(task, (3,)) == names == tuple(quick)
        assert quick == pytest.approx({name: report[name] for name in names}, rel=1e-12)


@pytest.mark.parametrize("make", [random_scores, random_label_sets])
def test_files_hold_the_report_and_every_outcome(tmp_path, make):
    logits, labels = make(n=60)
    rows = examples_of(logits, labels)
    report = evaluate.report(rows, topk=(1,), temperature=1.5)
    name = evaluate.file_name("test[:10%]", ema=True)
    path = evaluate.write(tmp_path, name, rows, report, data="made", split="test[:10%]")
    assert path == tmp_path / "eval/test__10%__ema.json"
    assert json.loads(path.read_text()) == report
    assert sorted(p.name for p in (tmp_path / "eval").iterdir()) == [f"{name}.json", f"{name}.predictions.npz"]
    got = evaluate.read_predictions(tmp_path, name)
    np.testing.assert_array_equal(got["label"], labels)
    np.testing.assert_array_equal(got["prediction"], logits.argmax(1) if labels.ndim == 1 else logits > 0)
    assert got["correct"].mean() == report["top1" if labels.ndim == 1 else "exact_match"]
    assert got["nll"].mean() == pytest.approx(report["nll"], rel=1e-6)
    assert str(got["data"]) == "made" and str(got["split"]) == "test[:10%]"


def test_file_names_are_safe_and_differ():
    splits = ["test", "test[:10%]", "test[10%:]", "test[5:]", "test[:5]", "a+b"]
    names = [evaluate.file_name(split, ema=ema) for split in splits for ema in (False, True)]
    assert len(set(names)) == len(names) and not any(set(name) & set('/\\:*?"<>|[] ') for name in names)
    assert names[:2] == ["test", "test_ema"]


def predictions(tmp_path, logits, labels, data="made", split="test"):
    rows = examples_of(logits, labels)
    evaluate.write(tmp_path, "x", rows, {}, data=data, split=split)
    return evaluate.read_predictions(tmp_path, "x")


def test_a_comparison_is_paired(tmp_path):
    logits, labels = random_scores(n=300)
    better = logits + np.eye(7, dtype=np.float32)[labels]
    first, second = predictions(tmp_path, logits, labels), predictions(tmp_path, better, labels)
    got, back = evaluate.compare(first, second), evaluate.compare(second, first)
    right = logits.argmax(1) == labels, better.argmax(1) == labels
    assert got["accuracy"] == [right[0].mean(), right[1].mean()]
    assert (
        got["accuracy_difference"] == pytest.approx(right[1].mean() - right[0].mean())
        and got["only_first_correct"] == 0
    )
    assert got["only_second_correct"] == (right[1] & ~right[0]).sum() > 20
    assert got["nll_difference"] == pytest.approx((second["nll"] - first["nll"]).mean(), rel=1e-6)
    assert (
        got["accuracy_difference_ci95"][0] > 0 > got["nll_difference_ci95"][1] and got["p_mid"] < got["p_exact"] < 1e-6
    )
    assert back["accuracy_difference"] == -got["accuracy_difference"] and back["p_exact"] == got["p_exact"]
    # Unpaired, the interval of the difference would be wider than that of either.
    assert np.diff(got["nll_difference_ci95"]) < 1.96 * second["nll"].std() / np.sqrt(300)
    same = evaluate.compare(first, first)
    assert same["accuracy_difference"] == same["nll_difference"] == 0 and same["p_exact"] == same["p_mid"] == 1


def test_what_cannot_be_compared_is_refused_in_a_sentence(tmp_path):
    logits, labels = random_scores(n=30)
    first = predictions(tmp_path, logits, labels)
    for other, sentence in (
        (predictions(tmp_path, logits, labels, data="else"), r"not evaluated on the same data set \(made and else\)"),
        (predictions(tmp_path, logits, labels, split="train"), r"not evaluated on the same split \(test and train\)"),
        (predictions(tmp_path, logits[:20], labels[:20]), "not evaluated on the same records"),
        (predictions(tmp_path, np.pad(logits, [(0, 0), (0, 1)]), labels), "not evaluated on the same classes"),
        (predictions(tmp_path, logits, labels[::-1].copy()), "labels of the data set changed"),
    ):
        with pytest.raises(UserError, match=sentence):
            evaluate.compare(first, other)
    with pytest.raises(UserError, match=r"nothing\.predictions\.npz does not exist; evaluate that run first"):
        evaluate.read_predictions(tmp_path, "nothing")
    (tmp_path / "eval/x.predictions.npz").write_bytes(b"PK\3\4 broken")
    with pytest.raises(UserError, match="is damaged"):
        evaluate.read_predictions(tmp_path, "x")


def test_a_temperature_is_fitted_written_and_read(tmp_path):
    assert evaluate.read_temperature(tmp_path) is None
    logits, labels = random_scores(n=400)
    rows = examples_of(4 * logits, labels)
    fitted = evaluate.fit_temperature(rows, split="validation", step=7, ema=True)
    evaluate.write_temperature(tmp_path, fitted)
    assert evaluate.read_temperature(tmp_path) == fitted
    report = evaluate.report(rows, topk=(1,), temperature=fitted.temperature)
    assert fitted.nll_before == pytest.approx(report["nll"], rel=1e-5)
    assert fitted.ece_before == pytest.approx(report["ece"], rel=1e-5)
    assert report["calibrated"]["nll"] == pytest.approx(fitted.nll_after, rel=1e-9)
    assert report["calibrated"]["ece"] == pytest.approx(fitted.ece_after, rel=1e-9)
    assert fitted.nll_after < fitted.nll_before and fitted.ece_after < fitted.ece_before and fitted.temperature > 1.5
    for text in ("{", '{"temperature": 2}', json.dumps({**dataclasses.asdict(fitted), "temperature": 0})):
        (tmp_path / "temperature.json").write_text(text)
        with pytest.raises(UserError, match=r"temperature.json is damaged"):
            evaluate.read_temperature(tmp_path)


def test_a_temperature_that_cannot_be_fitted_is_refused():
    with pytest.raises(ConfigError, match="one label an image"):
        evaluate.fit_temperature(examples_of(*random_label_sets()), split="test", step=1, ema=False)
    logits, labels = random_scores()
    with pytest.raises(UserError, match=r"do not fit in memory.*test\[:10%\]"):
        evaluate.fit_temperature(examples_of(logits, labels, keep_logits=False), split="test", step=1, ema=False)
    logits[3, 2] = np.nan
    with pytest.raises(UserError, match="not finite"):
        evaluate.fit_temperature(examples_of(logits, labels), split="test", step=1, ema=False)

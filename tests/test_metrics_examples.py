import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from metric_cases import batch_of, examples_of, random_label_sets, random_scores, softmax

from imgcls_jax.metrics import examples


@pytest.mark.parametrize("levels", [None, 1])
def test_rows_are_what_a_stable_sort_and_the_definitions_say(levels):
    logits, labels = random_scores(levels=levels)
    rows = batch_of(logits, labels)
    order, p = np.argsort(-logits, axis=1, kind="stable"), softmax(logits)
    np.testing.assert_array_equal(rows["rank"], (order == labels[:, None]).argmax(1))
    np.testing.assert_array_equal(rows["prediction"], order[:, 0])
    np.testing.assert_allclose(rows["nll"], -np.log(p[np.arange(200), labels]), rtol=1e-5)
    np.testing.assert_allclose(rows["brier"], ((p - np.eye(7)[labels]) ** 2).sum(1), rtol=1e-5)
    np.testing.assert_allclose(rows["confidence"], p.max(1), rtol=1e-5)
    types = {name: rows[name].dtype.name for name in ("prediction", "rank", "nll", "brier", "confidence")}
    assert set(types.values()) == {"int32", "float32"} and types["prediction"] == types["rank"] == "int32"


def test_rows_of_low_precision_logits_are_computed_in_float32():
    logits, labels = random_scores()
    low = jnp.asarray(logits, jnp.bfloat16)
    want = batch_of(np.asarray(low, np.float32), labels)
    got = jax.jit(examples.multiclass_rows)(low, labels)
    assert all(np.array_equal(got[name], want[name]) for name in got)


def test_the_loss_of_several_labels_is_the_sum_over_classes():
    logits, labels = random_label_sets()
    want = optax.sigmoid_binary_cross_entropy(logits, labels).sum(1)
    np.testing.assert_allclose(batch_of(logits, labels)["nll"], want, rtol=1e-6)


def test_gathered_from_ragged_batches_in_order_without_masked_rows():
    logits, labels = random_scores(n=50)
    mask = np.ones(50, bool)
    mask[[3, 20, 21]] = False  # records that could not be read
    names = [f"class {i}" for i in range(7)]
    gatherer = examples.Gatherer("multiclass", names, 50, keep_logits=True)
    for start in range(0, 50, 16):
        here = slice(start, start + 16)
        padding = [(0, 16 - len(labels[here])), (0, 0)]
        z = np.pad(logits[here], padding, constant_values=np.nan)
        y, m = (np.pad(x[here], padding[0], constant_values=fill) for x, fill in ((labels, -1), (mask, False)))
        gatherer.add(batch_of(z, y, m))
    got, kept = gatherer.examples(), np.flatnonzero(mask)
    assert got.num_skipped == 3 and len(got) == 47
    np.testing.assert_array_equal(got.index, kept)
    np.testing.assert_array_equal(got.labels, labels[kept])
    np.testing.assert_array_equal(got.logits, logits[kept])
    whole = batch_of(logits, labels)
    for name, rows in got.rows.items():
        np.testing.assert_array_equal(rows, whole[name][kept], err_msg=name)


def test_logits_are_kept_only_if_wanted_and_small_enough(monkeypatch):
    logits, labels = random_scores(n=50)
    assert examples_of(logits, labels, keep_logits=False).logits is None
    monkeypatch.setattr(examples, "MAX_LOGIT_BYTES", 4 * 50 * 7)
    assert examples_of(logits, labels).logits is not None
    monkeypatch.setattr(examples, "MAX_LOGIT_BYTES", 4 * 50 * 7 - 1)
    assert examples_of(logits, labels).logits is None


def test_what_makes_no_sense_is_refused():
    logits, labels = random_scores(n=4)
    with pytest.raises(ValueError, match=r"labels must be in 0\.\.2"):
        examples_of(logits[:, :3], np.array([0, 1, 2, 3]))
    with pytest.raises(ValueError, match="no example"):
        examples_of(logits, labels, np.zeros(4, bool))
    gatherer = examples.Gatherer("multiclass", list("abcdefg"), 3, keep_logits=False)
    with pytest.raises(ValueError, match="more examples than the 3 records"):
        gatherer.add(batch_of(logits, labels))

"""Corruptions and other data sets on a small run: the files against a direct computation, scikit-learn, brute force."""

import dataclasses
import json
import shutil

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny_config
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from imgcls_jax import build, evaluate, other_data, robustness, train, workdirs, writers
from imgcls_jax import eval as eval_binary
from imgcls_jax.augment.corruptions import Corruption
from imgcls_jax.data import arrays, order, sources
from imgcls_jax.data.views import ForeignSource
from imgcls_jax.metrics import intervals
from imgcls_jax.metrics.examples import Examples, mean_prediction
from imgcls_jax.representation import knn
from imgcls_jax.types import ConfigError, UserError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A work directory after 60 steps with a learning rate that gets somewhere, and checkpoints of 20, 40 and 60."""
    workdir = tmp_path_factory.mktemp("run") / "w"
    overrides = {
        "total_steps": 60,
        "optimizer.lr": 0.01,
        "checkpoint_every_steps": 20,
        "checkpoint.keep_last": 3,
        "augment.device": (),
    }
    assert train.train(tiny_config(**overrides), workdir) == 0
    return workdir


@pytest.fixture(scope="module")
def built(run):
    """(the run, its newest variables)."""
    made = build.build(eval_binary.config_lib.read(run / "config.json"))
    return made, workdirs.restore_variables(made.abstract_state, run, None, ema=False)[1]


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(intervals, "RESAMPLES", 20)


def main(workdir, *flags):
    assert eval_binary.main([f"--workdir={workdir}", *flags]) == 0


def logits(built, images):
    """[N,10], by the model itself."""
    made, variables = built
    c = made.config.data
    scaled = (jnp.asarray(images, jnp.float32) / 255 - jnp.array(c.mean)) / jnp.array(c.std)
    return np.asarray(made.model.apply(variables, scaled, train=False))


def test_corrupted_accuracies_are_those_of_images_corrupted_by_hand(run, built, capsys):
    main(run, "--corruptions=fog,gaussian_noise", "--severities=5,1")
    result = json.loads((run / "eval/test_corruptions.json").read_text())
    source = arrays.digits("test")
    errors = {}
    for row in result["results"]:
        corruption = Corruption(row["corruption"], row["severity"])
        # The pipeline's random numbers: of seed 0 and the record's place.
        images = [corruption(image, order.generator(0, i, stream=1)) for i, image in enumerate(source.images)]
        correct = int((logits(built, np.stack(images)).argmax(1) == source.targets).sum())
        assert row["correct"] == correct and row["accuracy"] == correct / 360
        assert row["accuracy_ci95"] == list(intervals.wilson_interval(correct, 360))
        errors.setdefault(row["corruption"], []).append(1 - correct / 360)
    assert [(row["corruption"], row["severity"]) for row in result["results"]] == [
        (name, severity) for name in ("gaussian_noise", "fog") for severity in (1, 5)
    ]
    clean = json.loads((run / "eval/test.json").read_text())
    assert result["clean_accuracy"] == clean["top1"] and result["clean_accuracy_ci95"] == clean["top1_ci95"]
    assert result["mean_errors"] == pytest.approx({name: np.mean(e) for name, e in errors.items()})
    assert result["mean_error"] == pytest.approx(np.mean(list(errors.values())))
    assert result["mean_error_ci95"][0] < result["mean_error"] < result["mean_error_ci95"][1]
    assert (result["data"], result["split"], result["step"], result["severities"]) == ("digits", "test", 60, [1, 5])
    out = capsys.readouterr()
    assert f"{result['results'][0]['accuracy']:.4f}" in out.out and "4/4 fog, severity 5" in out.err


def test_the_mean_corruption_error_is_relative_to_the_baselines(run, tmp_path, capsys):
    flags = ("--corruptions=contrast,pixelate", "--severities=1,5")
    main(run, *flags, "--step=20", "--split=test[:50%]")
    name = "test__50%__corruptions.json"
    base_dir = tmp_path / "base"
    (base_dir / "eval").mkdir(parents=True)
    (run / "eval" / name).rename(base_dir / "eval" / name)
    main(run, *flags, "--split=test[:50%]", f"--baseline={base_dir}")
    base, result = (json.loads((w / "eval" / name).read_text()) for w in (base_dir, run))

    def sums(found, corruption):
        return sum(1 - row["accuracy"] for row in found["results"] if row["corruption"] == corruption)

    names = ("contrast", "pixelate")
    ratios = [sums(result, n) / sums(base, n) for n in names]
    clean, clean_base = (2 * (1 - found["clean_accuracy"]) for found in (result, base))
    relative = [(sums(result, n) - clean) / (sums(base, n) - clean_base) for n in names]
    assert list(result["corruption_errors"].values()) == pytest.approx(ratios)
    assert result["mce"] == pytest.approx(np.mean(ratios)) != 1
    assert result["relative_mce"] == pytest.approx(np.mean(relative))
    assert f"{result['mce']:.4f}, against" in capsys.readouterr().out
    with pytest.raises(UserError, match="other severities"):
        main(run, "--corruptions=contrast", "--severities=1", "--split=test[:50%]", f"--baseline={base_dir}")
    with pytest.raises(UserError, match="lacks fog"):
        main(run, "--corruptions=fog", "--severities=1,5", "--split=test[:50%]", f"--baseline={base_dir}")
    with pytest.raises(UserError, match="does not exist; make it first"):
        main(run, "--corruptions=fog", f"--baseline={tmp_path}")


def test_a_baseline_without_errors_gives_no_ratio():
    result = {"data": "d", "split": "s", "num_examples": 9, "severities": [1], "clean_accuracy": 0.9}
    base = {**result, "mean_errors": {"fog": 0.0, "snow": 0.1}}
    found = robustness.against({**result, "mean_errors": {"fog": 0.5, "snow": 0.2}}, base, "B")
    assert found["corruption_errors"] == {"fog": None, "snow": 2.0}
    assert found["mce"] is None and found["relative_mce"] is None


def test_scores_against_another_data_set(run, built, tmp_path, capsys):
    """Photographs in colour, of another size, against digits."""
    rng = np.random.default_rng(0)
    (tmp_path / "train/x").mkdir(parents=True)
    photos = rng.integers(0, 256, (40, 8, 8, 3), np.uint8) // rng.integers(1, 20, (40, 1, 1, 1), np.uint8)
    for i, photo in enumerate(photos):
        cv2.imwrite(str(tmp_path / f"train/x/{i:02}.png"), photo[..., ::-1])
    main(run, f"--ood=folder:{tmp_path}:train+test")  # all of them
    file = next((run / "eval").glob("test_ood_folder_*_train+test.json"))
    result = json.loads(file.read_text())
    assert (result["num_examples"], result["num_outside"], result["other_split"]) == (360, 40, "train+test")
    grey = np.stack([cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY) for photo in photos])[..., None]
    both = [logits(built, images).astype(np.float64) for images in (arrays.digits("test").images, grey)]
    labels, out = np.repeat([1, 0], [360, 40]), capsys.readouterr().out
    for row in result["scores"]:
        exp = [np.exp(found) for found in both]
        if row["score"] == "max_softmax":
            inside, outside = (e.max(1) / e.sum(1) for e in exp)
        elif row["score"] == "knn":
            inside, outside = nearness(built, (arrays.digits("test").images, grey), k=1)
            assert (row["k"], row["num_train"]) == (1, 1437)
        else:
            inside, outside = (np.log(e.sum(1)) for e in exp)
        assert row["auroc"] == pytest.approx(roc_auc_score(labels, np.concatenate([inside, outside])), abs=1e-3)
        assert row["auroc_ci95"][0] <= row["auroc"] <= row["auroc_ci95"][1]
        assert f"{row['auroc']:.4f}" in out
    assert [row["score"] for row in result["scores"]] == ["max_softmax", "energy", "knn"]


def nearness(built, several, k):
    """Minus the distance to the k-th nearest training example, by scikit-learn."""
    made, variables = built
    c = made.config.data

    def features(images):
        scaled = (jnp.asarray(images, jnp.float32) / 255 - jnp.array(c.mean)) / jnp.array(c.std)
        found = np.asarray(made.model.clone(num_classes=0).apply(variables, scaled, train=False), np.float64)
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    index = NearestNeighbors(n_neighbors=k).fit(features(arrays.digits("train").images))
    return [-index.kneighbors(features(images))[0][:, k - 1] for images in several]


def test_the_distance_to_the_kth_neighbour_is_scikit_learns(run, built, monkeypatch):
    """Over blocks of training features, none of them a whole one; AUROC and FPR@95 of the distances."""
    monkeypatch.setattr(knn, "REFERENCES", 500)
    main(run, "--ood=digits:train[:100]", "--neighbour=20", "--split=test[:50%]")
    result = json.loads((run / "eval/test__50%__ood_digits_train__100_.json").read_text())
    row = result["scores"][2]
    images = arrays.digits("test").images[:180], arrays.digits("train").images[:100]
    inside, outside = nearness(built, images, k=20)
    labels = np.repeat([1, 0], [180, 100])
    assert row["auroc"] == pytest.approx(roc_auc_score(labels, np.concatenate([inside, outside])), abs=1e-4)
    assert row["fpr95"] == pytest.approx((outside >= np.sort(inside)[9]).mean(), abs=0.011)  # 95% of 180: all but 9
    assert row["k"] == 20 and result["notes"] == []
    near = robustness.neighbours(*built, "test[:50%]", "digits", "train[:100]", 20, writers.Progress(enabled=False))
    np.testing.assert_allclose(np.sqrt(2 - 2 * near.inside), -inside, atol=2e-3)
    np.testing.assert_allclose(near.inside, 1 - inside**2 / 2, atol=2e-6)


def test_without_a_training_split_of_its_own_there_is_a_sentence_and_no_distance(run, built, capsys):
    main(run, "--ood=digits:test", "--split=train[:5%]")
    result = json.loads((run / "eval/train__5%__ood_digits_test.json").read_text())
    assert [row["score"] for row in result["scores"]] == ["max_softmax", "energy"]
    assert "knn is left out: train[:5%] and train, where neighbours are looked for, share records" in result["notes"][0]
    assert result["notes"][0] in capsys.readouterr().out

    def gone(split):
        raise UserError(f"{split} is not there")

    missing = dataclasses.replace(built[0], open_split=lambda s: gone(s) if s == "train" else built[0].open_split(s))
    ask = ("test", "digits", "test", None, writers.Progress(enabled=False))
    with pytest.raises(UserError, match="train is not there"):
        robustness.neighbours(missing, built[1], *ask)
    with pytest.raises(ConfigError, match="--neighbour=1438 is more than the 1,437 training examples"):
        main(run, "--ood=digits:test", "--neighbour=1438")


@pytest.mark.parametrize("ties", [False, True])
def test_separation_is_scikit_learns_and_brute_forces(ties):
    rng = np.random.default_rng(0)
    for n, m in ((100, 30), (19, 50), (1, 3), (41, 200)):
        inside, outside = rng.normal(1, 1, n), rng.normal(0, 1, m)
        if ties:
            inside, outside = inside.round(), outside.round()
        found = robustness.separation(inside, outside)
        labels = np.repeat([1, 0], [n, m])
        assert found["auroc"] == pytest.approx(roc_auc_score(labels, np.concatenate([inside, outside])), abs=1e-12)
        thresholds = [t for t in np.concatenate([inside, outside]) if (inside >= t).mean() >= 0.95]
        assert found["fpr95"] == min((outside >= t).mean() for t in thresholds)
        assert found["fpr95_ci95"] == list(intervals.wilson_interval(round(found["fpr95"] * m), m))


def test_sure_predictions_are_not_ties():
    """In float32 the largest probability of both is 1."""
    found = Examples("multiclass", ("a", "b"), np.arange(2), np.zeros(2), {}, np.float32([[40, 0], [0, 50]]))
    first, second = robustness.SCORES["max_softmax"](found)
    assert first < second


@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_another_data_set_get_the_models_channels(channels):
    images = np.random.default_rng(0).integers(0, 256, (5, 6, 7, 4 - channels), np.uint8)
    other = sources.from_arrays(images, np.arange(5), name="other")
    source = ForeignSource(other, arrays.DIGITS, channels)
    record = source[3]
    want = cv2.cvtColor(images[3], cv2.COLOR_RGB2GRAY)[..., None] if channels == 1 else images[3].repeat(3, axis=2)
    assert (record["image"] == want).all() and record["label"] == 0 and record["file"] == "other:train[3]"
    assert len(source) == 5 and source.labels().tolist() == [0] * 5 and source.spec is arrays.DIGITS


def test_another_data_set_and_its_split_are_told_apart(tmp_path):
    assert other_data.data_and_split("--ood", "digits", None) == ("digits", "test")
    assert other_data.data_and_split("--ood", "digits:train[:10%]+test", None) == ("digits", "train[:10%]+test")
    (tmp_path / "train/x").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "train/x/a.png"), np.zeros((3, 3), np.uint8))
    assert other_data.data_and_split("--ood", f"folder:{tmp_path}", None) == (f"folder:{tmp_path}", "test")
    assert other_data.data_and_split("--ood", f"folder:{tmp_path}:train", None) == (f"folder:{tmp_path}", "train")
    with pytest.raises(ConfigError, match="did you mean 'test'"):
        other_data.data_and_split("--ood", "digits:tets", None)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--corruptions=fgo"], "'fgo' is unknown.*did you mean 'fog'"),
        (["--corruptions", "--severities=0"], "--severities='0' is unknown"),
        (["--baseline=x"], "--severities and --baseline go with --corruptions"),
        (["--severities=1"], "--severities and --baseline go with --corruptions"),
        (["--tta=flip", "--ood=digits"], "--tta goes with a plain evaluation; leave out --ood"),
        (["--tta=crop"], "flag --tta=crop"),
        (["--average=20,x"], "--average=20,x is not a list of steps"),
        (["--average=20,40", "--step=20"], "leave out --step and --ensemble"),
        (["--ensemble=x", "--step=20"], "leave out --step"),
        (["--corruptions", "--ood=digits"], "--corruptions and --ood are two evaluations"),
    ],
)
def test_flags_that_make_no_sense_are_refused(run, flags, sentence):
    with pytest.raises(ConfigError, match=sentence):
        main(run, *flags)


def test_the_bare_flag_means_all_corruptions_in_the_papers_order():
    assert len(robustness.corruption_names("true")) == 15
    assert robustness.corruption_names("fog,snow") == ("snow", "fog")
    assert robustness.severities(["5", "1", "5"]) == (1, 5)


def test_several_labels_are_refused(built):
    several = dataclasses.replace(built[0], spec=dataclasses.replace(built[0].spec, task="multilabel"))
    with pytest.raises(ConfigError, match="several"):
        robustness.corrupted(several, built[1], "test", ("fog",), (1,), writers.Progress(enabled=False))


def softmax(x):
    e = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def check_predictions(workdir, name, probabilities):
    """The files of an evaluation are those of these probabilities."""
    labels = arrays.digits("test").targets
    with np.load(workdir / f"eval/{name}.predictions.npz") as file:
        assert (file["prediction"] == probabilities.argmax(1)).all()
        np.testing.assert_allclose(file["confidence"], probabilities.max(1), atol=1e-5)
        np.testing.assert_allclose(file["nll"], -np.log(probabilities[np.arange(360), labels]), atol=2e-4)
    result = json.loads((workdir / f"eval/{name}.json").read_text())
    assert result["top1"] == (probabilities.argmax(1) == labels).mean()
    return result


def test_flipped_images_count_half(run, built):
    main(run, "--tta=flip")
    images = arrays.digits("test").images
    both = [softmax(logits(built, x)) for x in (images, images[:, :, ::-1])]
    result = check_predictions(run, "test_flip", (both[0] + both[1]) / 2)
    assert result["tta"] == "flip" and np.abs(both[0] - both[1]).max() > 0.1


def test_flipped_and_moved_images_are_asked_for_by_the_config(run, built, tmp_path):
    """eval.tta is what `main` evaluates by, and `eval` without --tta; a flag wins."""
    copy = shutil.copytree(run, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    config["eval"]["tta"] = "flip_shift"
    (copy / "config.json").write_text(json.dumps(config))
    images = arrays.digits("test").images
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    moved = [images, padded[:, 2:, 2:], padded[:, :-2, :-2]]
    views = [softmax(logits(built, x)) for x in (*moved, *(x[:, :, ::-1] for x in moved))]
    main(copy)
    result = check_predictions(copy, "test", np.mean(views, axis=0))
    assert result["tta"] == "flip_shift" and min(np.abs(views[0] - view).max() for view in views[1:]) > 0.1
    main(copy, "--tta=flip")
    other = check_predictions(copy, "test_flip", (views[0] + views[3]) / 2)
    assert other["tta"] == "flip" and result["cost"]["gmacs"] == pytest.approx(3 * other["cost"]["gmacs"])


@pytest.mark.parametrize("ema", [False, True])
def test_averaged_checkpoints(run, built, ema):
    main(run, "--average=60,20,40", *(["--ema"] if ema else []))
    made = built[0]
    states = [workdirs.restore_variables(made.abstract_state, run, step, ema=ema)[1] for step in (20, 40, 60)]
    mean = jax.tree.map(lambda *leaves: np.mean([np.asarray(leaf) for leaf in leaves], axis=0), *states)
    probabilities = softmax(logits((made, mean), arrays.digits("test").images))
    result = check_predictions(run, "test_ema_average" if ema else "test_average", probabilities)
    assert result["average"] == ["60", "20", "40"]


def test_an_ensemble_averages_probabilities(run, built, tmp_path):
    other = shutil.copytree(run, tmp_path / "other")
    shutil.rmtree(other / "checkpoints/60")  # its newest is then another model
    main(run, f"--ensemble={other},{run}")
    made, variables = built
    older = workdirs.restore_variables(made.abstract_state, run, 40, ema=False)[1]
    images = arrays.digits("test").images
    first, second = (softmax(logits((made, v), images)) for v in (variables, older))
    result = check_predictions(run, "test_ensemble", (2 * first + second) / 3)
    assert result["ensemble"] == [str(other), str(run)]


def test_only_runs_of_the_same_examples_make_an_ensemble():
    rows = {"prediction": np.zeros(2)}
    first = Examples("multiclass", ("a", "b"), np.arange(2), np.zeros(2, int), rows, np.zeros((2, 2), np.float32))
    for changed, sentence in (
        ({"class_names": ("a", "c")}, "same classes"),
        ({"index": np.arange(1, 3)}, "different records"),
        ({"labels": np.ones(2, int)}, "different records"),
        ({"logits": None}, "do not fit in memory"),
    ):
        with pytest.raises(UserError, match=sentence):
            evaluate.ensemble([first, dataclasses.replace(first, **changed)])


def test_the_mean_of_several_labels_is_each_classes_own():
    many = np.random.default_rng(0).normal(0, 3, (3, 5, 4)).astype(np.float32)
    want = (1 / (1 + np.exp(-many.astype(np.float64)))).mean(0)
    got = np.asarray(mean_prediction(jnp.asarray(many), "multilabel"))
    np.testing.assert_allclose(1 / (1 + np.exp(-got.astype(np.float64))), want, atol=1e-6)

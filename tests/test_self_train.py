"""Self-training, whole: teacher, students, the table, and what is left after a kill."""

import dataclasses
import json
import os
import random
import re
import shutil
import signal
import time

import numpy as np
import pytest
from helpers import ROOT, TINY, checkpoint_arrays, run_main, start_main

from imgcls_jax import build, evaluate, preemption, self_train, train, workdirs, writers
from imgcls_jax import config as config_lib
from imgcls_jax.data import pseudo, sources
from imgcls_jax.types import ConfigError, UserError

PLAN = self_train.Plan(unlabelled="train[100:300]", rounds=1, min_confidence=0.3, per_class=25)
STEPS = 60


# LeNet: quick to compile, and quick to learn something.
SMALL = {
    "batch_size": 32,
    "total_steps": STEPS,
    "checkpoint_every_steps": 25,
    "log_every_steps": 10,
    "data.train_split": "train[:100]",
    "eval.batch_size": 64,
    "optimizer.lr": 5e-3,
    "optimizer.ema_decay": 0.5,
}


def student(config, number):
    """The stream has three pseudo-labelled images for each labelled one."""
    config.data.pseudo_ratio = 3.0


def teacher(**overrides):
    config = config_lib.load(str(ROOT / "configs/lenet.py"))
    for key, value in {**SMALL, **overrides}.items():
        group, _, name = key.rpartition(".")
        (config[group] if group else config)[name] = value
    return config


def run(workdir, plan=PLAN, **overrides):
    return self_train.self_train(plan, teacher(**overrides), self_train.students(student, []), workdir)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole") / "w"
    assert run(workdir) == 0
    return workdir


def assert_same(workdir, reference, *, step=STEPS, rounds=1):
    """Bit-identical weights, optimizer state and average of each round, pseudo-labels, evaluations and table."""
    for number in range(rounds + 1):
        mine, other = workdir / f"round{number}", reference / f"round{number}"
        got, expected = checkpoint_arrays(mine, step), checkpoint_arrays(other, step)
        assert got.keys() == expected.keys()
        for name in expected:
            np.testing.assert_array_equal(got[name], expected[name], err_msg=f"round {number}: {name}")
        names = [sorted(p.name for p in folder.glob("pseudo_labels*")) for folder in (mine, other)]
        assert names[0] == names[1] and len(names[0]) == 1  # the name is a digest of the content
        for file in ("eval/test.json", "eval/test_ema.json"):
            assert (mine / file).exists() == (other / file).exists()
            assert not (mine / file).exists() or (mine / file).read_text() == (other / file).read_text()
    assert (workdir / "self_train.json").read_text() == (reference / "self_train.json").read_text()


def read_labels(workdir, number):
    (path,) = (workdir / f"round{number}").glob("pseudo_labels_*.npz")
    return pseudo.read(path)


def test_each_round_is_an_ordinary_run_on_the_labels_of_the_round_before(finished):
    first, second = (config_lib.read(finished / f"round{i}/config.json") for i in range(2))
    assert first.data.pseudo_labels == ""
    assert second.data.pseudo_labels == str(finished / "round0" / read_labels(finished, 0).file_name())
    changed = config_lib.differences(first, second)
    assert {line.partition(":")[0] for line in changed} == {"seed", "data.pseudo_labels", "data.pseudo_ratio"}
    source, _ = build.open_train(second, build.build(second).open_split)
    assert len(source) == 100 + read_labels(finished, 0).count.sum()


def test_the_teacher_is_asked_by_its_averaged_weights_in_evaluation_mode(finished):
    """What the evaluation that everything else uses says of the same records is in the file, and chosen by the plan."""
    config = config_lib.read(finished / "round1/config.json")
    of_run = build.build(config)
    _, variables = workdirs.restore_variables(of_run.abstract_state, finished / "round1", STEPS, ema=True)
    found = train.evaluate_split(of_run, variables, PLAN.unlabelled, writers.Progress(enabled=False), keep_logits=True)
    said = read_labels(finished, 1)
    np.testing.assert_array_equal(said.predicted, found.rows["prediction"])
    np.testing.assert_allclose(said.confidence, found.rows["confidence"], rtol=1e-5)
    logits = found.logits.astype(np.float64)
    expected = np.exp(logits - logits.max(1, keepdims=True))
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(said.soft, expected[said.count > 0], rtol=2e-3)
    assert 0 < (said.confidence < PLAN.min_confidence).sum() < 200 and not said.count[said.confidence < 0.3].any()
    assert set(np.bincount(said.predicted, weights=said.count, minlength=10)) <= {0, 25}


def test_the_table_says_what_the_files_say(finished, capsys):
    result = json.loads((finished / "self_train.json").read_text())
    assert [result[key] for key in ("unlabelled", "labels", "per_class")] == [PLAN.unlabelled, "soft", 25]
    rows, said = result["results"], [read_labels(finished, number) for number in range(2)]
    for number, row in enumerate(rows):
        ours = evaluate.read_predictions(finished / f"round{number}", "test_ema")
        assert row["top1"] == ours["correct"].mean() and row["num_examples"] == 360 and row["ema"]
        assert row["top1_ci95"][0] < row["top1"] < row["top1_ci95"][1]
        if number:
            before = said[number - 1]
            assert row["pseudo_labels"] == (before.count > 0).sum() < row["pseudo_labels_taken"] == before.count.sum()
            assert row["mean_confidence"] == pytest.approx(before.confidence[before.count > 0].mean())
            assert row["agreement"] == np.mean(before.predicted == said[number].predicted)
    assert rows[0]["pseudo_labels"] is rows[0]["agreement"] is None
    lines = self_train.table(rows).splitlines()
    assert len(lines) == 3 and len({len(line) for line in lines}) == 1
    assert re.search(rf" 1  lenet5 \(EMA\)  {rows[1]['top1']:.4f} .* {rows[1]['agreement']:.4f}$", lines[2])


def forget(workdir, *paths):
    for path in paths:
        (found,) = workdir.glob(path)
        shutil.rmtree(found) if found.is_dir() else found.unlink()


def test_continued_after_a_kill_it_ends_with_the_same_bits(tmp_path, finished):
    """Killed while the teacher labelled, and while the student wrote its last checkpoint; and moved elsewhere."""
    workdir = tmp_path / "moved"
    shutil.copytree(finished, workdir)
    forget(
        workdir,
        "self_train.json",
        "round0/pseudo_labels_*",
        f"round1/checkpoints/{STEPS}",
        "round1/eval",
        "round1/pseudo_labels_*",
    )
    assert run(workdir) == 0
    assert_same(workdir, finished)


def test_another_plan_or_student_is_refused(finished):
    with pytest.raises(ConfigError, match=r"another plan .per_class: 25 -> 30."):
        run(finished, dataclasses.replace(PLAN, per_class=30))
    with pytest.raises(ConfigError, match=r"data.pseudo_ratio: 3.0 -> 2.0"):
        other = self_train.students(student, ["--student.data.pseudo_ratio=2.0"])
        self_train.self_train(PLAN, teacher(), other, finished)


def test_what_cannot_be_is_refused_before_the_teacher_is_trained(tmp_path):
    for make, sentence in (
        (lambda: self_train.Plan(), "--unlabelled is missing"),
        (lambda: self_train.Plan(unlabelled="train", labels="sof"), "--labels='sof' is unknown .did you mean 'soft'"),
        (lambda: self_train.Plan(unlabelled="train", min_confidence=1.0), "--min_confidence=1 must be"),
        (lambda: run(tmp_path, self_train.Plan(unlabelled="tran")), "--unlabelled='tran': .*did you mean 'train'"),
        (lambda: run(tmp_path, self_train.Plan(unlabelled=f"files:{tmp_path}")), "gives no image"),
        (lambda: run(tmp_path, **{"data.pseudo_labels": "x"}), "data.pseudo_labels is set by"),
    ):
        with pytest.raises(UserError, match=sentence):
            make()
    with pytest.raises(ConfigError, match=r"--student.optimizer.lrr is not a key .* .did you mean 'optimizer.lr'"):
        self_train.self_train(PLAN, teacher(), self_train.students(None, ["--student.optimizer.lrr=1"]), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_label_that_is_sure_enough_is_one_sentence(tmp_path, finished):
    shutil.copytree(finished / "round0", tmp_path / "w/round0")
    forget(tmp_path, "w/round0/pseudo_labels_*")
    with pytest.raises(UserError, match=r"No image of train.100:300. has a confidence of 0.999; the highest is 0\.\d+"):
        run(tmp_path / "w", self_train.Plan(unlabelled=PLAN.unlabelled, min_confidence=0.999))


def test_the_recipe_changes_students_and_flags_have_the_last_word():
    spec = f"{ROOT}/configs/noisy_student.py:fashion_mnist"
    config = config_lib.load(spec)
    change = config_lib.function(spec, "get_student")
    mine = self_train.students(change, ["--student.model.width=64", "--student.init.from=x"])(config, 2)
    assert config.model.drop_path is None and mine.model.drop_path == 0.1
    assert mine.augment.device == (*config.augment.device, "random_erasing(p=0.5)")
    assert (config.model.width, mine.model.width, mine.init["from"], mine.seed) == (32, 64, "x", 2)


@pytest.mark.parametrize("arg", ["digits", "fashion_mnist", "cifar10", "imagenet2012", "folder"])
def test_each_recipe_has_a_plan_and_its_students_build(arg):
    spec = f"{ROOT}/configs/noisy_student.py:{'folder:/photos' if arg == 'folder' else arg}"
    plan = self_train.Plan(**{"unlabelled": "files:x", **config_lib.function(spec, "get_self_training")()})
    config = config_lib.load(spec)
    make = self_train.students(config_lib.function(spec, "get_student"), [])
    known = None
    if arg == "folder":
        known = sources.Spec("folder:/photos", 2, ("a", "b"), {"train": 300, "test": 60})
    for number in range(1, plan.rounds + 1):
        run = build.build(make(config, number), known)
        assert run.total_steps > 0 and run.config.data.pseudo_ratio > 1


def test_a_termination_reaches_what_is_around_a_training_when_the_training_has_ended():
    came, old = [], signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    try:
        with preemption.Stopper() as stopper:
            assert not stopper.should_stop(1)
            os.kill(os.getpid(), signal.SIGTERM)
            assert stopper.should_stop(2) and came == []
        assert came == [signal.SIGTERM]
        with preemption.Stopper():
            pass
        assert len(came) == 1
    finally:
        signal.signal(signal.SIGTERM, old)


# Long enough to be killed in the middle of each round.
LONG = {"total_steps": 40, "checkpoint_every_steps": 7, "data.train_split": "train[:100]"}


def long_flags(workdir):
    flags = {**TINY, **LONG}
    return [
        f"--config={ROOT / 'configs/vit.py'}",
        f"--workdir={workdir}",
        "--unlabelled=train[100:]",
        "--rounds=2",
        "--min_confidence=0.1",
        "--per_class=100",
        "--student.data.pseudo_ratio=3.0",
        *(f"--config.{key}={value}" for key, value in flags.items()),
    ]


def start(workdir):
    return start_main(long_flags(workdir), module="imgcls_jax.self_train")


def wait_for(process, path, step):
    """Returns when the run whose metrics.jsonl that is has logged `step`; fails if it ends before."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        events = writers.read_jsonl(path / "metrics.jsonl")
        if events and events[-1]["step"] >= step:
            return
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.002)
    raise AssertionError("the run did not get on")


@pytest.mark.slow
def test_stopped_once_and_killed_three_times_it_ends_with_the_same_bits(tmp_path):
    reference, workdir, rng = tmp_path / "whole", tmp_path / "w", random.Random(0)
    code, output = run_main(long_flags(reference), module="imgcls_jax.self_train")
    assert code == 0, output
    process = start(workdir)
    wait_for(process, workdir / "round0", 5)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 143 and "The same command continues." in output, output
    for moment in sorted(rng.sample(range(3, 3 * 40), 3)):
        process = start(workdir)
        wait_for(process, workdir / f"round{moment // 40}", moment % 40)
        time.sleep(rng.random())  # into a step, a checkpoint, an evaluation, the labelling, the next round's start
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    code, output = run_main(long_flags(workdir), module="imgcls_jax.self_train")
    assert code == 0, output
    assert "top-1" in output and "written to" in output
    assert_same(workdir, reference, step=40, rounds=2)

"""Runs that start from weights: what is taken, what the config gets from them, and resuming without the file."""

import json
import shutil

import jax
import numpy as np
import pytest
from helpers import checkpoint_arrays, losses, run_main, tiny_config, tiny_flags

from imgcls_jax import build, lr_range, pretrained, train
from imgcls_jax import config as config_lib
from imgcls_jax.models.variant import Preprocessing
from imgcls_jax.types import UserError
from imgcls_jax.workdirs import with_preprocessing


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A tiny run of ten steps to start others from."""
    workdir = tmp_path_factory.mktemp("source") / "w"
    assert train.train(tiny_config(total_steps=10), workdir) == 0
    return workdir


def from_source(source, **overrides):
    config = tiny_config(total_steps=6, **{"optimizer.ema_decay": 0.9, **overrides})
    config.init["from"] = str(source)
    return config


def test_the_state_at_step_0_is_the_weights_and_the_optimizer_is_new(source):
    config = from_source(source)
    run = build.build(config)
    state, report = build.initial_state(run, pretrained.read(str(source)))
    expected = checkpoint_arrays(source, 10)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.params):
        np.testing.assert_array_equal(leaf, expected["params" + jax.tree_util.keystr(path)])
    jax.tree.map(np.testing.assert_array_equal, state.ema["params"], state.params)
    fresh = jax.tree.leaves(run.init().opt_state)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(state.opt_state), fresh, strict=True))
    assert not report.reinitialised and not report.unexpected and int(state.step) == 0


def test_another_model_is_refused_naming_tensors(source):
    run = build.build(from_source(source, **{"model.width": 32}))
    with pytest.raises(UserError, match=r"not this model's .*blocks.0.attn.proj.bias \[16\], not \[32\]"):
        build.initial_state(run, pretrained.read(str(source)))


def test_a_run_from_weights_resumes_exactly_and_without_them(tmp_path, source):
    """Stopped half-way and continued when the weights are gone: the same bits as without a stop."""
    copy = tmp_path / "weights"
    shutil.copytree(source, copy)
    flags = {"total_steps": 6, "checkpoint_every_steps": 3, "init.from": copy}
    code, output = run_main(tiny_flags(tmp_path / "a", **flags))
    assert code == 0 and f"Weights from {copy}: " in output and "none missing" in output, output
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.rmtree(tmp_path / "b/checkpoints/6")
    shutil.rmtree(copy)
    code, output = run_main(tiny_flags(tmp_path / "b", **flags))
    assert code == 0 and "continues after step 3" in output, output
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    a, b = (checkpoint_arrays(tmp_path / name, 6) for name in "ab")
    assert a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)
    code, output = run_main(tiny_flags(tmp_path / "c", **flags))
    assert code == 1 and str(copy) in output.splitlines()[-1], output


def test_preprocessing_is_carried_into_the_run(source):
    config = config_lib.load("configs/resnet.py:folder:/nowhere")
    p = Preprocessing(mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5), interpolation="bicubic", crop_pct=0.95, image_size=288)
    carried = with_preprocessing(config, p)
    assert carried.data.mean == p.mean and carried.data.std == p.std and carried.data.image_size == 224
    assert carried.augment.host_eval == ("resize_centre_crop(crop_pct=0.95, interpolation='bicubic')",)
    assert carried.is_locked and config.data.mean != p.mean
    grey = with_preprocessing(tiny_config(), p)
    assert grey.data.mean == pytest.approx((0.2,)) and grey.augment.host_eval == tiny_config().augment.host_eval


def test_the_run_s_config_says_so(tmp_path, source):
    """A work directory's own mean and std are carried over, and saved."""
    flags = tiny_flags(tmp_path / "w", **{"total_steps": 1, "init.from": source, "data.mean": "(0.9,)"})
    code, output = run_main(flags)
    assert code == 0, output
    assert json.loads((tmp_path / "w/config.json").read_text())["data"]["mean"] == [0.3055]
    flags = tiny_flags(
        tmp_path / "v", **{"total_steps": 1, "init.from": source, "data.mean": "(0.9,)", "init.preprocessing": False}
    )
    code, output = run_main(flags)
    assert code == 0, output
    assert json.loads((tmp_path / "v/config.json").read_text())["data"]["mean"] == [0.9]


def test_a_range_test_from_weights_begins_with_them_wherever_it_is_started(source, tmp_path, monkeypatch):
    """A config.json that lies in the current folder is none of its business."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text("{")
    config = lr_range.rising(from_source(source), min_lr=1e-4, max_lr=1.0, steps=60)
    built = build.build(config)
    state, _ = build.initial_state(built, pretrained.read(str(source)))
    batch = next(build.batches_of(built, 0, state))
    _, logs = built.train_step(state, batch, built.constants())
    assert lr_range.run(config, tmp_path / "w").loss[0] == float(logs["loss"])

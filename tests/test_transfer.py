"""Runs that start from weights: what is frozen, what thaws and when, and who learns how fast."""

import itertools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import ROOT, checkpoint_arrays, losses

from imgcls_jax import build, finetune, models, objectives, optim, optim_groups, pretrained, train, trees
from imgcls_jax import config as config_lib
from imgcls_jax import losses as losses_lib
from imgcls_jax import step as step_lib
from imgcls_jax.optim_groups import NEVER, Groups
from imgcls_jax.state import TrainState
from imgcls_jax.types import ConfigError

LAYOUT = models.variant("resnet20").layout
RATE = 0.01


def groups(**values):
    return Groups(heads=LAYOUT.heads, layers=LAYOUT.layers, joins=LAYOUT.joins, **values)


def make(name="adamw", **overrides):
    values = {"weight_decay": 0.5, "decay_exclude": (), "momentum": 0.9, "nesterov": True}
    values |= {"b1": 0.9, "b2": 0.99, "eps": 1e-12, **overrides}
    return lambda learning_rate, clip_norm: optim.optimizer(
        name, learning_rate=learning_rate, clip_norm=clip_norm, **values
    )


@pytest.fixture(scope="module")
def net():
    """A small network with batch norm and two blocks, its variables and a batch."""
    model = models.build("resnet20", num_classes=3, stage_sizes=(1, 1), width=4, zero_init_last=False)
    variables = dict(model.init(jax.random.key(0), jnp.zeros((1, 6, 6, 1)), train=False))
    # Values whose bits are lost by adding nothing: -0.0 + 0.0 is 0.0.
    variables["params"]["conv1"]["kernel"] = variables["params"]["conv1"]["kernel"].at[0, 0].set(-0.0)
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (8, 6, 6, 1)).astype(np.uint8),
        "label": rng.integers(0, 3, 8).astype(np.int32),
        "mask": np.ones(8, bool),
    }
    return model, variables, batch


def start(net, tx, ema=True):
    _, variables, _ = net
    params, model_state = variables["params"], {"batch_stats": variables["batch_stats"]}
    average = jax.tree.map(jnp.copy, {"params": params, "model_state": model_state}) if ema else {}
    return TrainState(jnp.int32(0), params, model_state, tx.init(params), average)


def step_of(net, tx, which, **overrides):
    model, _, batch = net
    values = {"accumulate_steps": 1, "average": optim.ema(0.5), **overrides}
    step = step_lib.make_train_step(
        objective=objectives.supervised(model, losses_lib.softmax_cross_entropy, aux_weight=0.3),
        tx=tx,
        learning_rate=lambda step: RATE * jnp.ones(()),
        augmentations={"labelled": ()},
        mean=(0.3,),
        std=(0.4,),
        num_classes=3,
        seed=0,
        groups=which,
        **values,
    )
    return jax.jit(lambda state: step(state, batch, {}))


def states(net, which, count, name="adamw", rate=lambda step: RATE, clip_norm=1.0, **overrides):
    """The states at steps 0 to `count`, and the compiled step."""
    tx = optim_groups.grouped(make(name), rate, which, clip_norm=clip_norm)
    step, found = step_of(net, tx, which, **overrides), [start(net, tx)]
    for _ in range(count):
        found.append(step(found[-1])[0])
    return found, step


def changed(old, new):
    """Paths of the leaves whose bits differ."""
    pairs = zip(trees.paths(old), jax.tree.leaves(old), jax.tree.leaves(new), strict=True)
    return {path for path, a, b in pairs if np.asarray(a).tobytes() != np.asarray(b).tobytes()}


HEAD = {"fc/kernel", "fc/bias"}


@pytest.mark.parametrize(("name", "count"), [("adamw", 1), ("sgd", 1), ("muon", 2)])
def test_what_is_frozen_stays_bit_for_bit_and_the_head_moves(net, name, count):
    found, _ = states(net, groups(starts=(("body", NEVER),)), 3, name, accumulate_steps=count)
    first, last = found[0], found[-1]
    assert changed(first.params, last.params) == HEAD
    assert changed(first.model_state, last.model_state) == set()
    assert changed(first.ema, last.ema) == {f"params/{path}" for path in HEAD}
    assert not np.array_equal(last.ema["params"]["fc"]["kernel"], last.params["fc"]["kernel"])
    kept = {path for path in trees.paths(last.opt_state) if any(name in path for name in ("conv", "bn", "layer"))}
    assert kept == set()  # no optimizer state for what is frozen


def test_without_freezing_everything_moves(net):
    """Or the test above proves nothing."""
    (first, last), _ = states(net, groups(), 1)
    assert changed(first.params, last.params) == set(trees.paths(first.params))
    assert changed(first.model_state, last.model_state) == set(trees.paths(first.model_state))


def test_frozen_batch_norms_use_their_running_statistics(net):
    """The loss of a frozen body is that of evaluation, and the head's gradient that of a linear classifier."""
    model, variables, batch = net
    which = groups(starts=(("body", NEVER),))
    tx = optim_groups.grouped(make("sgd", momentum=0.0, weight_decay=0.0), lambda _: RATE, which, clip_norm=0.0)
    state, logs = step_of(net, tx, which)(start(net, tx))
    images = (np.float32(batch["image"]) / 255 - 0.3) / 0.4
    features = np.float64(model.clone(num_classes=0).apply(variables, images, train=False))
    head = jax.tree.map(np.float64, variables["params"]["fc"])
    logits = features @ head["kernel"] + head["bias"]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    right = np.eye(3)[batch["label"]]
    assert float(logs["loss"]) == pytest.approx(-np.log(probabilities[right > 0]).mean(), rel=1e-5)
    gradient = features.T @ (probabilities - right) / 8
    np.testing.assert_allclose(state.params["fc"]["kernel"], head["kernel"] - RATE * gradient, rtol=1e-5, atol=1e-7)
    assert float(logs["grad_norm"]) == pytest.approx(
        np.sqrt((gradient**2).sum() + ((probabilities - right).mean(0) ** 2).sum()), rel=1e-4
    )


def test_the_gradients_of_what_is_frozen_are_not_computed(net):
    cost = {}
    for name, starts in (("all", ()), ("head", (("body", NEVER),))):
        which = groups(starts=starts)
        tx = optim_groups.grouped(make("sgd"), lambda _: RATE, which, clip_norm=0.0)
        compiled = step_of(net, tx, which).lower(start(net, tx)).compile()
        cost[name] = compiled.cost_analysis()["flops"]
    assert cost["head"] < 0.5 * cost["all"], cost


@pytest.mark.parametrize("name", ["adamw", "sgd", "rmsprop", "lamb"])
def test_updates_are_the_plain_ones_times_the_factor_of_the_first_rule(name):
    kernel = {"kernel": jnp.linspace(0.5, 1.0, 12).reshape(3, 4)}
    params = {"conv1": kernel, "layer1.0": {"conv1": kernel, "conv2": kernel}, "fc": kernel}
    which = groups(factors=((r"conv1/kernel$", 0.5), ("body", 0.1)))
    rate = lambda count: RATE * (count + 1)  # noqa: E731
    tx, plain = optim_groups.grouped(make(name), rate, which, clip_norm=1.0), make(name)(rate, 1.0)
    state, reference = tx.init(params), plain.init(params)
    update, plain_update = jax.jit(tx.update), jax.jit(plain.update)
    for i in range(3):
        grads = jax.tree.map(lambda x, i=i: jnp.cos(i + jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape), params)
        updates, state = update(grads, state, params)
        expected, reference = plain_update(grads, reference, params)
        for path, u, e in zip(trees.paths(params), *map(jax.tree.leaves, (updates, expected)), strict=True):
            factor = 0.5 if path.endswith("conv1/kernel") else 1.0 if path in HEAD else 0.1
            np.testing.assert_allclose(u, factor * np.asarray(e), rtol=1e-6, err_msg=path)


def test_a_step_with_factors_is_the_step_written_down(net):
    """SGD by hand: p - rate * factor * (gradient + decay * p), with layer-wise decay."""
    model, variables, batch = net
    which = groups(factors=((r"bn1", 0.5),), layer_decay=0.5)
    tx = optim_groups.grouped(make("sgd", momentum=0.0), lambda _: RATE, which, clip_norm=0.0)
    state, _ = step_of(net, tx, which)(start(net, tx))
    images = (np.float32(batch["image"]) / 255 - 0.3) / 0.4

    def loss(params):
        logits, _ = model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

    grads = jax.jit(jax.grad(loss))(variables["params"])
    above = {"conv1": 3, "bn1": 3, "layer1.0": 2, "layer2.0": 1, "fc": 0}

    def one(path, p, g):
        factor = 0.5 ** above[path.split("/")[0]] * (0.5 if "bn1" in path else 1)
        return p - RATE * factor * (g + 0.5 * p)

    expected = trees.map_with_path(one, variables["params"], grads)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), state.params, expected)


def test_unfreezing_step_by_step(net):
    """The head at once, the second block from step 2, the rest from step 4; one compilation."""
    which = groups(starts=((r"^layer2", 2), ("body", 4)))
    rate = lambda count: RATE * (count + 1)  # noqa: E731
    found, step = states(net, which, 6, rate=rate, clip_norm=0.0)
    names = trees.paths(found[0].params)
    second = {path for path in names if path.startswith("layer2")}
    for i, (old, new) in enumerate(itertools.pairwise(found)):
        awake = HEAD | (second if i >= 2 else set()) | (set(names) if i >= 4 else set())
        assert changed(old.params, new.params) == awake, i
        statistics = {path.removeprefix("batch_stats/") for path in changed(old.model_state, new.model_state)}
        assert {path.rpartition("/")[0] for path in statistics} == {
            path.rpartition("/")[0] for path in awake if "bn" in path or "downsample.1" in path
        }, i
        average = {path.removeprefix("params/") for path in changed(old.ema, new.ema) if path.startswith("params")}
        assert average == awake, i
    assert step._cache_size() == 1


def test_what_thaws_has_an_optimizer_that_is_new_and_the_learning_rate_of_the_run():
    """Adam's first step is rate * sign(gradient), whenever it is; its bias correction must count from there."""
    which = groups(starts=((r"^layer1", 3),))
    rate = lambda count: RATE * (count + 1)  # noqa: E731
    params = {"layer1": {"kernel": jnp.ones((2, 2))}, "fc": {"kernel": jnp.ones(3)}}
    tx = optim_groups.grouped(make(weight_decay=0.0), rate, which, clip_norm=0.0)
    state = tx.init(params)
    for i in range(5):
        grads = jax.tree.map(lambda x: jnp.full_like(x, 0.25), params)
        updates, state = tx.update(grads, state, params)
        np.testing.assert_allclose(updates["fc"]["kernel"], -rate(i), rtol=1e-4)
        np.testing.assert_allclose(updates["layer1"]["kernel"], -rate(i) if i >= 3 else 0, rtol=1e-4)


def test_what_an_objective_learns_beside_the_model_always_trains_at_the_full_rate():
    params = {"fc": {"kernel": jnp.ones(2)}, "conv1": {"kernel": jnp.ones(2)}, "objective": {"conv1": jnp.ones(2)}}
    which = groups(starts=(("conv1", NEVER),), factors=((".", 0.5),), layer_decay=0.5)
    assert optim_groups.starts(which, params)["objective"] == {"conv1": 0}
    assert optim_groups.factors(which, params) == {
        "fc": {"kernel": 0.5},
        "conv1": {"kernel": 0.25},
        "objective": {"conv1": 1.0},
    }


def small_config(**overrides):
    """configs/resnet.py:digits, smaller, on a mesh of eight."""
    config = config_lib.load(str(ROOT / "configs/resnet.py"))
    config.update(total_steps=6, batch_size=16, log_every_steps=1, eval_every_steps=0, checkpoint_every_steps=3)
    config.model.update(stage_sizes=(1, 1), width=16)
    config.optimizer.update(name="adamw", lr=1e-2, ema_decay=0.9)
    config.schedule.update(warmup_steps=0, warmup_epochs=0.0)
    config.sharding.fsdp = 2
    for key, value in overrides.items():
        config.optimizer[key] = value
    return config


GRADUAL = {"freeze": (r"^conv1",), "unfreeze": ((r"^layer2", 1), ("body", 0.67)), "layer_decay": 0.5}


@pytest.fixture(scope="module")
def gradual(tmp_path_factory):
    """A run with all of it at once, to its end."""
    workdir = tmp_path_factory.mktemp("gradual") / "w"
    assert train.train(small_config(**GRADUAL), workdir) == 0
    return workdir


def test_a_run_with_all_of_it_resumes_exactly(tmp_path, gradual):
    """Stopped between the stages and continued: the same bits."""
    workdir = tmp_path / "w"
    shutil.copytree(gradual, workdir)
    shutil.rmtree(workdir / "checkpoints/6")
    assert train.train(small_config(**GRADUAL), workdir) == 0
    assert losses(workdir) == losses(gradual)
    a, b = (checkpoint_arrays(path, 6) for path in (workdir, gradual))
    assert a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def test_a_run_froze_what_it_was_told_to(gradual):
    """Sharded too: the second block thawed at step 1, the rest at step 4 (0.67 of 6), the stem never."""
    first = build.build(small_config(**GRADUAL)).init()
    begin = {"params" + jax.tree_util.keystr(p): np.asarray(x) for p, x in jax.tree.leaves_with_path(first.params)}
    at = {step: checkpoint_arrays(gradual, step) for step in (3, 6)}
    for step, frozen in ((3, ("conv1", "bn1", "layer1.0")), (6, ("conv1",))):
        same = {path for path, x in begin.items() if x.tobytes() == at[step][path].tobytes()}
        assert same == {path for path in begin if path.startswith(tuple(f"params['{name}']" for name in frozen))}
        average = {path for path in begin if np.array_equal(begin[path], at[step][f"ema['params']{path[6:]}"])}
        assert average == same


def test_head_only_from_the_weights_of_a_run(tmp_path, gradual):
    """`freeze=("body",)` with `init.from`: everything but the head is the file's, bit for bit."""
    config = small_config(freeze=("body",))
    config.init["from"] = str(gradual)
    assert train.train(config, tmp_path / "w") == 0
    before, after = checkpoint_arrays(gradual, 6), checkpoint_arrays(tmp_path / "w", 6)
    kept = {path for path in before if path.startswith(("params", "model_state"))}
    moved = {path for path in kept if before[path].tobytes() != after[path].tobytes()}
    assert moved == {"params['fc']['kernel']", "params['fc']['bias']"}
    assert {path for path in after if path.startswith("opt_state") and "layer" in path} == set()
    assert pretrained.read(str(tmp_path / "w"))  # others may start from it


def test_a_classifier_for_other_classes_starts_at_zero(gradual):
    config = small_config()
    config.data.positive_class = "3"
    run = build.build(config)
    state, report = build.initial_state(run, pretrained.read(str(gradual)))
    assert set(report.reinitialised) == {"fc.weight", "fc.bias"}
    weights = checkpoint_arrays(gradual, 6)
    for path, leaf in jax.tree.leaves_with_path(state.params):
        name = "params" + jax.tree_util.keystr(path)
        np.testing.assert_array_equal(leaf, np.zeros_like(leaf) if "['fc']" in name else weights[name])


def head_config(cache, **overrides):
    config = small_config(freeze=("body",), cache_features=cache, **overrides)
    config.augment.device = ()
    return config


@pytest.fixture(scope="module")
def heads(tmp_path_factory, gradual):
    """Two runs that train the head of `gradual`: {whether on cached features: work directory}."""
    found = {}
    for cache in (True, False):
        config, found[cache] = head_config(cache), tmp_path_factory.mktemp("heads") / "w"
        config.init["from"] = str(gradual)
        assert train.train(config, found[cache]) == 0
    return found


def test_cached_features_train_the_same_head(heads, gradual):
    a, b = (checkpoint_arrays(heads[cache], 6) for cache in (True, False))
    assert a.keys() == b.keys()
    for path in a:
        np.testing.assert_allclose(a[path], b[path], rtol=1e-4, atol=1e-6, err_msg=path)
    cached, plain = losses(heads[True]), losses(heads[False])
    np.testing.assert_allclose(list(cached.values()), list(plain.values()), rtol=1e-5)
    begin = checkpoint_arrays(gradual, 6)["params['fc']['kernel']"]
    assert np.abs(a["params['fc']['kernel']"] - begin).max() > 0.01  # it did learn


def test_cached_features_leave_the_body_bit_for_bit_and_resume_exactly(tmp_path, heads, gradual):
    before, after = checkpoint_arrays(gradual, 6), checkpoint_arrays(heads[True], 6)
    kept = {path for path in before if path.startswith(("params", "model_state"))}
    assert {path for path in kept if before[path].tobytes() != after[path].tobytes()} == {
        "params['fc']['kernel']",
        "params['fc']['bias']",
    }
    workdir = tmp_path / "w"
    shutil.copytree(heads[True], workdir)
    shutil.rmtree(workdir / "checkpoints/6")
    config = head_config(True)
    config.init["from"] = str(gradual)
    assert train.train(config, workdir) == 0
    again = checkpoint_arrays(workdir, 6)
    assert all(np.array_equal(again[path], after[path]) for path in after)


def test_the_body_is_not_run_on_cached_features():
    """A step on features costs a hundredth of one on images."""
    cost = {}
    for cache in (True, False):
        run = build.build(head_config(cache))
        state = run.init()
        batch = next(build.batches_of(run, 0, state))
        assert ("features" in batch) == cache
        cost[cache] = run.train_step.lower(run.abstract_state, batch, {}).compile().cost_analysis()["flops"]
    assert cost[True] < 0.01 * cost[False], cost


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"optimizer.freeze": (r"^conv1",)}, r'needs optimizer.freeze=\("body",\)'),
        ({"optimizer.freeze": (), "optimizer.unfreeze": (("body", 3),)}, r'needs optimizer.freeze=\("body",\)'),
        ({"augment.device": ("flip()",)}, r"needs augment.host_train=\(\) and augment.device=\(\)"),
        ({"model.drop_path": 0.1}, "needs model.drop_path=0.0"),
        ({"data.mix": (("digits", 1.0),)}, r"needs data.mix=\(\)"),
    ],
)
def test_features_are_cached_only_where_they_stay_the_same(overrides, message):
    config = head_config(True)
    for key, value in overrides.items():
        group, _, name = key.rpartition(".")
        config[group][name] = value
    with pytest.raises(ConfigError, match=message):
        build.build(config)


def test_a_probe_and_then_the_whole_model_side_by_side(tmp_path, gradual, capsys, monkeypatch):
    """The program: two work directories, the second from the first, a table, a report; again, it only prints."""
    monkeypatch.chdir(ROOT)
    flags = ["--config=configs/resnet.py", f"--config.init.from={gradual}", f"--workdir={tmp_path / 'w'}"]
    flags += ["--config.total_steps=4", "--config.batch_size=16", "--config.model.stage_sizes=(1,1)"]
    flags += ["--config.model.width=16", "--config.log_every_steps=1", "--probe_lr=0.02"]
    assert finetune.main(flags) == 0
    out = capsys.readouterr().out
    probe, full = (config_lib.read(tmp_path / "w" / name / "config.json") for name in ("probe", "full"))
    assert probe.optimizer.freeze == ("body",) and probe.optimizer.cache_features and probe.optimizer.lr == 0.02
    assert full.optimizer.freeze == () and full.augment.device == ("pad_and_crop(1)",)
    begin, end = checkpoint_arrays(gradual, 6), checkpoint_arrays(tmp_path / "w/probe", 4)
    assert begin["params['conv1']['kernel']"].tobytes() == end["params['conv1']['kernel']"].tobytes()
    rows = [line for line in out.splitlines() if line.startswith("| ")]
    assert rows[0].startswith("| | top1 |") and [row.split(" | ")[0] for row in rows[2:]] == ["| probe", "| full"]
    results = {
        name: json.loads((tmp_path / "w" / name / "eval/test.json").read_text())["top1"] for name in ("probe", "full")
    }
    assert f"| probe | {results['probe']:.4f} (" in out and f"| full | {results['full']:.4f} (" in out
    assert f"full minus probe: {results['full'] - results['probe']:+.4f} of 360 right" in out
    assert "probe" in (tmp_path / "w/report.html").read_text()
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "w").glob("*/checkpoints/4")}
    assert len(written) == 2 and finetune.main(flags) == 0
    assert written == {path: path.stat().st_mtime_ns for path in written}
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")] == rows


def test_fine_tuning_needs_weights():
    with pytest.raises(ConfigError, match=r"--config\.init\.from is missing"):
        finetune.main([f"--config={ROOT / 'configs/finetune.py'}:digits"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"freeze": (r"^layer9",)}, r"no parameter of the model matches '\^layer9'.* bn1/bias"),
        ({"lr_multipliers": (("objective", 0.1),)}, "no parameter of the model matches 'objective'"),
        ({"freeze": (".",)}, "leave no parameter to train at the first step"),
        ({"unfreeze": ((".", 2),)}, "leave no parameter to train at the first step"),
        ({"unfreeze": ((2, "body"),)}, r"optimizer.unfreeze has the entry \(2, 'body'\)"),
        ({"lr_multipliers": (("body", 0.0),)}, r"optimizer.lr_multipliers has the entry"),
        ({"layer_decay": 1.5}, "optimizer.layer_decay=1.5 must be above 0 and at most 1"),
    ],
)
def test_rules_that_make_no_sense_are_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        build.build(small_config(**overrides))


def numbers(name, **overrides):
    """{dotted name: layer} of a model of the zoo."""
    entry = models.variant(name)
    model = models.build(name, num_classes=3, **overrides)
    side = entry.preprocessing.image_size
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, side, side, entry.channels)), train=False)
    )["params"]
    layout = entry.layout
    found = optim_groups.layer_numbers(Groups(heads=layout.heads, layers=layout.layers, joins=layout.joins), shapes)
    return {
        path.replace("/", "."): number for path, number in zip(trees.paths(found), jax.tree.leaves(found), strict=True)
    }


@pytest.mark.parametrize(
    ("name", "overrides", "expected"),
    [
        (
            "vit_mu_patch16_224",
            {"depth": 3, "pool": "cls"},
            {
                "cls_token": 0,
                "pos_embed": 0,
                "blocks.0.norm1.bias": 1,
                "blocks.2.norm2.bias": 3,
                "norm.bias": 3,
                "head.bias": 4,
            },
        ),
        ("lenet5", {}, {"conv1.bias": 0, "conv2.bias": 1, "fc1.bias": 2, "fc2.bias": 3, "fc3.bias": 4}),
        ("alexnet", {}, {"features.0.bias": 0, "features.10.bias": 4, "classifier.4.bias": 6, "classifier.6.bias": 7}),
        ("vgg11", {}, {"features.0.bias": 0, "features.18.bias": 7, "classifier.0.bias": 8, "classifier.6.bias": 10}),
        (
            "wrn40_4",
            {"depth": 10},
            {"conv1.kernel": 0, "block3.layer.0.conv1.kernel": 3, "bn1.scale": 3, "fc.bias": 4},
        ),
        pytest.param(
            "googlenet",
            {},
            {
                "conv1.conv.kernel": 0,
                "conv3.conv.kernel": 2,
                "inception3a.branch1.conv.kernel": 3,
                "inception5b.branch1.conv.kernel": 11,
                "fc.bias": 12,
            },
            marks=pytest.mark.slow,
        ),
    ],
)
def test_layers_from_the_stem_to_the_head(name, overrides, expected):
    found = numbers(name, **overrides)
    assert {path: found[path] for path in expected} == expected
    assert set(found.values()) == set(range(max(expected.values()) + 1))


@pytest.mark.parity
@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "resnet50",
        "legacy_seresnet50",
        "resnetv2_50x1_bit",
        "vit_tiny_patch16_224",
        "deit_tiny_distilled_patch16_224",
        "vit_base_patch16_siglip_224",
        "convnext_tiny",
        "mixer_b16_224",
        "densenet121",
        "efficientnet_b0",
        "tf_efficientnet_lite0",
        "mobilenetv3_small_100",
    ],
)
def test_layer_decay_is_timm_s(torch, name):
    """The factor of each parameter is what timm's param_groups_layer_decay gives it."""
    import timm
    from timm.optim import param_groups_layer_decay

    with torch.device("meta"):
        theirs = timm.create_model(name, num_classes=3)
    names = {id(parameter): name for name, parameter in theirs.named_parameters()}
    expected = {
        names[id(parameter)]: group["lr_scale"]
        for group in param_groups_layer_decay(theirs, layer_decay=0.7)
        for parameter in group["params"]
    }
    found = numbers(name)
    top = max(found.values())
    renamed = {re_named(path): 0.7 ** (top - number) for path, number in found.items()}
    assert renamed.keys() == expected.keys()
    assert renamed == pytest.approx(expected, rel=1e-12)


def re_named(path):
    """Torch's name of a parameter of ours."""
    return path.replace(".kernel", ".weight").replace(".scale", ".weight")

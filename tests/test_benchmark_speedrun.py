"""The arithmetic of benchmarks/speedrun.py; that torch's side has the same net and sees moved, mirrored images."""

import importlib.util
import sys

import jax
import numpy as np
import pytest
from helpers import ROOT
from scipy import stats

from imgcls_jax import build, trees
from imgcls_jax import config as config_lib


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def speedrun():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield load(ROOT / "benchmarks/speedrun.py")
    sys.path.remove(str(ROOT / "benchmarks"))


def test_the_interval_of_a_mean_is_student_s(speedrun):
    values = [93.1, 93.4, 93.3, 93.7]
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    mean, half = map(float, speedrun.mean(values, ".3f").split(" ± "))
    assert (mean - half, mean + half) == pytest.approx((low, high), abs=2e-3)
    assert speedrun.mean([93.1], ".2f") == "93.10"


def test_every_ablation_changes_the_recipe_and_the_table_has_a_line_for_each(speedrun):
    from imgcls_jax import cli

    plain = config_lib.load(speedrun.CONFIG)
    for name, flags in speedrun.ABLATIONS.items():
        changed, _ = cli.train_flags([f"--config={speedrun.CONFIG}", *flags], usage="")
        found = dict(config_lib.leaves(changed))
        assert len([key for key, value in config_lib.leaves(plain) if found[key] != value]) == len(flags), name
    runs = [{"top1": 0.93, "seconds": 400.0, "images_per_second": 1200.0}] * 2
    text = speedrun.table({"ours": runs, "theirs": runs[:1]})
    assert "| ours | 2 | 93.00 ± 0.00 | 93.00, 93.00 | 400 ± 0 | 1,200 |" in text
    assert "| theirs | 1 | 93.00 | 93.00 | 400 | 1,200 |" in text


@pytest.mark.parity
def test_torch_s_net_has_about_as_many_parameters(speedrun):
    worker, config = load(ROOT / "benchmarks/workers/torch_speedrun.py"), config_lib.load(speedrun.CONFIG)
    model = build.build_model(config, 10)
    image = jax.ShapeDtypeStruct((1, *build.image_shape(config)), np.float32)
    params = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)["params"]
    theirs = worker.resnet(list(speedrun.PLAIN["stage_sizes"]), speedrun.PLAIN["width"])
    assert sum(p.numel() for p in theirs.parameters()) == pytest.approx(trees.count(params), rel=0.05)


@pytest.mark.parity
def test_torch_s_images_are_moved_and_mirrored():
    import torch

    worker = load(ROOT / "benchmarks/workers/torch_speedrun.py")
    torch.manual_seed(0)
    images = torch.randn(64, 1, 9, 9)
    pad, black = worker.PADDING, -worker.MEAN / worker.STD
    padded = torch.nn.functional.pad(images, (pad,) * 4, value=black)[:, 0]
    seen = set()
    for i, found in enumerate(worker.augmented(images)[:, 0]):
        places = [(y, x, m) for y in range(2 * pad + 1) for x in range(2 * pad + 1) for m in (False, True)]
        crops = {(y, x, m): padded[i, y : y + 9, x : x + 9].flip(-1 if m else ()) for y, x, m in places}
        matches = [place for place, crop in crops.items() if torch.equal(crop, found)]
        assert len(matches) == 1
        seen.add(matches[0])
    assert len(seen) > 20 and {m for _, _, m in seen} == {False, True}

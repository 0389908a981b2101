"""debug.overfit_batch: one batch for ever, which every family of the zoo learns by heart."""

import numpy as np
import pytest
from helpers import on_one_device, tiny_config

from imgcls_jax import build, config, models
from imgcls_jax.data.arrays import ArraySource
from imgcls_jax.types import Spec

# One small net of each architecture, by file of the zoo, and the side of its images.
FAMILIES = {
    "airbench": ("airbench94", 16, {"width": 16}),
    "alexnet": ("alexnet", 63, {}),
    "convnext": ("convnext_tiny", 32, {"stage_sizes": (1, 1, 1, 1)}),
    "densenet": ("densenet_bc_100_12", 16, {"block_sizes": (2, 2, 2)}),
    "efficientnet": ("efficientnet_b0", 32, {}),
    "googlenet": ("googlenet", 32, {}),
    "legacy_senet": ("legacy_seresnet50", 32, {}),
    "lenet": ("lenet5", 28, {}),
    "mixer": ("mixer_b16_224", 32, {}),
    "mobilenetv3": ("mobilenetv3_small_100", 32, {}),
    "resnet": ("resnet18", 16, {"stage_sizes": (1, 1, 1), "width": 16, "stem": "small"}),
    "resnetv2": ("resnetv2_50x1_bit", 32, {}),
    "vgg": ("vgg11_bn", 32, {}),
    "vit": ("vit_mu_patch16_224", 16, {"patch_size": 4, "dropout": 0.1}),
    "deit": ("deit_tiny_distilled_patch16_224", 32, {"depth": 2}),
    "deit3": ("deit3_small_patch16_224", 32, {"depth": 2, "width": 48}),
    "wide_resnet": ("wrn40_4", 16, {"depth": 10, "dropout": 0.3}),
}
QUICK = ("lenet", "vit")


def overfitting(name, side, fields):
    """A run on noise with labels of chance, with all that keeps a network from learning by heart."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (40, side, side, 3), dtype=np.uint8), rng.integers(0, 5, 40).astype(np.int32)
    spec = Spec("noise", 5, tuple("abcde"), {"train": 40, "test": 40})
    c = config.base()
    c.model.update(name=name, **fields)
    c.data.update(name="noise", image_size=side, channels=3)
    c.augment.device = ("pad_and_crop(2)", "mixup(0.8)")
    c.loss.label_smoothing = 0.1
    c.debug.overfit_batch = True
    c.update(batch_size=16, total_steps=400)
    c.optimizer.update(name="adam", lr=1e-3, weight_decay=0.0, clip_norm=1.0)
    c.schedule.update(name="constant", warmup_steps=0)
    return build.build(c, data={split: ArraySource(images, labels, spec, split) for split in ("train", "test")})


def check(family):
    run = overfitting(*FAMILIES[family])
    state, batches, loss, losses = run.init(), build.train_batches(run, 0), np.inf, []
    while loss > 0.02 and len(losses) < run.total_steps:
        state, logs = run.train_step(state, build.put(run, 16, next(batches)), run.constants())
        loss = float(logs["loss"])
        losses.append(loss)
    assert losses[0] > 1 and loss <= 0.02, (losses[0], min(losses), len(losses))
    assert logs["top1"] == 1


@pytest.mark.parametrize("family", QUICK)
def test_a_batch_is_learnt_by_heart(family):
    check(family)


@pytest.mark.slow
@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in QUICK])
def test_every_family_learns_a_batch_by_heart(family):
    on_one_device("test_overfit", f"check({family!r})")


def test_the_families_are_all_architectures_of_the_zoo():
    named = {models.MODELS[name].architecture for name, _, _ in FAMILIES.values()}
    assert named == {variant.architecture for variant in models.MODELS.values()}


def test_the_batch_is_the_first_and_stays_it():
    ordinary = build.build(tiny_config(**{"augment.device": ()}))
    expected = next(build.train_batches(ordinary, 0))
    overfit = build.build(tiny_config(**{"debug.overfit_batch": True}))
    batches = build.train_batches(overfit, 7)
    for _ in range(3):
        got = next(batches)
        for name in ("image", "label", "index"):
            np.testing.assert_array_equal(got[name], expected[name])
    c = overfit.config
    assert (c.augment.device, c.loss.label_smoothing, c.model.dropout, c.model.drop_path) == ((), 0.0, 0.0, 0.0)
    again = build.build(c)  # as from W/config.json
    assert config.differences(again.config, c) == []

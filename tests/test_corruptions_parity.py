"""The corruptions against the package imagecorruptions-imaug, fed with the same random numbers.

It is installed without what it depends on (.ci/run): its opencv-python would replace ours, and Numba is not needed.
"""

import ast
import inspect
import sys
import types

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from imgcls_jax.augment import corruptions, geometry

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def oracle():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "numba", types.SimpleNamespace(njit=lambda: lambda function: function))
        yield pytest.importorskip("imagecorruptions.corruptions")
        for name in [name for name in sys.modules if name.startswith("imagecorruptions")]:
            del sys.modules[name]


@pytest.fixture(scope="module")
def image():
    """Wider than high; its fog has the published size of 256."""
    return geometry.resize(load_sample_image("china.jpg"), 160, 220)


def published(oracle, name, severity, image):
    return np.uint8(getattr(oracle, name)(Image.fromarray(image), severity)).astype(int)


def ours(name, severity, image, rng):
    return corruptions.Corruption(name, severity)(image, rng).astype(int)


@pytest.mark.parametrize("severity", corruptions.SEVERITIES)
@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("defocus_blur", 1),
        ("zoom_blur", 1),
        ("brightness", 1),
        ("contrast", 1),
        ("pixelate", 0),
        ("jpeg_compression", 0),
        ("gaussian_noise", 1),
        ("fog", 1),
        ("motion_blur", 1),
        ("glass_blur", 2),  # a level of the first blur may be another, and be copied
    ],
)
def test_equal_to_the_package(oracle, monkeypatch, image, name, most, severity):
    rng = np.random.default_rng(5)
    monkeypatch.setattr(oracle.Image, "NEAREST", Image.BOX)  # the filter of the published program's pixelate
    monkeypatch.setattr(np.random, "uniform", rng.uniform)
    monkeypatch.setattr(np.random, "normal", lambda size, scale: scale * rng.standard_normal(size, np.float32))
    if name == "glass_blur":
        _, reach, rounds = corruptions.LARGE[name][severity - 1]
        # The package draws the same numbers in the same order, a pair a time.
        shape = (image.shape[0] - 2 * reach, image.shape[1] - 2 * reach, 2)
        pairs = iter(np.concatenate([rng.integers(-reach, reach, shape).reshape(-1, 2) for _ in range(rounds)]))
        monkeypatch.setattr(np.random, "randint", lambda low, high, size: next(pairs))
        monkeypatch.setattr(np.random, "seed", lambda seed: None)
    want = published(oracle, name, severity, image)
    got = ours(name, severity, image, np.random.default_rng(5))
    difference = np.abs(got - want)
    if name == "zoom_blur":  # scipy's zoom rounds itself out of the image at some factors: its last row is black
        difference = difference[:-1, :-1]
    assert difference.max() <= most
    assert difference.mean() <= 0.6  # rounding down and rounding to the nearest differ by half a level


@pytest.mark.parametrize("severity", (1, 2))
def test_snow_equal_where_the_package_does_not_shift_it(oracle, monkeypatch, image, severity):
    """From severity 3 on the package takes another part of the enlarged noise than the published program."""
    image = image[:144, :216]  # divides by 3 and by 2
    rng = np.random.default_rng(5)
    monkeypatch.setattr(np.random, "uniform", rng.uniform)
    monkeypatch.setattr(np.random, "normal", lambda size, loc, scale: rng.normal(loc, scale, size))
    want = published(oracle, "snow", severity, image)
    got = ours("snow", severity, image, np.random.default_rng(5))
    assert np.abs(got - want).mean() < 1 and np.quantile(np.abs(got - want), 0.99) <= 3


@pytest.mark.parametrize("severity", corruptions.SEVERITIES)
@pytest.mark.parametrize("name", ["shot_noise", "impulse_noise", "snow"])
def test_same_distribution_as_the_package(oracle, name, severity, image):
    """Mean, standard deviation and quantiles of all pixels."""
    image = image[:128, :128]
    np.random.seed(0)
    want = np.stack([published(oracle, name, severity, image) for _ in range(8)])
    got = np.stack([ours(name, severity, image, np.random.default_rng(i)) for i in range(8)])
    assert got.mean() == pytest.approx(want.mean(), abs=3 if name == "snow" else 0.6)
    assert got.std() == pytest.approx(want.std(), rel=0.03)
    levels = np.linspace(0.05, 0.95, 10)
    assert np.abs(np.quantile(got, levels) - np.quantile(want, levels)).max() <= (10 if name == "snow" else 3)


def test_constants_are_the_packages(oracle):
    """All but elastic's, which the package changed, and frost's name."""
    for name in set(corruptions.NAMES) - {"elastic_transform"}:
        tree = ast.parse(inspect.getsource(getattr(oracle, name.removeprefix("synthetic_"))))
        lists = [
            node.value.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "c"
        ]
        found = [
            tuple(ast.literal_eval(arg) for arg in (entry.args[1:] if isinstance(entry, ast.Call) else [entry]))
            for entry in lists[0].elts
        ]
        found = [entry[0] if isinstance(entry[0], tuple) else entry for entry in found]
        assert tuple(found) == corruptions.LARGE[name], name

"""The binary `explain`, from files to pictures."""

import dataclasses

import numpy as np
import pytest
from helpers import ROOT, tiny_config
from PIL import Image

from imgcls_jax import build, explain, train
from imgcls_jax import config as config_lib
from imgcls_jax.types import ConfigError, UserError


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A tiny ViT after two steps."""
    folder = tmp_path_factory.mktemp("explain") / "w"
    assert train.train(tiny_config(total_steps=2), folder) == 0
    return folder


@pytest.fixture
def digit(tmp_path):
    """A PNG of the size that the model sees."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels).save(tmp_path / "in/digit.png")
    return tmp_path / "in/digit.png"


def pixels_of(path):
    return np.asarray(Image.open(path).convert("RGB"))


def test_pictures_of_what_can_be_read_and_a_sentence_about_the_rest(workdir, digit, tmp_path, capsys):
    large = tmp_path / "digit.jpg"  # the same stem, another size
    Image.fromarray(np.full((30, 40, 3), 90, np.uint8)).save(large)
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    out = tmp_path / "deep/out"
    files = [str(f) for f in (digit, broken, large, tmp_path / "missing.png")]
    with pytest.raises(UserError, match=r"broken\.jpg\): .*\(and 1 more of 4\); the other images are explained"):
        explain.main([f"--workdir={workdir}", f"--output={out}", *files])
    assert sorted(p.name for p in out.iterdir()) == ["digit-2.png", "digit.png"]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [str(out / "digit.png"), str(out / "digit-2.png")]
    picture = pixels_of(out / "digit.png")
    assert picture.shape == (400, 720, 3)
    left, right = picture[60:, :355], picture[60:, 365:]
    assert (left == left[..., :1]).all() and not (right == right[..., :1]).all()  # grey, and in colour


def test_a_class_can_be_asked_about(workdir, digit, tmp_path, capsys):
    flags = [f"--workdir={workdir}", f"--output={tmp_path}", str(digit)]
    assert explain.main([*flags, "--method=occlusion", "--target=7", "--ema"]) == 0
    line = capsys.readouterr().out
    assert "; explained: 7 0." in line or ": 7 0." in line
    for more, sentence in (
        (["--target=7"], "has no part in attention rollout"),
        (["--target=seven"], "'seven' is no class of digits.* a number from 0 to 9"),
        (["--method=gradcam"], "which a vision transformer lacks"),
        (["--method=grad-cam"], "did you mean 'gradcam'"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            explain.main([*flags, *more])
    for few in (flags[:2], flags[1:]):
        with pytest.raises(ConfigError, match="Usage: "):
            explain.main(few)


def test_a_run_is_explained_as_it_evaluates():
    """The probabilities are those of the evaluation step on the same pixels; the target is the best class."""
    config = config_lib.load(str(ROOT / "configs/lenet.py"))
    run = build.build(config)
    variables = run.init().variables()
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
    found = explain.explain(run, variables, images)
    logits = run.eval_step(variables, {"image": images, "label": np.zeros(3, np.int32), "mask": np.ones(3, bool)})
    p = np.exp(np.asarray(logits["logits"], np.float64))
    p /= p.sum(-1, keepdims=True)
    for i, each in enumerate(found):
        np.testing.assert_allclose(each.probabilities, p[i], rtol=1e-5)
        assert each.target == p[i].argmax() and each.heat.shape == (8, 8) and each.heat.max() == 1
        np.testing.assert_array_equal(each.image, images[i])
    (other,) = explain.explain(run, variables, images[:1], target=int(p[0].argmin()))
    assert not np.array_equal(other.heat, found[0].heat)
    assert explain.caption(other, run.spec).startswith(explain.caption(found[0], run.spec) + "; explained: ")


def test_names_of_classes_are_shown_whatever_they_hold(tmp_path):
    run = build.build(tiny_config())
    spec = dataclasses.replace(run.spec, class_names=("$x_", "a\nb", *run.spec.class_names[2:]))
    image = np.zeros((8, 8, 1), np.uint8)
    p = np.zeros(10, np.float32)
    p[0] = 1
    found = explain.Explanation(image, np.zeros((8, 8), np.float32), p, 1)
    assert explain.caption(found, spec) == "$x_ 1.000; explained: a b 0.000"
    explain.write_picture(found, spec, "occlusion", tmp_path / "x.png")
    assert [p.name for p in tmp_path.iterdir()] == ["x.png"]
    assert explain.class_number("$x_", spec) == 0 and explain.class_number("9", spec) == 9

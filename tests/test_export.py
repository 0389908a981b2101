"""What `export` writes is read again: by us, and (marker parity) by timm."""

import json

import jax
import numpy as np
import pytest
from helpers import run_main, tiny_config

from imgcls_jax import build, export, pretrained, train


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A tiny ViT after two steps, with its average."""
    folder = tmp_path_factory.mktemp("export") / "w"
    assert train.train(tiny_config(total_steps=2), folder) == 0
    return folder


def test_the_file_holds_the_checkpoint_s_weights_and_the_card_says_what_they_are(workdir, capsys):
    assert export.main([f"--workdir={workdir}", "--format=safetensors"]) == 0
    assert str(workdir / "export") in capsys.readouterr().out
    weights = pretrained.read(str(workdir / "export"))
    from_run = pretrained.read(str(workdir)).tensors
    assert weights.tensors.keys() == from_run.keys()
    for name, tensor in from_run.items():
        np.testing.assert_array_equal(weights.tensors[name], tensor, err_msg=name)
    card = json.loads((workdir / "export/config.json").read_text())
    assert card["num_classes"] == len(card["label_names"]) == 10
    assert card["model_args"]["embed_dim"] == 16 and card["model_args"]["in_chans"] == 1
    assert card["pretrained_cfg"]["mean"] == [0.3055] and card["pretrained_cfg"]["input_size"] == [1, 8, 8]
    assert not list((workdir / "export").glob("*.tmp"))


def test_raw_and_averaged_weights_differ(workdir, tmp_path):
    for flag, folder in (([], "raw"), (["--ema"], "ema")):
        assert export.main([f"--workdir={workdir}", f"--output={tmp_path / folder}", *flag]) == 0
    raw, ema = (pretrained.read(str(tmp_path / name)).tensors for name in ("raw", "ema"))
    assert any(np.any(raw[k] != ema[k]) for k in raw)


def test_mistakes_are_one_sentence(workdir, tmp_path):
    for flags, code, sentence in (
        (["--format=safetensor", f"--workdir={workdir}"], 2, "did you mean 'safetensors'"),
        ([f"--workdir={tmp_path}"], 1, "is not a work directory"),
        ([f"--workdir={workdir}", "--step=7"], 1, "there are [2]"),
        ([], 2, "Usage: python -m imgcls_jax.export"),
    ):
        got, output = run_main(flags, module="imgcls_jax.export")
        assert got == code and sentence in output.splitlines()[-1], output


@pytest.mark.parity
@pytest.mark.parametrize(
    "overrides",
    [
        {},  # mean of the tokens, learned positions
        {"model.pool": "cls", "model.pos_embed": "sincos2d"},
        {"model.pool": "gap", "model.pos_embed": "sincos2d", "model.scan": True, "model.mlp_dim": 24},
        {"model.pool": "map"},
    ],
)
def test_timm_loads_it_and_gives_the_same_logits(torch, tmp_path, overrides):
    import timm

    config = tiny_config(**overrides, **{"optimizer.ema_decay": 0.0})
    run = build.build(config)
    state = run.init()
    noise = np.random.default_rng(0)
    params = jax.tree.map(lambda x: np.float32(x + 0.2 * noise.standard_normal(x.shape)), state.params)
    export.write_safetensors(tmp_path, config, run.model, run.spec, {"params": params})
    images = noise.standard_normal((3, 8, 8, 1)).astype(np.float32)
    expected = run.model.apply({"params": params}, images, train=False)
    net = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.no_grad():
        got = net(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())

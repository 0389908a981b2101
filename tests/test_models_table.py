"""What models cost, and the table that says so."""

import re

import pytest
from helpers import ROOT
from zoo import COUNTS

from imgcls_jax import models
from imgcls_jax.models import __main__ as table
from imgcls_jax.models import cost
from imgcls_jax.types import UserError


def test_macs_are_those_of_the_layers_by_hand():
    lenet = 28 * 28 * 6 * 25 + 10 * 10 * 16 * (6 * 25) + 400 * 120 + 120 * 84 + 84 * 10
    assert cost.count(models.build("lenet5", num_classes=10), (28, 28, 1)) == (61_706, lenet)
    d, f, n, depth = 16, 64, 4 * 4, 3
    block = n * d * 3 * d + 2 * n * n * d + n * d * d + 2 * n * d * f
    vit = n * (4 * 4 * 3) * d + depth * block + d * 5
    for scan in (False, True):
        model = models.build(
            "vit_mu_patch16_224", num_classes=5, patch_size=4, width=d, depth=depth, num_heads=2, pool="gap", scan=scan
        )
        assert cost.count(model, (16, 16, 3))[1] == vit


@pytest.mark.parametrize(("name", "gmacs"), [("resnet50", 4.09), ("resnet18", 1.81)])
def test_macs_are_the_published_ones(name, gmacs):
    """He et al. and torchvision's table (GFLOPS there are multiply-accumulates)."""
    assert cost.count(models.build(name, num_classes=1000), (224, 224, 3))[1] / 1e9 == pytest.approx(gmacs, abs=0.01)


def test_the_table_lists_what_is_asked_for(capsys):
    assert table.main(["resnet20", "lenet*"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[0] == "name" and len(lines) == 3
    assert re.match(r"resnet20 +269,722 +0\.0406 +32", lines[2])
    with pytest.raises(UserError, match=r"No model is called lenet55 \(did you mean 'lenet5'\?\)"):
        table.main(["lenet55"])


def test_the_readme_s_table_is_this_one():
    """By names, parameters, sizes and published accuracies; its GMACs come from the same command."""
    readme = (ROOT / "README.md").read_text()
    rows = re.findall(r"^\| (\w+) \| ([\d,]+) \| [\d.e-]+ \| (\d+) \| ([\d.]*) \|", readme, re.M)
    listed = {name: (int(count.replace(",", "")), int(size), top1) for name, count, size, top1 in rows}
    assert listed == {
        name: (COUNTS[name], v.preprocessing.image_size, "" if v.top1 is None else f"{100 * v.top1:.2f}")
        for name, v in models.MODELS.items()
    }

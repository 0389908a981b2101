"""The scripts that README's commands call."""

import subprocess
import sys

import pytest
from helpers import ROOT

from imgcls_jax.data import sources


def test_few_images_writes_a_folder_with_so_many_of_each_class(tmp_path):
    command = [sys.executable, str(ROOT / "tools/few_images.py"), "digits", str(tmp_path), "--train=2", "--test=1"]
    subprocess.run(command, check=True, cwd=ROOT, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}, timeout=120)
    spec = sources.spec(f"folder:{tmp_path}")
    assert spec.class_names == tuple("0123456789") and dict(spec.splits) == {"train": 20, "test": 10}
    assert sources.open_source(f"folder:{tmp_path}", "train").labels().tolist() == [c for c in range(10) for _ in "ab"]


def test_the_table_of_distillation_says_what_scipy_and_holm_say(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import distillation

    # Holm's procedure by hand: 0.01 * 4, 0.02 * 3, 0.03 * 2 (not below the one before it), 0.5.
    assert distillation.holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    found = {
        ("alone", None): [0.80, 0.81, 0.82],
        ("labelled", 4.0): [0.85, 0.86, 0.87],
        ("hard", None): [0.8, 0.82, 0.81],
    }
    rows = distillation.summary(found)
    # By the textbook: t(0.975, 2) = 4.3027, t(0.975, 4) = 2.7764; s = 0.01 in each group.
    assert rows[1]["mean_ci95"] == pytest.approx(
        [0.86 - 4.3027 * 0.01 / 3**0.5, 0.86 + 4.3027 * 0.01 / 3**0.5], abs=1e-6
    )
    half = 2.7764 * 0.01 * (2 / 3) ** 0.5
    assert rows[1]["difference_ci95"] == pytest.approx([0.05 - half, 0.05 + half], abs=1e-6)
    assert rows[1]["p_holm"] == pytest.approx(2 * rows[1]["p"]) and rows[2]["p"] == pytest.approx(1.0)
    assert "| labelled | 4 | 86.00 (83.52 to 88.48) | +5.00 (+2.73 to +7.27) |" in distillation.table(rows)
    assert distillation.statement(rows).startswith("labelled T=4, asked first, is significantly better (p = 0.0036)")


def test_the_table_of_few_labels_is_paired_by_seed(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    import few_labels

    # Differences 0.04, 0.05, 0.06: mean 0.05, s = 0.01, t(0.975, 2) = 4.3027.
    text = few_labels.table({"supervised": [0.70, 0.80, 0.75], "fixmatch": [0.74, 0.85, 0.81]})
    assert "| +0.0500 ± 0.0248 |" in text and text.count("\n") == 3
    both = few_labels.table({"supervised": [0.5, 0.6], "smoothed": [0.6, 0.7], "fixmatch": [0.8, 0.9]})
    assert both.splitlines()[-1].endswith("| +0.3000 ± 0.0000 | +0.2000 ± 0.0000 |")
    supervised = few_labels.command("smoothed", 0, ROOT / "w", [])[-3:]
    assert supervised[-2:] == ["--config.data.unlabelled=", "--config.loss.label_smoothing=0.1"]
    assert supervised[0] == "--config.objective.name=supervised"
    flags = few_labels.command("pseudo_labels", 2, ROOT / "w", ["--config.total_steps=5"])
    assert "--unlabelled=train[:2000]+train[3000:]" in flags and "--config.data.train_split=train[2000:3000]" in flags

"""The scripts that README's commands call."""

import subprocess
import sys

from helpers import ROOT

from imgcls_jax.data import sources


def test_few_images_writes_a_folder_with_so_many_of_each_class(tmp_path):
    command = [sys.executable, str(ROOT / "tools/few_images.py"), "digits", str(tmp_path), "--train=2", "--test=1"]
    subprocess.run(command, check=True, cwd=ROOT, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}, timeout=120)
    spec = sources.spec(f"folder:{tmp_path}")
    assert spec.class_names == tuple("0123456789") and dict(spec.splits) == {"train": 20, "test": 10}
    assert sources.open_source(f"folder:{tmp_path}", "train").labels().tolist() == [c for c in range(10) for _ in "ab"]

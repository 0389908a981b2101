"""The import rule of ARCHITECTURE.md: a module imports only from lower floors, or from its own package."""

import ast
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "imgcls_jax"

# From the ground up. A package (models, augment, data) counts as one module, but for a program in it that makes a run.
FLOORS = [
    {"__init__", "atomic", "types"},
    {"config", "dispatch", "environment", "platform", "preemption", "rng", "trees"},
    {"cli"},
    {
        "augment",
        "diagnosis",
        "losses",
        "metrics",
        "models",
        "optim",
        "organise",
        "predictions",
        "search_index",
        "sharding",
        "state",
        "writers",
    },
    {"checkpoint", "data", "judge", "monitor", "objectives", "optim_groups", "saliency"},
    {"consistency", "contrastive", "distill", "evaluate", "pretrained", "step"},
    {"build", "workdirs"},
    {"explain", "inference", "other_data", "report", "representation", "train"},
    {"benchmarking", "robustness"},
    {
        "benchmark",
        "data.preview",
        "demo",
        "eval",
        "export",
        "finetune",
        "lr_range",
        "main",
        "plan",
        "predict",
        "probe",
        "search",
        "self_train",
    },
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}

MODULES = sorted(PACKAGE.rglob("*.py"))
CONFIGS = sorted((ROOT / "configs").glob("*.py"))
OTHERS = sorted((ROOT / "launch").glob("*.py"))


def imported(path):
    """Dotted names of all that a file imports, wherever in it: "imgcls_jax.trees", "numpy", ..."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: relative import; write it out from imgcls_jax"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def local_imports(path):
    """The modules of ours that a file imports: "trees", "models", ..."""
    names = [name.split(".") for name in imported(path)]
    return {[*name, "__init__"][1] for name in names if name[0] == "imgcls_jax"}


def ids(paths):
    return [str(path.relative_to(ROOT)) for path in paths]


@pytest.mark.parametrize("path", MODULES, ids=ids(MODULES))
def test_imports_point_down(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    me = ".".join(parts) if ".".join(parts) in FLOOR else parts[0]
    assert me in FLOOR, f"{me} has no floor: put it in FLOORS here and in ARCHITECTURE.md"
    for other in local_imports(path) - {me}:
        assert other in FLOOR, f"{me} imports {other}, which has no floor"
        assert FLOOR[other] < FLOOR[me], f"{me} (floor {FLOOR[me]}) imports {other} (floor {FLOOR[other]})"


@pytest.mark.parametrize("path", CONFIGS, ids=ids(CONFIGS))
def test_configs_know_only_the_keys(path):
    assert local_imports(path) <= {"config"}


def test_the_launcher_needs_nothing_of_ours():
    assert [path.name for path in OTHERS if local_imports(path)] == []


def test_tensorflow_is_imported_by_no_line_of_ours():
    names = {(path.name, name) for path in MODULES + CONFIGS + OTHERS for name in imported(path)}
    assert [pair for pair in names if pair[1].split(".")[0] == "tensorflow"] == []


def test_no_library_of_ours_imports_tensorflow(tmp_path):
    """A TensorFlow that tells on who imports it is put first on the path; then every module of ours is imported."""
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text(
        "import sys, traceback; traceback.print_stack(); raise ImportError('tensorflow was imported')\n"
    )
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in MODULES]
    code = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)\nimport tensorflow_datasets"
    done = subprocess.run(
        [sys.executable, "-c", code, *names],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and "tensorflow was imported" not in done.stderr, done.stderr
    assert str(tmp_path) not in done.stderr, done.stderr

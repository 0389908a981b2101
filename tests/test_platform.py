import os
import pathlib
import subprocess
import sys

import pytest

from imgcls_jax import platform
from imgcls_jax.types import ConfigError

EXPLICIT = {"JAX_COORDINATOR_ADDRESS": "host:1234", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}


def python(code, **environment):
    """Runs code in a fresh process, warnings being errors; a None in environment unsets a variable."""
    merged = {**os.environ, **environment}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={name: value for name, value in merged.items() if value is not None},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_explicit_processes_are_passed_on():
    assert platform.cluster_arguments(EXPLICIT) == {
        "coordinator_address": "host:1234",
        "num_processes": 4,
        "process_id": 3,
        "cluster_detection_method": "deactivate",
    }


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {**EXPLICIT, "JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"},
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8"},  # the batch script itself, not a step of it
        {"SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "1"},
        {"TPU_WORKER_HOSTNAMES": "a,b", "JAX_PLATFORMS": "cpu"},
    ],
)
def test_alone(environment):
    assert platform.cluster_arguments(environment) is None


def test_slurm_step_is_left_to_jax():
    assert platform.cluster_arguments({"SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "8"}) == {}


@pytest.mark.parametrize(
    ("environment", "chips", "several"),
    [
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, True, False),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, True, True),
        ({}, True, True),  # a TPU VM: its metadata server knows
        ({}, False, False),
        ({"TPU_SKIP_MDS_QUERY": "1"}, True, False),
    ],
)
def test_tpu_slices(monkeypatch, environment, chips, several):
    monkeypatch.setattr(platform.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(platform.glob, "glob", lambda pattern: [pattern] if chips else [])
    assert platform.cluster_arguments(environment) == ({} if several else None)


@pytest.mark.parametrize(
    "change",
    [{"JAX_COORDINATOR_ADDRESS": ""}, {"JAX_NUM_PROCESSES": "two"}, {"JAX_PROCESS_ID": "4"}, {"JAX_PROCESS_ID": ""}],
)
def test_half_a_description_is_refused(change):
    with pytest.raises(ConfigError, match="need JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID"):
        platform.cluster_arguments({**EXPLICIT, **change})


COMPILE = """
from imgcls_jax import platform
platform.initialize()
import jax, numpy as np
def f(x):
    for _ in range(30):
        x = jax.numpy.tanh(x @ x) + jax.numpy.linalg.norm(x, axis=0)
    return x
x = np.arange(64 * 64, dtype=np.float32).reshape(64, 64) / 4096
print(np.asarray(jax.jit(jax.grad(lambda x: f(x).sum()))(x)).tobytes().hex()[:4096], jax.process_index() == 0)
"""


def test_compiled_programs_are_kept_and_reused_silently(tmp_path):
    settings = {
        "JAX_COMPILATION_CACHE_DIR": None,
        "XDG_CACHE_HOME": str(tmp_path),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    first = python(COMPILE, **settings)
    kept = {p.name for p in (tmp_path / "imgcls_jax" / "xla").iterdir()}
    assert any(name.startswith("jit_") for name in kept)
    second = python(COMPILE, **settings)
    assert {p.name for p in (tmp_path / "imgcls_jax" / "xla").iterdir()} == kept
    assert second.stdout == first.stdout and second.stdout.endswith("True\n")  # a cached program gives the same bits
    assert first.stderr == second.stderr == ""


def test_an_unusable_cache_folder_is_no_obstacle(tmp_path):
    (tmp_path / "imgcls_jax").write_text("a file where the folder should be")
    done = python(COMPILE, JAX_COMPILATION_CACHE_DIR=None, XDG_CACHE_HOME=str(tmp_path))
    assert done.stderr == ""


def test_cache_folder_of_the_user():
    assert str(platform.cache_folder({"XDG_CACHE_HOME": "/x"})) == "/x/imgcls_jax/xla"
    assert str(platform.cache_folder({})) == os.path.expanduser("~/.cache/imgcls_jax/xla")


def test_importing_it_does_not_import_jax():
    python("import sys, imgcls_jax.platform; assert 'jax' not in sys.modules")


START = "import os, re, sys; from imgcls_jax import platform; platform.restart_with_huge_pages(); "


def test_a_program_has_huge_pages_where_the_kernel_gives_them_on_request():
    choice = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
    asked = choice.exists() and "[madvise]" in choice.read_text()
    code = START + "memory = bytearray(b'1') * 2**26; print(os.environ.get('GLIBC_TUNABLES')); "
    code += "print(re.search('AnonHugePages: *([0-9]+)', open('/proc/self/smaps_rollup').read())[1])"
    tunables, kilobytes = python(code, GLIBC_TUNABLES=None).stdout.split()
    assert tunables == ("glibc.malloc.hugetlb=1" if asked else "None")
    if asked:
        assert int(kilobytes) >= 2**15  # half of the 64 MB at least: the rest may lie before the first boundary


def test_an_empty_setting_is_left_alone():
    assert python(START + "print(repr(os.environ['GLIBC_TUNABLES']))", GLIBC_TUNABLES="").stdout == "''\n"


def test_a_restart_keeps_the_process_and_its_arguments(tmp_path):
    (tmp_path / "program.py").write_text(
        "import os, sys\n"
        "from imgcls_jax import platform\n"
        "platform.restart_with_huge_pages()\n"
        "print(os.getpid(), sys.argv[1:], sys.warnoptions)\n"
    )
    command = [sys.executable, "-W", "error", "-m", "program", "--key=two words", "*"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    environment.pop("GLIBC_TUNABLES", None)
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        out = process.communicate(timeout=120)[0]
    assert out.split(maxsplit=1) == [str(process.pid), "['--key=two words', '*'] ['error']\n"]

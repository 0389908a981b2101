import fnmatch
import os
import pathlib
import subprocess
import sys

import pytest

from imgcls_jax import platform
from imgcls_jax.types import ConfigError

EXPLICIT = {"JAX_COORDINATOR_ADDRESS": "host:1234", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}


def python(code, *arguments, **environment):
    """Runs code in a fresh process, warnings being errors; a None in environment unsets a variable."""
    merged = {**os.environ, **environment}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
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


@pytest.fixture
def machine(monkeypatch):
    """Says which device files there are, and that all packages are installed."""

    def have(*files):
        monkeypatch.setattr(platform.importlib.util, "find_spec", lambda name: name)
        monkeypatch.setattr(platform.glob, "glob", lambda pattern: fnmatch.filter(files, pattern))

    return have


GPUS = ("/dev/nvidia0", "/dev/nvidia1", "/dev/nvidiactl", "/dev/nvidia-uvm")
HIDE = "--xla_gpu_enable_latency_hiding_scheduler"


@pytest.mark.parametrize(
    ("files", "environment", "variables"),
    [
        ((), {}, set()),
        (GPUS, {}, {"XLA_FLAGS"}),
        (GPUS, {"JAX_PLATFORMS": "cuda,cpu"}, {"XLA_FLAGS"}),
        (GPUS, {"JAX_PLATFORMS": "cpu"}, set()),
        (GPUS, {"CUDA_VISIBLE_DEVICES": "1"}, set()),
        (GPUS, {"CUDA_VISIBLE_DEVICES": "0,-1"}, set()),
        (GPUS, {"CUDA_VISIBLE_DEVICES": ""}, set()),
        (GPUS, {"CUDA_VISIBLE_DEVICES": "0,1"}, {"XLA_FLAGS"}),
        (GPUS, {"IMGCLS_JAX_XLA_FLAGS": "0"}, set()),
        (GPUS[1:], {}, set()),  # one GPU has nobody to wait for
        (GPUS[1:], EXPLICIT, {"XLA_FLAGS"}),  # but for other processes
        (("/dev/accel0",), {"TPU_SKIP_MDS_QUERY": "1"}, {"LIBTPU_INIT_ARGS"}),
        (("/dev/vfio/0", "/dev/vfio/vfio"), {"TPU_SKIP_MDS_QUERY": "1"}, {"LIBTPU_INIT_ARGS"}),
        (("/dev/vfio/vfio",), {}, set()),
        (("/dev/accel0",), {"JAX_PLATFORMS": "cpu"}, set()),
    ],
)
def test_xla_flags_are_for_what_is_there(machine, files, environment, variables):
    machine(*files)
    assert set(platform.xla_flags(environment)) == variables


@pytest.mark.parametrize(
    ("given", "result"),
    [
        (None, f"{HIDE}=true"),
        ("", f"{HIDE}=true"),
        ("--xla_dump_to=/x", f"--xla_dump_to=/x {HIDE}=true"),
        (f"{HIDE}=false --xla_dump_to=/x", f"{HIDE}=false --xla_dump_to=/x"),
        (HIDE, HIDE),
        (f"{HIDE}_x=1", f"{HIDE}_x=1 {HIDE}=true"),
        ("/a/file/of/flags", "/a/file/of/flags"),
    ],
)
def test_what_the_user_set_wins_flag_by_flag(machine, given, result):
    machine(*GPUS)
    assert platform.xla_flags({} if given is None else {"XLA_FLAGS": given}) == {"XLA_FLAGS": result}


def test_without_packages_for_accelerators_their_devices_do_not_count(monkeypatch):
    monkeypatch.setattr(platform.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(platform.glob, "glob", lambda pattern: ["one", "two"])
    assert platform.xla_flags({}) == {}


START_XLA = """
import hashlib, os, sys
from imgcls_jax import platform
platform._gpus = lambda environment: int(sys.argv[1])
platform.initialize()
import jax
jax.numpy.ones(2) + 1  # a flag that XLA does not know would end the process here
import jax.extend
options = jax.extend.backend.get_compile_options(num_replicas=1, num_partitions=1)
print(hashlib.sha1(options.SerializeAsString()).hexdigest(), os.environ.get("XLA_FLAGS"))
"""


def test_xla_knows_the_gpus_flags_takes_them_in_time_and_has_none_of_them_by_default():
    default = start_xla(1, XLA_FLAGS=None)
    assert default[1] == "None"
    for flag in platform.GPU_FLAGS:
        assert start_xla(1, XLA_FLAGS=flag)[0] != default[0]
    ours, flags = start_xla(2, XLA_FLAGS=None)
    assert flags == " ".join(platform.GPU_FLAGS)
    assert ours != default[0]
    assert start_xla(2, XLA_FLAGS=f"{HIDE}=false")[0] == default[0]


def start_xla(gpus, **environment):
    """What XLA would compile with, as a digest, and XLA_FLAGS, where there are that many GPUs. It runs on the CPU."""
    return python(START_XLA, str(gpus), **environment).stdout.strip().split(maxsplit=1)


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

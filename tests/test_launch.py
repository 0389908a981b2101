import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[1]
LOCAL = [sys.executable, str(ROOT / "launch" / "local.py")]
SLURM = [str(ROOT / "launch" / "slurm.sh")]
TPU = [str(ROOT / "launch" / "tpu_vm.sh"), "--name=n", "--zone=z", "--type=v6e-16"]


def run(command, *, cwd=ROOT, **environment):
    return subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
    )


def alive(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@pytest.fixture
def module(tmp_path):
    """Writes a module that the launcher can run; returns the launcher's command for it."""

    def write(code, processes=2, devices=1):
        (tmp_path / "job.py").write_text(code)
        return [*LOCAL, f"--processes={processes}", f"--devices_per_process={devices}", "--module=job"]

    return write


SUM = """
import sys
from imgcls_jax import platform
platform.initialize()
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
mine = 10.0 ** (2 * jax.process_index() + np.arange(jax.local_device_count(), dtype=np.float32))
x = jax.make_array_from_process_local_data(NamedSharding(mesh, PartitionSpec("data")), mine)
print("sum", float(jax.jit(jax.numpy.sum)(x)), "main", jax.process_index() == 0, *sys.argv[1:])
"""


def test_local_processes_compute_together(module, tmp_path):
    done = run([*module(SUM, devices=2), "--", "--flag=a b", "--", "c"], cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    want = ["[0] sum 1111.0 main True --flag=a b -- c", "[1] sum 1111.0 main False --flag=a b -- c"]
    assert sorted(done.stdout.splitlines()) == want


def test_gloo_s_greetings_are_left_out_also_where_two_threads_tear_theirs(module, tmp_path):
    one = "[Gloo] Rank 1 is connected to 3 peer ranks. Expected number of connected peer ranks is : "
    code = f"print({one + one!r} + '3\\n3\\n4\\nhello 5\\n' + {one!r} + '3\\n6')"
    done = run(module(code, processes=1), cwd=tmp_path)
    assert done.stdout.splitlines() == ["[0] 4", "[0] hello 5", "[0] 6"], done.stderr


# Each process writes its number and pid to a file, then process 1 does one thing and process 0 another.
PIDS = """
import os, pathlib, signal, subprocess, sys, time
me = os.environ["JAX_PROCESS_ID"]
def here(name, text):
    pathlib.Path(name + ".tmp").write_text(str(text))
    os.replace(name + ".tmp", name)
def stop(number, frame):
    here("signal" + me, number)
    sys.exit(143)
"""


def test_local_stops_the_others_when_one_fails(module, tmp_path):
    code = """
if me == "0":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # stuck: waits for the other for ever
    here("worker", subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid)
    here("pid0", os.getpid())
    time.sleep(600)
while not os.path.exists("pid0"):
    time.sleep(0.01)
print("no such data set", file=sys.stderr)
sys.exit(7)
"""
    started = time.monotonic()
    done = run(module(PIDS + code), cwd=tmp_path)
    assert done.returncode == 7 and done.stderr == "[1] no such data set\n"
    assert time.monotonic() - started < 15
    wait_for(lambda: not any(alive((tmp_path / name).read_text()) for name in ("pid0", "worker")), 5)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_local_hands_signals_on_and_returns_the_code(module, tmp_path, number):
    code = """
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
here("pid" + me, os.getpid())
time.sleep(600)
"""
    with subprocess.Popen(module(PIDS + code), cwd=tmp_path) as launcher:
        wait_for(lambda: (tmp_path / "pid0").exists() and (tmp_path / "pid1").exists())
        launcher.send_signal(number)
        assert launcher.wait(timeout=30) == 143
    assert [(tmp_path / f"signal{i}").read_text() for i in range(2)] == [str(int(number))] * 2


@pytest.mark.skipif(sys.platform != "linux", reason="needs prctl")
def test_local_leaves_no_orphans_when_it_is_killed(module, tmp_path):
    code = "here('pid' + me, os.getpid())\ntime.sleep(600)\n"
    with subprocess.Popen(module(PIDS + code), cwd=tmp_path) as launcher:
        wait_for(lambda: (tmp_path / "pid0").exists() and (tmp_path / "pid1").exists())
        launcher.kill()
    wait_for(lambda: not any(alive((tmp_path / f"pid{i}").read_text()) for i in range(2)), 10)


def test_local_child_killed_by_a_signal_counts_as_in_a_shell(module, tmp_path):
    done = run(module("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", processes=1), cwd=tmp_path)
    assert done.returncode == 128 + signal.SIGKILL


def test_local_dry_run_prints_a_command_for_each_process():
    done = run([*LOCAL, "--processes=2", "--devices_per_process=4", "--dry_run", "--", "--config=configs/vit.py:a b"])
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    for i, line in enumerate(lines):
        assert re.fullmatch(
            r"JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=4 JAX_COORDINATOR_ADDRESS=127\.0\.0\.1:(\d+) "
            rf"JAX_COORDINATOR_BIND_ADDRESS=127\.0\.0\.1:\1 JAX_NUM_PROCESSES=2 JAX_PROCESS_ID={i} "
            r"\S+ -u -m imgcls_jax\.main '--config=configs/vit\.py:a b'",
            line,
        )


@pytest.mark.parametrize(
    "command",
    [
        [*LOCAL, "--proceses=2", "--", "--config=c"],
        [*LOCAL, "--processes=0", "--", "--config=c"],
        [*LOCAL, "--config=c"],
        [*SLURM, "--gpu=1", "--", "--config=c"],
        [*SLURM, "--nodes=two", "--", "--config=c"],
        [*SLURM],
        [*TPU, "--preemptible", "--", "--config=c"],
        [*TPU],
        [TPU[0], "--name=n", "--zone=z", "--", "--config=c"],
    ],
)
def test_bad_flags_are_exit_code_2_and_usage(command):
    done = run(command)
    assert done.returncode == 2
    assert "usage: " in done.stderr and done.stdout == ""


@pytest.mark.parametrize("script", ["slurm.sh", "tpu_vm.sh"])
def test_shell_scripts_parse_and_explain_themselves(script):
    path = str(ROOT / "launch" / script)
    assert run(["bash", "-n", path]).returncode == 0
    done = run([path, "--help"])
    assert done.returncode == 0 and "--dry_run" in done.stdout


def test_slurm_dry_run_is_the_batch_script(tmp_path):
    done = run([*SLURM, "--nodes=2", "--gpus_per_node=4", "--partition=big", "--dry_run", "--", "--config=a b", "--x"])
    assert done.returncode == 0
    assert {
        "#!/bin/bash",
        "#SBATCH --nodes=2",
        "#SBATCH --ntasks-per-node=4",
        "#SBATCH --gpus-per-node=4",
        "#SBATCH --partition=big",
        "#SBATCH --signal=TERM@120",
        "#SBATCH --requeue",
    } <= set(done.stdout.splitlines())
    # The script as Slurm would run it: srun's exit code is the job's, and 143, only 143, requeues it.
    for name in ("srun", "scontrol"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho "{name} $*"\n[ {name} = scontrol ] || exit $CODE\n')
        (tmp_path / name).chmod(0o755)
    srun = "srun --kill-on-bad-exit=0 --cpus-per-task=8 python -m imgcls_jax.main --config=a b --x\n"
    for code, requeued in ((0, ""), (1, ""), (143, "scontrol requeue 99\n")):
        (tmp_path / "job.sh").write_text(done.stdout)
        path = f"{tmp_path}:{os.environ['PATH']}"
        job = run(["bash", str(tmp_path / "job.sh")], PATH=path, CODE=str(code), SLURM_JOB_ID="99")
        assert (job.returncode, job.stdout) == (code, srun + requeued)


def test_tpu_dry_run_prints_every_command_and_runs_none(tmp_path):
    (tmp_path / "gcloud").write_text(f"#!/bin/sh\ntouch {tmp_path}/called\n")
    (tmp_path / "gcloud").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    flags = ["--spot", "--delete", "--setup=sudo mount x", "--dry_run", "--", "--config=a b", "--workdir=/w"]
    done = run([*TPU, *flags], PATH=path)
    assert done.returncode == 0 and not (tmp_path / "called").exists()
    parts = [
        "queued-resources create n --node-id=n --zone=z --accelerator-type=v6e-16",
        "--spot",
        "tpu-vm scp",
        "pip install -q -c constraints.txt -e",
        "--worker=all '--command=sudo mount x'",
        r".venv/bin/python -m imgcls_jax.main --config=a\ b --workdir=/w",
        "queued-resources delete n",
    ]
    places = [done.stdout.find(part) for part in parts]
    assert -1 not in places and places == sorted(places)


# A Google Cloud in a folder: the first run is preempted, the second is told to stop, the third ends with FINAL.
GCLOUD = """#!/usr/bin/env bash
cd "$CLOUD" && echo "$*" >> calls
case "$*" in
  *"queued-resources create"*) echo ACTIVE > state ;;
  *"queued-resources delete"*) rm -f state exit_code ;;
  *describe*) cat state ;;
  *--worker=0*) cat exit_code ;;
  *imgcls_jax.main*)
    echo run >> runs
    case $(wc -l < runs) in
      1) echo SUSPENDED > state; exit 255 ;;
      2) echo 143 > exit_code; exit 1 ;;
      *) echo "$FINAL" > exit_code ;;
    esac ;;
esac
"""


@pytest.mark.parametrize("final", [0, 2])
def test_tpu_run_is_requeued_until_it_ends(tmp_path, final):
    repository, bin_folder, cloud = tmp_path / "repository", tmp_path / "bin", tmp_path / "cloud"
    for folder in (repository / "launch", bin_folder, cloud):
        folder.mkdir(parents=True)
    shutil.copy(TPU[0], repository / "launch")
    git = ["git", "-C", str(repository), "-c", "user.name=n", "-c", "user.email=n@example.com"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *command], check=True)
    (bin_folder / "gcloud").write_text(GCLOUD)
    (bin_folder / "gcloud").chmod(0o755)
    command = [str(repository / "launch" / "tpu_vm.sh"), *TPU[1:], "--delete", "--", "--config=c"]
    path = f"{bin_folder}:{os.environ['PATH']}"
    done = run(command, PATH=path, CLOUD=str(cloud), FINAL=str(final))
    assert done.returncode == final, done.stderr
    calls = (cloud / "calls").read_text()
    counts = [calls.count(what) for what in ("resources create", "resources delete", "imgcls_jax.main --config=c")]
    assert counts == [2, 2, 3]  # made anew once, after the preemption; deleted then and at the end
    assert not (cloud / "state").exists()

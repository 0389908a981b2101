"""What a program does once, before JAX touches a device: huge pages, XLA's flags, the compilation cache, processes."""

from __future__ import annotations

import glob
import importlib.util
import os
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imgcls_jax.types import ConfigError

# Programs that compile faster than this many seconds are not worth a file.
_MIN_COMPILE_SECONDS = 0.2

# The malloc of glibc 2.35 and later asks the kernel for huge pages if this is in the environment of a new process.
_TUNABLES, _HUGE_PAGES = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"

# What XLA is asked for, beyond its defaults, where several devices compute. An unknown flag ends the process, and flags
# come and go with versions of XLA: few are worth it.
# - GPU: computation between the start and the end of a collective (docs.jax.dev, "GPU performance tips"; the one flag
#   that NVIDIA's JAX images set). Left out: double-buffered loops and pipelined all-reduces, for what they copy is the
#   body of a loop, which may be a whole step, and the latter's flag has a new name after jaxlib 0.10; and what
#   jaxlib 0.10 does unasked (asynchronous collectives, pipelined reduce-scatter, Triton's matrix products).
GPU_FLAGS = ("--xla_gpu_enable_latency_hiding_scheduler=true",)
# - TPU: all-reduces, which data parallelism consists of, run during fused computation (openxla.org, "XLA Flags
#   Guidance"). The latency hiding scheduler and the same for all-gathers are libtpu's defaults.
TPU_FLAGS = ("--xla_tpu_enable_async_collective_fusion_fuse_all_reduce=true",)


def restart_with_huge_pages() -> None:
    """Starts this program again, in the same process, with huge pages for its memory, where that has to be asked for.

    XLA on a CPU takes the memory of every result anew from malloc, and a step touches hundreds of megabytes of it:
    with pages of 4 KB the kernel hands them out at about 1 GB/s. The bits of all results stay the same.

    Does nothing where the kernel gives huge pages to everyone, to nobody, or malloc cannot ask (not glibc 2.35), and
    where GLIBC_TUNABLES is set: an empty one turns this off.
    """
    if _TUNABLES in os.environ or not _huge_pages_on_request():
        return
    os.environ[_TUNABLES] = _HUGE_PAGES
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _huge_pages_on_request() -> bool:
    try:
        choice = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
        return "[madvise]" in choice and name == "glibc" and tuple(map(int, version.split(".")[:2])) >= (2, 35)
    except (OSError, ValueError):  # another system, or another C library
        return False


def initialize() -> None:
    """Sets JAX up for this process; every binary calls it once, before anything that uses a device.

    Compiled programs are kept between runs, in JAX_COMPILATION_CACHE_DIR if that is set (empty: not at all), else in
    imgcls_jax/xla under XDG_CACHE_HOME or ~/.cache. It is safe to delete at any time.

    XLA gets flags for several GPUs, or for TPUs (see `xla_flags`).

    In a run of several processes (see `cluster_arguments`) this waits until all of them are there.
    """
    import jax

    _use_compilation_cache()
    arguments = cluster_arguments(os.environ)
    os.environ.update(xla_flags(os.environ))  # read when the first device is asked for
    if arguments is not None:
        jax.distributed.initialize(**arguments)


def peak_memory() -> tuple[int, str]:
    """(bytes, whose) of the most memory there was in use since the start of this process.

    Whose is "device", of the fullest device of this process, where the devices count (GPUs and TPUs do), else
    "process": the resident memory of the whole process, in which all arrays are where the device is the CPU.
    """
    import jax

    found = [device.memory_stats() for device in jax.local_devices()]
    peaks = [stats["peak_bytes_in_use"] for stats in found if stats and "peak_bytes_in_use" in stats]
    if peaks:
        return max(peaks), "device"
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "process"


def xla_flags(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables of the environment that make XLA overlap communication and computation: XLA_FLAGS, LIBTPU_INIT_ARGS.

    GPU_FLAGS where there are several NVIDIA GPUs, in this process or in others of its run, TPU_FLAGS where there are
    TPUs, none elsewhere. A flag that the user has set stays as it is, and so does an XLA_FLAGS that names a file.
    IMGCLS_JAX_XLA_FLAGS=0 turns all of them off.
    """
    if environment.get("IMGCLS_JAX_XLA_FLAGS") == "0":
        return {}
    found = {}
    gpus = _gpus(environment)
    if gpus > 1 or (gpus and cluster_arguments(environment) is not None):
        found["XLA_FLAGS"] = _added(environment.get("XLA_FLAGS", ""), GPU_FLAGS)
    if _may_use(environment, ("tpu",), ("libtpu",)) and _tpu_chips():
        found["LIBTPU_INIT_ARGS"] = _added(environment.get("LIBTPU_INIT_ARGS", ""), TPU_FLAGS)
    return found


def _added(given: str, flags: tuple[str, ...]) -> str:
    if given.strip() and not given.lstrip().startswith("-"):
        return given  # the name of a file of flags
    names = {flag.partition("=")[0] for flag in given.split()}
    return " ".join([given, *(flag for flag in flags if flag.partition("=")[0] not in names)]).strip()


def _gpus(environment: Mapping[str, str]) -> int:
    """How many NVIDIA GPUs JAX will use in this process, as far as one can tell without starting them."""
    if not _may_use(environment, ("cuda", "gpu"), ("jax_cuda13_plugin", "jax_cuda12_plugin")):
        return 0
    there = len(glob.glob("/dev/nvidia[0-9]*"))
    if "CUDA_VISIBLE_DEVICES" not in environment:
        return there
    return min(there, sum(gpu.strip() not in ("", "-1") for gpu in environment["CUDA_VISIBLE_DEVICES"].split(",")))


def _may_use(environment: Mapping[str, str], platforms: tuple[str, ...], packages: tuple[str, ...]) -> bool:
    """Whether one of the packages is installed and JAX_PLATFORMS leaves JAX free to use one of the platforms."""
    wanted = environment.get("JAX_PLATFORMS", "")
    if wanted and not set(platforms) & set(wanted.split(",")):
        return False
    return any(importlib.util.find_spec(package) for package in packages)


def _tpu_chips() -> int:
    return len(glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*"))


def cache_folder(environment: Mapping[str, str]) -> Path:
    """Where compiled programs are kept unless JAX_COMPILATION_CACHE_DIR says otherwise."""
    root = environment.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser() / "imgcls_jax" / "xla"


def cluster_arguments(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """What to call `jax.distributed.initialize` with, or None when this process runs alone.

    In this order:
    - JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, as launch/local.py and Kubernetes manifests set
      them, are passed on;
    - a Slurm step of several tasks, and a Cloud TPU slice of several hosts: JAX finds the coordinator by itself.

    Raises:
      ConfigError: one of the three is missing, or not a number where it must be.
    """
    if "JAX_NUM_PROCESSES" in environment or "JAX_PROCESS_ID" in environment:
        return _explicit_arguments(environment)
    if int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1 or _may_be_tpu_slice(environment):
        return {}
    return None


def _explicit_arguments(environment: Mapping[str, str]) -> dict[str, Any] | None:
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    values = [environment.get(name, "") for name in names]
    address, count, number = values
    if not (address and count.isdecimal() and number.isdecimal() and int(number) < int(count)):
        raise ConfigError(
            f"cannot join the other processes: need {', '.join(names)} in the environment as HOST:PORT, N and a number "
            f"from 0 to N-1, got {', '.join(map(repr, values))}."
        )
    if int(count) == 1:
        return None
    return {
        "coordinator_address": address,
        "num_processes": int(count),
        "process_id": int(number),
        # Else, inside a Slurm job, JAX would hide all GPUs but one from processes that Slurm did not start.
        "cluster_detection_method": "deactivate",
    }


def _may_be_tpu_slice(environment: Mapping[str, str]) -> bool:
    """Whether this may be one host of several that share a Cloud TPU.

    GKE names the hosts in the environment. A plain TPU VM does not, so whoever has TPU chips and may ask the metadata
    server lets JAX ask it: on a single host the answer is one process, which does no harm.
    """
    if not _may_use(environment, ("tpu",), ("libtpu",)):
        return False
    if int(environment.get("MEGASCALE_NUM_SLICES", "1")) > 1:
        return True
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
    if hosts:
        return "," in hosts
    return _tpu_chips() > 0 and "TPU_SKIP_MDS_QUERY" not in environment


def _use_compilation_cache() -> None:
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = cache_folder(os.environ)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            return  # a read-only home: compile every time, as without a cache
        if not os.access(folder, os.W_OK):
            return
        jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _MIN_COMPILE_SECONDS)

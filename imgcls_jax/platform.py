"""What a program does once, before JAX touches a device: huge pages, the compilation cache, joining other processes."""

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

    In a run of several processes (see `cluster_arguments`) this waits until all of them are there.
    """
    import jax

    _use_compilation_cache()
    arguments = cluster_arguments(os.environ)
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
    platforms = environment.get("JAX_PLATFORMS", "")
    if (platforms and "tpu" not in platforms) or importlib.util.find_spec("libtpu") is None:
        return False
    if int(environment.get("MEGASCALE_NUM_SLICES", "1")) > 1:
        return True
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
    if hosts:
        return "," in hosts
    chips = glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")
    return bool(chips) and "TPU_SKIP_MDS_QUERY" not in environment


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

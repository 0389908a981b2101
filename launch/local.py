"""Starts a real multi-process run on this machine: several processes, each with its own virtual CPU devices.

  python launch/local.py --processes=2 --devices_per_process=4 -- --config=configs/vit.py --workdir=W

What follows `--` goes to every process. Their lines are marked with their number. SIGTERM and SIGINT are handed on to
all of them; when one fails, the others are stopped. The exit code is that of the first process that did not end with 0.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from types import FrameType
from typing import IO

STOPPED = 143  # a process that was asked to stop, saved and left: the others are doing the same
FAILURE_GRACE_SECONDS = 3.0  # from one process failing to the others being killed
STOPPED_GRACE_SECONDS = 60.0  # from one process leaving with STOPPED to the others being killed


def parse(argv: list[str]) -> argparse.Namespace:
    """The launcher's flags; `flags` holds what follows `--`."""
    split = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0] if __doc__ else None,
        usage="%(prog)s [options] -- FLAGS OF THE MODULE...",
        allow_abbrev=False,
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--devices_per_process", type=int, default=1)
    parser.add_argument("--module", default="imgcls_jax.main", help="run as python -m MODULE")
    parser.add_argument("--dry_run", action="store_true", help="print the commands and run nothing")
    arguments = parser.parse_args(argv[:split])
    if arguments.processes < 1 or arguments.devices_per_process < 1:
        parser.error("--processes and --devices_per_process must be at least 1")
    arguments.flags = argv[split + 1 :]
    return arguments


def free_port() -> int:
    """A TCP port on the loopback interface that nobody listened on a moment ago."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def variables(process: int, arguments: argparse.Namespace, port: int) -> dict[str, str]:
    """What process number `process` finds in its environment, beside this process's own."""
    return {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(arguments.devices_per_process),
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_COORDINATOR_BIND_ADDRESS": f"127.0.0.1:{port}",  # not reachable from other machines
        "JAX_NUM_PROCESSES": str(arguments.processes),
        "JAX_PROCESS_ID": str(process),
    }


def die_with_parent() -> None:
    """In the child: be killed when the launcher is, even by SIGKILL (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def start(process: int, arguments: argparse.Namespace, port: int) -> subprocess.Popen[bytes]:
    """Starts process number `process` in a session of its own, so that Ctrl-C reaches it once: from us."""
    return subprocess.Popen(
        [sys.executable, "-u", "-m", arguments.module, *arguments.flags],
        env={**os.environ, **variables(process, arguments, port)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=die_with_parent,
    )


def copy_lines(process: int, source: IO[bytes], target: IO[bytes]) -> None:
    """Copies whole lines, each marked with the number of the process; Gloo's greeting, one a device, is left out.

    Threads write the greetings piece by piece: of two in one line, the number that one ends with is a line by itself.
    """
    greeting, torn = b"[Gloo] Rank ", 0
    for line in source:
        if line.startswith(greeting):
            torn += line.count(greeting) - 1
            continue
        if torn and not line.strip(b" \r\n0123456789"):
            torn -= 1
            continue
        target.write(b"[%d] %s\n" % (process, line.rstrip(b"\n")))
        target.flush()


def signal_all(children: list[subprocess.Popen[bytes]], number: int) -> None:
    """Signals every process that still runs, without its own children."""
    for child in children:
        if child.poll() is None:
            child.send_signal(number)


def exit_code(child: subprocess.Popen[bytes]) -> int:
    """As a shell has it: 128 + s for a process that signal s killed, 0 while it runs."""
    code = child.poll() or 0
    return code if code >= 0 else 128 - code


def wait(children: list[subprocess.Popen[bytes]], asked: list[int]) -> int:
    """Waits for all to end and returns the first exit code that is not 0; when one fails, the rest are stopped.

    Signals that arrive in `asked` meanwhile are handed on.
    """
    first, deadline = 0, float("inf")
    while any(child.poll() is None for child in children):
        while asked:
            signal_all(children, asked.pop(0))
        if not first and (first := next(filter(None, map(exit_code, children)), 0)):
            deadline = time.monotonic() + (STOPPED_GRACE_SECONDS if first == STOPPED else FAILURE_GRACE_SECONDS)
            if first != STOPPED:
                signal_all(children, signal.SIGTERM)
        if time.monotonic() > deadline:
            signal_all(children, signal.SIGKILL)
        time.sleep(0.05)
    return first or next(filter(None, map(exit_code, children)), 0)


def kill_groups(children: list[subprocess.Popen[bytes]]) -> None:
    """Kills whatever the processes left behind, such as data workers."""
    for child in children:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # nobody left (macOS says it the second way)
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def main(argv: list[str]) -> int:
    """Runs all processes to their end and returns the exit code."""
    arguments = parse(argv)
    port = free_port()
    if arguments.dry_run:
        for process in range(arguments.processes):
            settings = [f"{name}={value}" for name, value in variables(process, arguments, port).items()]
            print(shlex.join([*settings, sys.executable, "-u", "-m", arguments.module, *arguments.flags]))
        return 0
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        asked.append(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask)
    children: list[subprocess.Popen[bytes]] = []
    copiers: list[threading.Thread] = []
    try:
        for process in range(arguments.processes):
            children.append(start(process, arguments, port))
        for process, child in enumerate(children):
            for source, target in ((child.stdout, sys.stdout.buffer), (child.stderr, sys.stderr.buffer)):
                copiers.append(threading.Thread(target=copy_lines, args=(process, source, target), daemon=True))
                copiers[-1].start()
        return wait(children, asked)
    finally:
        kill_groups(children)
        for copier in copiers:
            copier.join(timeout=5)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

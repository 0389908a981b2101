"""One measurement in a process of its own: memory that runs out, or a crash, ends it and not the benchmark.

The most memory that was in use is counted since the start of a process, so only there it is that of one case.

python -m imgcls_jax.benchmarking.worker JOB.json RESULT.json: not for users.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imgcls_jax import atomic
from imgcls_jax.benchmarking.rows import OUT_OF_MEMORY
from imgcls_jax.types import UserError

OUT_OF_TIME = "the time was up"


def call(job: dict[str, Any], timeout: float | None = None) -> dict[str, Any]:
    """What `perform` gives for a job, done by another process; {"error": ...} if it fails in any way.

    Args:
      job: as `perform` takes it.
      timeout: seconds after which the process is ended.
    """
    with tempfile.TemporaryDirectory(prefix="imgcls_jax_benchmark_") as folder:
        request, result, log = (Path(folder) / name for name in ("job.json", "result.json", "log"))
        request.write_text(json.dumps(job))
        command = [sys.executable, "-m", __name__, str(request), str(result)]
        # Compiled for each case anew, as `compile_seconds` says.
        environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": ""}
        with log.open("wb") as out:
            try:
                code = subprocess.run(command, env=environment, stdout=out, stderr=out, timeout=timeout).returncode
            except subprocess.TimeoutExpired:
                return {"error": OUT_OF_TIME}
        if result.exists():
            return json.loads(result.read_text())
        return {"error": ended(code, log.read_text(errors="replace"))}


def ended(code: int, log: str) -> str:
    """Why a process left no result, by its exit code and what it printed: one sentence."""
    if code == -signal.SIGKILL:
        return f"{OUT_OF_MEMORY} (the system ended the process)"
    if _says_out_of_memory(log):
        return OUT_OF_MEMORY
    last = (log.strip().splitlines() or ["nothing was printed"])[-1]
    return f"the process ended with {code}: {last}"


def perform(job: dict[str, Any]) -> dict[str, Any]:
    """Does a job in this process.

    Args:
      job: {"case": None, "seconds"}: what is measured of the device; or {"case", "config", "ceilings", "seconds",
        "rounds", "profile" (a folder or None)}.

    Returns:
      {"environment", "platform", "ceilings"}, or {"row", "operations"}; {"error"} if it failed.
    """
    import jax

    from imgcls_jax import config as config_lib
    from imgcls_jax import environment, platform
    from imgcls_jax.benchmarking import device, measure, rows

    platform.initialize()
    if job["case"] is None:
        found = device.ceilings(seconds=job["seconds"])
        about = environment.describe(0)
        del about["step"]
        return {"environment": about, "platform": jax.default_backend(), "ceilings": dataclasses.asdict(found)}
    plan = measure.Plan(job["seconds"], job["rounds"], Path(job["profile"]) if job["profile"] else None)
    row, operations = measure.measure(
        config_lib.from_dict(job["config"]), rows.Case(**job["case"]), device.Ceilings(**job["ceilings"]), plan
    )
    return {"row": dataclasses.asdict(row), "operations": [dataclasses.asdict(one) for one in operations]}


def out_of_memory(error: BaseException | None) -> bool:
    """Whether an exception, or one that caused it, says that memory ran out."""
    while error is not None:
        if isinstance(error, MemoryError) or _says_out_of_memory(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _says_out_of_memory(text: str) -> bool:
    return "RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower()


def main(argv: Sequence[str]) -> int:
    """Reads a job, writes its result."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    try:
        result = perform(json.loads(Path(argv[0]).read_text()))
    except UserError as error:
        result = {"error": str(error)}
    except Exception as error:
        traceback.print_exc()
        lines = str(error).strip().splitlines() or [""]
        result = {"error": OUT_OF_MEMORY if out_of_memory(error) else f"{type(error).__name__}: {lines[0]}"}
    with atomic.replacing(Path(argv[1])) as path:
        path.write_text(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

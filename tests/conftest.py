"""Every test runs on eight virtual CPU devices and shares one compilation cache.

The environment variables reach the processes that tests start; the number of devices does not: a process started by
a test sees one CPU device, as a user's does, unless the test says otherwise.
"""

import os
import pathlib

# Before the first `import jax`, which reads them once. The folder is shared by xdist workers and kept between runs.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(pathlib.Path(__file__).parents[1] / ".pytest_cache" / "xla")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"

import jax

jax.config.update("jax_num_cpu_devices", 8)

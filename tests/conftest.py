"""Every test runs on eight virtual CPU devices and shares one compilation cache.

The environment variables reach the processes that tests start; the number of devices does not: a process started by
a test sees one CPU device, as a user's does, unless the test says otherwise.
"""

import os
import pathlib
import shutil

# Before the first `import jax`, which reads them once. The folder is shared by xdist workers and kept between runs.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(pathlib.Path(__file__).parents[1] / ".pytest_cache" / "xla")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
# What our programs ask for (platform.restart_with_huge_pages), so that those which tests start need not start twice.
os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")

# Two fifths of the CPU time of tests went into optimising programs that run for milliseconds. Programs that tests start
# are compiled as users' are.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.devices()  # has read the flags, once for this process
os.environ["XLA_FLAGS"] = os.environ["XLA_FLAGS"].rpartition(" ")[0]


@pytest.fixture(scope="session")
def torch():
    """The library, with torchvision in a state to be imported.

    The CUDA build of torchvision does not import on a CPU build of torch: two schemas are missing.
    """
    import torch

    library = None
    try:
        import torchvision
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision  # noqa: F401
    yield torch
    del library  # which would have undeclared them had it gone earlier


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium, driven by Selenium; it keeps what is on the console."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.binary_location = shutil.which("chromium")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()

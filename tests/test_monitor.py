"""Throughput as the device delivers it, not as the host dispatches it."""

import time

import jax
import jax.numpy as jnp
import pytest

from imgcls_jax import writers
from imgcls_jax.monitor import Monitor

BATCH, EVERY, STEPS = 10, 5, 40


@pytest.fixture(scope="module")
def work():
    """A step that the device needs milliseconds for and the host returns from at once."""

    @jax.jit
    def step(x):
        x = jax.lax.fori_loop(0, 60, lambda _, x: jnp.tanh(x @ x), x)
        return x, {"loss": x.sum() * 0, "grad_norm": x.max() * 0, "top1": x.sum() * 0, "lr": x.sum() * 0}

    x = jnp.ones((200, 200))
    jax.block_until_ready(step(x))
    return step, x


def fastest(step, x) -> float:
    """Seconds of the fastest of 20 steps, each waited for."""
    seconds = []
    for _ in range(20):
        begin = time.perf_counter()
        jax.block_until_ready(step(x))
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def test_rates_are_those_of_finished_steps_also_at_the_start_and_after_a_pause(tmp_path, work):
    """What no noise of the machine can break: steps counted so far take the device at least as many fastest steps.

    Single rates scatter (a host that was held up sees two intervals finish at once), sums from the start do not.
    """
    step, x = work
    least = fastest(step, x) / 5  # a machine that was busy while it was timed; the host dispatches 50 times as fast
    writer = writers.Writer(tmp_path, 0, enabled=True, wandb_project="", config={})
    progress = writers.Progress(enabled=False)
    monitor = Monitor(writer, progress, every=EVERY, total_steps=STEPS, steps_per_epoch=10.0, batch_size=BATCH)
    monitor.meter.start()
    begin = time.perf_counter()
    for i in range(1, STEPS + 1):
        x, logs = step(x)
        monitor.step(i, logs, waited=0.0)
        if i == STEPS // 2:
            monitor.pause()
            time.sleep(0.3)  # an evaluation, which must not count
            monitor.meter.start()
    monitor.pause()
    elapsed = time.perf_counter() - begin - 0.3
    writer.close()
    rates = [event["train/images_per_second"] for event in writer.events if "train/images_per_second" in event]
    assert len(writer.events) == STEPS // EVERY and len(rates) >= len(writer.events) - 2
    metered = 0.0
    for intervals, rate in enumerate(rates, 1):
        metered += BATCH * EVERY / rate
        assert metered > intervals * EVERY * least
    assert metered <= elapsed


def test_the_share_of_waiting_is_of_the_same_time(tmp_path, work):
    step, x = work
    writer = writers.Writer(tmp_path, 0, enabled=True, wandb_project="", config={})
    progress = writers.Progress(enabled=False)
    monitor = Monitor(writer, progress, every=EVERY, total_steps=STEPS, steps_per_epoch=10.0, batch_size=BATCH)
    monitor.meter.start()
    for i in range(1, STEPS + 1):
        begin = time.perf_counter()
        time.sleep(0.03)  # slower than the device: nearly all the time is waiting
        waited = time.perf_counter() - begin
        x, logs = step(x)
        monitor.step(i, logs, waited=waited)
    monitor.pause()
    writer.close()
    shares = [event["train/data_wait"] for event in writer.events if "train/data_wait" in event]
    assert sorted(shares)[len(shares) // 2] > 0.5


def test_the_step_that_compiles_is_not_counted(tmp_path, work):
    """It is dispatched before the clock runs; its wait for data, taken for a hundred seconds here, would show."""
    step, x = work
    writer = writers.Writer(tmp_path, 0, enabled=True, wandb_project="", config={})
    progress = writers.Progress(enabled=False)
    monitor = Monitor(writer, progress, every=1, total_steps=3, steps_per_epoch=10.0, batch_size=BATCH)
    for i in range(1, 4):
        x, logs = step(x)
        monitor.step(i, logs, waited=100.0 if i == 1 else 0.0)
        if i == 1:
            monitor.meter.start()
    monitor.pause()
    writer.close()
    shares = [event["train/data_wait"] for event in writer.events if "train/data_wait" in event]
    assert shares and max(shares) == 0.0

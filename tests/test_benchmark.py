"""The benchmark: times by a made-up clock, shares by hand, the same step as main's, what fails a check."""

import dataclasses
import json
import platform
import statistics

import jax
import numpy as np
import pytest
from helpers import ROOT, tiny_config

from imgcls_jax import benchmark, build, environment, models
from imgcls_jax import config as config_lib
from imgcls_jax.benchmarking import baseline, ceilings, device, measure, presets, rows, timing, trace, worker
from imgcls_jax.benchmarking.rows import Case, Row
from imgcls_jax.types import ConfigError, UserError

CEILINGS = device.Ceilings({"float32": 1e11, "bfloat16": 2e11}, {"float32": 512, "bfloat16": 512}, 1e10)
TINY = tiny_config(
    **{
        "model.patch_size": 4,
        "model.depth": 1,
        "model.mlp_dim": 32,
        "optimizer.name": "sgd",
        "optimizer.ema_decay": 0.0,
    }
)
CASE = Case(TINY.model.name, "train", "float32", 16, 8, 1, 10)


class Device:
    """A device that takes `seconds[i]` for its i-th step, begun when it is dispatched and the last has ended."""

    def __init__(self, seconds, host=0.0):
        self.seconds, self.host = list(seconds), host
        self.now = self.free = 0.0
        self.dispatched = self.waited = 0

    def step(self):
        self.now += self.host
        self.free = max(self.free, self.now) + self.seconds[self.dispatched]
        self.dispatched += 1
        return self.free

    def wait(self, end):
        self.waited += 1
        self.now = max(self.now, end)

    def time(self, count):
        return timing.paced(self.step, count, wait=self.wait, clock=lambda: self.now)


def test_a_paced_step_takes_what_the_device_takes():
    seconds = [5.0, 0.1, 0.2, 0.1, 0.4]  # the first, which wakes the device, is not counted
    one = Device(seconds, host=0.05)
    assert one.time(4) == pytest.approx(seconds[1:])
    assert one.dispatched == one.waited == 5
    slow_host = Device([0.1] * 6, host=0.3)  # the device waits: that is what a loop would see
    assert slow_host.time(5)[:-1] == pytest.approx([0.3] * 4)


def test_summary_and_steps():
    times = [float(t) for t in range(1, 102)]
    assert timing.summary(times) == (51.0, 96.0)
    assert timing.steps_in(1.0, 0.1) == 10
    assert timing.steps_in(1.0, 7.0) == timing.FEWEST and timing.steps_in(1.0, 0.0) == timing.MOST


def test_parts_take_turns():
    order = []
    parts = [lambda: order.append("a") or [1.0], lambda: order.append("b") or [2.0, 3.0]]
    assert timing.alternated(parts, 3) == [[[1.0]] * 3, [[2.0, 3.0]] * 3]
    assert "".join(order) == "ababab"


def test_a_sweep_ends_where_it_is_slower_or_does_not_fit():
    def sweep(rates):
        return [size for size, _ in timing.doubled(rates.get, 8)]

    assert sweep({8: 10.0, 16: 18.0, 32: 17.0, 64: 99.0}) == [8, 16, 32]
    assert sweep({8: 10.0, 16: 18.0}) == [8, 16, 32]  # 32 does not fit
    assert list(timing.doubled(float, 1, most=4)) == [(1, 1.0), (2, 2.0), (4, 4.0)]


def test_shares_of_the_ceilings():
    row = Row(**dataclasses.asdict(CASE), flops=4e9, xla_bytes=1e9)
    found = measure.with_times(row, [[0.2, 0.1, 0.2], [0.4, 0.4, 0.4], [0.2, 0.2, 0.2]], [8e10, 4e10, 1e10], CEILINGS)
    assert found.step_seconds == 0.2 and found.step_seconds_p95 == pytest.approx(0.4)
    assert found.images_per_second == pytest.approx(16 / 0.2)
    assert found.mfu == pytest.approx(4e9 / 0.2 / 1e11)
    assert found.bandwidth == pytest.approx(1e9 / 0.2 / 1e10)
    # By round: 2e10 of 8e10, 1e10 of 4e10 when everything took twice as long, 2e10 of 1e10; the median of them.
    assert found.ratio == pytest.approx(0.25)


def test_a_whole_run_against_the_bare_step():
    row = Row(**dataclasses.asdict(dataclasses.replace(CASE, mode="run")), step_seconds=0.1)
    events = [
        {"step": s, "train/images_per_second": r, "train/data_wait": w}
        for s, r, w in [(1, 90, 0.3), (2, 76, 0.1), (3, 70, 0)]
    ]
    found = measure.with_run(row, [*events, {"step": 3, "test/top1": 0.1}], after=0.3)
    assert (found.step_seconds, found.images_per_second, found.data_wait) == (pytest.approx(0.2), 76, 0.1)
    assert found.ratio == pytest.approx(76 / (16 / 0.2))


def test_ceilings_are_what_products_and_copies_take():
    found = ceilings(("float32",), seconds=0.02, sizes=(64, 128), copy_bytes=2**20)
    assert found.matmul["float32"] > 1e6 and found.matmul_size["float32"] in (64, 128) and found.copy > 1e6
    step, operations = device.product(64, "bfloat16")
    out = step()
    assert out.shape == (64 * jax.device_count(), 64) and out.dtype == "bfloat16"
    assert operations == 2 * out.size * 64
    step, moved = device.copying(2**10)
    assert moved == 2 * 2**10 * jax.device_count() and step() == -step() == step()


@pytest.fixture(scope="module")
def tiny():
    config, data = measure.configured(TINY, CASE), measure.generated(CASE)
    return build.build(config, data=data)


def test_counted_flops_by_hand(tiny):
    n, d, m, blocks = 4, 16, 32, 1
    tokens = n + (tiny.model.pool == "cls")
    macs = n * 4 * 4 * d + blocks * (4 * tokens * d * d + 2 * tokens * tokens * d + 2 * tokens * d * m)
    assert measure.counted_flops(tiny, "features") == 2 * 16 * macs
    assert measure.counted_flops(tiny, "eval") == 2 * 16 * (macs + d * 10)
    assert measure.counted_flops(tiny, "train") == measure.counted_flops(tiny, "run") == 6 * 16 * (macs + d * 10)


def test_the_train_step_is_that_of_a_run(tiny):
    state = tiny.init()
    batches = build.train_batches(tiny, 0)
    host = [next(batches) for _ in range(2)]
    batches.close()
    ready = measure.program(tiny, "train")
    for batch in [*host, host[0]]:
        state, logs = tiny.train_step(state, build.put(tiny, 16, batch), tiny.constants())
        jax.tree.map(np.testing.assert_array_equal, ready.step(), logs)
    said = measure.costs(ready.compiled, tiny.mesh.size)
    parameters = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
    assert said["planned_memory"] > 2 * parameters  # and the momentum
    # Elementwise work comes on top of what is counted; the optimizer runs on each device.
    assert 0.8 * measure.counted_flops(tiny, "train") < said["xla_flops"]


@pytest.mark.parametrize("mode", ["features", "input"])
def test_a_case_measured(mode):
    case = dataclasses.replace(CASE, mode=mode)
    row, operations = measure.measure(TINY, case, CEILINGS, measure.Plan(seconds=0.05, rounds=2))
    assert row.case == case and row.error == "" and row.images_per_second > 0 and operations == []
    if mode == "input":
        assert row.step_seconds is None and row.mfu is None
        return
    assert 0 < row.step_seconds <= row.step_seconds_p95 and row.compile_seconds > 0
    assert row.images_per_second == pytest.approx(16 / row.step_seconds)
    assert row.mfu == pytest.approx(row.flops / row.step_seconds / CEILINGS.matmul["float32"])
    assert row.peak_memory > row.planned_memory > 0 and row.ratio > 0


def test_a_case_does_not_change_what_the_step_costs():
    """All keys but the data, the size of the batch and the learning rate are the recipe's."""
    found = dict(config_lib.leaves(measure.configured(TINY, CASE)))
    before = dict(config_lib.leaves(TINY))
    changed = {key for key in found if found[key] != before[key]}
    assert changed <= {"data.name", "data.eval_split", "data.channels", "optimizer.lr", "eval.batch_size"}


ROWS = [
    Row("a", step_seconds=0.1, step_seconds_p95=0.125, images_per_second=80.0, mfu=0.3, peak_memory=2**31, ratio=0.2),
    Row("b", "eval", "bfloat16", 256, error="out of memory"),
    Row("c, d", "run", images_per_second=1 / 3, data_wait=0.0, peak_memory_of="device"),
]


def test_tables():
    assert rows.from_csv(rows.to_csv(ROWS)) == ROWS
    assert [rows.read(v) for v in json.loads(json.dumps([dataclasses.asdict(row) for row in ROWS]))] == ROWS
    heads, first, second, third = rows.table(ROWS).splitlines()
    assert heads.split() == [
        "model",
        "mode",
        "dtype",
        "px",
        "batch",
        "ms",
        "p95",
        "img/s",
        "GB",
        "MFU",
        "ratio",
        "wait",
    ]
    assert first.split()[5:] == ["100.00", "125.00", "80.0", "2.15", "30.0%", "0.200"]
    assert second.endswith("256  out of memory") and third.endswith("0.0%")
    assert first.index("float32") == second.index("bfloat16") == heads.index("dtype")


def test_a_file_that_is_no_benchmark(tmp_path):
    with pytest.raises(UserError, match=r"no baseline .*none.json .*--preset=check"):
        baseline.load(tmp_path / "none.json")
    file = tmp_path / "b.json"
    for text in ("{", '{"rows": []}', '{"rows": [{"modell": 1}], "config": {}}', '{"rows": [], "config": {}}'):
        file.write_text(text)
        with pytest.raises(UserError, match=r"write"):
            baseline.load(file)


def test_the_name_of_a_machine():
    assert baseline.machine({"devices": {"NVIDIA H200": 8}, "cpus": 16}) == "nvidia-h200-8"
    cpu = {"devices": {"cpu": 1}, "cpus": 2, "processor": "AMD EPYC family 25 model 17"}
    assert baseline.machine(cpu) == "amd-epyc-family-25-model-17-2"


def test_the_name_of_a_processor(tmp_path):
    path = tmp_path / "cpuinfo"
    path.write_text("processor\t: 0\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\n\nprocessor\t: 1\n")
    assert environment.processor(path) == "AMD EPYC family 25 model 17"
    path.write_text("processor\t: 0\nBogoMIPS\t: 50.00\n")  # ARM
    assert environment.processor(path) == environment.processor(tmp_path / "none") == platform.machine()


@pytest.fixture
def session(monkeypatch):
    """Measurements with given ratios: (case, number of its measurement) -> ratio."""
    calls = []
    ratios = {}

    def call(job, timeout=None):
        if job["case"] is None:
            about = {"devices": {"cpu": 1}, "cpus": 2, "processor": "x"}
            return {"environment": about, "platform": "cpu", "ceilings": dataclasses.asdict(CEILINGS)}
        case = Case(**job["case"])
        calls.append(case)
        found = ratios[case.model][calls.count(case) - 1]
        if isinstance(found, str):
            return {"error": found}
        return {"row": dataclasses.asdict(Row(**job["case"], images_per_second=found, ratio=found)), "operations": []}

    monkeypatch.setattr(worker, "call", call)
    return ratios, calls


MODELS = ("resnet50", "densenet121")


def check(tmp_path, *flags):
    return benchmark.main([f"--output={tmp_path}/now", *flags])


def test_check_fails_exactly_where_15_percent_are_lost(session, tmp_path, capsys):
    ratios, calls = session
    ratios.update(resnet50=[0.4], densenet121=[0.2])
    assert check(tmp_path, f"--models={','.join(MODELS)}", "--config.optimizer.name=sgd") == 0
    file = tmp_path / "baseline.json"
    (tmp_path / "now" / "benchmark.json").rename(file)
    assert json.loads(file.read_text())["config"] == {"optimizer": {"name": "sgd"}}
    flags = ("--check", f"--baseline={file}")

    calls.clear()
    ratios.update(resnet50=[0.4 * 0.851], densenet121=[0.3])  # 14.9% lost; and 50% won
    assert check(tmp_path, *flags) == 0 and [case.model for case in calls] == list(MODELS)
    assert "-14.9%" in capsys.readouterr().out

    calls.clear()
    ratios.update(resnet50=[0.4 * 0.849, 0.4 * 0.849])
    with pytest.raises(
        UserError, match=r"^resnet50 train float32 224px batch 8: its ratio fell from 0.400 to 0.340, a loss of 15%"
    ):
        check(tmp_path, *flags)
    assert [case.model for case in calls] == ["resnet50", "resnet50", "densenet121"]

    calls.clear()
    ratios.update(resnet50=[0.1, 0.39], densenet121=[0.2])  # something else was going on the first time
    assert check(tmp_path, *flags) == 0

    calls.clear()
    ratios.update(resnet50=["out of memory"] * 2)
    with pytest.raises(UserError, match=r"^resnet50 .*: out of memory, a loss of 100%"):
        check(tmp_path, *flags)


def test_a_sweep_and_a_row_that_fails(session, tmp_path, capsys):
    ratios, calls = session
    ratios.update(resnet50=[1.0], densenet121=["out of memory"])
    assert check(tmp_path, f"--models={','.join(MODELS)}") == 0  # what does not fit is a finding
    out = capsys.readouterr().out
    assert "out of memory" in out and "benchmark.json" in out
    ratios.update(densenet121=["Mosaic failed"])
    calls.clear()
    with pytest.raises(UserError, match=r"^densenet121 train .*: Mosaic failed\.$"):
        check(tmp_path, f"--models={','.join(MODELS)}")
    saved = json.loads((tmp_path / "now" / "benchmark.json").read_text())["rows"]
    assert [row["error"] for row in saved] == ["", "Mosaic failed"]
    assert rows.from_csv((tmp_path / "now" / "benchmark.csv").read_text()) == [rows.read(row) for row in saved]


def test_what_is_asked_for(session, tmp_path):
    def cases(*flags):
        values = benchmark._flags()
        values(["benchmark", *flags])
        return benchmark.asked(values, config_lib.base(), recipe=False)

    found = cases("--models=lenet5,resnet50", "--modes=train,eval", "--batch_sizes=1,2", "--dtypes=bfloat16")
    assert len(found) == 8 and len(set(found)) == 8
    assert found[0] == Case("lenet5", "train", "bfloat16", 1, 28, 1, 10)
    assert found[-1] == Case("resnet50", "eval", "bfloat16", 2, 224, 3, 1000)
    for flag, message in {
        "--models=resnet5": "resnet50",
        "--modes=trian": "train",
        "--dtypes=float16": "bfloat16",
        "--batch_sizes=8,x": "whole numbers",
        "--preset=reedme": "readme",
        "--batchsizes=8": "batch_sizes",
    }.items():
        with pytest.raises(ConfigError, match=message):
            benchmark.main([flag, f"--output={tmp_path}"])


@pytest.mark.parametrize("preset", presets.PRESETS)
@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_presets_name_models(preset, platform):
    cases = presets.PRESETS[preset](platform)
    assert len(set(cases)) == len(cases) > 4
    assert all(case.model in models.MODELS and case.mode in rows.MODES for case in cases)


def test_memory_that_runs_out():
    with pytest.raises(Exception, match=r"RESOURCE_EXHAUSTED|emory") as raised:
        jax.numpy.zeros((2**46,)).block_until_ready()
    assert worker.out_of_memory(raised.value)
    wrapped = ValueError("in a callback")
    wrapped.__cause__ = raised.value
    assert worker.out_of_memory(wrapped) and not worker.out_of_memory(ValueError("shape"))
    assert worker.ended(-9, "").startswith(rows.OUT_OF_MEMORY)
    assert worker.ended(-6, "E0000 CUDA_ERROR_OUT_OF_MEMORY: out of memory\n") == rows.OUT_OF_MEMORY
    assert worker.ended(-11, "a\nlast\n") == "the process ended with -11: last"


def test_a_batch_that_does_not_fit_in_another_process():
    job = {"case": dataclasses.asdict(dataclasses.replace(CASE, batch_size=2**40)), "config": TINY.to_dict()}
    job |= {"ceilings": dataclasses.asdict(CEILINGS), "seconds": 0.1, "rounds": 1, "profile": None}
    assert worker.call(job) == {"error": rows.OUT_OF_MEMORY}


@dataclasses.dataclass
class Named:
    name: str
    lines: tuple = ()
    events: tuple = ()
    duration_ns: float = 0.0
    stats: tuple = ()


def event(name, microseconds, **stats):
    return Named(name, duration_ns=1e3 * microseconds, stats=tuple(stats.items()))


HOST = Named("/host:CPU", (Named("thread", events=(event("dot.1", 9, hlo_op="dot.1"), event("Execute", 99))),))


@pytest.mark.parametrize(
    ("planes", "expected"),
    [
        ([HOST, Named("/host:metadata")], [("/host:CPU", "dot.1", 9e-6)]),
        (
            [
                HOST,
                Named(
                    "/device:GPU:0",
                    (
                        Named("Stream #7(Compute)", events=(event("gemm", 3, hlo_op="dot.1"), event("memset", 1))),
                        Named("XLA Modules", events=(event("jit_step", 50),)),
                    ),
                ),
            ],
            [("/device:GPU:0", "dot.1", 3e-6), ("/device:GPU:0", "memset", 1e-6)],
        ),
        (
            [HOST, Named("/device:TPU:0", (Named("XLA Ops", events=(event("fusion.2", 4),)), Named("Steps")))],
            [("/device:TPU:0", "fusion.2", 4e-6)],
        ),
    ],
)
def test_executions_of_a_trace(planes, expected):
    found = trace.executions(planes)
    assert [e[:2] for e in found] == [e[:2] for e in expected]
    assert [e[2] for e in found] == pytest.approx([e[2] for e in expected])


PROGRAM = """
%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %fusion.2 = f32[8]{0:T(8)} fusion(%p), kind=kLoop, calls=%f, metadata={op_name="jit(step)/layer1/add" source_line=3}
}
ENTRY %main {
  %while.3 = (s32[], /*index=1*/f32[8]{0}) while(%t), condition=%c, body=%body
  ROOT %dot.1 = f32[4,8]{1,0} dot(%a, %b), metadata={op_name="jit(step)/head/dot_general"}
}
"""


def test_the_costliest_operations():
    about = trace.described(PROGRAM)
    assert about == {
        "fusion.2": ("fusion", "jit(step)/layer1/add"),
        "while.3": ("while", ""),
        "dot.1": ("dot", "jit(step)/head/dot_general"),
    }
    # Two devices, two steps; the while holds what is counted already.
    events = [
        (d, name, s)
        for d in "ab"
        for name, s in [("fusion.2", 1.0), ("while.3", 9.0), ("fusion.2", 2.0), ("dot.1", 1.0)]
    ]
    first, second = trace.ranked(events, about, steps=2)
    assert (first.name, first.kind, first.seconds, first.share, first.calls) == ("fusion.2", "fusion", 1.5, 0.75, 1.0)
    assert (second.name, second.seconds, second.share, second.calls) == ("dot.1", 0.5, 0.25, 0.5)
    text = trace.table([first, second], 1)
    assert "fusion.2  (fusion jit(step)/layer1/add)" in text and "25.0%" in text.splitlines()[-1]
    assert "no operations" in trace.table([])


def test_a_trace_of_a_real_step(tiny, tmp_path):
    ready = measure.program(tiny, "eval")
    jax.block_until_ready(ready.step())
    found = trace.operations(ready.step, ready.compiled.as_text(), tmp_path)
    assert sum(one.share for one in found) == pytest.approx(1.0)
    assert all(one.kind for one in found), "operations that the compiled program does not have"
    assert any("dot_general" in one.source for one in found)
    assert len(list(tmp_path.rglob("*.trace.json.gz"))) == 1


@pytest.mark.slow
def test_the_whole_program(tmp_path):
    from helpers import run_main

    flags = [f"--output={tmp_path}", "--models=lenet5", "--modes=train,input,run", "--batch_sizes=16", "--seconds=0.3"]
    code, text = run_main([*flags, "--profile"], module="imgcls_jax.benchmark")
    assert code == 0, text
    saved = json.loads((tmp_path / "benchmark.json").read_text())
    train, given, run = (rows.read(row) for row in saved["rows"])
    assert train.ratio > 0 and given.images_per_second > 0 and 0 < run.ratio < 2 and 0 <= run.data_wait <= 1
    assert saved["environment"]["versions"]["jax"] and saved["ceilings"]["copy"] > 0
    assert "ms/step" in text and list((tmp_path / f"trace-{train.slug}").rglob("*.xplane.pb"))
    (tmp_path / "old.json").write_text(json.dumps(saved | {"rows": saved["rows"][:1]}))
    code, text = run_main(
        [f"--output={tmp_path}", "--check", f"--baseline={tmp_path}/old.json"], module="imgcls_jax.benchmark"
    )
    assert code in (0, 1) and "before" in text, text  # steps of a tenth of a millisecond: the machine's mood decides


def test_ratios_do_not_follow_the_speed_of_the_machine():
    """A machine that becomes half as fast half-way: times and MFU change, the ratio does not."""
    row = Row(**dataclasses.asdict(CASE), flops=1e9)
    steady = measure.with_times(row, [[0.1]] * 4, [5e10] * 4, CEILINGS)
    slower = measure.with_times(row, [[0.1], [0.2], [0.2], [0.2]], [5e10, 2.5e10, 2.5e10, 2.5e10], CEILINGS)
    assert slower.ratio == pytest.approx(steady.ratio) and slower.mfu == pytest.approx(steady.mfu / 2)
    assert statistics.median([0.1, 0.2, 0.2, 0.2]) == slower.step_seconds


def test_help_names_all_flags(capsys):
    from imgcls_jax import cli

    assert cli.run(benchmark.main, ["--help"]) == 0
    out = capsys.readouterr().out
    assert "--preset=readme" in out and all(name in out for name in benchmark._flags() if name not in ("?", "help"))
    assert (ROOT / "benchmarks").is_dir()

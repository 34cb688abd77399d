# amaranth: UnusedElaboratable=no
import dataclasses
import json
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from amaranth.hdl import Assert, Format, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import Out
from sim_circuits import FAULTY_WORD, Doubler, Fault
from verilog_benches import EVERY_SIMULATOR, EVERY_VERILOG_SIMULATOR

import sim.simulators.runner
from hdl import CircuitError, ToolError
from sim.bench.bench import BenchFailure, StreamBench
from sim.bench.payload import pack_all
from sim.bench.stalls import Stalls
from sim.simulators.runner import simulate, simulate_each, to_verilog
from sim.simulators.tools import default_simulator, missing_for

OFFSET = -3
STALLS = [(0.0, 0.0), (0.3, 0.0), (0.0, 0.4), (0.5, 0.5)]


def make_bench(fault=Fault.NONE, count=60, offset=OFFSET, **settings):
    random_values = random.Random(5)
    values = [random_values.randrange(-128, 128) for _ in range(count)]
    last = [int(index == count - 1) for index in range(count)]
    circuit = Doubler()
    inputs = pack_all(data_shape(circuit.i), {"value": values, "last": last, "fault": [fault.value] * count})
    outputs = pack_all(data_shape(circuit.o), {"value": [2 * value + offset for value in values], "last": last})
    settings = {"watchdog_cycles": 500, "expected_cycles": count} | settings
    return StreamBench("doubler", circuit, {"i": inputs}, {"o": outputs}, {"offset": offset}, **settings)


def data_shape(port):
    return port.payload.shape()


@pytest.fixture
def build_directory(simulation_builds):
    return simulation_builds


@pytest.fixture(params=EVERY_SIMULATOR)
def run(request, build_directory):
    missing = missing_for(request.param)
    if missing:
        pytest.skip(f"{request.param} lacks {', '.join(missing)}")

    def run(bench, **settings):
        return simulate(bench, request.param, build_directory=build_directory, **settings)

    run.simulator = request.param
    return run


@pytest.mark.parametrize("source_stall, sink_stall", STALLS)
def test_right_circuit_passes(run, source_stall, sink_stall):
    result = run(make_bench(), seed=7, source_stall=source_stall, sink_stall=sink_stall)
    assert (result.name, result.simulator, result.seed) == ("doubler", run.simulator, 7)
    assert result.transfers == {"o": 60}
    if source_stall or sink_stall:
        assert result.cycles > 60
    else:
        assert result.cycles == 60


def test_simulators_agree_on_every_cycle(run, build_directory):
    each = [Stalls(3, 0.4, 0.4, reset_after) for reset_after in (0, 1, 250)]
    ours, theirs = (
        [
            (result.cycles, result.total_cycles)
            for result in simulate_each(make_bench(count=500), each, simulator, build_directory=build_directory)
        ]
        for simulator in (run.simulator, "amaranth")
    )
    assert ours == theirs
    assert len(set(ours)) == len(each)


def test_a_reset_in_the_middle_begins_again(run, build_directory):
    each = [Stalls(7, reset_after=reset_after) for reset_after in (1, 7, 30, 1000)]
    for result in simulate_each(make_bench(), each, run.simulator, build_directory=build_directory):
        assert (result.transfers, result.cycles) == ({"o": 60}, 60)
        # One that is done before its reset comes is reset then.
        assert result.reset_after < result.total_cycles if result.reset_after < 60 else result.total_cycles < 300


def test_runs_of_one_circuit_are_as_those_of_several(run, build_directory):
    each = [Stalls(1), Stalls(3, 0.3, 0.4, 20)]
    together = simulate_each(make_bench(), each, run.simulator, build_directory=build_directory)
    for one, result in zip(each, together, strict=True):
        alone = run(
            make_bench(), seed=one.seed, source_stall=one.source, sink_stall=one.sink, reset_after=one.reset_after
        )
        assert (alone.seed, alone.cycles, alone.total_cycles) == (result.seed, result.cycles, result.total_cycles)
        assert (alone.transfers, alone.reset_after) == (result.transfers, result.reset_after)


def test_seeds_stall_differently(build_directory):
    def cycles(seed):
        bench = make_bench(count=300)
        return simulate(bench, "amaranth", build_directory=build_directory, seed=seed, source_stall=0.5).cycles

    assert cycles(1) == cycles(1)
    assert len({cycles(seed) for seed in range(5)}) > 1


@pytest.mark.parametrize(
    "fault, stall, kind, message",
    [
        (Fault.VALUE, 0.0, "value", r"doubler: o\[13\]: expected \{.*\}, got \{"),
        (Fault.DROP, 0.0, "value", r"o gave 59 of 60"),
        (Fault.EXTRA, 0.0, "extra", r"o\[60\]: nothing expected, got \{"),
        (Fault.DEADLOCK, 0.0, "deadlock", r"no transfer for 500 cycles, inputs not taken: 47 of i; o gave 13 of 60"),
        (Fault.UNSTABLE, 0.3, "protocol", r"was offered, then the payload became"),
        (Fault.WITHDRAW, 0.3, "protocol", r"was offered, then valid fell"),
        (Fault.WAITS, 0.3, "deadlock", r"no transfer for 500 cycles"),
        (Fault.CONSTANT, 0.0, "constant", r"o gives nothing but"),
        (Fault.ASSERTION, 0.0, "assertion", r"alarm on word 13"),
        (Fault.RUBBISH, 0.3, "value", r"o\[\d+\]: expected"),
    ],
)
def test_wrong_circuit_fails(run, fault, stall, kind, message):
    with pytest.raises(BenchFailure, match=message) as failure:
        run(make_bench(fault), seed=11, source_stall=stall, sink_stall=stall)
    assert failure.value.kind == kind
    assert f"{run.simulator}, seed 11, source stall {stall:g}, sink stall {stall:g}" in str(failure.value)


@pytest.mark.parametrize(
    "fault, message", [(Fault.VALUE, r"o\[13\]: expected"), (Fault.ASSERTION, "alarm on word 13")], ids=str
)
def test_what_is_wrong_before_a_reset_counts(run, fault, message):
    """The reset comes after the faulty word, the surplus after it would have been seen too."""
    with pytest.raises(BenchFailure, match=rf"{message}.*sink stall 0, reset after 30, \d+ cycles\)"):
        run(make_bench(fault), reset_after=30)


class Forgetful(Doubler):
    """Its first fault is remembered across a reset: the word held then is not lost."""

    def elaborate(self, platform):
        m = Module()
        m.submodules.inner = inner = Doubler()
        held, waits = Signal.like(self.o.payload, reset_less=True), Signal(reset_less=True)
        wiring.connect(m, wiring.flipped(self.i), inner.i)
        m.d.comb += [
            inner.offset.eq(self.offset),
            self.o.valid.eq(waits),
            self.o.payload.eq(held),
            inner.o.ready.eq(~waits | self.o.ready),
        ]
        with m.If(inner.o.ready):
            m.d.sync += [held.eq(inner.o.payload), waits.eq(inner.o.valid)]
        return m


def test_state_that_survives_a_reset_is_found(run):
    bench = dataclasses.replace(make_bench(expected_cycles=61), component=Forgetful())
    run(bench)
    with pytest.raises(BenchFailure, match=r"o\[0\]: expected .*, got .*, reset after 30") as failure:
        run(bench, reset_after=30)
    assert failure.value.kind == "value"


def test_the_first_run_that_fails_is_named(run, build_directory):
    each = [Stalls(1), Stalls(2, reset_after=30), Stalls(3)]
    bench = dataclasses.replace(make_bench(expected_cycles=61), component=Forgetful())
    with pytest.raises(BenchFailure, match=r"seed 2, .* reset after 30"):
        simulate_each(bench, each, run.simulator, build_directory=build_directory)
    with pytest.raises(BenchFailure, match=r"alarm on word 13.*seed 1,"):
        simulate_each(make_bench(Fault.ASSERTION), each, run.simulator, build_directory=build_directory)


def test_no_runs_are_refused(build_directory):
    with pytest.raises(CircuitError, match="doubler needs at least one run, or it cannot fail"):
        simulate_each(make_bench(), [], "amaranth", build_directory=build_directory)


def test_failure_names_port_index_and_values(run):
    with pytest.raises(BenchFailure) as caught:
        run(make_bench(Fault.VALUE))
    failure = caught.value
    assert (failure.bench, failure.port, failure.index) == ("doubler", "o", FAULTY_WORD)
    assert failure.got == {"value": failure.expected["value"] + 1, "last": 0}


def test_lost_last_result_is_missing(run):
    bench = make_bench(Fault.DROP, count=FAULTY_WORD + 1)
    with pytest.raises(BenchFailure, match=r"o\[13\]: expected .* nothing came for 500 cycles") as failure:
        run(bench)
    assert failure.value.kind == "missing"


def test_wrong_latency_fails_only_without_stalls(run):
    with pytest.raises(BenchFailure, match="59 cycles from first input to last output expected, 60 taken") as failure:
        run(make_bench(expected_cycles=59))
    assert failure.value.kind == "cycles"
    run(make_bench(expected_cycles=59), sink_stall=0.2)


def test_one_expected_bit_changed_fails(run):
    bench = make_bench()
    bench.outputs["o"][31] ^= 1 << 4
    with pytest.raises(BenchFailure, match=r"o\[31\]"):
        run(bench)


@pytest.mark.parametrize("simulator", EVERY_VERILOG_SIMULATOR)
def test_same_circuit_is_built_once(simulator, build_directory, monkeypatch):
    if missing_for(simulator):
        pytest.skip(f"{simulator} lacks {', '.join(missing_for(simulator))}")
    simulate(make_bench(), simulator, build_directory=build_directory)
    monkeypatch.setattr(sim.simulators.runner, "rtlil_to_verilog", lambda netlist: pytest.fail("built again"))
    simulate(make_bench(count=20), simulator, build_directory=build_directory)


@pytest.mark.parametrize("simulator", EVERY_VERILOG_SIMULATOR)
def test_an_interrupted_build_leaves_only_whole_ones(simulator, tmp_path, monkeypatch):
    if missing_for(simulator):
        pytest.skip(f"{simulator} lacks {', '.join(missing_for(simulator))}")

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sim.simulators.runner, "_run_job", interrupt)
        with pytest.raises(KeyboardInterrupt):
            simulate(make_bench(), simulator, build_directory=tmp_path)
    assert [path.name.partition("-")[0] for path in tmp_path.iterdir() if path.is_dir()] == ["verilog"]
    # Verilator would compile its own library here first, for half a minute
    if simulator == "icarus":
        simulate(make_bench(), simulator, build_directory=tmp_path)


def test_interrupt_ends_the_children(tmp_path):
    """Ctrl-C while a job runs: what the job had started ends too."""
    child = tmp_path / "child"
    script = f"""
        import sys
        from pathlib import Path
        from sim.simulators.processes import run_logged
        command = ["sh", "-c", "sleep 600 & echo $! > {child}.new; mv {child}.new {child}; wait"]
        run_logged(command, Path("{tmp_path}/log"), {{"PATH": "/usr/bin:/bin"}}, Path("{tmp_path}"))
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 20
    while not child.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) != 0
    number = int(child.read_text())
    while is_running(number):
        assert time.monotonic() < deadline, "the grandchild survived"
        time.sleep(0.02)


def is_running(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("simulator", EVERY_VERILOG_SIMULATOR)
def test_failed_build_shows_its_log(simulator, tmp_path, monkeypatch):
    if missing_for(simulator):
        pytest.skip(f"{simulator} lacks {', '.join(missing_for(simulator))}")
    monkeypatch.setattr(sim.simulators.runner, "rtlil_to_verilog", lambda netlist: "module top(; endmodule")
    with pytest.raises(ToolError, match=rf"{simulator} could not build the circuit(?s:.*)syntax error"):
        simulate(make_bench(), simulator, build_directory=tmp_path)


def test_simulators_are_silent(run, capfd):
    run(make_bench())
    assert capfd.readouterr() == ("", "")


def test_verilog_does_not_depend_on_place_or_time():
    verilog = to_verilog(make_bench().harness())
    assert "module top(" in verilog
    assert str(Path.cwd()) not in verilog
    assert verilog == to_verilog(make_bench().harness())


class Talker(wiring.Component):
    wrong: Out(1)

    def elaborate(self, platform):
        m = Module()
        m.d.sync += [self.wrong.eq(~self.wrong), Assert(~self.wrong, Format("word {}", Signal(0)))]
        return m


def test_a_message_may_name_a_signal_without_bits():
    """As the index of a row's only word: legal for Amaranth, but Yosys's Verilog for it is refused
    by Verilator.
    """
    verilog = to_verilog(Talker())
    assert "$write(" in verilog
    assert "{0{" not in verilog


def test_missing_tools_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(
        "sim.simulators.tools.find_tool", lambda name: None if name in ("c++", "iverilog") else Path("/bin") / name
    )
    with pytest.raises(ToolError, match=r"verilator lacks c\+\+ \(install it: apt-get install g\+\+\)"):
        simulate(make_bench(), "verilator", build_directory=tmp_path)
    with pytest.raises(ToolError, match="icarus lacks iverilog"):
        simulate(make_bench(), "icarus", build_directory=tmp_path)
    name, reason = default_simulator()
    assert name == "amaranth"
    assert "Verilator lacks c++" in reason


def test_default_is_verilator_when_complete(monkeypatch):
    monkeypatch.setattr("sim.simulators.tools.find_tool", lambda name: Path("/bin") / name)
    assert default_simulator() == ("verilator", "")


def test_unknown_simulator_is_refused(tmp_path):
    with pytest.raises(ToolError, match="unknown simulator 'modelsim'; choose one of verilator, icarus, amaranth"):
        simulate(make_bench(), "modelsim", build_directory=tmp_path)


@pytest.mark.parametrize("stall", [-0.1, 1.0])
def test_impossible_stalls_are_refused(tmp_path, stall):
    with pytest.raises(CircuitError, match="a stall is a probability"):
        simulate(make_bench(), "amaranth", build_directory=tmp_path, sink_stall=stall)


def test_directories_that_make_cannot_use_are_refused(tmp_path):
    if missing_for("verilator"):
        pytest.skip("verilator is missing")
    with pytest.raises(ToolError, match="space in its name"):
        simulate(make_bench(), "verilator", build_directory=tmp_path / "with space")


def test_result_is_plain_data(build_directory):
    result = simulate(make_bench(), "amaranth", build_directory=build_directory)
    assert json.loads(json.dumps(vars(result)))["transfers"] == {"o": 60}

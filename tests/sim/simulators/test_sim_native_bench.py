# amaranth: UnusedElaboratable=no
import numpy as np
import pytest
from sim_circuits import FAULTY_WORD, Doubler, Fault

from hdl import CircuitError, ToolError
from hdl.tools.toolchain import find_tool
from sim.bench.bench import BenchFailure
from sim.bench.harness import Harness
from sim.bench.payload import pack_words
from sim.bench.stalls import Stalls
from sim.bench.streams import LONGEST_PAUSE_BITS
from sim.simulators import native_bench
from sim.simulators.native_bench import NEEDED_TOOLS, NativeBench

OFFSET = 3
COUNT = 200
LEVELS = (Stalls(1), Stalls(2, 0.3), Stalls(3, 0, 0.3), Stalls(4, 0.4, 0.4), Stalls(5, 0.1, 0.6, reset_after=70))
WAITING = Stalls(6, reset_after=70, sink_delay=20_000)  # for longer than the watchdog waits

pytestmark = pytest.mark.skipif(
    any(find_tool(tool) is None for tool in NEEDED_TOOLS), reason="Verilator or a compiler is missing"
)


@pytest.fixture(scope="module")
def bench(simulation_builds):
    return NativeBench.build("doubler", Harness(Doubler(), {"offset": OFFSET}), simulation_builds)


def words(fault=Fault.NONE, count=COUNT, offset=OFFSET):
    values = np.arange(count) % 255 - 127
    last = (np.arange(count) == count - 1).astype(np.int64)
    core = Doubler()
    inputs = {"value": values, "last": last, "fault": np.full(count, fault.value)}
    outputs = {"value": 2 * values + offset, "last": last}
    return {"i": pack_words(core.i.payload.shape(), inputs)}, {"o": pack_words(core.o.payload.shape(), outputs)}


@pytest.mark.parametrize("stalls", LEVELS, ids=str)
def test_a_right_circuit_passes(bench, stalls):
    result = bench.run(*words(), stalls, expected_cycles=COUNT)
    assert result.results == COUNT
    assert result.cycles == COUNT if stalls.at_full_speed else result.cycles > COUNT
    assert result.total_cycles > result.cycles + stalls.reset_after


def test_sinks_that_wait_after_reset_are_no_deadlock(bench):
    result = bench.run(*words(), WAITING, expected_cycles=COUNT)
    assert result.results == COUNT
    assert WAITING.sink_delay < result.cycles < WAITING.sink_delay + COUNT
    assert result.total_cycles > WAITING.reset_after + WAITING.sink_delay + COUNT


@pytest.mark.parametrize("stalls", [Stalls(8, source=0.2), Stalls(8, sink=0.2)], ids=str)
def test_pauses_have_a_heavy_tail(bench, stalls):
    """A quarter of a pause before each word, and one pause in 1024 has 341 cycles on average."""
    count = 100_000
    result = bench.run(*words(count=count), stalls)
    assert result.cycles > count * 1.25 + 10 * (1 << LONGEST_PAUSE_BITS) / 12


# What is wrong → how it shows. A stalling sink is needed where the fault is in what waits.
SIGNS = {
    Fault.VALUE: ("value", rf"o\[{FAULTY_WORD}\]: expected \{{'value': \S+ 'last': 0\}}, got \{{'value': "),
    Fault.DROP: ("value", rf"o\[{FAULTY_WORD}\]: expected"),
    Fault.EXTRA: ("extra", rf"o\[{COUNT}\]: nothing expected, got"),
    Fault.DEADLOCK: ("deadlock", rf"inputs not taken: {COUNT - FAULTY_WORD} of i"),
    Fault.UNSTABLE: ("protocol", "was offered, then the payload became"),
    Fault.WITHDRAW: ("protocol", "was offered, then valid fell before the transfer"),
    Fault.WAITS: ("deadlock", "no transfer for 10000 cycles"),
    Fault.CONSTANT: ("value", r"o\[1\]: expected"),
    Fault.ASSERTION: ("assertion", f"alarm on word {FAULTY_WORD}"),
    Fault.RUBBISH: ("value", "expected"),
}


@pytest.mark.parametrize("fault", SIGNS, ids=lambda fault: fault.name)
def test_every_fault_is_found(bench, fault):
    kind, message = SIGNS[fault]
    with pytest.raises(BenchFailure, match=message) as caught:
        bench.run(*words(fault), Stalls(4, 0.4, 0.4))
    assert caught.value.kind == kind
    assert str(caught.value).startswith("doubler: ")


def test_a_result_that_never_comes_is_missing(bench):
    inputs, outputs = words()
    with pytest.raises(BenchFailure, match=r"o: nothing came for 10000 cycles; o gave 199 of 200") as caught:
        bench.run({"i": inputs["i"][:-1]}, outputs)
    assert caught.value.kind == "missing"


def test_a_run_at_full_speed_takes_the_predicted_cycles(bench):
    with pytest.raises(BenchFailure, match=f"{COUNT + 1} cycles from first input to last output expected, {COUNT}"):
        bench.run(*words(), expected_cycles=COUNT + 1)
    bench.run(*words(), Stalls(4, 0.4, 0.4), expected_cycles=COUNT + 1)


def test_a_wrong_result_before_the_reset_counts(bench):
    inputs, outputs = words(Fault.VALUE)
    with pytest.raises(BenchFailure, match=rf"o\[{FAULTY_WORD}\].*, 1\d cycles\)"):
        bench.run(inputs, outputs, Stalls(1, reset_after=100))


def test_runs_repeat_to_the_cycle(bench):
    stalls = Stalls(7, 0.5, 0.5, reset_after=33)
    assert bench.run(*words(), stalls) == bench.run(*words(), stalls)
    other = bench.run(*words(), Stalls(8, 0.5, 0.5, reset_after=33))
    assert other.total_cycles != bench.run(*words(), stalls).total_cycles


def test_bad_settings_are_refused(bench, tmp_path, monkeypatch):
    inputs, outputs = words()
    for settings in ({"source": 1.0}, {"sink": -0.1}):
        with pytest.raises(CircuitError, match="a stall is a probability from 0 to below 1"):
            Stalls(**settings)
    for settings in ({"seed": 1 << 32}, {"seed": -1}, {"reset_after": -1}):
        with pytest.raises(CircuitError, match="a seed has 32 bits"):
            Stalls(**settings)
    with pytest.raises(CircuitError, match="has streams i, not o"):
        bench.run(outputs, outputs)
    with pytest.raises(CircuitError, match="i has 13 bits; its payloads come in 2 words"):
        bench.run({"i": np.zeros((4, 2), dtype=np.uint32)}, outputs)
    with pytest.raises(CircuitError, match="gives no result, so this bench cannot fail"):
        bench.run(inputs, {"o": outputs["o"][:0]})
    with pytest.raises(ToolError, match="a space in its name"):
        NativeBench.build("doubler", Harness(Doubler(), {"offset": OFFSET}), tmp_path / "a b")
    monkeypatch.setattr(native_bench, "rtlil_to_verilog", lambda netlist: "module top(; endmodule")
    with pytest.raises(ToolError, match=r"verilator could not build doubler (?s:.*)syntax error"):
        NativeBench.build("doubler", Harness(Doubler(), {"offset": OFFSET}), tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]

# amaranth: UnusedElaboratable=no
import pytest
from amaranth.hdl import Module, Signal, unsigned
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from sim_circuits import Doubler

from hdl import CircuitError
from sim.bench.bench import BenchFailure, StreamBench, judge
from sim.bench.harness import Harness, stream_ports
from sim.bench.stalls import Stalls
from sim.bench.streams import Record
from sim.simulators.runner import simulate


class Ports(wiring.Component):
    def __init__(self, **ports):
        super().__init__(ports)

    def elaborate(self, platform):
        return Module()


PLAIN = {"i": In(stream.Signature(8)), "o": Out(stream.Signature(8))}


def test_ports_are_found_with_their_shapes():
    inputs, outputs = stream_ports(Doubler())
    assert list(inputs) == ["i"]
    assert list(outputs) == ["o"]
    assert inputs["i"]["value"].shape.width == 8


def test_words_are_laid_out_flags_first_without_gaps():
    ports = {"a": In(stream.Signature(3)), "x": Out(stream.Signature(5)), "b": In(stream.Signature(7))}
    harness = Harness(Ports(**ports))
    assert [(port.name, port.flag_out, port.flag_in, port.offset, port.width) for port in harness.sources] == [
        ("a", 1, 0, 4, 3),
        ("b", 2, 1, 7, 7),
    ]
    assert [(port.name, port.flag_out, port.flag_in, port.offset, port.width) for port in harness.sinks] == [
        ("x", 3, 2, 3, 5)
    ]
    assert len(harness.inputs) == 1 + 3 + 3 + 7
    assert len(harness.outputs) == 3 + 5


@pytest.mark.parametrize(
    "port, message",
    [
        ({"i": In(stream.Signature(8, always_valid=True))}, "port i forbids stalls"),
        ({"o": Out(stream.Signature(8, always_ready=True))}, "port o forbids stalls"),
        ({"busy": Out(1)}, "port busy is neither"),
        ({"many": In(stream.Signature(8)).array(2)}, "port many is neither"),
        ({"bus": Out(wiring.Signature({"x": Out(1)}))}, "port bus is neither"),
    ],
)
def test_ports_that_a_bench_cannot_drive_are_refused(port, message):
    with pytest.raises(CircuitError, match=message):
        stream_ports(Ports(**(PLAIN | port)))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"inputs": {}}, r"inputs given for \[\], the circuit has \['i'\]"),
        ({"outputs": {"o": [1], "p": [1]}}, r"outputs given for \['o', 'p'\], the circuit has \['o'\]"),
        ({"inputs": {"i": [256]}}, "i takes raw words from 0 to 255"),
        ({"outputs": {"o": [-1]}}, "o takes raw words from 0 to 255"),
        ({"outputs": {"o": []}}, "expects no result, so it cannot fail"),
        ({"idle_cycles": 0}, "must be at least 1"),
    ],
)
def test_impossible_benches_are_refused(changes, message):
    with pytest.raises(CircuitError, match=message):
        StreamBench(
            **({"name": "b", "component": Ports(**PLAIN), "inputs": {"i": [1]}, "outputs": {"o": [1]}} | changes)
        )


def test_constants_must_be_the_plain_inputs():
    bench = StreamBench("b", Ports(**PLAIN, gain=In(3)), {"i": [1]}, {"o": [1]}, constants={"offset": 1})
    with pytest.raises(CircuitError, match=r"constants given for \['offset'\], but the plain inputs are \['gain'\]"):
        bench.harness()


class Adder(wiring.Component):
    """Combinational, two inputs, a result and its parity: waits for both inputs and both
    outputs.
    """

    a: In(stream.Signature(unsigned(40)))
    b: In(stream.Signature(unsigned(40)))
    total: Out(stream.Signature(unsigned(41)))
    parity: Out(stream.Signature(1))

    def elaborate(self, platform):
        m = Module()
        both = self.a.valid & self.b.valid
        done = {port: self.done(m, port, both) for port in ("total", "parity")}
        finished = both & done["total"] & done["parity"]
        m.d.comb += [self.a.ready.eq(finished), self.b.ready.eq(finished)]
        total = self.a.payload + self.b.payload
        m.d.comb += [self.total.payload.eq(total), self.parity.payload.eq(total[:41].xor())]
        with m.If(finished):
            for port in ("total", "parity"):
                m.d.sync += self.given[port].eq(0)
        return m

    def done(self, m, name, both):
        if not hasattr(self, "given"):
            self.given = {}
        given = self.given[name] = Signal(name=f"{name}_given")
        port = getattr(self, name)
        m.d.comb += port.valid.eq(both & ~given)
        with m.If(port.valid & port.ready):
            m.d.sync += given.eq(1)
        return given | (port.valid & port.ready)


@pytest.mark.parametrize("source_stall, sink_stall", [(0, 0), (0.3, 0.6)])
def test_several_ports_of_any_width(tmp_path, source_stall, sink_stall):
    a = [(index * 0x123456789) % (1 << 40) for index in range(80)]
    b = [(1 << 40) - 1 - word // 3 for word in a]
    totals = [x + y for x, y in zip(a, b, strict=True)]
    outputs = {"total": totals, "parity": [total.bit_count() & 1 for total in totals]}
    bench = StreamBench("adder", Adder(), {"a": a, "b": b}, outputs, expected_cycles=79)
    result = simulate(
        bench, "amaranth", build_directory=tmp_path, seed=2, source_stall=source_stall, sink_stall=sink_stall
    )
    assert result.transfers == {"total": 80, "parity": 80}


@pytest.mark.parametrize("before, kind", [([5, 7], "value"), ([5, 5], "constant")])
def test_results_before_a_reset_are_judged_too(before, kind):
    bench = StreamBench("reset", Ports(**PLAIN), {"i": [5, 6, 7]}, {"o": [5, 6, 7]})
    record = Record({"o": [5, 6, 7]}, {"i": 3}, stopped="done")
    for right in ([], [5], [5, 6]):
        record.received_before = {"o": right}
        judge(bench, record, Stalls(reset_after=9), "amaranth")
    record.received_before = {"o": before}
    with pytest.raises(BenchFailure, match=r"reset after 9") as failure:
        judge(bench, record, Stalls(reset_after=9), "amaranth")
    assert (failure.value.kind, failure.value.port) == (kind, "o")

# amaranth: UnusedElaboratable=no
import numpy as np
import pytest
from amaranth.hdl import Module, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from core_bench import ResetOnce, bench, run, run_with_stalls

from hdl import CircuitError
from hdl.parts.dot_product import Delay
from hdl.parts.payload import connect
from hdl.parts.stream_parts import CreditQueue, StreamQueue, StreamRegister, WidthConverter
from sim.bench.bench import BenchFailure
from sim.bench.payload import pack_all

PAYLOAD = data.StructLayout({"data": signed(6), "last": 1})


def payloads(count):
    """As many payloads, all 128 among them from there on."""
    return np.random.default_rng(1).permutation(np.arange(count) % 128).tolist()


def register_bench(count, component=None, **settings):
    words = payloads(count)
    return bench("register", component or StreamRegister(PAYLOAD), words, {"o": words}, **settings)


def test_a_register_passes_everything_a_word_a_cycle(tmp_path):
    run_with_stalls(register_bench(200, expected_cycles=200), tmp_path)


@pytest.mark.parametrize("given", [0, 2])
def test_a_reset_empties_the_register(tmp_path, given):
    whole = register_bench(20, ResetOnce(StreamRegister(PAYLOAD), given + 1, given))
    words = whole.inputs["i"]
    run(bench("reset", whole.component, words, {"o": words[:given] + words[given + 1 :]}), tmp_path)


def queue_bench(count, depth=5, **settings):
    words = payloads(count)
    return bench("queue", StreamQueue(PAYLOAD, depth), words, {"o": words}, **settings)


@pytest.mark.parametrize("depth", [2, 3, 4, 9])
def test_a_queue_passes_everything_in_order(tmp_path, depth):
    """A word a cycle, three cycles late, from a depth of 3 on; a shallower queue waits for its own
    register.
    """
    cycles = {"expected_cycles": 199 + 3 if depth > 2 else 2 * 199 + 3}
    run_with_stalls(queue_bench(200, depth, **cycles), tmp_path)
    run(queue_bench(100, depth), tmp_path, sink_stall=0.9)


class Writer(wiring.Component):
    """A stream in front of a credit queue: takes a payload when `places` of the queue are not yet
    reserved, and writes it `late` cycles after.
    """

    def __init__(self, depth: int, places: int, late: int):
        self.queue, self.places, self.late = CreditQueue(PAYLOAD, depth), places, late
        super().__init__(
            {name: flow(stream.Signature(PAYLOAD)) for name, flow in (("i", wiring.In), ("o", wiring.Out))}
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.queue = self.queue
        m.submodules.coming = coming = Delay(data.StructLayout({"valid": 1, "payload": PAYLOAD}), self.late)
        reserved = Signal(range(self.places + 1))
        m.d.comb += [
            self.i.ready.eq(reserved != self.places),
            coming.en.eq(1),
            coming.i.valid.eq(self.i.valid & self.i.ready),
            coming.i.payload.eq(self.i.payload),
            self.queue.write.eq(coming.o.valid),
            self.queue.data.eq(coming.o.payload),
        ]
        m.d.sync += reserved.eq(reserved + coming.i.valid - (self.o.valid & self.o.ready))
        connect(m, self.queue.o, wiring.flipped(self.o))
        return m


@pytest.mark.parametrize(("depth", "late"), [(3, 0), (4, 1), (9, 4), (20, 17)])
def test_a_credit_queue_takes_all_that_it_has_room_for(tmp_path, depth, late):
    """A word a cycle if its places cover the way into it and its own two cycles."""
    words = payloads(200)
    cycles = 199 + late + CreditQueue.latency if depth > late + CreditQueue.latency else None
    run_with_stalls(bench("credits", Writer(depth, depth, late), words, {"o": words}, expected_cycles=cycles), tmp_path)
    run(bench("credits", Writer(depth, depth, late), words, {"o": words}), tmp_path, sink_stall=0.9)


@pytest.mark.parametrize(("taken", "given"), [(1, 0), (3, 0), (5, 2), (6, 5)])
def test_a_reset_empties_the_credit_queue(tmp_path, taken, given):
    """With payloads on their way into it, in its memory and in its register; its addresses stand
    anywhere.
    """
    words = payloads(40)
    reset = ResetOnce(Writer(4, 4, 1), taken, given)
    run(bench("reset", reset, words, {"o": words[:given] + words[taken:]}), tmp_path)


def test_a_write_without_room_fails_in_simulation(tmp_path):
    words = payloads(60)
    with pytest.raises(BenchFailure, match="a queue was written although it was full") as failure:
        run(bench("credits", Writer(4, 5, 0), words, {"o": words}), tmp_path, sink_stall=0.9)
    assert failure.value.kind == "assertion"


def pack(port, lanes, elements, row):
    """Raw words of `elements` in rows of `row`."""
    words = elements.reshape(-1, lanes)
    last = np.arange(len(words)) % (row // lanes) == row // lanes - 1
    return pack_all(
        port.payload.shape(), {"data": words[:, 0] if lanes == 1 else list(words.T), "last": last.astype(int)}
    )


def converter_bench(i_lanes, o_lanes, rows=15, row_words=3, component=None, **settings):
    core = WidthConverter(signed(5), i_lanes, o_lanes)
    row = max(i_lanes, o_lanes) * row_words
    elements = np.random.default_rng(2).integers(-16, 16, rows * row)
    inputs, outputs = (pack(port, lanes, elements, row) for port, lanes in ((core.i, i_lanes), (core.o, o_lanes)))
    return bench(
        "width converter",
        component(core) if component else core,
        inputs,
        {"o": outputs},
        expected_cycles=None if component else max(len(inputs), len(outputs)),
        **settings,
    )


@pytest.mark.parametrize(("i_lanes", "o_lanes"), [(1, 2), (2, 1), (1, 5), (5, 1), (2, 8), (9, 3)])
def test_elements_keep_their_order_and_rows_their_ends(tmp_path, i_lanes, o_lanes):
    run_with_stalls(converter_bench(i_lanes, o_lanes), tmp_path)


@pytest.mark.parametrize(("i_lanes", "o_lanes"), [(1, 3), (3, 1)])
def test_every_wide_word_of_three_4_bit_elements(tmp_path, i_lanes, o_lanes):
    core = WidthConverter(unsigned(4), i_lanes, o_lanes)
    elements = np.indices((16, 16, 16)).reshape(3, -1).T.ravel()
    inputs, outputs = (pack(port, lanes, elements, 3) for port, lanes in ((core.i, i_lanes), (core.o, o_lanes)))
    run(bench("words", core, inputs, {"o": outputs}, expected_cycles=3 * 16**3), tmp_path)


@pytest.mark.parametrize(("i_lanes", "o_lanes", "taken", "given"), [(1, 4, 2, 0), (4, 1, 1, 3)])
def test_a_reset_in_the_middle_of_a_word_forgets_it(tmp_path, i_lanes, o_lanes, taken, given):
    whole = converter_bench(i_lanes, o_lanes, component=lambda core: ResetOnce(core, taken, given))
    inputs, outputs = whole.inputs["i"], whole.outputs["o"]
    # The word that was being gathered, or given, is lost; the next one follows.
    inputs, outputs = (
        (inputs[:taken] + inputs, outputs) if i_lanes < o_lanes else (inputs, outputs[:given] + outputs[4:])
    )
    run(bench("reset", whole.component, inputs, {"o": outputs}), tmp_path)


def test_a_row_that_ends_inside_a_word_fails_in_simulation(tmp_path):
    core = WidthConverter(unsigned(4), 1, 3)
    words = pack_all(core.i.payload.shape(), {"data": [1, 2, 3], "last": [0, 1, 0]})
    with pytest.raises(BenchFailure, match="a row ends after 2 of 3 parts of a word"):
        run(bench("torn", core, words, {"o": [0]}), tmp_path)


def test_impossible_lanes_are_refused_by_name():
    for lanes in (0, -1, 2.0, "2"):
        with pytest.raises(CircuitError, match=f"i_lanes must be a whole number of at least 1, not {lanes!r}"):
            WidthConverter(signed(8), lanes, 4)
    for pair in ((4, 4), (4, 6), (1, 1)):
        with pytest.raises(CircuitError, match=f"must differ, .* not be {pair[0]} and {pair[1]}"):
            WidthConverter(signed(8), *pair)
    with pytest.raises(TypeError):
        StreamRegister("eight bits")
    for depth in (1, 2.0, True):
        with pytest.raises(CircuitError, match=f"depth must be a whole number of at least 2, not {depth}"):
            StreamQueue(8, depth)

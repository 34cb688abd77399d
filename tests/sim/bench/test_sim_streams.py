"""The ends of streams without any circuit."""

from collections import Counter
from dataclasses import asdict
from itertools import groupby

import pytest

from sim.bench.stalls import Stalls
from sim.bench.streams import (
    LONGEST_PAUSE_BITS,
    PAUSES_A_LONG_ONE,
    RESET_CYCLES,
    Exchange,
    Monitor,
    Port,
    ProtocolViolation,
    SinkDriver,
    SourceDriver,
)

WIDTH = 8
# Source: valid at bit 1, payload from bit 3; ready at bit 0. Sink: ready at bit 2; valid at bit 1,
# payload from bit 2.
SOURCE = Port("i", WIDTH, flag_out=1, flag_in=0, offset=3)
SINK = Port("o", WIDTH, flag_out=2, flag_in=1, offset=2)


def offers(driver):
    return bool(driver.inputs() >> 1 & 1), driver.inputs() >> 3


def test_source_without_stalls_offers_at_once_and_keeps_it():
    driver = SourceDriver(SOURCE, [5, 6], 0.0, "seed")
    driver.edge(0)
    for _ in range(5):
        assert offers(driver) == (True, 5)
        assert not driver.edge(0)
    assert driver.edge(1)
    assert offers(driver) == (True, 6)
    assert driver.edge(1)
    assert driver.exhausted
    assert not offers(driver)[0]
    assert not driver.edge(1)


def test_source_stalls_as_often_as_asked_with_random_data_between():
    driver = SourceDriver(SOURCE, [7] * 4000, 0.25, "seed")
    random_data = Counter()
    cycles = 0
    while not driver.exhausted:
        driver.edge(1)
        cycles += 1
        valid, payload = offers(driver)
        if valid:
            assert payload == 7
        else:
            random_data[payload] += 1
    # 4000 transfers and, before each, 1/3 of a pause on average.
    assert 4000 * 1.25 < cycles < 4000 * 1.42
    assert len(random_data) > 200


def test_sink_without_stalls_is_always_ready():
    sink = SinkDriver(SINK, 0.0, "seed")
    for _ in range(10):
        sink.edge(0)
        assert sink.ready


def test_sink_sometimes_waits_for_valid():
    sink = SinkDriver(SINK, 0.5, "seed")
    for _ in range(200):
        sink.edge(0)
    assert not sink.ready, "with no valid in sight, it ends up waiting for one"
    seen = set()
    for _ in range(50):
        sink.edge(2)
        seen.add(sink.ready)
    assert seen == {False, True}


def source_pauses(cycles):
    driver = SourceDriver(SOURCE, [7] * cycles, 0.25, "seed")
    for _ in range(cycles):
        driver.edge(1)
        yield not offers(driver)[0]


def sink_pauses(cycles):
    sink = SinkDriver(SINK, 0.25, "seed")
    for _ in range(cycles):
        sink.edge(2)
        yield not sink.ready


@pytest.mark.parametrize("pauses", [source_pauses, sink_pauses])
def test_pauses_have_a_heavy_tail(pauses):
    """One in so many is long, of all lengths up to the limit; what is shorter than 8 may be pauses
    of a cycle in a row.
    """
    cycles = 400_000
    lengths = Counter(len(list(group)) for paused, group in groupby(pauses(cycles)) if paused)
    longest = 1 << LONGEST_PAUSE_BITS
    assert longest / 2 <= max(lengths) < longest + 8
    long = sum(count for length, count in lengths.items() if length >= 16)
    expected = cycles * 0.25 / PAUSES_A_LONG_ONE * (LONGEST_PAUSE_BITS - 4) / LONGEST_PAUSE_BITS
    assert 0.5 * expected < long < 1.5 * expected
    assert {length.bit_length() for length in lengths if length >= 16} >= set(range(6, LONGEST_PAUSE_BITS + 1))


def test_monitor_collects_transfers_only():
    monitor = Monitor(SINK)
    assert not monitor.edge(0 | 9 << 2, True)
    assert not monitor.edge(2 | 9 << 2, False)
    assert monitor.edge(2 | 9 << 2, True)
    assert monitor.edge(2 | 10 << 2, True)
    assert monitor.words == [9, 10]


@pytest.mark.parametrize("later, seen", [(0, None), (2 | 8 << 2, 8)])
def test_monitor_finds_withdrawn_and_changed_offers(later, seen):
    monitor = Monitor(SINK)
    monitor.edge(2 | 9 << 2, False)
    with pytest.raises(ProtocolViolation) as violation:
        monitor.edge(later, True)
    assert violation.value.args == ("o", 0, 9, seen)


def test_a_reset_may_withdraw_an_offer():
    monitor = Monitor(SINK)
    monitor.edge(2 | 3 << 2, True)
    monitor.edge(2 | 9 << 2, False)
    assert monitor.restart() == [3]
    assert not monitor.edge(0, True)
    assert monitor.words == []


def make_exchange(words, expected, stalls=None):
    plan = {
        "sources": [vars(SOURCE)],
        "sinks": [vars(SINK)],
        "inputs": {"i": words},
        "expected_counts": {"o": expected},
        "idle_cycles": 5,
        "watchdog_cycles": 20,
    }
    return Exchange(plan, asdict(stalls or Stalls(1)))


def run(exchange, respond):
    """Let `respond(inputs)` be the circuit."""
    inputs = exchange.start()
    for _ in range(1000):
        inputs = exchange.edge(respond(inputs))
        if exchange.stopped:
            return exchange.record(0.0)
    raise AssertionError("no end")


def wire(inputs):
    valid, ready, payload = inputs >> 1 & 1, inputs >> 2 & 1, inputs >> 3
    return ready | valid << 1 | payload << 2


def test_a_wire_has_no_latency():
    record = run(make_exchange([3, 4, 5], 3), wire)
    assert record.stopped == "done"
    assert record.received == {"o": [3, 4, 5]}
    assert record.sent == {"i": 3}
    assert record.cycles == 2
    assert record.total_cycles == RESET_CYCLES + 3 + 5


def test_reset_is_held_and_nothing_offered_meanwhile():
    exchange = make_exchange([3], 1)
    words = [exchange.start()]
    for _ in range(RESET_CYCLES):
        assert words[-1] & 0b111 == 1
        words.append(exchange.edge(0))
    assert words[-1] & 0b11 == 0b10


@pytest.mark.parametrize(
    "respond, expected, stopped",
    [
        (lambda inputs: 0, 1, "deadlock"),
        (lambda inputs: 1, 1, "deadlock"),
        (wire, 2, "surplus"),
        (wire, 4, "deadlock"),
    ],
    ids=["takes nothing", "gives nothing", "gives too much", "gives too little"],
)
def test_ends_of_runs(respond, expected, stopped):
    assert run(make_exchange([3, 4, 5], expected), respond).stopped == stopped


@pytest.mark.parametrize("undefined, port", [(1, "i"), (2, "o"), (1 << 5, "o")])
def test_undefined_bits_that_matter_end_the_run(undefined, port):
    exchange = make_exchange([3, 4], 2)
    for _ in range(RESET_CYCLES):
        exchange.edge(0)
    exchange.edge(2, undefined)
    assert exchange.stopped == "undefined"
    assert exchange.record(0.0).detail == [port]


def test_undefined_payload_without_valid_does_not_matter():
    exchange = make_exchange([3, 4], 2)
    for _ in range(RESET_CYCLES + 3):
        exchange.edge(0, 0xFF << 2)
    assert not exchange.stopped


class Counting:
    """A circuit that gives what it takes in the next cycle, the first bit of each word flipped; a
    reset forgets the word it has.
    """

    def __init__(self, forgets=True):
        self.held, self.forgets = None, forgets

    def __call__(self, inputs):
        """Answer to the inputs before an edge, and take it."""
        reset, valid, ready, payload = inputs & 1, inputs >> 1 & 1, inputs >> 2 & 1, inputs >> 3
        outputs = 0 if self.held is None else 2 | (self.held ^ 1) << 2
        takes = self.held is None or ready
        outputs |= takes
        if reset:
            self.held = None if self.forgets else self.held
        elif takes:
            self.held = payload if valid else None
        return outputs


@pytest.mark.parametrize("reset_after", [1, 2, 3, 9, 400])
@pytest.mark.parametrize("stall", [0.0, 0.4])
def test_after_a_reset_in_the_middle_all_begins_again(reset_after, stall):
    words = list(range(20))
    expected = [word ^ 1 for word in words]
    record = run(make_exchange(words, 20, Stalls(1, stall, stall, reset_after)), Counting())
    assert record.stopped == "done"
    assert record.received == {"o": expected}
    before = record.received_before["o"]
    assert before == expected[: len(before)]
    assert record.sent == {"i": 20}
    if not stall:
        assert len(before) == min(max(reset_after - 1, 0), 20)
        assert record.cycles == 20
        # A run that is done is reset at once; its last word came at edge 1 + 20, and 5 quiet ones
        # follow.
        assert record.total_cycles == RESET_CYCLES + min(reset_after, 21 + 5) + 1 + 21 + 5


def test_sinks_wait_after_every_reset_each_longer_than_the_last_without_a_deadlock():
    sink_delay, second = 300, Port("p", 1, flag_out=3, flag_in=3, offset=11)
    plan = {
        "sources": [],
        "sinks": [vars(SINK), vars(second)],
        "inputs": {},
        "expected_counts": {"o": 1, "p": 1},
        "idle_cycles": 5,
        "watchdog_cycles": 20,
    }
    exchange = Exchange(plan, asdict(Stalls(reset_after=100, sink_delay=sink_delay)))
    taken, inputs, reset_at = [], exchange.start(), 0
    for now in range(1 << 12):
        if inputs & 1:
            reset_at, given = now, {"o": 0, "p": 0}
        outputs = 0
        for name, port in (("o", SINK), ("p", second)):
            outputs |= (given[name] == 0) << port.flag_in
            if not given[name] and inputs >> port.flag_out & 1:
                given[name] = 1
                taken.append((name, now - reset_at))
        inputs = exchange.edge(outputs)
        if exchange.stopped:
            break
    assert exchange.stopped == "done"
    assert taken == [("o", sink_delay + 1), ("p", 2 * sink_delay + 1)]


def test_what_survives_a_reset_is_a_surplus():
    record = run(make_exchange([3, 4, 5], 3, Stalls(1, reset_after=2)), Counting(forgets=False))
    assert record.received["o"][0] == 4 ^ 1
    assert record.stopped == "surplus"


def test_what_is_wrong_before_the_reset_ends_the_run():
    record = run(make_exchange([3, 4, 5], 2, Stalls(1, reset_after=9)), Counting())
    assert (record.stopped, record.received_before) == ("surplus", {})
    assert len(record.received["o"]) == 3


def test_the_reset_in_the_middle_lasts_one_edge_at_which_nothing_is_offered():
    exchange = make_exchange(list(range(8)), 8, Stalls(1, 0.0, 0.5, 4))
    circuit, inputs = Counting(), exchange.start()
    resets = []
    while not exchange.stopped:
        resets.append((inputs & 1, inputs >> 1 & 1))
        inputs = exchange.edge(circuit(inputs))
    assert [place for place, (reset, _) in enumerate(resets) if reset] == [0, 1, RESET_CYCLES + 4]
    assert all(valid == 0 for reset, valid in resets if reset)

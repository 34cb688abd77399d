# amaranth: UnusedElaboratable=no
import numpy as np
import pytest
from amaranth.sim import Simulator
from fixedpoint_builders import random_attention
from serial_wire import CLOCK_PERIOD, SimulatedPort

from hdl import CircuitError, ToolError
from hdl.board.boards import BOARDS, AttentionTop, SerialAccelerator, find_board
from hdl.board.hardware_check import exercise, random_tokens
from hdl.board.link import Host, Identity
from hdl.decoder.attention import Attention


def test_the_whole_circuit_answers_a_host_over_its_wires_as_the_golden_model_does():
    parameters = random_attention(np.random.default_rng(4), channels=8, num_heads=2, context_length=3)
    tokens, seed = 10, 6
    starts = np.flatnonzero(random_tokens(parameters, tokens, seed)[1])
    lengths = np.diff([*starts, tokens])
    assert lengths[:-1].min() < 3 < lengths.max(), "one sequence is cut short, one ends with the context"
    divisor, frequency = 4, 1 / CLOCK_PERIOD
    circuit = SerialAccelerator(Attention(parameters), Identity.of(parameters), frequency, frequency / divisor)
    simulator = Simulator(circuit)
    simulator.add_clock(CLOCK_PERIOD)
    bit = divisor * CLOCK_PERIOD
    port = SimulatedPort(simulator, circuit.rx, circuit.tx, bit, timeout=1000 * bit)
    figures = exercise(Host(port), parameters, tokens, seed)
    assert figures["values"] == tokens * 8
    assert port.framing_errors == 0


def test_one_wrong_value_is_found():
    parameters = random_attention(np.random.default_rng(4), channels=8, num_heads=2, context_length=5)

    class Board(Host):
        """A board whose 4th answer has one wrong bit."""

        def __init__(self):
            self.sent = []

        def connect(self, expected):
            assert expected == Identity.of(parameters)

        def send(self, vector, restart):
            self.sent.append((vector, restart))
            vectors, restarts = zip(*self.sent, strict=True)
            result = parameters.compute_stream(np.array(vectors, dtype=np.int64), np.array(restarts))[-1]
            result[3] ^= len(self.sent) == 4
            return result

    with pytest.raises(ToolError, match=r"token 3, element 3: the board says .* \(1 of 8 elements differ\)"):
        exercise(Board(), parameters, 10, seed=2)


def test_unknown_boards_are_refused_with_a_list():
    assert find_board("ulx3s-85f") is BOARDS["ulx3s-85f"]
    with pytest.raises(CircuitError, match="no board 'icestick'; choose one of ulx3s-12f, ulx3s-25f"):
        find_board("icestick")


def test_clocks_too_slow_for_the_serial_port_are_refused():
    parameters = random_attention(np.random.default_rng(0))
    with pytest.raises(CircuitError, match="baud"):
        AttentionTop(parameters, BOARDS["ulx3s-85f"], frequency=10e6, baud=4e6)

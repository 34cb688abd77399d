# amaranth: UnusedElaboratable=no
import random
import re

import numpy as np
import pytest
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.sim import Simulator
from link_campaign import FAULTS, FaultyPort, run_link_campaign
from link_circuits import (
    ANSWER_CYCLES,
    CHANNELS,
    IDENTITY,
    CircuitBoard,
    Counting,
    ModelBoard,
    expected,
    expected_stream,
    vectors,
)
from serial_wire import CLOCK_PERIOD, SimulatedPort
from wire_bench import WireBoard

from hdl import CircuitError, ToolError
from hdl.board.boards import SerialAccelerator
from hdl.board.frames import FrameDecoder, encode_frame
from hdl.board.link import ANSWER, LARGEST_EMBED_DIM, UNKNOWN, Host, HostLink, Identity, Kind
from hdl.board.session import ATTEMPTS, HEADER, REFUSED, Requester
from hdl.cores.uart import UARTReceiver, UARTTransmitter

DIVISOR = 4
BIT = DIVISOR * CLOCK_PERIOD
BOARDS = pytest.mark.parametrize("make_board", [ModelBoard, CircuitBoard])


@pytest.fixture
def port():
    m = Module()
    m.submodules.receiver = receiver = UARTReceiver(DIVISOR)
    m.submodules.transmitter = transmitter = UARTTransmitter(DIVISOR)
    m.submodules.link = link = HostLink(IDENTITY)
    m.submodules.accelerator = accelerator = Counting()
    wiring.connect(m, receiver.o, link.i_bytes)
    wiring.connect(m, link.o_bytes, transmitter.i)
    wiring.connect(m, link.o_token, accelerator.i)
    wiring.connect(m, accelerator.o, link.i_result)
    simulator = Simulator(m)
    simulator.add_clock(CLOCK_PERIOD)
    return SimulatedPort(simulator, receiver.rx, transmitter.tx, BIT, timeout=60 * BIT)


def quiet(board):
    """A wire without faults."""
    return FaultyPort(board, 0, 0)


def ask(board, number, sequence, message):
    """Send one request; return the messages that answer it."""
    packets = FrameDecoder().feed(board.exchange(encode_frame(HEADER.pack(number, sequence) + message)))
    assert all(packet[: HEADER.size] == HEADER.pack(number, sequence) for packet in packets)
    return [packet[HEADER.size :] for packet in packets]


def token(vector, restart=False):
    return IDENTITY.encode_token(vector, restart)


def result(vector, position, restart=False):
    return [bytes([(Kind.RESTART_TOKEN if restart else Kind.TOKEN) + ANSWER]) + expected(vector, position).tobytes()]


def test_tokens_and_restarts_go_through_the_wires(port):
    host = Host(port)
    assert host.connect(IDENTITY) == IDENTITY
    position = 0
    for index, vector in enumerate(vectors(5)):
        restart = index in (0, 2, 3)
        position = 0 if restart else position + 1
        assert host.send(vector, restart).tolist() == expected(vector, position).tolist()
    assert port.framing_errors == host.repeated == host.recovered == 0


@BOARDS
def test_twelve_tokens_at_once_lose_none_and_spoil_none(make_board):
    """As a program does that does not wait: what the board cannot hold it drops, and refuses what
    follows.
    """
    board, tokens = make_board(), vectors(12)
    board.answer_cycles = 0
    frames = [
        encode_frame(HEADER.pack(9, index + 1) + token(vector, index == 0)) for index, vector in enumerate(tokens)
    ]
    ask(board, 9, 0, bytes([Kind.IDENTIFY]))
    answered, rounds = 0, 0
    while answered < 12 and rounds < 12:
        for packet in FrameDecoder().feed(board.exchange(b"".join(frames[answered:]))):
            sequence = HEADER.unpack_from(packet)[1]
            if sequence == answered + 1 and packet[HEADER.size] != REFUSED:
                position = answered % IDENTITY.context_length
                assert [packet[HEADER.size :]] == result(tokens[answered], position, answered == 0)
                answered += 1
        rounds += 1
    assert answered == 12
    assert rounds == 1 if make_board is ModelBoard else rounds > 1


@BOARDS
def test_a_request_is_carried_out_once(make_board):
    board, (first, second) = make_board(), vectors(2)
    assert ask(board, 7, 0, bytes([Kind.IDENTIFY])) == [bytes([Kind.IDENTIFY + ANSWER]) + IDENTITY.to_bytes()]
    for _ in range(3):
        assert ask(board, 7, 1, token(first, True)) == result(first, 0, True)
    for _ in range(3):
        assert ask(board, 7, 2, token(second)) == result(second, 1)
    # The numbers decide, not what the message says.
    assert ask(board, 7, 2, token(first)) == result(second, 1)


@BOARDS
def test_requests_out_of_order_are_refused_and_change_nothing(make_board):
    board, tokens = make_board(), vectors(4)
    ask(board, 7, 0, bytes([Kind.IDENTIFY]))
    ask(board, 7, 1, token(tokens[0], True))
    assert ask(board, 7, 2, token(tokens[1])) == result(tokens[1], 1)
    wrong = [(7, 0), (7, 1), (7, 4), (7, 258), (7, 1 << 31), (8, 1), (8, 3), (7 + (1 << 24), 3)]
    for number, sequence in wrong:
        assert ask(board, number, sequence, token(tokens[2])) == [bytes([REFUSED])], (number, sequence)
    assert ask(board, 7, 2, token(tokens[1])) == result(tokens[1], 1)
    assert ask(board, 7, 3, token(tokens[3])) == result(tokens[3], 2)


@BOARDS
def test_a_board_that_was_reset_refuses_and_a_session_can_begin_again(make_board):
    board, (first, second) = make_board(), vectors(2)
    # it knows no session yet, not even 0
    assert ask(board, 0, 1, token(first, True)) == [bytes([REFUSED])]
    ask(board, 7, 0, bytes([Kind.IDENTIFY]))
    ask(board, 7, 1, token(first, True))
    board.reset()
    assert ask(board, 7, 2, token(second)) == [bytes([REFUSED])]
    assert ask(board, 7, 1, token(first, True)) == [bytes([REFUSED])]
    # Even if the wire brings the session's beginning once more.
    ask(board, 7, 0, bytes([Kind.IDENTIFY]))
    assert ask(board, 7, 2, token(second)) == [bytes([REFUSED])]
    assert ask(board, 8, 0, bytes([Kind.IDENTIFY])) == [bytes([Kind.IDENTIFY + ANSWER]) + IDENTITY.to_bytes()]
    assert ask(board, 8, 1, token(second, True)) == result(second, 0, True)


@BOARDS
def test_messages_that_are_none_are_answered_and_reach_no_accelerator(make_board):
    board, (first, second) = make_board(), vectors(2)
    ask(board, 7, 0, bytes([Kind.IDENTIFY]))
    ask(board, 7, 1, token(first, True))
    wrong = [bytes([kind]) for kind in range(256) if kind != Kind.IDENTIFY]
    wrong = random.Random(1).sample(wrong, 12)
    wrong += [b"\x01\x00", token(first)[:-1], token(first, True)[:-2], token(first)[:1]]
    for sequence, message in enumerate(wrong, 2):
        assert ask(board, 7, sequence, message) == [bytes([UNKNOWN])], message
    # longer than any packet for this board
    assert ask(board, 7, len(wrong) + 2, token(first) + b"\x00") == []
    assert ask(board, 7, len(wrong) + 2, token(second)) == result(second, 1)


@BOARDS
def test_stray_bytes_change_nothing(make_board):
    board = make_board()
    host = Host(quiet(board))
    random_bytes = [b"I", b"T", b"R", b"TIR" * 20, b"\x7e", b"\x7d", b"\x7e" * 9, b"\x7e\x05\x00I", b""]
    assert board.exchange(random_bytes[3]) == b""
    host.connect(IDENTITY)
    for index, (stray, vector) in enumerate(zip(random_bytes, vectors(len(random_bytes)), strict=True)):
        position = index % IDENTITY.context_length
        assert host.send(vector, index == 0).tolist() == expected(vector, position).tolist()
        assert board.exchange(stray) == b""
    assert host.recovered == host.repeated == 0


@BOARDS
def test_a_packet_without_a_message_is_ignored(make_board):
    board, vector = make_board(), vectors(1)[0]
    host = Host(quiet(board))
    host.connect()
    for size in range(1, HEADER.size + 1):
        assert board.exchange(encode_frame(bytes(size))) == b""
    assert host.send(vector, restart=True).tolist() == expected(vector, 0).tolist()


def test_extreme_values():
    host = Host(quiet(CircuitBoard()))
    host.connect()
    for value in (-128, 127, 126, 125, 0, -1):
        vector = np.full(CHANNELS, value, dtype=np.int8)
        assert host.send(vector, restart=True).tolist() == [100 * value] * CHANNELS


@BOARDS
def test_a_reset_between_tokens_is_noticed_and_the_sequence_sent_again(make_board):
    board = make_board()
    host = Host(quiet(board))
    host.connect(IDENTITY)
    for position, vector in enumerate(vectors(5)):
        assert host.send(vector, position == 0).tolist() == expected(vector, position).tolist()
        board.reset()
    assert host.recovered == 4
    # A full context ends its sequence by itself.
    for position, vector in enumerate(vectors(4, seed=2), 5):
        assert host.send(vector).tolist() == expected(vector, position % IDENTITY.context_length).tolist()


def test_another_hosts_session_is_noticed():
    board, (first, second) = ModelBoard(), vectors(2)
    host, other = Host(quiet(board)), Host(quiet(board))
    host.connect()
    host.send(first, restart=True)
    other.connect()
    other.send(second, restart=True)
    assert host.send(second).tolist() == expected(second, 1).tolist()
    assert host.recovered == 1


def test_a_board_that_gives_other_results_after_a_reset_is_found():
    board, (first, second) = ModelBoard(), vectors(2)
    host = Host(quiet(board))
    host.connect()
    host.send(first, restart=True)
    board.reset()
    board.accelerate = lambda vector, restart: expected(vector, 3)
    with pytest.raises(ToolError, match="the sequence's token 0 had another result than before"):
        host.send(second)
    with pytest.raises(ToolError, match="must start a sequence"):
        host.send(second)


def test_a_board_that_is_always_reset_is_given_up():
    class Restless(ModelBoard):
        def exchange(self, received):
            answer = super().exchange(received)
            self.reset()
            return answer

    host = Host(quiet(Restless()))
    host.connect()
    with pytest.raises(ToolError, match=r"was reset, or another program .* 32 times in a row"):
        host.send(vectors(1)[0], restart=True)


def test_a_session_whose_numbers_are_used_up_goes_on_in_a_new_one():
    requester = Requester(quiet(ModelBoard()))
    host = Host(None, requester)
    host.connect()
    host.send(vectors(1)[0], restart=True)
    requester._sequence = (1 << 32) - 1
    vector = vectors(2)[1]
    assert host.send(vector).tolist() == expected(vector, 1).tolist()
    assert host.recovered == 1


def test_the_circuit_and_its_model_send_the_same_bytes():
    circuit, model = CircuitBoard(), ModelBoard()
    sent = []

    class Both:
        def exchange(self, received):
            answers = circuit.exchange(received)
            assert answers == model.exchange(received), received.hex(" ")
            sent.append(answers)
            return answers

        def reset(self):
            circuit.reset()
            model.reset()

    figures = run_link_campaign(Both(), IDENTITY, expected_stream, 25, seed=3, batch=10)
    assert figures["faults"] >= 25
    assert figures["recovered_sequences"] > 0
    assert sum(map(len, sent)) > 500


@pytest.mark.parametrize("seed", range(3))
def test_hundreds_of_faulty_frames_give_no_wrong_result_and_lose_none(seed):
    figures = run_link_campaign(ModelBoard(), IDENTITY, expected_stream, 600, seed=seed)
    assert sum(figures[kind] for kind in FAULTS) == figures["faults"] >= 600
    assert min(figures[kind] for kind in FAULTS) > 10
    assert figures["tokens"] > 200
    assert figures["repeated_requests"] > 100
    assert figures["recovered_sequences"] > 10


def test_streams_hold_under_random_stalls():
    link = HostLink(IDENTITY)
    generator = random.Random(5)
    tokens = vectors(9, seed=9)
    received, answers = [], bytearray()

    async def feed(context):
        for sequence, message in enumerate(
            [b"\x01", *(token(vector, index % 3 == 0) for index, vector in enumerate(tokens))]
        ):
            for byte in encode_frame(HEADER.pack(1, sequence) + message):
                context.set(link.i_bytes.valid, 0)
                context.set(link.i_bytes.payload, generator.randrange(256))
                await context.tick().repeat(generator.randrange(1, 4))
                context.set(link.i_bytes.valid, 1)
                context.set(link.i_bytes.payload, byte)
                await context.tick().until(link.i_bytes.ready)
            context.set(link.i_bytes.valid, 0)
            await context.tick().repeat(200)

    async def take(context):
        held = None
        async for _, _, valid, payload, ready in context.tick().sample(
            link.o_token.valid, link.o_token.payload, link.o_token.ready
        ):
            now = (payload.data, payload.restart)
            if held is not None:
                assert valid and now == held, "a payload changed before it was taken"
            held = now if valid and not ready else None
            if valid and ready:
                received.append(now)
            context.set(link.o_token.ready, generator.random() < 0.4)

    async def give(context):
        index = 0
        async for _, _, valid, ready in context.tick().sample(link.i_result.valid, link.i_result.ready):
            index += valid & ready
            context.set(link.i_result.payload, {"data": index, "last": index % CHANNELS == CHANNELS - 1})
            if ready or not valid:
                context.set(link.i_result.valid, generator.random() < 0.4)

    async def collect(context):
        held = None
        async for _, _, valid, payload, ready in context.tick().sample(
            link.o_bytes.valid, link.o_bytes.payload, link.o_bytes.ready
        ):
            assert held is None or (valid and payload == held), "a byte changed before it was taken"
            held = payload if valid and not ready else None
            if valid and ready:
                answers.append(payload)
            context.set(link.o_bytes.ready, generator.random() < 0.6)

    simulator = Simulator(link)
    simulator.add_clock(CLOCK_PERIOD)
    simulator.add_testbench(feed)
    for process in (take, give, collect):
        simulator.add_testbench(process, background=True)
    simulator.run()
    assert received == [(int(value), int(index % 3 == 0)) for index, vector in enumerate(tokens) for value in vector]
    results = [packet[HEADER.size + 1 :] for packet in FrameDecoder().feed(bytes(answers))[1:]]
    assert np.frombuffer(b"".join(results), "<i2").tolist() == list(range(9 * CHANNELS))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Identity(6, 7, IDENTITY.digest), r"another model: 5 channels, 7 tokens, digest f0.*wanted 6 channels"),
        (Identity(5, 7, bytes(8)), r"another model: .* digest f0.*wanted .* digest 0000000000000000"),
    ],
)
def test_another_model_on_the_board_is_refused(other, message):
    with pytest.raises(ToolError, match=message):
        Host(quiet(ModelBoard())).connect(other)


class Answering:
    """A port whose other end answers everything with the same bytes."""

    def __init__(self, answer=b""):
        self.answer, self.written, self.in_waiting = answer, [], 0

    def read(self, size):
        return self.answer

    def write(self, data):
        self.written.append(data)

    def flush(self):
        pass

    def reset_input_buffer(self):
        pass


@pytest.mark.parametrize("noise", [b"", b"login: ", b"\x7e" * 40, b"\x00"])
def test_a_board_that_does_not_answer_is_reported(noise, monkeypatch):
    monkeypatch.setattr("hdl.board.session.NOISE_BYTES", 10_000)
    port = Answering(noise * 100)
    with pytest.raises(ToolError, match=rf"did not answer {ATTEMPTS} times; is it powered"):
        Host(port).connect()
    assert len(port.written) == ATTEMPTS
    assert len(set(port.written)) == 1


def test_sessions_have_numbers_of_their_own():
    ports = Answering(), Answering()
    for port in ports:
        with pytest.raises(ToolError):
            Host(port).connect()
    assert ports[0].written[0] != ports[1].written[0]


def test_answers_that_are_no_identity_are_refused():
    with pytest.raises(ToolError, match="no Positron accelerator"):
        Identity.from_bytes(b"x" * Identity.SIZE)
    with pytest.raises(ToolError, match="no Positron accelerator"):
        Identity.from_bytes(IDENTITY.to_bytes()[:-1])
    newer = bytearray(IDENTITY.to_bytes())
    newer[4] += 1
    with pytest.raises(ToolError, match="protocol version 3, this program version 2"):
        Identity.from_bytes(bytes(newer))


def test_answers_of_another_kind_or_size_are_refused():
    board = ModelBoard()
    host = Host(quiet(board))
    host.connect()
    board._carry_out = lambda kind, content: bytes([UNKNOWN])
    with pytest.raises(ToolError, match=re.escape("a message of kind 0xfe, not 0x83")):
        host.send(vectors(1)[0], restart=True)
    board._carry_out = lambda kind, content: bytes([kind + ANSWER]) + bytes(3)
    with pytest.raises(ToolError, match="sent 3 bytes instead of a result's 10"):
        host.send(vectors(1)[0], restart=True)


def test_identity_bytes_are_as_documented():
    assert (
        Identity(5, 0x0203, IDENTITY.digest).to_bytes().hex()
        == "50535452" + "02" + "0500" + "0302" + "f0f1f2f3f4f5f6f7"
    )
    assert Identity.from_bytes(IDENTITY.to_bytes()) == IDENTITY


@pytest.mark.parametrize(
    "vector",
    [
        np.zeros(CHANNELS + 1, int),
        np.zeros((1, CHANNELS), int),
        np.zeros(CHANNELS),
        np.full(CHANNELS, 128),
        np.full(CHANNELS, -129),
    ],
)
def test_vectors_that_are_no_token_are_refused(vector):
    with pytest.raises(ValueError, match="a token"):
        IDENTITY.encode_token(vector, False)


def test_sizes_that_do_not_fit_the_messages_are_refused():
    with pytest.raises(CircuitError, match="context_length must be 1 to 65535"):
        Identity(1, 65536, bytes(8))
    with pytest.raises(CircuitError, match=f"embed_dim must be 1 to {LARGEST_EMBED_DIM}"):
        Identity(LARGEST_EMBED_DIM + 1, 1, bytes(8))
    assert len(encode_frame(bytes(HEADER.size + 1 + 2 * LARGEST_EMBED_DIM))) > 65535
    with pytest.raises(CircuitError, match="digest must have 8 bytes, not 32"):
        Identity(1, 1, bytes(32))


def test_tokens_before_their_time_are_refused():
    host = Host(quiet(ModelBoard()))
    with pytest.raises(ToolError, match="connect"):
        host.send(vectors(1)[0])
    host.connect()
    with pytest.raises(ToolError, match="the first token must start a sequence"):
        host.send(vectors(1)[0])


def run_on_wires(count, seed, builds):
    """Disturb frames on the wires of the compiled circuit."""
    circuit = SerialAccelerator(Counting(), IDENTITY, DIVISOR * 1e6, 1e6)
    with WireBoard("host link", circuit, DIVISOR, ANSWER_CYCLES, builds) as board:
        return run_link_campaign(board, IDENTITY, expected_stream, count, seed=seed)


@pytest.mark.slow
def test_hundreds_of_faulty_frames_on_the_wires_of_the_circuit(simulation_builds):
    figures = run_on_wires(400, 5, simulation_builds)
    assert figures["faults"] >= 400
    assert figures["tokens"] > 150
    assert figures["recovered_sequences"] > 5


@pytest.mark.campaign
def test_a_hundred_thousand_faulty_frames_on_the_wires_of_the_circuit(simulation_builds, capsys):
    figures = run_on_wires(100_000, 1, simulation_builds)
    with capsys.disabled():
        print(f"\nhost link, circuit: {figures}")


@pytest.mark.campaign
def test_a_hundred_thousand_faulty_frames_on_the_model(capsys):
    figures = run_link_campaign(ModelBoard(), IDENTITY, expected_stream, 100_000, seed=2)
    with capsys.disabled():
        print(f"\nhost link, model: {figures}")

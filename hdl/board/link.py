"""What a host and the attention accelerator say to each other, and both ends of it: a circuit and a
Python object made from the same constants.

Messages are carried by `hdl.board.session` in the frames of `hdl.board.frames`. Their first byte is
their kind; the answer to kind k is of kind k + 0x80.

| the host's message | the answer, after its kind |
|---|---|
| `IDENTIFY` | identity, 17 bytes: `PSTR`, version, C and context length (16 bits each), first 8 bytes of the parameters' digest |
| `TOKEN`, then C signed bytes: the sequence's next token | C signed 16-bit results |
| `RESTART_TOKEN`, then C signed bytes: the first token of a new sequence | C signed 16-bit results |
| any other, or one of another length | the kind `UNKNOWN` alone |

Numbers are little-endian.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from amaranth.hdl import Array, Const, Module, Shape, ShapeLike, Signal, Value, signed
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from fixedpoint import Attention

from ..errors import CircuitError, ToolError
from ..parts.payload import connect, describe, payload_shape
from ..parts.stream_parts import StreamRegister
from .frames import LARGEST_PACKET, FrameReceiver, FrameTransmitter
from .session import HEADER, Requester, Responder, SerialPort, SessionLost

ELEMENT, RESULT = signed(8), signed(16)  # one byte of a token, two of a result
LARGEST_EMBED_DIM = (LARGEST_PACKET - HEADER.size - 1) // 2
RECOVERIES = 32  # of one token, after which the board is given up


class Kind(IntEnum):
    """What the host can ask for."""

    IDENTIFY = 1
    TOKEN = 2
    RESTART_TOKEN = 3


ANSWER = 0x80  # added to the kind
UNKNOWN = 0xFE


@dataclass(frozen=True)
class Identity:
    """What an accelerator says about itself; also fixes the sizes of all messages.

    Attributes:
        embed_dim: Channels C of a token's vector, 1 to 32763.
        context_length: Tokens of the longest sequence, 1 to 65535.
        digest: First 8 bytes of the SHA-256 of weights and formats.
    """

    embed_dim: int
    context_length: int
    digest: bytes

    MAGIC = b"PSTR"
    VERSION = 2
    DIGEST_BYTES = 8
    _LAYOUT = struct.Struct(f"<4sBHH{DIGEST_BYTES}s")
    SIZE = _LAYOUT.size

    def __post_init__(self) -> None:
        for name, largest in (("embed_dim", LARGEST_EMBED_DIM), ("context_length", (1 << 16) - 1)):
            if not 1 <= getattr(self, name) <= largest:
                raise CircuitError(f"{name} must be 1 to {largest} to be sent in a message, not {getattr(self, name)}")
        if len(self.digest) != self.DIGEST_BYTES:
            raise CircuitError(f"digest must have {self.DIGEST_BYTES} bytes, not {len(self.digest)}")

    @classmethod
    def of(cls, parameters: Attention) -> "Identity":
        """Return the identity of an accelerator with these parameters."""
        return cls(parameters.embed_dim, parameters.context_length, parameters.digest[: cls.DIGEST_BYTES])

    def to_bytes(self) -> bytes:
        """Return what answers `Kind.IDENTIFY`."""
        return self._LAYOUT.pack(self.MAGIC, self.VERSION, self.embed_dim, self.context_length, self.digest)

    @classmethod
    def from_bytes(cls, answer: bytes) -> "Identity":
        """Read what answers `Kind.IDENTIFY`.

        Raises:
            ToolError: It is not one.
        """
        if len(answer) != cls.SIZE or answer[: len(cls.MAGIC)] != cls.MAGIC:
            raise ToolError(f"what answered is no Positron accelerator: it sent {answer.hex(' ')}")
        _, version, embed_dim, context_length, digest = cls._LAYOUT.unpack(answer)
        if version != cls.VERSION:
            raise ToolError(f"the board speaks protocol version {version}, this program version {cls.VERSION}")
        return cls(embed_dim, context_length, digest)

    def encode_token(self, vector: np.ndarray, restart: bool) -> bytes:
        """Return the message that sends one token.

        Args:
            vector: Integers (C,), each in −128…127.
            restart: The token starts a new sequence.

        Raises:
            ValueError: The shape, the type or a value is wrong.
        """
        vector = np.asarray(vector)
        if vector.shape != (self.embed_dim,) or vector.dtype.kind not in "iu":
            raise ValueError(f"a token is {self.embed_dim} integers, not {vector.dtype} of shape {vector.shape}")
        if vector.min() < -128 or vector.max() > 127:
            raise ValueError(f"a token's elements are -128 to 127, not {vector.min()} to {vector.max()}")
        return bytes([Kind.RESTART_TOKEN if restart else Kind.TOKEN]) + vector.astype(np.int8).tobytes()

    def decode_result(self, answer: bytes, results: int | None = None) -> np.ndarray:
        """Return the int16 (C,) result in what answers a token, or (`results`,)."""
        wanted = 2 * (self.embed_dim if results is None else results)
        if len(answer) != wanted:
            raise ToolError(f"the board sent {len(answer)} bytes instead of a result's {wanted}")
        return np.frombuffer(answer, dtype="<i2").astype(np.int16)


class HostLink(wiring.Component):
    """The accelerator's end: bytes to tokens, results to bytes.

    A token is handed on when all of it has arrived undamaged, one element a cycle; its answer is
    kept until the next request. So the wire's slowness does not stall the accelerator, nor does its
    ready signal run through it.

    Resources: block RAM for one token and one token's results, and what `hdl.board.frames` and
    `hdl.board.session` take.

    Attributes:
        identity: Sizes, and what answers `Kind.IDENTIFY`.
        results: Elements of an answer, where not as many as a token's.
        exchangeable: Whether the identity stands in a block RAM, not in logic.
        element, result: What a byte of a token and two of a result are to the accelerator: shapes
            of 8 and 16 bits, signed.
        i_bytes: In, stream of bytes from the host, always ready.
        o_bytes: Out, stream of bytes to the host.
        o_token: Out, stream of {data: `element`, restart}: C elements a token.
        i_result: In, stream of {data: `result`, last}: C elements a token.
    """

    def __init__(
        self,
        identity: Identity,
        element: ShapeLike = ELEMENT,
        result: ShapeLike = RESULT,
        results: int | None = None,
        exchangeable: bool = False,
    ):
        for name, shape, wanted in (("element", element, ELEMENT), ("result", result, RESULT)):
            if Shape.cast(shape) != wanted:
                raise CircuitError(
                    f"the link's {name} must be a signed number of {wanted.width} bits, not {describe(shape)}"
                )
        self.identity, self.exchangeable = identity, exchangeable
        self.results = identity.embed_dim if results is None else results
        super().__init__(
            {
                "i_bytes": In(stream.Signature(8)),
                "o_bytes": Out(stream.Signature(8)),
                "o_token": Out(stream.Signature(data.StructLayout({"data": element, "restart": 1}))),
                "i_result": In(stream.Signature(data.StructLayout({"data": result, "last": 1}))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the circuit."""
        m = Module()
        channels, result_bytes = self.identity.embed_dim, 2 * self.results
        m.submodules.receiver = receiver = FrameReceiver(HEADER.size + 1 + channels)
        m.submodules.transmitter = transmitter = FrameTransmitter()
        m.submodules.responder = responder = Responder(1 + max(Identity.SIZE, result_bytes))
        connect(m, wiring.flipped(self.i_bytes), receiver.i)
        registers = {}
        for name, source in {
            "packet": receiver.o,
            "request": responder.o_request,
            "answer": responder.o_packet,
            "byte": transmitter.o,
        }.items():
            m.submodules[f"{name}_register"] = register = StreamRegister(payload_shape(source))
            connect(m, source, register.i)
            registers[name] = register.o
        connect(m, registers["packet"], responder.i_packet)
        connect(m, registers["answer"], transmitter.i)
        connect(m, registers["byte"], wiring.flipped(self.o_bytes))

        m.submodules.result_register = result = StreamRegister(payload_shape(responder.i_answer))
        connect(m, result.o, responder.i_answer)
        request, answer = registers["request"], result.i
        kind = Signal(8)  # of the answer
        left = Signal(16)
        identity = self._identity(m, Identity.SIZE - 1 - left, answer.ready)
        high = Signal()
        m.d.comb += [
            self.o_token.payload.data.eq(request.payload.data.as_signed()),
            self.o_token.payload.restart.eq(kind == Kind.RESTART_TOKEN + ANSWER),
            answer.payload.remaining.eq(left),
        ]
        with m.FSM():
            with m.State("KIND"):
                m.d.comb += request.ready.eq(1)
                m.d.sync += [kind.eq(UNKNOWN), left.eq(0)]
                with m.If(request.valid):
                    asked, remaining = request.payload.data, request.payload.remaining
                    m.next = "ANSWER"
                    with m.If(((asked == Kind.TOKEN) | (asked == Kind.RESTART_TOKEN)) & (remaining == channels)):
                        m.d.sync += [kind.eq(asked + ANSWER), left.eq(result_bytes)]
                        m.next = "TOKEN"
                    with m.Elif((asked == Kind.IDENTIFY) & (remaining == 0)):
                        m.d.sync += [kind.eq(asked + ANSWER), left.eq(Identity.SIZE)]
                    with m.Elif(remaining != 0):
                        m.next = "SKIP"
            with m.State("TOKEN"):
                m.d.comb += [self.o_token.valid.eq(request.valid), request.ready.eq(self.o_token.ready)]
                with m.If(request.valid & request.ready & (request.payload.remaining == 0)):
                    m.next = "ANSWER"
            with m.State("SKIP"):
                m.d.comb += request.ready.eq(1)
                with m.If(request.valid & (request.payload.remaining == 0)):
                    m.next = "ANSWER"
            with m.State("ANSWER"):
                m.d.comb += [answer.valid.eq(1), answer.payload.data.eq(kind)]
                with m.If(answer.ready):
                    m.d.sync += left.eq(left - 1)
                    with m.Switch(kind):
                        with m.Case(UNKNOWN):
                            m.next = "KIND"
                        with m.Case(Kind.IDENTIFY + ANSWER):
                            m.next = "IDENTITY"
                        with m.Default():
                            m.next = "RESULT"
            with m.State("IDENTITY"):
                m.d.comb += [answer.valid.eq(1), answer.payload.data.eq(identity)]
                with m.If(answer.ready):
                    m.d.sync += left.eq(left - 1)
                    with m.If(left == 0):
                        m.next = "KIND"
            with m.State("RESULT"):
                m.d.comb += [
                    answer.valid.eq(self.i_result.valid),
                    answer.payload.data.eq(self.i_result.payload.data.as_unsigned().word_select(high, 8)),
                    self.i_result.ready.eq(answer.ready & high),
                ]
                with m.If(answer.valid & answer.ready):
                    m.d.sync += [high.eq(~high), left.eq(left - 1)]
                    with m.If(left == 0):
                        m.next = "KIND"
        return m

    def _identity(self, m: Module, place: Value, taken: Value) -> Value:
        """Return the identity's byte at a place; it is given when the one before is taken."""
        content = self.identity.to_bytes()
        if not self.exchangeable:
            return Array(Const(byte, 8) for byte in content)[place]
        m.submodules.identity = table = memory.Memory(
            shape=8, depth=len(content), init=list(content), attrs={"ram_style": "block"}
        )
        port = table.read_port()
        m.d.comb += port.addr.eq(place + taken)
        return port.data


class Host:
    """The host's end.

    A board that was reset has lost its keys and values: the tokens of the sequence are then sent
    again, in a new session, and their results must be the same.

    Args:
        port: An open serial port, 8N1, with a read timeout of about `session.ANSWER_SECONDS`.
        requester: The session's host's end on this port; for a test that draws its own numbers.

    Attributes:
        recovered: Times the board had lost its state and got it again.
    """

    def __init__(self, port: SerialPort, requester: Requester | None = None):
        self._requester = requester or Requester(port)
        self.identity: Identity | None = None
        self._sequence: list[tuple[bytes, bytes]] = []  # the sequence's messages and answers so far
        self.recovered = 0

    @property
    def repeated(self) -> int:
        """Requests that were sent again because no answer came."""
        return self._requester.repeated

    def connect(self, expected: Identity | None = None) -> Identity:
        """Begin a session and ask the accelerator who it is.

        Raises:
            ToolError: Nothing answers, something else does, or the bitstream was made from other
                parameters than `expected`.
        """
        identity = Identity.from_bytes(content(Kind.IDENTIFY, self._requester.open(bytes([Kind.IDENTIFY]))))
        if expected is not None and identity != expected:
            raise ToolError(
                f"the board holds another model: {_describe(identity)}; wanted {_describe(expected)}; "
                "load this run's bitstream into it"
            )
        self.identity = identity
        self._sequence = []
        return identity

    def send(self, vector: np.ndarray, restart: bool = False, results: int | None = None) -> np.ndarray:
        """Send one token, int8 range (C,), and return its int16 (C,) or (`results`,) result.

        Raises:
            ToolError: The answer did not arrive, or the token continues a sequence that does not
                exist; the next one must start a sequence.
        """
        identity, before = self._connected(), self._sequence
        message = identity.encode_token(vector, restart)
        if restart or len(before) == identity.context_length:  # a full context ends its sequence
            message, before = identity.encode_token(vector, True), []
        elif not before:
            raise ToolError("the first token must start a sequence")
        self._sequence = []  # unless all goes well
        answer = self.exchange(message, before)
        self._sequence = [*before, (message, answer)]
        return identity.decode_result(content(message[0], answer), results)

    def exchange(self, message: bytes, before: Sequence[tuple[bytes, bytes]]) -> bytes:
        """Return a message's answer; where the board lost its state, what came before is sent
        again.

        Args:
            message: Of this session.
            before: Messages that make the state, each with what its answer must begin with.

        Raises:
            ToolError: No answer arrived, or a message that was sent again had another one.
        """
        identity = self._connected()
        try:
            return self._requester.request(message)
        except SessionLost as lost:
            reason = lost
        for _ in range(RECOVERIES):
            try:
                self.connect(identity)
                for place, (earlier, answer) in enumerate(before):
                    if not self._requester.request(earlier).startswith(answer):
                        raise ToolError(f"sent again, the sequence's token {place} had another result than before")
                answer = self._requester.request(message)
            except SessionLost as lost:
                reason = lost
                continue
            self.recovered += 1
            return answer
        raise ToolError(f"{reason}, {RECOVERIES} times in a row")

    def _connected(self) -> Identity:
        if self.identity is None:
            raise ToolError("connect to the board before sending tokens")
        return self.identity


def content(kind: int, answer: bytes) -> bytes:
    """Return what follows the kind in the answer to a message of kind `kind`."""
    if answer[0] != kind + ANSWER:
        raise ToolError(f"the board answered with a message of kind {answer[0]:#x}, not {kind + ANSWER:#x}")
    return answer[1:]


def _describe(identity: Identity) -> str:
    return f"{identity.embed_dim} channels, {identity.context_length} tokens, digest {identity.digest.hex()}"

"""The protocol between a host and the accelerator, and both of its ends: a circuit and a Python object made from the same constants.

The host speaks first, the accelerator answers:

| host sends | accelerator answers |
|---|---|
| `I` | identity, 17 bytes: `PSTR`, version, C and context length (16 bits each), first 8 bytes of the parameters' digest |
| `T`, then C signed bytes: the sequence's next token | C signed 16-bit results |
| `R`, then C signed bytes: the first token of a new sequence | C signed 16-bit results |

Numbers are little-endian. Any other command byte is ignored. The host waits for an answer before it sends the next command.

A host that lost its place is silent for `RECOVERY_SECONDS`, throws away what arrives meanwhile and starts over with `I`. That suffices because the accelerator gets a vector
only when all of it has arrived, and a vector that stops for `IDLE_SECONDS` is forgotten; the next byte is a command again.
"""

import struct
import time
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import numpy as np
from amaranth.hdl import Array, Const, Module, Shape, ShapeLike, Signal, signed
from amaranth.lib import data, fifo, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from .errors import CircuitError, ToolError
from .parameter_checks import check_whole
from .payload import describe

IDLE_SECONDS = 0.05  # a USB adapter's pauses inside a burst last a few milliseconds
RECOVERY_SECONDS = 3 * IDLE_SECONDS
ANSWER_SECONDS = 2.0
ELEMENT, RESULT = signed(8), signed(16)  # one byte of a token, two of a result


class Command(IntEnum):
    """What the host can ask for."""

    IDENTIFY = ord("I")
    TOKEN = ord("T")
    RESTART_TOKEN = ord("R")


@dataclass(frozen=True)
class Identity:
    """What an accelerator says about itself; also fixes the sizes of all messages.

    Attributes:
        embed_dim: Channels C of a token's vector, 1 to 65535.
        context_length: Tokens of the longest sequence, 1 to 65535.
        digest: First 8 bytes of the SHA-256 of weights and formats.
    """

    embed_dim: int
    context_length: int
    digest: bytes

    MAGIC = b"PSTR"
    VERSION = 1
    DIGEST_BYTES = 8
    _LAYOUT = struct.Struct(f"<4sBHH{DIGEST_BYTES}s")
    SIZE = _LAYOUT.size

    def __post_init__(self):
        for name in ("embed_dim", "context_length"):
            if not 1 <= getattr(self, name) < 1 << 16:
                raise CircuitError(f"{name} must be 1 to 65535 to be sent in 16 bits, not {getattr(self, name)}")
        if len(self.digest) != self.DIGEST_BYTES:
            raise CircuitError(f"digest must have {self.DIGEST_BYTES} bytes, not {len(self.digest)}")

    @classmethod
    def of(cls, parameters) -> "Identity":
        """Return the identity of an accelerator with these parameters (`fixedpoint.Attention`)."""
        return cls(parameters.embed_dim, parameters.context_length, parameters.digest[: cls.DIGEST_BYTES])

    def to_bytes(self) -> bytes:
        """Return the answer to `Command.IDENTIFY`."""
        return self._LAYOUT.pack(self.MAGIC, self.VERSION, self.embed_dim, self.context_length, self.digest)

    @classmethod
    def from_bytes(cls, answer: bytes) -> "Identity":
        """Read the answer to `Command.IDENTIFY`.

        Raises:
            ToolError: It is not one.
        """
        if len(answer) != cls.SIZE:
            raise ToolError(
                f"the board sent {len(answer)} of the identity's {cls.SIZE} bytes; is it powered, programmed, and is this its port and baud rate?"
            )
        magic, version, embed_dim, context_length, digest = cls._LAYOUT.unpack(answer)
        if magic != cls.MAGIC:
            raise ToolError(f"what answered is no Positron accelerator: it sent {answer.hex(' ')}")
        if version != cls.VERSION:
            raise ToolError(f"the board speaks protocol version {version}, this program version {cls.VERSION}")
        return cls(embed_dim, context_length, digest)

    def encode_token(self, vector: np.ndarray, restart: bool) -> bytes:
        """Return the bytes that send one token.

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
        command = Command.RESTART_TOKEN if restart else Command.TOKEN
        return bytes([command]) + vector.astype(np.int8).tobytes()

    @property
    def result_bytes(self) -> int:
        """Bytes of the answer to a token."""
        return 2 * self.embed_dim

    def decode_result(self, answer: bytes) -> np.ndarray:
        """Return the int16 (C,) result in the answer to a token."""
        if len(answer) != self.result_bytes:
            raise ToolError(
                f"the board sent {len(answer)} of a result's {self.result_bytes} bytes before it fell silent"
            )
        return np.frombuffer(answer, dtype="<i2").astype(np.int16)


class HostLink(wiring.Component):
    """The accelerator's end of the protocol: bytes to tokens, results to bytes.

    A token is handed on when all of it has arrived, one element a cycle. The results of a token wait here, so that the wire's slowness does not stall the accelerator (nor
    its ready signal run through it). Results and identities leave through one sender, which never interleaves them.

    Resources: distributed or block RAM for one token and one token's results.

    Attributes:
        identity: Sizes, and what `I` answers.
        idle_cycles: Pause after which an unfinished token is forgotten.
        element, result: What a byte of a token and two of a result are to the accelerator: shapes of 8 and 16 bits, signed.
        i_bytes: In, stream of bytes from the host.
        o_bytes: Out, stream of bytes to the host.
        o_token: Out, stream of {data: `element`, restart}: C elements a token.
        i_result: In, stream of {data: `result`, last}: C elements a token.
    """

    def __init__(
        self,
        identity: Identity,
        idle_cycles: int,
        element: ShapeLike = ELEMENT,
        result: ShapeLike = RESULT,
    ):
        for name, shape, wanted in (("element", element, ELEMENT), ("result", result, RESULT)):
            if Shape.cast(shape) != wanted:
                raise CircuitError(
                    f"the link's {name} must be a signed number of {wanted.width} bits, not {describe(shape)}"
                )
        check_whole("idle_cycles", idle_cycles)
        self.identity = identity
        self.idle_cycles = idle_cycles
        super().__init__(
            {
                "i_bytes": In(stream.Signature(8)),
                "o_bytes": Out(stream.Signature(8)),
                "o_token": Out(stream.Signature(data.StructLayout({"data": element, "restart": 1}))),
                "i_result": In(stream.Signature(data.StructLayout({"data": result, "last": 1}))),
            }
        )

    def elaborate(self, platform):
        """Build the circuit."""
        m = Module()
        channels = self.identity.embed_dim
        m.submodules.token = token = memory.Memory(shape=signed(8), depth=channels, init=[])
        write, read = token.write_port(), token.read_port()
        identify = Signal()  # an identity is owed
        identity_sent = Signal()

        # From the host.
        index = Signal(range(channels))
        idle = Signal(range(self.idle_cycles + 1))
        restart = Signal()
        m.d.comb += [
            write.addr.eq(index),
            write.data.eq(self.i_bytes.payload.as_signed()),
            read.en.eq(1),
            self.o_token.payload.data.eq(read.data),
            self.o_token.payload.restart.eq(restart),
        ]
        with m.If(identity_sent):
            m.d.sync += identify.eq(0)
        with m.FSM(name="receiver"):
            with m.State("COMMAND"):
                m.d.comb += self.i_bytes.ready.eq(1)
                m.d.sync += [index.eq(0), idle.eq(0)]
                with m.If(self.i_bytes.valid), m.Switch(self.i_bytes.payload):
                    with m.Case(Command.IDENTIFY):
                        m.d.sync += identify.eq(1)
                    with m.Case(Command.TOKEN, Command.RESTART_TOKEN):
                        m.d.sync += restart.eq(self.i_bytes.payload == Command.RESTART_TOKEN)
                        m.next = "VECTOR"
            with m.State("VECTOR"):
                m.d.comb += [self.i_bytes.ready.eq(1), write.en.eq(self.i_bytes.valid)]
                m.d.sync += idle.eq(idle + 1)
                with m.If(self.i_bytes.valid):
                    m.d.sync += [idle.eq(0), index.eq(index + 1)]
                    with m.If(index == channels - 1):
                        m.d.sync += index.eq(0)
                        m.next = "FETCH"
                with m.Elif(idle == self.idle_cycles):
                    m.next = "COMMAND"
            with m.State("FETCH"):  # the last byte is being written; then the first one is read
                m.d.comb += read.addr.eq(0)
                m.next = "SETTLE"
            with m.State("SETTLE"):
                m.d.comb += read.addr.eq(0)
                m.next = "HAND ON"
            with m.State("HAND ON"):
                m.d.comb += [self.o_token.valid.eq(1), read.addr.eq(index)]
                with m.If(self.o_token.ready):
                    m.d.sync += index.eq(index + 1)
                    m.d.comb += read.addr.eq(index + 1)
                    with m.If(index == channels - 1):
                        m.next = "COMMAND"

        # To the host.
        word = self.i_result.payload.shape()
        m.submodules.results = results = fifo.SyncFIFOBuffered(width=word.size, depth=channels)
        result = data.View(word, results.r_data)
        m.d.comb += [
            results.w_data.eq(self.i_result.payload),
            results.w_en.eq(self.i_result.valid),
            self.i_result.ready.eq(results.w_rdy),
        ]
        answer = Array(Const(byte, 8) for byte in self.identity.to_bytes())
        place = Signal(range(Identity.SIZE))
        high = Signal()
        with m.FSM(name="sender"):
            with m.State("CHOOSE"):
                with m.If(results.r_rdy):
                    m.next = "RESULT"
                with m.Elif(identify):
                    m.d.comb += identity_sent.eq(1)
                    m.next = "IDENTITY"
            with m.State("IDENTITY"):
                m.d.comb += [self.o_bytes.valid.eq(1), self.o_bytes.payload.eq(answer[place])]
                with m.If(self.o_bytes.ready):
                    m.d.sync += place.eq(place + 1)
                    with m.If(place == Identity.SIZE - 1):
                        m.d.sync += place.eq(0)
                        m.next = "CHOOSE"
            with m.State("RESULT"):
                m.d.comb += [
                    self.o_bytes.valid.eq(results.r_rdy),
                    self.o_bytes.payload.eq(result.data.as_unsigned().word_select(high, 8)),
                    results.r_en.eq(self.o_bytes.ready & high),
                ]
                with m.If(self.o_bytes.valid & self.o_bytes.ready):
                    m.d.sync += high.eq(~high)
                    with m.If(high & result.last):
                        m.next = "CHOOSE"
        return m


class SerialPort(Protocol):
    """What the host needs of a `serial.Serial` whose timeout is set."""

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes, fewer when the timeout ended the wait."""

    def write(self, data: bytes) -> int | None:
        """Send bytes."""

    def reset_input_buffer(self) -> None:
        """Throw away what has arrived."""


class Host:
    """The host's end of the protocol.

    Args:
        port: An open serial port, 8N1, with a read timeout of about `ANSWER_SECONDS`.
        wait: Called with the seconds to be silent (for a simulated port).
    """

    def __init__(self, port: SerialPort, wait=time.sleep):
        self._port = port
        self._wait = wait
        self.identity: Identity | None = None

    def connect(self, expected: Identity | None = None) -> Identity:
        """Find the accelerator's place in the protocol and ask who it is.

        Raises:
            ToolError: Nothing answers, something else does, or the bitstream was made from other parameters than `expected`.
        """
        self._wait(RECOVERY_SECONDS)
        self._port.reset_input_buffer()
        self._port.write(bytes([Command.IDENTIFY]))
        identity = Identity.from_bytes(self._port.read(Identity.SIZE))
        if expected is not None and identity != expected:
            raise ToolError(
                f"the board holds another model: {_describe(identity)}; wanted {_describe(expected)}; "
                "load this run's bitstream into it"
            )
        self.identity = identity
        return identity

    def send(self, vector: np.ndarray, restart: bool = False) -> np.ndarray:
        """Send one token, int8 range (C,), and return its int16 (C,) result.

        Raises:
            ToolError: The answer did not arrive whole; call `connect` before going on.
        """
        if self.identity is None:
            raise ToolError("connect to the board before sending tokens")
        self._port.write(self.identity.encode_token(vector, restart))
        return self.identity.decode_result(self._port.read(self.identity.result_bytes))


def _describe(identity: Identity) -> str:
    return f"{identity.embed_dim} channels, {identity.context_length} tokens, digest {identity.digest.hex()}"

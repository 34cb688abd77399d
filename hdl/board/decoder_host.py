"""The host's end of a decoder on a board: token in, next token out."""

from dataclasses import dataclass

import numpy as np

from ..decoder.accelerator import REQUEST, RESULTS, SAMPLING_REQUEST
from ..decoder.probe import Unit
from ..decoder.score_rows import Temperature
from ..errors import ToolError
from .link import Host, Identity
from .session import SerialPort

SIZES = {layout.size // 8: layout for layout in (REQUEST, SAMPLING_REQUEST)}  # of a token's message


@dataclass(frozen=True)
class Answer:
    """What a board says after a token.

    Attributes:
        token: The next one.
        cycles: That it took; 65,535 for more.
        checksum: Of what the chosen unit gave.
        count: Words that it gave.
    """

    token: int
    cycles: int
    checksum: int
    count: int


class DecoderHost:
    """A decoder on a board.

    Args:
        port: An open serial port, see `Host`.
        host: The connection; for a test that makes its own.

    Attributes:
        host: The connection.
        cycles: Of each token so far.
    """

    def __init__(self, port: SerialPort, host: Host | None = None):
        self.host = host or Host(port)
        self.cycles: list[int] = []
        self._layout = REQUEST

    def connect(self, digest: bytes, context_length: int) -> None:
        """Ask the board which model it holds.

        Raises:
            ToolError: Nothing answers, or another model or no decoder is there.
        """
        found = self.identify()
        if found.digest != digest or found.context_length != context_length:
            raise ToolError(
                f"the board holds another model or tokenizer: fingerprint {found.digest.hex()}, context of "
                f"{found.context_length} tokens, not {digest.hex()} and {context_length}; load this run's bitstream: positron load RUN"
            )

    def identify(self) -> Identity:
        """Return what the board says it holds.

        Raises:
            ToolError: Nothing answers, or no decoder.
        """
        found = self.host.connect()
        if found.embed_dim not in SIZES:
            raise ToolError(
                "the board holds an attention accelerator, no decoder: positron synthesize RUN, positron load RUN"
            )
        self._layout = SIZES[found.embed_dim]
        return found

    @property
    def samples(self) -> bool:
        """Whether the circuit can sample."""
        return self._layout is SAMPLING_REQUEST

    def step(self, token: int, *, restart: bool, choice: tuple[int, Temperature] | None = None) -> int:
        """Return the token after `token`; see `sim.simulators.decoder_process.SimulatedDecoder`."""
        answer = self.ask(token, restart=restart, choice=choice)
        self.cycles.append(answer.cycles)
        return answer.token

    def ask(
        self,
        token: int,
        *,
        restart: bool,
        choice: tuple[int, Temperature] | None = None,
        unit: Unit = Unit.NONE,
        last: int = 0,
    ) -> Answer:
        """Send a token.

        Args:
            token: The sequence's next one.
            restart: It begins a sequence.
            choice: The random number and the temperature to sample with; None for the likeliest
                token.
            unit: Whose words the checksum is of.
            last: The last of them, counted from 0.

        Raises:
            ToolError: The answer did not arrive, or the circuit cannot sample.
        """
        fields = {"token": token, "unit": int(unit), "last": last}
        if choice is not None:
            if not self.samples:
                raise ToolError("the circuit on the board takes the likeliest token; ask for --temperature 0")
            number, heat = choice
            fields |= {"sample": 1, "random": number, "multiplier": heat.multiplier, "amount": heat.amount}
        size = self._layout.size // 8
        message = self._layout.const(fields).as_bits().to_bytes(size, "little")
        results = self.host.send(np.frombuffer(message, np.int8), restart, results=RESULTS).astype(np.uint16)
        following, cycles, low, high, count = map(int, results)
        return Answer(following, cycles, low | high << 16, count)

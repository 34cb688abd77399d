"""The host's end of a decoder on a board: token in, next token out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product, zip_longest

import numpy as np

from ..decoder.accelerator import Turn, request_layout, results_of
from ..decoder.probe import Unit
from ..errors import ToolError
from .link import ANSWER, Host, Identity, Kind, content
from .session import SerialPort

# Sequences, and whether the circuit samples, by the bytes of a request.
KINDS = {request_layout(*kind).size // 8: kind for kind in product((1, 2), (False, True))}


@dataclass(frozen=True)
class Answer:
    """What a board says after a token.

    Attributes:
        tokens: Each sequence's next one; 0 for one that sat out.
        cycles: That they took; 65,535 for more.
        checksum: Of what the chosen unit gave.
        count: Words that it gave.
    """

    tokens: tuple[int, ...]
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
        cycles: Of each token, or pair of tokens, so far.
        sequences: That the circuit holds.
        context_length: Positions of a sequence.
        samples: Whether the circuit can sample.
    """

    def __init__(self, port: SerialPort, host: Host | None = None):
        self.host = host or Host(port)
        self.cycles: list[int] = []
        self.sequences, self.samples, self.context_length = 1, False, 0
        # Of each of two: its turns since it began, and the tokens that followed.
        self._turns: list[list[tuple[Turn, int]]] = []

    def connect(self, digest: bytes, context_length: int) -> None:
        """Ask the board which model it holds; the context of two sequences may be shorter.

        Raises:
            ToolError: Nothing answers, or another model or no decoder is there.
        """
        found = self.identify()
        shorter = self.sequences > 1 and found.context_length < context_length
        if found.digest != digest or not (shorter or found.context_length == context_length):
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
        if found.embed_dim not in KINDS:
            raise ToolError(
                "the board holds an attention accelerator, no decoder: positron synthesize RUN, positron load RUN"
            )
        self.sequences, self.samples = KINDS[found.embed_dim]
        self.context_length = found.context_length
        self._turns = [[] for _ in range(self.sequences)]
        return found

    def step(self, turns: Sequence[Turn | None]) -> list[int]:
        """Return each sequence's next token; see `sim.simulators.decoder_process.Decoder`."""
        answer = self.ask(turns)
        self.cycles.append(answer.cycles)
        return list(answer.tokens)

    def ask(self, turns: Sequence[Turn | None], unit: Unit = Unit.NONE, last: int = 0) -> Answer:
        """Send a token of each sequence.

        Args:
            turns: Each sequence's, None for one that sits out; fewer where the others sit out.
            unit: Whose words the checksum is of.
            last: The last of them, counted from 0.

        Raises:
            ToolError: The answer did not arrive, or the circuit cannot sample.
        """
        if any(turn is not None and turn.choice is not None for turn in turns) and not self.samples:
            raise ToolError("the circuit on the board takes the likeliest token; ask for --temperature 0")
        if self.sequences == 1:
            (turn,) = turns
            assert turn is not None
            vector = np.frombuffer(self._message(turn.fields(), unit, last), np.int8)
            return self._answer(self.host.send(vector, turn.restart, results=results_of(1)))
        return self._ask_together([*turns, *[None] * (self.sequences - len(turns))], unit, last)

    def _message(self, fields: Mapping[str, object], unit: Unit, last: int) -> bytes:
        layout = request_layout(self.sequences, self.samples)
        given = {name: value for name, value in fields.items() if name in layout.members}
        return layout.const({**given, "unit": int(unit), "last": last}).as_bits().to_bytes(layout.size // 8, "little")

    def _answer(self, results: np.ndarray) -> Answer:
        *tokens, cycles, low, high, count = map(int, results.astype(np.uint16))
        return Answer(tuple(tokens), cycles, low | high << 16, count)

    def _ask_together(self, turns: Sequence[Turn | None], unit: Unit, last: int) -> Answer:
        def message(turns: Sequence[Turn | None], unit: Unit = Unit.NONE, last: int = 0) -> bytes:
            fields = [{} if turn is None else {"active": 1, **turn.fields()} for turn in turns]
            return bytes([Kind.TOKEN]) + self._message({"turns": fields}, unit, last)

        kept, self._turns = self._turns, [[] for _ in turns]  # unless all goes well
        turns = list(turns)
        for number, turn in enumerate(turns):
            if turn is not None and (turn.restart or len(kept[number]) == self.context_length):
                kept[number], turns[number] = [], replace(turn, restart=True)
            elif turn is not None and not kept[number]:
                raise ToolError("the first token must start a sequence")
        # A board that lost both sequences gets them again, together, from where each began.
        before = []
        for pair in zip_longest(*kept):
            tokens = np.array([0 if one is None else one[1] for one in pair], "<u2").tobytes()
            before.append((message([one and one[0] for one in pair]), bytes([Kind.TOKEN + ANSWER]) + tokens))
        answer = content(Kind.TOKEN, self.host.exchange(message(turns, unit, last), before))
        results = results_of(self.sequences)
        assert self.host.identity is not None
        found = self._answer(self.host.identity.decode_result(answer, results))
        for one, turn, token in zip(kept, turns, found.tokens, strict=True):
            if turn is not None:
                one.append((turn, token))
        self._turns = kept
        return found

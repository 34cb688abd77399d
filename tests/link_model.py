"""A behavioural model of a board's serial link, thousands of times as fast as a simulator."""

from collections.abc import Callable

import numpy as np

from hdl.board.frames import FrameDecoder, encode_frame
from hdl.board.link import ANSWER, UNKNOWN, Identity, Kind
from hdl.board.session import HEADER, REFUSED


class LinkModel:
    """The specification of `hdl.board.link.HostLink`: the same bytes, if every frame is answered
    before the next one begins.

    Args:
        identity: The accelerator's.
        accelerate: Takes an int8 token (C,) and whether it starts a sequence, returns its int16
            result (C,).
    """

    def __init__(self, identity: Identity, accelerate: Callable[[np.ndarray, bool], np.ndarray]):
        self.identity = identity
        self.accelerate = accelerate
        self.reset()

    def reset(self) -> None:
        """Forget all but the accelerator's own state."""
        self._decoder = FrameDecoder(HEADER.size + 1 + self.identity.embed_dim)
        self._number: int | None = None
        self._sequence = 0
        self._answer = b""

    def exchange(self, received: bytes) -> bytes:
        """Return what the board sends when it receives these bytes."""
        return b"".join(
            encode_frame(packet[: HEADER.size] + self._respond(packet[: HEADER.size], packet[HEADER.size :]))
            for packet in self._decoder.feed(received)
            if len(packet) > HEADER.size
        )

    def _respond(self, header: bytes, message: bytes) -> bytes:
        number, sequence = HEADER.unpack(header)
        ours = number == self._number
        if ours and sequence == self._sequence:
            return self._answer
        if sequence != (self._sequence + 1 if ours else 0):
            return bytes([REFUSED])
        self._number, self._sequence = number, sequence
        self._answer = self._carry_out(message[0], message[1:])
        return self._answer

    def _carry_out(self, kind: int, content: bytes) -> bytes:
        if kind == Kind.IDENTIFY and not content:
            return bytes([kind + ANSWER]) + self.identity.to_bytes()
        if kind in (Kind.TOKEN, Kind.RESTART_TOKEN) and len(content) == self.identity.embed_dim:
            result = self.accelerate(np.frombuffer(content, dtype=np.int8), kind == Kind.RESTART_TOKEN)
            return bytes([kind + ANSWER]) + result.astype("<i2").tobytes()
        return bytes([UNKNOWN])

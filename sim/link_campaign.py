"""A bad wire between a host and a board, and a campaign on it: every result that the host accepts
must be the right one, and none may be missing.
"""

import random
from collections import Counter, deque
from collections.abc import Callable
from typing import Protocol

import numpy as np
from tqdm import tqdm

from hdl.board.frames import ESCAPE, FLAG
from hdl.board.link import Host, Identity
from hdl.board.session import ATTEMPTS, Requester
from hdl.errors import ToolError

BATCH = 100  # tokens whose results are computed at once
REMEMBERED = 8  # frames of a direction that may come again
# What can happen to a frame → how often. What takes the board's state away is rarer, or a long
# sequence would never be sent again whole.
KINDS = {
    "flip": 4,
    "burst": 2,
    "drop": 2,
    "loss": 2,
    "repeat": 2,
    "insertion": 2,
    "noise": 2,
    "late": 2,
    "stale": 1,
    "reset": 1,
}
# So many exchanges in a row may be disturbed. The host gives up after ATTEMPTS: one must be left.
LONGEST_STORM = ATTEMPTS - 1


class Board(Protocol):
    """What a wire leads to: `sim.link_model.LinkModel` or a circuit."""

    def exchange(self, received: bytes) -> bytes:
        """Return what the board sends when it receives these bytes."""

    def reset(self) -> None:
        """Press the board's reset button."""


class DisturbedPort:
    """A serial port on a bad wire.

    Args:
        board: The other end.
        share: Probability that a frame is disturbed, in each direction.
        seed: Of all that happens.

    Attributes:
        disturbed: Kind of disturbance → frames that it hit.
        frames: Frames sent by the host or the board.
    """

    def __init__(self, board: Board, share: float, seed: int):
        self._board = board
        self._share = share
        self._random = random.Random(seed)
        self._arrived: deque[int] = deque()
        self._late = b""  # an answer that comes with the next one
        self._past = (deque[bytes](maxlen=REMEMBERED), deque[bytes](maxlen=REMEMBERED))
        self._storm = 0
        self.disturbed: Counter[str] = Counter()
        self.frames = 0

    @property
    def in_waiting(self) -> int:
        """As `serial.Serial`'s."""
        return len(self._arrived)

    def read(self, size: int) -> bytes:
        """Return what is there: time does not pass here."""
        return bytes(self._arrived.popleft() for _ in range(min(size, len(self._arrived))))

    def flush(self) -> None:
        """Do nothing: `write` has sent all."""

    def reset_input_buffer(self) -> None:
        """As `serial.Serial`'s."""
        self._arrived.clear()

    def write(self, data: bytes) -> int:
        """Send a frame to the board and have its answers put into the buffer."""
        quiet = self._storm >= LONGEST_STORM
        before = self.disturbed.total()
        answers = b""
        pieces = [data] if quiet else self._disturb(data, 0)
        for place, piece in enumerate(pieces):
            if place:
                self._board.reset()
            answers += self._board.exchange(piece)
        self.frames += 1
        late, self._late = self._late, b""
        if answers:
            self.frames += 1
            if not quiet:
                answers, *lost = self._disturb(answers, 1)
                if lost:
                    self._board.reset()
        self._storm = self._storm + 1 if self.disturbed.total() > before else 0
        self._arrived.extend(late + answers)
        return len(data)

    def _disturb(self, frame: bytes, direction: int) -> list[bytes]:
        """Return what becomes of a frame; of several pieces each but the first one comes after a
        reset of the board.
        """
        past = self._past[direction]
        past.append(frame)
        if self._random.random() >= self._share:
            return [frame]
        draw = self._random
        kind = draw.choices(tuple(KINDS), tuple(KINDS.values()))[0]
        place = draw.randrange(len(frame))
        if kind == "late" and direction == 0:  # a host does not overtake itself
            kind = "flip"
        self.disturbed[kind] += 1
        garbage = bytes(draw.choice((draw.randrange(256), FLAG, ESCAPE)) for _ in range(draw.randrange(1, 9)))
        match kind:
            case "flip":
                damaged = bytearray(frame)
                for _ in range(draw.choice((1, 1, 2, 3))):
                    damaged[draw.randrange(len(frame))] ^= 1 << draw.randrange(8)
                return [bytes(damaged)]
            case "burst":
                return [frame[:place] + garbage + frame[place + len(garbage) :]]
            case "drop":
                return [frame[:place] + frame[place + draw.randrange(1, 9) :]]
            case "loss":
                return [b""]
            case "repeat":
                return [frame * draw.randrange(2, 4)]
            case "stale":
                return [draw.choice(past) + frame] if draw.random() < 0.5 else [frame + draw.choice(past)]
            case "insertion":
                return [frame[:place] + garbage + frame[place:]]
            case "noise":
                return [garbage + frame + garbage]
            case "late":
                self._late = frame
                return [b""]
        return [frame[:place], frame[place:]] if draw.random() < 0.5 else [frame, b""]


def exercise_disturbed(
    board: Board,
    identity: Identity,
    compute: Callable[[np.ndarray, np.ndarray], np.ndarray],
    disturbances: int,
    seed: int,
    share: float = 0.4,
    batch: int = BATCH,
) -> dict:
    """Send tokens over a bad wire until so many frames have been disturbed.

    Args:
        board: A board that has just been reset, or its model.
        identity: The board's.
        compute: Takes int8 tokens (N, C) and booleans (N,), which start a sequence; returns their
            results (N, C).
        disturbances: Frames to disturb.
        seed: Of tokens and disturbances.
        share: Probability that a frame is disturbed.
        batch: Tokens that are computed and sent before it is asked whether that suffices.

    Returns:
        What was sent and what happened: counts by name.

    Raises:
        ToolError: A result was wrong, or the host gave up.
    """
    generator = np.random.default_rng(seed)
    port = DisturbedPort(board, share, seed)
    numbers = random.Random(seed)
    host = Host(port, Requester(port, lambda: numbers.getrandbits(32)))
    host.connect(identity)
    count = 0
    with tqdm(total=disturbances, unit="frame", disable=None) as bar:
        while port.disturbed.total() < disturbances:
            tokens = generator.integers(-128, 128, (batch, identity.embed_dim), dtype=np.int8)
            restart = generator.random(batch) < 1 / (1 + identity.context_length)
            restart[0] = True
            for token, starts, expected in zip(tokens, restart, compute(tokens, restart), strict=True):
                result = host.send(token, bool(starts))
                if not np.array_equal(result, expected):
                    raise ToolError(f"token {count} over a bad wire: {result} came, {expected} is right (seed {seed})")
                count += 1
            bar.update(port.disturbed.total() - bar.n)
    return {
        "tokens": count,
        "frames": port.frames,
        "disturbed": port.disturbed.total(),
        "repeated_requests": host.repeated,
        "recovered_sequences": host.recovered,
        **dict(sorted(port.disturbed.items())),
    }

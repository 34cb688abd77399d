"""A fault injection campaign on a host's serial link: no result may be wrong or missing."""

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
REMEMBERED = 8  # frames of a direction that may be repeated later
# Kind of fault → relative frequency. Those that lose the board's state are rarer, or a long
# sequence could never be sent again as a whole.
FAULTS = {
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
# Exchanges with faults in a row: the host gives up after ATTEMPTS, so one must be without.
LONGEST_BURST = ATTEMPTS - 1


class Board(Protocol):
    """The far end of the link: `link_model.LinkModel` or a circuit."""

    def exchange(self, received: bytes) -> bytes:
        """Return what the board sends when it receives these bytes."""

    def reset(self) -> None:
        """Press the board's reset button."""


class FaultyPort:
    """A serial port that injects faults into the frames of both directions.

    Args:
        board: The other end.
        share: Probability that a frame gets a fault, in each direction.
        seed: Of all faults.

    Attributes:
        injected: Kind of fault → frames that it hit.
        frames: Frames sent by the host or the board.
    """

    def __init__(self, board: Board, share: float, seed: int):
        self._board = board
        self._share = share
        self._random = random.Random(seed)
        self._arrived: deque[int] = deque()
        self._late = b""  # an answer that comes with the next one
        self._past = (deque[bytes](maxlen=REMEMBERED), deque[bytes](maxlen=REMEMBERED))
        self._faulty_in_a_row = 0
        self.injected: Counter[str] = Counter()
        self.frames = 0

    @property
    def in_waiting(self) -> int:
        """As `serial.Serial`'s."""
        return len(self._arrived)

    def read(self, size: int) -> bytes:
        """Return what has arrived, without waiting."""
        return bytes(self._arrived.popleft() for _ in range(min(size, len(self._arrived))))

    def flush(self) -> None:
        """Do nothing: `write` has sent all."""

    def reset_input_buffer(self) -> None:
        """As `serial.Serial`'s."""
        self._arrived.clear()

    def write(self, data: bytes) -> int:
        """Send a frame to the board and put its answers into the buffer."""
        quiet = self._faulty_in_a_row >= LONGEST_BURST
        before = self.injected.total()
        answers = b""
        pieces = [data] if quiet else self._inject(data, 0)
        for place, piece in enumerate(pieces):
            if place:
                self._board.reset()
            answers += self._board.exchange(piece)
        self.frames += 1
        late, self._late = self._late, b""
        if answers:
            self.frames += 1
            if not quiet:
                answers, *lost = self._inject(answers, 1)
                if lost:
                    self._board.reset()
        self._faulty_in_a_row = self._faulty_in_a_row + 1 if self.injected.total() > before else 0
        self._arrived.extend(late + answers)
        return len(data)

    def _inject(self, frame: bytes, direction: int) -> list[bytes]:
        """Return the pieces that a frame becomes; the board is reset before each but the first."""
        past = self._past[direction]
        past.append(frame)
        if self._random.random() >= self._share:
            return [frame]
        draw = self._random
        kind = draw.choices(tuple(FAULTS), tuple(FAULTS.values()))[0]
        place = draw.randrange(len(frame))
        if kind == "late" and direction == 0:  # a host waits for each answer
            kind = "flip"
        self.injected[kind] += 1
        random_bytes = bytes(draw.choice((draw.randrange(256), FLAG, ESCAPE)) for _ in range(draw.randrange(1, 9)))
        match kind:
            case "flip":
                damaged = bytearray(frame)
                for _ in range(draw.choice((1, 1, 2, 3))):
                    damaged[draw.randrange(len(frame))] ^= 1 << draw.randrange(8)
                return [bytes(damaged)]
            case "burst":
                return [frame[:place] + random_bytes + frame[place + len(random_bytes) :]]
            case "drop":
                return [frame[:place] + frame[place + draw.randrange(1, 9) :]]
            case "loss":
                return [b""]
            case "repeat":
                return [frame * draw.randrange(2, 4)]
            case "stale":
                return [draw.choice(past) + frame] if draw.random() < 0.5 else [frame + draw.choice(past)]
            case "insertion":
                return [frame[:place] + random_bytes + frame[place:]]
            case "noise":
                return [random_bytes + frame + random_bytes]
            case "late":
                self._late = frame
                return [b""]
        return [frame[:place], frame[place:]] if draw.random() < 0.5 else [frame, b""]


def run_link_campaign(
    board: Board,
    identity: Identity,
    compute: Callable[[np.ndarray, np.ndarray], np.ndarray],
    faults: int,
    seed: int,
    share: float = 0.4,
    batch: int = BATCH,
) -> dict:
    """Send tokens over a link until so many frames have had a fault.

    Args:
        board: A board that has just been reset, or its model.
        identity: The board's.
        compute: Takes int8 tokens (N, C) and booleans (N,), which start a sequence; returns their
            results (N, C).
        faults: Frames to inject a fault into.
        seed: Of tokens and faults.
        share: Probability that a frame gets a fault.
        batch: Tokens computed and sent at a time.

    Returns:
        Counts by name: what was sent, and the faults of each kind.

    Raises:
        ToolError: A result was wrong, or the host gave up.
    """
    generator = np.random.default_rng(seed)
    port = FaultyPort(board, share, seed)
    numbers = random.Random(seed)
    host = Host(port, Requester(port, lambda: numbers.getrandbits(32)))
    host.connect(identity)
    count = 0
    with tqdm(total=faults, unit="frame", disable=None) as bar:
        while port.injected.total() < faults:
            tokens = generator.integers(-128, 128, (batch, identity.embed_dim), dtype=np.int8)
            restart = generator.random(batch) < 1 / (1 + identity.context_length)
            restart[0] = True
            for token, starts, expected in zip(tokens, restart, compute(tokens, restart), strict=True):
                result = host.send(token, bool(starts))
                if not np.array_equal(result, expected):
                    raise ToolError(f"token {count} of a faulty link: expected {expected}, got {result} (seed {seed})")
                count += 1
            bar.update(port.injected.total() - bar.n)
    return {
        "tokens": count,
        "frames": port.frames,
        "faults": port.injected.total(),
        "repeated_requests": host.repeated,
        "recovered_sequences": host.recovered,
        **dict(sorted(port.injected.items())),
    }

"""Boards with a decoder that are not there: the specification behind a serial link, and any link
behind a pseudo-terminal.
"""

import contextlib
import os
import pty
import threading
import tty

import numpy as np
from link_model import LinkModel

from fixedpoint import Sampler
from hdl.board.link import Identity
from hdl.board.selftest import token_words
from hdl.decoder.accelerator import request_layout
from hdl.decoder.probe import Unit, checksum
from hdl.decoder.score_rows import Temperature

HEATS = (0.8,)  # the temperatures that a simulated board knows


class GoldenDecoder(LinkModel):
    """A board with a decoder machine, whose numbers come from the specification.

    Args:
        machine: What the board holds; it takes the likeliest token, or samples at one of `HEATS`.
        digest: How it calls its model.
    """

    def __init__(self, machine, digest):
        plan = machine.plan
        self.machine, self.requests = machine, 0
        self.tokens = [[] for _ in range(plan.sequences)]
        self.layout = request_layout(plan.sequences, plan.sampling)
        super().__init__(Identity(self.layout.size // 8, plan.context_length, digest), self.answer)

    def answer(self, message, restart):
        self.requests += 1
        plan, fields = self.machine.plan, self.layout.from_bits(int.from_bytes(message.tobytes(), "little"))
        turns = [fields] if plan.sequences == 1 else list(fields.turns)
        places, following, words = [None] * plan.sequences, [0] * plan.sequences, []
        for number, (turn, tokens) in enumerate(zip(turns, self.tokens, strict=True)):
            if plan.sequences > 1 and not turn.active:
                continue
            if restart or (plan.sequences > 1 and turn.restart) or len(tokens) == plan.context_length:
                tokens.clear()
            tokens.append(turn.token)
            places[number] = len(tokens) - 1
            logits = plan.model.forward(np.array([tokens]))[0, -1:]
            following[number] = int(logits.argmax())
            if plan.sampling and turn.sample:
                heat = next(one for one in HEATS if Temperature.of(plan.model.logits.output, one).amount == turn.amount)
                sampler = Sampler(plan.model.logits.output, heat)
                following[number] = int(sampler.choose(logits, np.array([turn.random], np.uint32))[0])
            # of two sequences only where the other one sits out is their order known
            if fields.unit == Unit.WEIGHTS:
                words = plan.weight_words()
            elif fields.unit:
                words = [
                    word for _, unit, ones in token_words(self.machine, tokens) if unit == fields.unit for word in ones
                ]
        total = checksum(words[: fields.last + 1])
        return np.array([*following, self.machine.cycles(places), total & 0xFFFF, total >> 16, len(words)])

    def reset(self):
        super().reset()
        self.tokens = [[] for _ in self.tokens]


@contextlib.contextmanager
def terminal(board):
    """Yield the path of a serial port at whose other end a board answers.

    Args:
        board: With `exchange`: bytes it receives to bytes it sends.
    """
    ours, theirs = pty.openpty()
    tty.setraw(theirs)

    def serve():
        with contextlib.suppress(OSError):  # closed
            while received := os.read(ours, 4096):
                answer = board.exchange(received)
                while answer:
                    answer = answer[os.write(ours, answer) :]

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield os.ttyname(theirs)
    finally:
        os.close(theirs)
        os.close(ours)
        thread.join(timeout=5)

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

from hdl.board.link import Identity
from hdl.board.selftest import token_words
from hdl.decoder.accelerator import REQUEST, SAMPLING_REQUEST
from hdl.decoder.probe import Unit, checksum


class GoldenDecoder(LinkModel):
    """A board with a decoder machine, whose numbers come from the specification.

    Args:
        machine: What the board holds; it takes the likeliest token.
        digest: How it calls its model.
    """

    def __init__(self, machine, digest):
        self.machine, self.tokens, self.requests = machine, [], 0
        self.layout = SAMPLING_REQUEST if machine.plan.sampling else REQUEST
        super().__init__(Identity(self.layout.size // 8, machine.plan.context_length, digest), self.answer)

    def answer(self, message, restart):
        self.requests += 1
        plan, fields = self.machine.plan, self.layout.from_bits(int.from_bytes(message.tobytes(), "little"))
        if restart or len(self.tokens) == plan.context_length:
            self.tokens = []
        self.tokens.append(fields.token)
        logits = plan.model.forward(np.array([self.tokens]))[0, -1]
        words = []
        if fields.unit == Unit.WEIGHTS:
            words = plan.weight_words()
        elif fields.unit:
            words = [
                word for _, unit, ones in token_words(self.machine, self.tokens) if unit == fields.unit for word in ones
            ]
        total = checksum(words[: fields.last + 1])
        cycles = self.machine.cycles(len(self.tokens) - 1)
        return np.array([int(logits.argmax()), cycles, total & 0xFFFF, total >> 16, len(words)])

    def reset(self):
        super().reset()
        self.tokens = []


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

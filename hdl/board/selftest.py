"""Whether a decoder on a board computes what the specification does, and which stage is the first
that does not.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fixedpoint import QuantizedTransformer
from fixedpoint.qformat import IntegerArray

from ..decoder.accelerator import Turn
from ..decoder.machine import Machine
from ..decoder.plan import Plan
from ..decoder.probe import Unit, checksum
from ..errors import ToolError
from .decoder_host import Answer, DecoderHost

TOKENS = 4  # of the sequence whose first and last token are compared stage by stage


@dataclass(frozen=True)
class Stage:
    """What a unit gives at one stage of a token.

    Attributes:
        name: The tensor's, as the specification calls it.
        unit: Which unit.
        last: The stage's last word among those that the unit gives.
        checksum: Of its words up to that one.
    """

    name: str
    unit: Unit
    last: int
    checksum: int


def weight_stages(plan: Plan) -> list[Stage]:
    """Return a stage for each matrix: the words of weights that the engine reads."""
    words = plan.weight_words()
    ends = [matrix.address + matrix.words for matrix in plan.matrices]
    return [
        Stage(matrix.name, Unit.WEIGHTS, end - 1, checksum(words[:end]))
        for matrix, end in zip(plan.matrices, ends, strict=True)
    ]


def token_stages(machine: Machine, tokens: Sequence[int]) -> list[Stage]:
    """Return the stages of a sequence's last token, in the order of the specification."""
    given: dict[Unit, list[int]] = {unit: [] for unit in Unit}
    stages = []
    for name, unit, words in token_words(machine, tokens):
        given[unit] += words
        stages.append(Stage(name, unit, len(given[unit]) - 1, checksum(given[unit])))
    return stages


def token_words(machine: Machine, tokens: Sequence[int]) -> Iterator[tuple[str, Unit, list[int]]]:
    """Yield what each unit gives for a sequence's last token, with the tensor's name."""
    for name, unit, values in _rows(machine, tokens):
        yield name, unit, _words(machine, unit, values)


def _rows(machine: Machine, tokens: Sequence[int]) -> Iterator[tuple[str, Unit, IntegerArray]]:
    """Yield what units give for a sequence's last token, in the machine's order, with the tensor's
    name.
    """
    plan, row = machine.plan, {}
    plan.model.forward(np.array([tokens]), observe=lambda name, values: row.update({name: values[0, -1]}))
    order = plan.query_order
    yield "embedding", Unit.RESIDUAL, row["embedding"]
    for layer, block in enumerate(plan.model.blocks):
        prefix = f"blocks.{layer}."

        def of(name: str, unit: Unit, channels: IntegerArray | slice = slice(None)) -> tuple[str, Unit, IntegerArray]:
            return prefix + name, unit, row[prefix + name][channels]  # noqa: B023 (used at once)

        yield of("attention_norm", Unit.NORMS)
        for name in ("query", "key", "value"):
            yield of(f"attention.{name}", Unit.MATRICES, order if name == "query" else slice(None))
            if plan.rotary and name != "value":
                yield of(f"attention.rotated_{name}", Unit.ROTATION, order if name == "query" else slice(None))
        yield of("attention.context", Unit.CONTEXT, order)
        yield of("attention.output", Unit.MATRICES)
        yield of("attention_residual", Unit.RESIDUAL)
        yield of("feed_forward_norm", Unit.NORMS)
        hidden, unit = row[prefix + "feed_forward.up"], Unit.MATRICES
        # what a matrix's last set of rows is filled up with, activated
        filling = block.activation.compute(np.zeros(1, np.int64))
        if block.product is not None:
            hidden = np.stack([row[prefix + "feed_forward.gate"], hidden], axis=1).ravel()
            filling = block.product.compute(filling, np.zeros(1, np.int64))
        yield prefix + "feed_forward.up", unit, _filled(hidden, plan.rows)
        activated = row[prefix + "feed_forward.activation"]
        yield prefix + "feed_forward.activation", Unit.ACTIVATION, _filled(activated, machine.hidden.count, filling[0])
        yield of("feed_forward.down", Unit.MATRICES)
        yield of("feed_forward_residual", Unit.RESIDUAL)
    yield "final_norm", Unit.NORMS, row["final_norm"]
    yield "logits", Unit.MATRICES, _filled(row["logits"], plan.rows)


def _filled(values: IntegerArray, count: int, filling: int = 0) -> IntegerArray:
    """Return values up to a multiple of `count`."""
    return np.concatenate([values, np.full(-len(values) % count, filling)])


def _words(machine: Machine, unit: Unit, values: IntegerArray) -> list[int]:
    """Return values as the words in which a unit gives them."""
    port = {
        Unit.RESIDUAL: machine.residual.o.values,
        Unit.NORMS: machine.norms.o.data,
        Unit.MATRICES: machine.requantize.o.values,
        Unit.CONTEXT: machine.divide.o.data,
        Unit.ACTIVATION: machine.hidden.o.values,
    }
    if machine.rotate is not None:
        port[Unit.ROTATION] = machine.rotate.o.values
    lanes, bits = len(port[unit]), len(port[unit][0])
    mask = (1 << bits) - 1
    return [
        sum((int(value) & mask) << (lane * bits) for lane, value in enumerate(values[start : start + lanes]))
        for start in range(0, len(values), lanes)
    ]


def check_decoder(board: DecoderHost, machine: Machine) -> int:
    """Compare a board's memories, then two tokens, with the specification; return the tokens sent.

    Args:
        board: Connected.
        machine: As it was built for the board.

    Raises:
        ToolError: Something differs; the message names the first stage that does.
    """
    plan, sent = machine.plan, 0
    model, context = plan.model, plan.context_length
    for stage in weight_stages(plan):
        _compare(board.ask([Turn(0, True)], stage.unit, stage.last), stage, "the weights of")
        sent += 1
    length = min(TOKENS, context)
    tokens = [(place * 7 + 1) % model.vocab_size for place in range(max(length, context))]
    # Each row of the tokens' table once, at the first position; each of the positions' once.
    for place, sequence in [(0, [token]) for token in range(model.vocab_size)] + [
        (place, tokens[: place + 1]) for place in range(context)
    ]:
        row = model.embedding.compute(np.array([sequence[-1:]]), place)[0, 0]
        words = _words(machine, Unit.RESIDUAL, row)
        stage = Stage(f"token {sequence[-1]} at position {place}", Unit.RESIDUAL, len(words) - 1, checksum(words))
        answer = board.ask([Turn(sequence[-1], place == 0)], stage.unit, stage.last)
        _compare(answer, stage, "the embedding of")
        sent += 1
    for number in range(plan.sequences):
        of = f"of sequence {number} " if plan.sequences > 1 else ""
        for sequence in (tokens[:1], tokens[:length]):
            where = f"{of}at position {len(sequence) - 1},"
            for stage in token_stages(machine, sequence):
                for place, token in enumerate(sequence):
                    answer = board.ask([*[None] * number, Turn(token, place == 0)], stage.unit, stage.last)
                    sent += 1
                _compare(answer, stage, where)
            _compare_choice(answer.tokens[number], model, sequence, where)
    if plan.sequences > 1:
        for place, token in enumerate(tokens[:length]):
            answer = board.ask([Turn(token, place == 0)] * plan.sequences)
            sent += plan.sequences
            for number, chosen in enumerate(answer.tokens):
                where = f"of sequence {number} at position {place}, with the other one,"
                _compare_choice(chosen, model, tokens[: place + 1], where)
    return sent


def _compare_choice(token: int, model: QuantizedTransformer, sequence: Sequence[int], where: str) -> None:
    wanted = int(model.forward(np.array([sequence]))[0, -1].argmax())
    if token != wanted:
        raise ToolError(f"{where} the choice differs: the board says token {token}, the specification {wanted}")


def _compare(answer: Answer, stage: Stage, where: str) -> None:
    if answer.checksum != stage.checksum:
        raise ToolError(
            f"{where} {stage.name} differ{'s' if where.endswith(',') else ''} on the board: checksum {answer.checksum:08x} of "
            f"{min(answer.count, stage.last + 1)} words, not {stage.checksum:08x} of {stage.last + 1}"
        )

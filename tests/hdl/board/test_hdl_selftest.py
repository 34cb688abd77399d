"""The host's end of a decoder, and its self-test, which names the first stage that differs."""

from dataclasses import replace

import numpy as np
import pytest
from decoder_boards import GoldenDecoder
from link_campaign import FaultyPort
from model_changes import changed, with_block, with_matrix
from model_kinds import make_model

from hdl.board.decoder_host import DecoderHost
from hdl.board.link import Identity
from hdl.board.selftest import check_decoder
from hdl.decoder.accelerator import Turn
from hdl.decoder.machine import Machine
from hdl.decoder.plan import Plan
from hdl.decoder.probe import checksum
from hdl.errors import ToolError

SIZES = {"channels": 12, "num_heads": 3, "context_length": 4, "hidden": 10, "vocab_size": 9, "weight_bits": 4}
DIGEST = bytes(range(8))


def machine_of(model, sequences=1):
    return Machine(Plan(model, 24, sequences=sequences))


def connect(machine, share=0.0):
    """Return a host at a board with a machine, and the board."""
    board = GoldenDecoder(machine, DIGEST)
    host = DecoderHost(FaultyPort(board, share, seed=1))
    host.identify()
    return host, board


def faults(model):
    """Yield a model with one fault, and what the self-test must say first."""
    value, output = model.blocks[1].attention.value, model.blocks[0].attention.output
    weight = changed(value.weight, (3, 5))
    yield with_block(model, 1, attention=with_matrix("value", weight=weight)), "the weights of blocks.1.attention.value"
    bias = changed(output.bias, 7, lambda value: value + 4096)
    yield with_block(model, 0, attention=with_matrix("output", bias=bias)), "at position 0, blocks.0.attention.output"
    for name, index, where in (("token", (7, 2), "token 7 at position 0"), ("position", (2, 1), "at position 2")):
        table = getattr(model.embedding, name)
        table = replace(table, weight=changed(table.weight, index, lambda value: value ^ 8))
        yield replace(model, embedding=replace(model.embedding, **{name: table})), f"the embedding of .*{where}"
    scale = changed(model.final_norm.scale, 11, lambda value: value // 2 + 9)
    yield replace(model, final_norm=replace(model.final_norm, scale=scale)), "at position 0, final_norm"
    table = model.blocks[0].activation.table
    broken = replace(model.blocks[0].activation, table=table[::-1].copy())
    yield with_block(model, 0, activation=lambda _: broken), "at position 0, blocks.0.feed_forward.activation"


def test_a_board_that_computes_as_specified_passes_on_a_bad_line():
    machine = machine_of(make_model(1, **SIZES))
    host, _ = connect(machine, share=0.1)
    sent = check_decoder(host, machine)
    assert sent > len(machine.plan.matrices) + 9 + 4
    assert host.host.repeated > 10


def test_two_sequences_survive_a_reset_of_the_board_between_any_tokens(monkeypatch):
    machine = machine_of(make_model(1, **SIZES), sequences=2)
    host, board = connect(machine, share=0.05)
    generator = np.random.default_rng(3)
    rows, asked = [[], []], []
    for step in range(16):
        if generator.random() < 0.5:
            board.reset()
        turns = [None, None]
        for number in generator.permutation(2)[: generator.integers(1, 3)]:
            row, restart = rows[number], not rows[number] or generator.random() < 0.1
            if restart or len(row) == machine.plan.context_length:
                row.clear()
            row.append(int(generator.integers(9)))
            turns[number] = Turn(row[-1], bool(restart))
        logits = [machine.plan.model.forward(np.array([row]))[0, -1] if row else None for row in rows]
        wanted = [0 if turn is None else int(one.argmax()) for turn, one in zip(turns, logits, strict=True)]
        answer = host.ask(turns)
        assert list(answer.tokens) == wanted, step
        asked.append(sum(turn is not None for turn in turns))
    assert host.host.recovered > 2 and {1, 2} == set(asked)
    # The self-test compares each alone before both together.
    monkeypatch.setattr("hdl.board.selftest.TOKENS", 1)
    ask = host.ask

    def wrong_together(turns, *words):
        answer = ask(turns, *words)
        return replace(answer, tokens=(answer.tokens[0], 8)) if None not in turns and len(turns) > 1 else answer

    monkeypatch.setattr(host, "ask", wrong_together)
    with pytest.raises(ToolError, match="of sequence 1 at position 0, with the other one, the choice differs"):
        check_decoder(host, machine)


def test_the_first_stage_that_differs_is_named():
    model = make_model(1, **SIZES)
    machine = machine_of(model)
    for faulty, named in faults(model):
        host, _ = connect(machine_of(faulty))
        with pytest.raises(ToolError, match=f"^{named} differs? on the board: checksum [0-9a-f]{{8}} of"):
            check_decoder(host, machine)


def test_a_wrong_choice_is_found(monkeypatch):
    machine = machine_of(make_model(1, **SIZES))
    host, _ = connect(machine)
    ask = host.ask
    monkeypatch.setattr(host, "ask", lambda *words, **more: replace(ask(*words, **more), tokens=(8,)))
    with pytest.raises(ToolError, match="at position 0, the choice differs: the board says token 8, the specification"):
        check_decoder(host, machine)


def test_another_model_or_no_decoder_is_refused():
    machine = machine_of(make_model(1, **SIZES))
    host, board = connect(machine)
    host.connect(DIGEST, 4)
    with pytest.raises(
        ToolError, match=f"another model or tokenizer: fingerprint {DIGEST.hex()}, .* not {bytes(8).hex()}"
    ):
        host.connect(bytes(8), 4)
    with pytest.raises(ToolError, match="the circuit on the board takes the likeliest token"):
        host.ask([Turn(1, True, (1, None))])
    board.identity = Identity(64, 4, DIGEST)
    with pytest.raises(ToolError, match="holds an attention accelerator, no decoder"):
        host.identify()


def test_a_checksum_tells_every_single_bit_and_the_order_of_words():
    generator = np.random.default_rng(1)
    words = [int.from_bytes(generator.bytes(17), "little") for _ in range(9)]
    others = [
        checksum([word ^ (1 << bit if at == place else 0) for at, word in enumerate(words)])
        for place in range(9)
        for bit in range(136)
    ]
    others += [checksum([words[1], words[0], *words[2:]]), checksum(words[:-1]), checksum([0, *words])]
    assert checksum(words) not in others[:-1]
    assert checksum(words) == others[-1], "leading words of zeros are told by their count"

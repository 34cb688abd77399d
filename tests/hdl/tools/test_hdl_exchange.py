"""Other contents in the block RAMs of a finished bitstream."""

import hashlib
import json
import re
from dataclasses import replace

import pytest
from amaranth.hdl import Elaboratable, Module, Signal
from amaranth.lib import io, memory
from exchange_simulation import check_exchanged_decoder
from model_changes import changed, with_block, with_matrix
from model_kinds import make_model

from hdl.board.boards import BOARDS, DecoderTop
from hdl.catalog.names import DEFAULT_BAUD
from hdl.decoder.machine import Machine
from hdl.decoder.plan import Plan
from hdl.errors import CircuitError
from hdl.tools.exchange import (
    NOTE_FILE,
    contents_of,
    exchanged,
    netlist_digest,
    refuse_other_design,
    reuse,
    tables_in_block_ram,
)
from hdl.tools.memory_check import memories
from hdl.tools.synthesis import synthesize

BOARD = BOARDS["ulx3s-25f"]
SIZES = {
    "channels": 8,
    "num_heads": 2,
    "context_length": 5,
    "hidden": 12,
    "vocab_size": 11,
    "weight_bits": 4,
    "num_layers": 1,
}


def cell(**parameters):
    return {"type": "DP16KD", "parameters": {"REGMODE_A": "NOREG", **parameters}}


def pair(place, low, high):
    """Return a parameter with one pair of words."""
    return f"{(low | high << 9) << (20 * place):0320b}"


def table(number, changes):
    words = [changes.get(place, 0) for place in range(2048)]
    return f".bram_init {number}\n" + "".join(
        " ".join(f"{word:03x}" for word in words[start : start + 8]) + "\n" for start in range(0, 2048, 8)
    )


def test_contents_go_from_a_netlist_s_parameters_into_the_configuration_s_tables():
    design = {
        "cells": {
            "a": cell(INITVAL_00=pair(5, 0x1CD, 0x155)),
            "b": cell(INITVAL_3F=pair(15, 1, 0x1FF)),
            "c": {"type": "LUT4", "parameters": {}},
        }
    }
    before = f".device X\n\n{table(4, {0: 7})}\n.tile Y\nword: EBR1.WID 001000000\n\n{table(3, {})}\n"
    wanted = f".device X\n\n{table(4, {10: 0x1CD, 11: 0x155})}\n.tile Y\nword: EBR1.WID 001000000\n\n{table(3, {2046: 1, 2047: 0x1FF})}\n"
    contents = contents_of(design)
    assert exchanged(before, {"a": 4, "b": 3}, contents) == wanted
    with pytest.raises(CircuitError, match="other block RAMs than its netlist"):
        exchanged(before, {"a": 4, "b": 5}, contents)
    with pytest.raises(CircuitError, match="other block RAMs than its netlist"):
        exchanged(before + table(6, {}), {"a": 4, "b": 3}, contents)


def test_a_netlist_is_the_same_whatever_its_contents_but_for_nothing_else():
    design = {"cells": {"a": cell(INITVAL_00="0"), "l": {"type": "LUT4", "parameters": {"INIT": "01"}}}, "ports": {}}
    other = json.loads(json.dumps(design))
    other["cells"]["a"]["parameters"] = {"REGMODE_A": "NOREG", "INITVAL_01": "1"}
    assert netlist_digest(other) == netlist_digest(design)
    for kind, key, value in (("a", "REGMODE_A", "OUTREG"), ("l", "INIT", "11")):
        third = json.loads(json.dumps(design))
        third["cells"][kind]["parameters"][key] = value
        assert netlist_digest(third) != netlist_digest(design)


def circuit(model, digest):
    top = DecoderTop(Machine(Plan(model, 16)), digest, BOARD, BOARD.frequency)
    plan = BOARD.platform().prepare(top, "decoder", emit_src=False)
    return {"il": tables_in_block_ram(plan.files["decoder.il"]), "lpf": plan.files["decoder.lpf"]}


def test_models_of_one_shape_and_its_formats_differ_in_block_ram_alone_others_are_refused(tmp_path):
    model = make_model(1, **SIZES)
    value, activation = model.blocks[0].attention.value, model.blocks[0].activation
    matrix = with_matrix("value", weight=changed(value.weight, (3, 5)))
    reversed_table = replace(activation, table=activation.table[::-1].copy())
    same_shape = with_block(model, 0, attention=matrix, activation=lambda _: reversed_table)
    files, others = circuit(model, bytes(8)), circuit(same_shape, bytes(range(8)))
    intents = memories(files["il"])
    assert {
        re.sub(r"\$\d+", "", path.rpartition("machine.")[2])
        for path, one in intents.items()
        if one.style == "block" and "machine" in path
    } == {
        *("requantize.table", "words.bank_0", "embedding.token", "embedding.token_shift", "embedding.position"),
        *("embedding.position_shift", "norms.affine"),
    }
    for suffix, text in files.items():
        (tmp_path / f"decoder.{suffix}").write_text(text, encoding="utf-8")
    with pytest.raises(CircuitError, match="keeps nothing to exchange; make one that does: --exchangeable"):
        refuse_other_design(others, tmp_path, "decoder")
    design = {"cells": {"a": cell()}}
    (tmp_path / NOTE_FILE).write_text(json.dumps({"netlist_sha256": netlist_digest(design)}), encoding="utf-8")
    refuse_other_design(others, tmp_path, "decoder")
    with pytest.raises(CircuitError, match="is for another board or clock"):
        refuse_other_design({**others, "lpf": "other"}, tmp_path, "decoder")
    # What differs stands in logic, says this log.
    work = tmp_path / "work"
    work.mkdir()
    (work / "decoder.il").write_text(others["il"], encoding="utf-8")
    lines = "mapping memory decoder.core.link.identity via $__DP16KD_", "mapping memory x.y via $__TRELLIS_DPR16X4_"
    (work / "yosys.log").write_text("\n".join(lines) + "\n", encoding="utf-8")
    other = {"cells": {**design["cells"], "lut": {"type": "LUT4", "parameters": {}}}}
    (work / "decoder.json").write_text(json.dumps({"modules": {"decoder": other}}), encoding="utf-8")
    with pytest.raises(CircuitError, match=r"^contents that would change stand in logic: \S+\.machine\.words\.bank_0$"):
        reuse(work, tmp_path, "decoder")
    with pytest.raises(CircuitError, match=r"^more than memory contents would change: .*machine\.residual[,;]"):
        refuse_other_design(circuit(make_model(1, **SIZES, residual_bits=15), bytes(8)), tmp_path, "decoder")


class Lookup(Elaboratable):
    """Lights from a table in block RAM, and a table in logic."""

    def __init__(self, content, small=0):
        self.content, self.small = content, small

    def elaborate(self, platform):
        m = Module()
        m.submodules.table = table = memory.Memory(shape=8, depth=1024, init=self.content, attrs={"ram_style": "block"})
        m.submodules.few = few = memory.Memory(
            shape=8, depth=8, init=[self.small, 1, 2, 3], attrs={"ram_style": "logic"}
        )
        port, other, place = table.read_port(), few.read_port(), Signal(10)
        m.d.sync += place.eq(place + 1)
        m.d.comb += [port.addr.eq(place), other.addr.eq(place)]
        for number in range(8):
            m.submodules[f"light_{number}"] = light = io.Buffer("o", platform.request("led", number, dir="-"))
            m.d.comb += light.o.eq(port.data[number] ^ other.data[number])
        return m


@pytest.mark.campaign
def test_an_exchange_gives_the_bitstream_of_place_and_route_byte_for_byte(tmp_path):
    first, second = ([(place * factor + 3) % 256 for place in range(1024)] for factor in (7, 91))
    settings = {"name": "lookup", "progress": False, "exchangeable": True}
    synthesize(Lookup(first), BOARD, tmp_path / "first", **settings)
    whole = synthesize(Lookup(second), BOARD, tmp_path / "whole", **settings)
    quick = synthesize(Lookup(second), BOARD, tmp_path / "quick", **settings, reused=tmp_path / "first")
    assert "place and route" not in quick.seconds
    content = (tmp_path / "quick" / "lookup.bit").read_bytes()
    assert (
        content == (tmp_path / "whole" / "lookup.bit").read_bytes() != (tmp_path / "first" / "lookup.bit").read_bytes()
    )
    assert quick.bitstream_sha256 == hashlib.sha256(content).hexdigest() == whole.bitstream_sha256
    again = synthesize(Lookup(first), BOARD, tmp_path / "quick", **settings, reused=tmp_path / "quick")
    assert again.bitstream_sha256 == hashlib.sha256((tmp_path / "first" / "lookup.bit").read_bytes()).hexdigest()
    with pytest.raises(CircuitError, match=r"contents that would change stand in logic: lookup\.few"):
        synthesize(Lookup(second, small=9), BOARD, tmp_path / "other", **settings, reused=tmp_path / "first")
    assert not (tmp_path / "other").exists()


@pytest.mark.campaign
def test_an_exchanged_decoder_writes_the_new_model_s_tokens(tmp_path):
    board, model = BOARDS["orangecrab-25f"], make_model(1, **SIZES)
    weights = changed(model.logits.weight, slice(None), lambda rows: rows[::-1].copy())
    other = replace(model, logits=replace(model.logits, weight=weights))
    for name, one in (("old", model), ("new", other)):
        top = DecoderTop(Machine(Plan(one, 16)), name.encode().ljust(8), board, board.frequency)
        reused = tmp_path / "old" if name == "new" else None
        settings = {"name": "decoder", "progress": False, "baud": DEFAULT_BAUD, "exchangeable": True}
        synthesize(top, board, tmp_path / name, **settings, reused=reused)
    (tmp_path / "work").mkdir()
    check_exchanged_decoder(tmp_path / "old", tmp_path / "new", other, b"new".ljust(8), 12, tmp_path / "work")

"""Commands with a decoder on a board, at a pseudo-terminal."""

import json
import os
from dataclasses import replace

import pytest
from decoder_boards import GoldenDecoder, terminal
from model_changes import changed, with_block, with_matrix
from reports import write_report
from wire_bench import WireBoard

from hdl.board import session
from hdl.board.boards import SerialAccelerator, decoder_identity
from hdl.board.selftest import Stage
from hdl.decoder.accelerator import DecoderAccelerator
from hdl.decoder.machine import Machine
from hdl.decoder.plan import Plan
from hdl.decoder.probe import Unit
from scripts import cli
from scripts.board import PLAN, fingerprint
from scripts.commands import load, selftest
from scripts.runs import MADE_FROM, load_named_quantized, open_run


class Nobody:
    """A board that does not answer."""

    def exchange(self, received):
        return b""


@pytest.fixture
def golden(tiny_run):
    """Return a board with the tiny run's decoder."""
    directory = open_run(tiny_run)
    quantized, digest = load_named_quantized(directory)
    return GoldenDecoder(Machine(Plan(quantized, 32)), fingerprint(directory, digest))


def test_a_board_writes_the_integer_model_s_text(golden, tiny_run, capsys):
    words = ["generate", str(tiny_run), "--length", "12", "--prompt", "The "]
    assert cli.main([*words, "--quantized", "--temperature", "0"]) == 0
    wanted = capsys.readouterr().out
    with terminal(golden) as port:
        assert cli.main([*words, "--device", port]) == 0
        printed = capsys.readouterr()
        assert printed.out == wanted
        cycles = [golden.machine.cycles(position) for position in range(15)]
        assert f"15 tokens through the board, {sum(cycles) / 15:,.0f} cycles each; " in printed.err
        assert cli.main([*words, "--device", port, "--temperature", "0.5"]) == 1
    assert "takes the likeliest token; ask for --temperature 0" in capsys.readouterr().err


def test_a_board_of_two_sequences_writes_two_texts_of_the_integer_model(golden, tiny_run, capsys):
    """Sampled, in a shorter context than the model's; then one text alone."""
    plan = replace(golden.machine.plan, sequences=2, sampling=True, context=golden.machine.plan.context_length - 4)
    board = GoldenDecoder(Machine(plan), golden.identity.digest)
    words = ["generate", str(tiny_run), "--length", "24", "--prompt", "The ", "--seed", "6"]
    pair = [*words, "--prompt", "a", "--sequences", "2"]
    with terminal(board) as port:
        assert cli.main([*pair, "--device", port]) == 0
        printed = capsys.readouterr()
        assert printed.out.startswith(("1: The ", "2: a")) and "48 tokens written in " in printed.err
        assert cli.main([*words, "--device", port]) == 0
        assert capsys.readouterr().out.rstrip("\n") == (tiny_run / "sample.txt").read_text("utf-8").rstrip("\n")
    with terminal(golden) as port:
        assert cli.main([*pair, "--device", port]) == 1
    assert "error: the circuit on the board writes one text: positron synthesize RUN --seq" in capsys.readouterr().err


def test_a_board_with_another_tokenizer_or_none_at_all_is_refused(golden, tiny_run, capsys, monkeypatch):
    tokenizer = tiny_run / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    with terminal(golden) as port:
        assert cli.main(["generate", str(tiny_run), "--device", port]) == 1
    assert "error: the board holds another model or tokenizer: fingerprint " in capsys.readouterr().err
    assert golden.requests == 0
    monkeypatch.setattr(session, "ANSWER_SECONDS", 0.01)
    with terminal(Nobody()) as port:
        assert cli.main(["generate", str(tiny_run), "--device", port]) == 1
    assert "error: the board did not answer 6 times" in capsys.readouterr().err
    assert cli.main(["generate", str(tiny_run), "--device", "/dev/no board"]) == 1
    assert "error: cannot open the serial port /dev/no board" in capsys.readouterr().err


@pytest.fixture
def built(golden, tiny_run):
    """Have the tiny run a bitstream of the board's decoder."""
    plan = golden.machine.plan
    write_report(tiny_run / "synthesis", None)
    record = {"fingerprint": golden.identity.digest.hex(), **{name: getattr(plan, name) for name in PLAN}}
    (tiny_run / "synthesis" / MADE_FROM).write_text(json.dumps(record), encoding="utf-8")
    return tiny_run


def test_the_self_test_finds_the_run_and_names_what_differs(golden, built, capsys, monkeypatch):
    monkeypatch.setattr(selftest, "RUNS", built.parent)
    monkeypatch.setattr("hdl.board.selftest.TOKENS", 1)
    with terminal(golden) as port:
        assert cli.main(["selftest", port]) == 0
        assert f"the board computes as {built} says: weights, embeddings and every stage" in capsys.readouterr().out
        monkeypatch.setattr("hdl.board.selftest.weight_stages", lambda plan: [Stage("logits", Unit.WEIGHTS, 0, 1)])
        assert cli.main(["selftest", port, str(built)]) == 1
        assert "error: the weights of logits differ on the board: checksum " in capsys.readouterr().err
        (built / "synthesis" / MADE_FROM).unlink()
        assert cli.main(["selftest", port]) == 1
    assert "error: no run in " in capsys.readouterr().err


def compiled(machine, digest, builds):
    """Return a board's circuit in Verilator, UART and all."""
    divisor, frequency = 4, 1e6
    accelerator = DecoderAccelerator(machine)
    circuit = SerialAccelerator(accelerator, decoder_identity(accelerator, digest), frequency, frequency / divisor)
    return WireBoard("decoder", circuit, divisor, 2 * machine.cycles(machine.plan.context_length - 1), builds)


@pytest.mark.campaign
def test_the_compiled_circuit_writes_text_passes_and_fails_where_it_has_a_fault(
    golden, built, capsys, simulation_builds
):
    model, digest = golden.machine.plan.model, golden.identity.digest
    note = built / "synthesis" / MADE_FROM
    note.write_text(json.dumps({**json.loads(note.read_text("utf-8")), "sampling": True}), encoding="utf-8")
    generate = ["generate", str(built), "--length", "40", "--seed", "3"]
    with compiled(Machine(Plan(model, 32, sampling=True)), digest, simulation_builds) as board, terminal(board) as port:
        for choice in (["--temperature", "0"], []):
            assert cli.main([*generate, *choice, "--quantized"]) == 0
            wanted = capsys.readouterr().out
            assert cli.main([*generate, *choice, "--device", port]) == 0
            assert capsys.readouterr().out == wanted
        assert cli.main(["selftest", port, str(built)]) == 0
    output, norm = model.blocks[1].attention.output, model.final_norm
    weight, scale = changed(output.weight, (5, 9)), changed(norm.scale, 3, lambda value: value ^ 256)
    faults = {
        "the weights of blocks.1.attention.output differ": with_block(
            model, 1, attention=with_matrix("output", weight=weight)
        ),
        "at position 0, final_norm differs": replace(model, final_norm=replace(norm, scale=scale)),
    }
    for named, faulty in faults.items():
        machine = Machine(Plan(faulty, 32, sampling=True))
        with compiled(machine, digest, simulation_builds) as board, terminal(board) as port:
            capsys.readouterr()
            assert cli.main(["selftest", port, str(built)]) == 1
            assert f"error: {named} on the board: checksum " in capsys.readouterr().err


@pytest.mark.campaign
def test_the_compiled_circuit_of_two_sequences_writes_two_texts_and_passes(golden, built, capsys, simulation_builds):
    note = built / "synthesis" / MADE_FROM
    record = {**json.loads(note.read_text("utf-8")), "sampling": True, "sequences": 2}
    note.write_text(json.dumps(record), encoding="utf-8")
    machine = Machine(Plan(golden.machine.plan.model, 32, sampling=True, sequences=2))
    words = ["generate", str(built), "--length", "40", "--seed", "3", "--sequences", "2", "--prompt", "The "]
    with compiled(machine, golden.identity.digest, simulation_builds) as board, terminal(board) as port:
        assert cli.main([*words, "--prompt", "a", "--device", port]) == 0, "else a text is not the integer model's"
        assert "80 tokens written in " in capsys.readouterr().err
        assert cli.main(["selftest", port, str(built)]) == 0


def test_a_bitstream_is_loaded_by_the_first_program_that_is_there(built, capsys, monkeypatch, tmp_path):
    bitstream = built / "synthesis" / "attention.bit"
    monkeypatch.setattr(load, "search_path", lambda: [tmp_path])
    assert cli.main(["load", str(built)]) == 1
    command = f"install it and run: openFPGALoader -b ulx3s {bitstream}"
    assert f"error: openFPGALoader or fujprog is not installed; {command}\n" == capsys.readouterr().err
    program, taken = tmp_path / "fujprog", tmp_path / "taken"
    program.write_text(f'#!/bin/sh\ncp "$1" "{taken}"\n', encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert cli.main(["load", str(built)]) == 0
    assert taken.read_bytes() == bitstream.read_bytes()
    program.write_text("#!/bin/sh\nexit 3\n", encoding="utf-8")
    assert cli.main(["load", str(built)]) == 1
    assert "error: fujprog failed with exit status 3; is the board ulx3s-85f connected" in capsys.readouterr().err
    bitstream.write_bytes(b"cut")
    assert cli.main(["load", str(built)]) == 1
    assert (
        f"error: there is no complete bitstream in {built / 'synthesis'}; make one: positron" in capsys.readouterr().err
    )

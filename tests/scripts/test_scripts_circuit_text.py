"""Text of a circuit that is only pretended: equal to the integer model's, or refused."""

import json
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from fixedpoint import load_export
from fixedpoint.generation import generate_batch
from hdl.board.boards import BOARDS
from hdl.board.decoder_estimate import best_estimate
from hdl.board.selftest import token_stages
from hdl.errors import CircuitError
from model.tokenizers.tokenizer import load_tokenizer
from scripts import circuit_text, cli
from scripts.circuit_text import write_text
from sim.simulators.decoder_process import SimulatedDecoder


@pytest.fixture
def pretended(monkeypatch):
    """A circuit computed by the integer model; `wrong` and `late` are the steps that go wrong."""
    faults = {"wrong": -1, "late": -1, "stage": ""}

    def start(self, machine, directory, probed=False):
        self.machine, self.cycles = machine, []
        self.tokens = [[] for _ in range(machine.plan.sequences)]

    def step(self, turns):
        number, given, places = len(self.cycles), [0, 0], [None, None]
        for owner, turn in enumerate(turns):
            if turn is not None:
                tokens = self.tokens[owner] = [*([] if turn.restart else self.tokens[owner]), turn.token]
                places[owner] = len(tokens) - 1
                logits = self.machine.plan.model.forward(np.array([tokens]))[0, -1]
                given[owner] = int(logits.argsort()[-1 - (number == faults["wrong"])])
        self.cycles.append(self.machine.cycles(places[: len(self.tokens)]) + (number == faults["late"]))
        return given

    @cache
    def stages(machine, tokens):
        return token_stages(machine, list(tokens))

    def ask(self, turns, unit, last):
        (turn,) = turns
        self.tokens[0] = [*([] if turn.restart else self.tokens[0]), turn.token]
        found = [one for one in stages(self.machine, tuple(self.tokens[0])) if (one.unit, one.last) == (unit, last)]
        return found[0].checksum ^ (found[0].name == faults["stage"])

    for name, function in (("__init__", start), ("step", step), ("ask", ask), ("close", lambda self: None)):
        monkeypatch.setattr(SimulatedDecoder, name, function)
    return faults


def write(run: Path, count: int) -> circuit_text.CircuitText:
    chosen = best_estimate(load_export(run / "quantized"), BOARDS["ulx3s-85f"], smallest=True)
    return write_text(chosen, load_tokenizer(run / "tokenizer.json"), "The ", count, run / "build")


def test_the_text_is_the_integer_models_beyond_a_full_context(pretended, tiny_run: Path) -> None:
    written = write(tiny_run, 30)
    quantized, tokenizer = load_export(tiny_run / "quantized"), load_tokenizer(tiny_run / "tokenizer.json")
    assert written.text == tokenizer.decode(generate_batch(quantized, [tokenizer.encode("The ")], 30)[0])
    assert written.tokens > 33  # those of a new context again
    assert written.lanes == 32


@pytest.mark.parametrize(
    ("fault", "message"),
    [("wrong", r"token 12 of the text is \d+, the integer model's is \d+"), ("late", "position 11 took .* not")],
)
def test_another_token_or_another_time_is_refused(pretended, tiny_run: Path, fault: str, message: str) -> None:
    pretended[fault] = 11
    with pytest.raises(CircuitError, match=message):
        write(tiny_run, 20)


def test_two_texts_come_in_labelled_lines_and_stand_in_the_sample(pretended, tiny_run: Path, capsys) -> None:
    words = ["generate", str(tiny_run), "--device", "simulated", "--sequences", "2", "--temperature", "0"]
    prompts = ["--prompt", "The ", "--prompt", "a"]
    assert cli.main([*words, *prompts, "--length", "30"]) == 0
    quantized, tokenizer = load_export(tiny_run / "quantized"), load_tokenizer(tiny_run / "tokenizer.json")
    texts = [
        prompt + tokenizer.decode(generate_batch(quantized, [tokenizer.encode(prompt)], 30)[0])
        for prompt in ("The ", "a")
    ]
    printed = capsys.readouterr()
    assert (tiny_run / "sample.txt").read_text(encoding="utf-8") == "\n\n".join(texts) + "\n"
    lines = printed.out.splitlines()
    for number, text in enumerate(texts, 1):
        shown = [line.removeprefix(f"{number}: ") for line in lines if line.startswith(f"{number}: ")]
        assert "".join(shown) == text.replace("\n", "")
    assert "two sequences of " in printed.err and "60 tokens written in " in printed.err
    pretended["wrong"] = 9
    assert cli.main([*words, *prompts]) == 1
    assert "of text 1 is" in capsys.readouterr().err
    for wrong, message in (("3", "--sequences is 1, or 2 with --device, not 3"), ("1", "--prompt is given 2 times")):
        assert cli.main([*words[:-4], "--sequences", wrong, *prompts]) == 1
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_simulate_keeps_the_text_and_fails_where_it_differs(pretended, tiny_run: Path, capsys) -> None:
    words = ["simulate", str(tiny_run), "--simulator", "verilator", "--only", "decoder", "--smallest"]
    assert cli.main(words) == 0
    results = json.loads((tiny_run / "simulation" / "results.json").read_text())
    assert results["written"]["text"] in capsys.readouterr().out
    assert [(one["name"], one["equal"]) for one in results["benches"]] == [("decoder", True)]
    layers = {one["name"]: one for one in results["layers"]}
    assert [*layers][:: len(layers) - 1] == ["embedding", "logits"]
    query = layers["blocks.1.attention.query"]
    assert len(query["exact"]) == len(query["integers"]) == 32 and query["decibels"] > 20
    assert query["error"] >= max(abs(a - b) for a, b in zip(query["exact"], query["integers"], strict=True)) * 0.99
    assert re.fullmatch("[0-9a-f]{8}", query["checksum"])
    pretended["stage"] = "blocks.1.attention.query"
    assert cli.main(words) == 1
    assert "error: decoder: blocks.1.attention.query of token 3 has the checksum" in capsys.readouterr().err
    pretended["wrong"], pretended["stage"] = 5, ""
    assert cli.main(words) == 1
    assert "error: decoder: token" in capsys.readouterr().err
    assert json.loads((tiny_run / "simulation" / "results.json").read_text())["written"] is None

"""Text of a circuit that is only pretended: equal to the integer model's, or refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from fixedpoint import load_export
from fixedpoint.generation import generate_batch
from hdl.board.boards import BOARDS
from hdl.board.decoder_estimate import best_estimate
from hdl.errors import CircuitError
from model.tokenizers.tokenizer import load_tokenizer
from scripts import circuit_text, cli
from scripts.circuit_text import write_text
from sim.simulators.decoder_process import SimulatedDecoder


@pytest.fixture
def pretended(monkeypatch):
    """A circuit computed by the integer model; `wrong` and `late` are the steps that go wrong."""
    faults = {"wrong": -1, "late": -1}

    def start(self, machine, directory):
        self.machine, self.cycles, self.tokens = machine, [], []

    def step(self, token, *, restart, choice=None):
        self.tokens = [token] if restart else [*self.tokens, token]
        number = len(self.cycles)
        self.cycles.append(self.machine.cycles(len(self.tokens) - 1) + (number == faults["late"]))
        logits = self.machine.plan.model.forward(np.array([self.tokens]))[0, -1]
        return int(logits.argsort()[-1 - (number == faults["wrong"])])

    for name, function in (("__init__", start), ("step", step), ("close", lambda self: None)):
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


def test_simulate_keeps_the_text_and_fails_where_it_differs(pretended, tiny_run: Path, capsys) -> None:
    words = ["simulate", str(tiny_run), "--simulator", "verilator", "--only", "decoder", "--smallest"]
    assert cli.main(words) == 0
    results = json.loads((tiny_run / "simulation" / "results.json").read_text())
    assert results["written"]["text"] in capsys.readouterr().out
    assert [(one["name"], one["equal"]) for one in results["benches"]] == [("decoder", True)]
    pretended["wrong"] = 5
    assert cli.main(words) == 1
    assert "error: decoder: token" in capsys.readouterr().err
    assert json.loads((tiny_run / "simulation" / "results.json").read_text())["written"] is None

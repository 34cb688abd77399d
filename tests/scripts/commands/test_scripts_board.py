"""Commands with a decoder on a board, at a pseudo-terminal."""

import pytest
from decoder_boards import GoldenDecoder, terminal

from hdl.board import session
from hdl.decoder.machine import Machine
from hdl.decoder.plan import Plan
from scripts import cli
from scripts.board import fingerprint
from scripts.runs import load_named_quantized, open_run


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

import json
from pathlib import Path

import pytest

from fixedpoint import load_export
from hdl.board.boards import find_board
from hdl.board.decoder_estimate import best_estimate
from scripts import cli
from scripts.benchmarks.decoder import predict


def test_figures_are_printed_and_written(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "figures.json"
    words = ["benchmark", "decoder", str(tiny_run), "--frequency", "80", "--seconds", "0.1", "--json", str(path)]
    assert cli.main(words) == 0
    figures = json.loads(path.read_text())
    mean = figures["positions"]["mean of the context"]["cycles"]
    assert figures["tokens_per_second"]["circuit, 80 MHz"] == pytest.approx(80e6 / mean)
    assert "engine at work" in capsys.readouterr().out


def test_the_engines_words_bound_the_cycles_from_below(tiny_run: Path) -> None:
    quantized = load_export(tiny_run / "quantized")
    figures = predict(quantized, "ulx3s-85f")
    assert all(0 < one["words"] < one["cycles"] for one in figures["positions"].values())
    chosen = best_estimate(quantized, find_board("ulx3s-85f"))
    pair = figures["two_sequences"]
    assert all(0 < one["words"] < one["cycles"] for one in pair["positions"].values())
    assert pair["context"] == quantized.context_length
    of_both, of_one = (one["positions"]["mean of the context"]["cycles"] for one in (pair, figures))
    assert of_one / 2 < of_both < of_one
    assert (figures["lanes"], figures["positions"]["last position"]["cycles"]) == (chosen.plan.lanes, chosen.last)


def test_estimates_name_the_boards_and_what_does_not_fit(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["synthesize", str(tiny_run), "--estimate"]) == 0
    printed = capsys.readouterr().out
    assert "ulx3s-85f" in printed
    assert "tokens a second" in printed
    assert "with all else as it is ulx3s-12f has room for a width of 16" in printed
    assert cli.main(["synthesize", str(tiny_run), "--only", "attention", "--lanes", "4"]) == 1
    assert "--sequences, --exchangeable and --reuse belong to the whole decoder" in capsys.readouterr().err
    assert cli.main(["synthesize", str(tiny_run), "--sequences", "2", "--estimate", "--lanes", "64"]) == 0
    printed = capsys.readouterr().out
    assert "positions" in printed and "ulx3s-12f" in printed and "two sequences do not fit" in printed
    assert cli.main(["synthesize", str(tiny_run), "--sequences", "3"]) == 1
    assert capsys.readouterr().err == "error: --sequences is 1 or 2, not 3\n"
    assert cli.main(["synthesize", str(tiny_run), "--layer", "1"]) == 1
    assert "the decoder holds all layers" in capsys.readouterr().err

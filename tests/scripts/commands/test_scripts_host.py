import dataclasses
import json
from contextlib import contextmanager

import numpy as np
import pytest
from link_campaign import FaultyPort
from link_model import LinkModel
from reports import write_report

from hdl.board.link import Identity
from hdl.catalog.names import DEFAULT_BAUD
from hdl.tools.synthesis_report import REPORT_FILE, SynthesisReport
from scripts import cli
from scripts.commands import host
from scripts.runs import load_quantized, open_run


class GoldenBoard(LinkModel):
    """A board with a run's attention, computed by the golden model."""

    def __init__(self, parameters):
        self.parameters, self.tokens = parameters, []
        super().__init__(Identity.of(parameters), self.attend)

    def attend(self, vector, restart):
        self.tokens = [*([] if restart else self.tokens), vector]
        starts = np.arange(len(self.tokens)) == 0
        return self.parameters.compute_stream(np.array(self.tokens, dtype=np.int64), starts)[-1]

    def reset(self):
        super().reset()
        self.tokens = []


@pytest.fixture
def ports(monkeypatch, tiny_run):
    """Have `positron host` open a bad wire to a board; return what it opened."""
    opened = []

    @contextmanager
    def open_port(name, baud):
        opened.append((name, baud))
        yield FaultyPort(GoldenBoard(load_quantized(open_run(tiny_run)).blocks[0].attention), 0.3, seed=1)

    monkeypatch.setattr(host, "open_port", open_port)
    return opened


def test_a_board_with_transmission_errors_is_exercised_and_they_are_counted(ports, tiny_run, tmp_path, capsys):
    figures = tmp_path / "figures.json"
    assert cli.main(["host", str(tiny_run), "--port", "wire", "--vectors", "60", "--json", str(figures)]) == 0
    printed = capsys.readouterr().out
    counts = json.loads(figures.read_text(encoding="utf-8"))
    assert f"{60 * 32:,} values of 60 tokens are all equal to the golden model's" in printed
    assert counts["repeated_requests"] > 5
    assert counts["recovered_sequences"] > 0
    assert (
        f"{counts['repeated_requests']:,} requests were sent again because no answer came, "
        f"{counts['recovered_sequences']:,} sequences because the board had been reset"
    ) in printed


@pytest.mark.parametrize(
    ("synthesized", "asked", "used"),
    [
        (None, None, DEFAULT_BAUD),
        (115_200, None, 115_200),
        (115_200, 2_000_000, 2_000_000),
        ("no report", None, DEFAULT_BAUD),
    ],
)
def test_the_baud_rate_is_the_bitstreams_unless_another_is_asked_for(ports, tiny_run, synthesized, asked, used):
    if synthesized != "no report":
        write_report(tiny_run / "synthesis_attention", synthesized)
    words = ["host", str(tiny_run), "--port", "wire", "--vectors", "1"]
    assert cli.main(words + (["--baud", str(asked)] if asked else [])) == 0
    assert ports == [("wire", used)]


def test_synthesis_makes_the_bitstream_for_the_baud_rate_and_writes_it_down(tiny_run, monkeypatch, capsys):
    made = []

    def synthesize(top, board, directory, **settings):
        made.append((top.baud, settings["baud"]))
        write_report(directory, settings["baud"])
        return SynthesisReport.from_json((directory / REPORT_FILE).read_text(encoding="utf-8"))

    monkeypatch.setattr("hdl.tools.synthesis.synthesize", synthesize)
    figures = tiny_run / "figures.json"
    assert cli.main(["synthesize", str(tiny_run), "--baud", "115200", "--json", str(figures)]) == 0
    assert made == [(115_200, 115_200)]
    assert json.loads(figures.read_text(encoding="utf-8"))["baud"] == 115_200
    capsys.readouterr()
    assert cli.main(["synthesize", str(tiny_run), "--baud", "20000000"]) == 1
    assert "a UART at 20,000,000 baud needs a clock of at least 80,000,000 Hz" in capsys.readouterr().err
    assert cli.main(["synthesize", "--core", "uart", "--baud", "115200"]) == 1
    assert "--baud belongs to a board's serial port" in capsys.readouterr().err


def test_a_report_without_a_baud_rate_is_read(tiny_run):
    write_report(tiny_run / "synthesis", None)
    file = tiny_run / "synthesis" / REPORT_FILE
    figures = json.loads(file.read_text(encoding="utf-8"))
    del figures["baud"]
    report = SynthesisReport.from_json(json.dumps(figures))
    assert report == dataclasses.replace(report, baud=None)

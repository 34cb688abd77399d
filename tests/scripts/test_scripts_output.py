import argparse
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from scripts.output import add_json_argument, compiling, format_duration, format_table, to_json, write_json


@dataclass(frozen=True)
class Row:
    name: str
    values: tuple[float, ...]


def test_table_aligns_numbers_right_and_text_left() -> None:
    table = format_table(("core", "cycles", "Fmax"), [("softmax", 1234567, 112.34567), ("norm", 9, None)])
    assert table.splitlines() == [
        "core        cycles   Fmax",
        "-------  ---------  -----",
        "softmax  1,234,567  112.3",
        "norm             9      –",
    ]


def test_large_and_infinite_numbers_in_a_table() -> None:
    table = format_table(("tokens/s",), [(123456.7,), (0.00012346,), (math.inf,), (-math.inf,)])
    assert [line.strip() for line in table.splitlines()[2:]] == ["123,457", "0.0001235", "inf", "-inf"]


def test_a_path_that_is_not_utf_8_can_be_written(tmp_path: Path) -> None:
    write_json(tmp_path / "figures.json", {"trace": Path("a – \udcff.vcd")})
    assert json.loads((tmp_path / "figures.json").read_text(encoding="utf-8")) == {"trace": "a – \ufffd.vcd"}


def test_table_without_rows_keeps_its_headings() -> None:
    assert format_table(("a", "bb"), []).splitlines() == ["a  bb", "-  --"]


def test_table_refuses_rows_of_another_length() -> None:
    with pytest.raises(ValueError, match=r"longer|shorter"):
        format_table(("a", "b"), [(1,)])


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (3720, "1 h 02 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_json_holds_arrays_dataclasses_paths_and_no_nan(tmp_path: Path) -> None:
    path = tmp_path / "new" / "figures.json"
    write_json(
        path,
        {
            "rows": [Row("ü", (1.5, math.inf))],
            "array": np.arange(3, dtype=np.int16),
            "scalar": np.float32(0.5),
            "at": Path("x"),
        },
    )
    text = path.read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=pytest.fail) == {
        "rows": [{"name": "ü", "values": [1.5, None]}],
        "array": [0, 1, 2],
        "scalar": 0.5,
        "at": "x",
    }


def test_json_refuses_what_it_cannot_hold() -> None:
    with pytest.raises(TypeError, match="set has no JSON form"):
        to_json({"a": {1, 2}})


def test_json_argument_is_a_path() -> None:
    parser = argparse.ArgumentParser()
    add_json_argument(parser)
    assert parser.parse_args(["--json", "a.json"]).json == Path("a.json")
    assert parser.parse_args([]).json is None


def test_compiling_shows_the_files_that_are_done(tmp_path, monkeypatch):
    shown = []

    class Bar:
        disable = False

        def __init__(self, **options):
            self.close = lambda: shown.append("closed")

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.close()

        def set_description_str(self, text):
            shown.append(text)

    monkeypatch.setattr("scripts.output.tqdm", Bar)
    build = tmp_path / "building-1" / "verilated"
    build.mkdir(parents=True)
    for name in ("a.cpp", "b.cpp", "c.cpp", "a.o"):
        (build / name).touch()
    with compiling("decoder", tmp_path) as end:
        deadline = time.monotonic() + 10
        while not shown and time.monotonic() < deadline:
            time.sleep(0.05)
        end()
        assert shown == ["decoder: compiling, 1 of 3 files", "closed"]

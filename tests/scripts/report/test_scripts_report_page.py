"""The report's page: well formed, complete, and safe with whatever a run contains."""

import base64
import re
import shlex
import zlib
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pytest

from model.files import read_json
from scripts.report.charts import Series
from scripts.report.comparison import comparison
from scripts.report.data import Gap, ReportData
from scripts.report.html import fact_list, table
from scripts.report.machine import LADDER, STRIP, ladder, layers
from scripts.report.page import lead, page

HOSTILE = "<script>alert('x')</script>\"&$title"
SHOWN = ("block_rams", "multipliers", "luts")  # of a step of the ladder, beside its cycles
VOID = {"meta", "link", "br", "img", "hr", "input"}
MODEL = {
    "num_layers": 2,
    "num_heads": 2,
    "embed_dim": 8,
    "max_seq_len": 16,
    "parameters": 1234,
    "vocab_size": 30,
    "position": "learned",
    "ff_dim": 32,
    "activation": "gelu",
}
TENSOR = {"name": HOSTILE, "shape": [8, 8], "format": "Q1.7", "signal_to_noise": None, "saturated": 0.0}

SYNTHESIS = {
    "design": "decoder",
    "board": "ulx3s-85f",
    "luts": {"used": 8364, "available": 83640},
    "flip_flops": {"used": 5000, "available": 83640},
    "block_rams": {"used": 30, "available": 208},
    "multipliers": {"used": 68, "available": 156},
    "clocks": [
        {"name": "$glbnet$clk", "achieved_mhz": 84.25, "required_mhz": 50.0},
        {"name": "slow", "achieved_mhz": 12.0, "required_mhz": 25.0},
    ],
    "seconds": {"synthesis": 12.5, "place and route": 70.0},
    "bitstream": "top.bit",
    "bitstream_sha256": "ab" * 32,
}


def data(**changes: object) -> ReportData:
    complete: dict[str, object] = {
        "name": "runs/demo",
        "model": MODEL,
        "model_sha256": "0123456789abcdef" * 4,
        "manifest_sha256": "fedcba9876543210" * 4,
        "training": {"text": "stories", "seed": 1, "seconds": 61.0},
        "loss_curves": [Series("held out", [(0, 4.0), (10, 1.5)], "strong")],
        "prompt": "One",
        "sample": "One day",
        "tokens": list("One"),
        "attention": np.tril(np.ones((2, 2, 3, 3))) / 3,
        "quantization": {
            "settings": {"weight_bits": 8, "activation_bits": 8, "residual_bits": 16},
            "comparison": {
                "tokens": 100,
                "float_loss": 1.5,
                "fixed_loss": 1.5012,
                "difference": 0.0012,
                "same_choice": 0.99,
            },
            "weight_bytes": 4096,
            "weights": [TENSOR],
            "activations": [{**TENSOR, "signal_to_noise": 41.25, "saturated": 0.01}],
        },
        "simulation": {
            "simulator": "verilator",
            "seed": 3,
            "benches": [{"name": "softmax", "compared": 1000, "cycles": 2345, "stalls": True, "equal": True}],
        },
        "synthesis": SYNTHESIS,
        "versions": {"numpy": "2.0"},
    }
    return ReportData(**{**complete, **changes})  # type: ignore[arg-type]


class Balance(HTMLParser):
    """Checks that every element is closed, and notes what a browser would load or run."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.elements: set[str] = set()
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs) -> None:
        self.elements.add(tag)
        self.addresses += [
            value for name, value in attrs if name in ("href", "src", "action", "srcset", "data", "xlink:href")
        ]
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        self.text.append(data)


def parsed(report: ReportData) -> Balance:
    parser = Balance()
    parser.feed(page(report))
    parser.close()
    assert parser.open == []
    return parser


def test_page_is_well_formed_and_needs_nothing_from_elsewhere() -> None:
    result = parsed(data())
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in result.addresses)
    assert not result.elements & {"script", "link", "iframe", "object", "img"}
    assert "@import" not in page(data())
    assert "url(" not in page(data()).replace("url(#", "")


def test_page_shows_the_figures() -> None:
    text = " ".join(parsed(data()).text)
    for figure in (
        "1.500",
        "+0.0012",
        "1,000",
        "99.0%",
        "41.2",
        "exact",
        "2,345",
        "all equal",
        "1 min 01 s",
        "4,096 bytes",
    ):
        assert figure in text, figure


@pytest.mark.parametrize("field", ["name", "prompt", "sample"])
def test_text_of_a_run_is_escaped(field: str) -> None:
    result = parsed(data(**{field: HOSTILE}))
    assert "script" not in result.elements
    assert "alert('x')" in "".join(result.text)


def test_commands_on_the_page_are_quoted_for_a_shell() -> None:
    commands = re.findall("<code>(positron .*?)</code>", page(data(name="it's $HOME; ls", simulation=None)))
    assert len(commands) >= 2
    for command in commands:
        assert shlex.split(unescape(command))[2] == "it's $HOME; ls"


def test_everything_else_from_files_is_escaped() -> None:
    hostile_simulation = {
        "simulator": HOSTILE,
        "seed": 0,
        "benches": [{"name": HOSTILE, "compared": 1, "cycles": 1, "stalls": False, "equal": False}],
    }
    result = parsed(
        data(
            training={"text": HOSTILE, "seed": HOSTILE},
            tokens=[HOSTILE] * 3,
            model={**MODEL, "position": HOSTILE, "activation": HOSTILE},
            loss_curves=[Series(HOSTILE, [(0, 1.0)], "strong")],
            simulation=hostile_simulation,
            synthesis={
                **SYNTHESIS,
                "design": HOSTILE,
                "board": HOSTILE,
                "clocks": [{**SYNTHESIS["clocks"][0], "name": HOSTILE}],
                "seconds": {HOSTILE: 1.0},
                "bitstream": HOSTILE,
                "bitstream_sha256": HOSTILE,
            },
            versions={HOSTILE: HOSTILE},
        )
    )
    assert "script" not in result.elements
    assert "different" in result.text


def test_steps_that_were_not_run_are_named_with_their_command() -> None:
    text = " ".join(parsed(data(sample="", attention=None, quantization=None, simulation=None, synthesis=None)).text)
    for command in ("generate", "quantize", "simulate", "synthesize"):
        assert f"positron {command} runs/demo" in text


def test_prompt_is_marked_only_when_the_sample_starts_with_it() -> None:
    assert re.search(r"<b>One</b> day", page(data()))
    assert "<b></b>Once more" in page(data(sample="Once more", prompt="Two"))


def test_a_different_value_is_not_hidden() -> None:
    bench = {"name": "softmax", "compared": 0, "cycles": 0, "stalls": True, "equal": False}
    text = " ".join(parsed(data(simulation={"simulator": "verilator", "seed": 0, "benches": [bench]})).text)
    assert "1 of 1" in text
    assert "each equal" not in text
    assert "different" in text


def test_every_figure_names_its_model() -> None:
    html = page(data())
    cards = re.findall(r"<li>.*?</li>", html)
    model, integers = "model 0123456789ab", "integer model fedcba987654"
    assert [re.findall(r"<small>(.*?)</small>", card) for card in cards] == [[model]] + 3 * [[integers]]
    sections = dict(re.findall(r'<section id="(\w+)">(.*?)</section>', html, re.DOTALL))
    named = {section: re.findall(r'<p class="model">(.*?)</p>', text) for section, text in sections.items()}
    assert named == {
        "training": [model],
        "sample": [model],
        "write": [],
        "attention": [model],
        "follow": [],
        "quantization": [f"{integers} and {model}"],
        "simulation": [integers],
        "synthesis": [integers],
        "others": [],
    }
    assert f'<p class="model">{integers}</p>' in page(
        data(quantization=None, simulation=None, synthesis=None, sample_is_of_integers=True)
    )


def test_what_is_left_out_says_why_and_what_to_do() -> None:
    gap = Gap("<It> is old.", ("quantize 'my run'", "simulate 'my run'"))
    html = page(data(simulation=None, gaps={"simulation": gap}))
    assert (
        "&lt;It&gt; is old. Make it: <code>positron quantize &#x27;my run&#x27;</code>, then <code>positron sim" in html
    )
    assert "Not there yet. Make it: <code>positron synthesize runs/demo</code>" in page(data(synthesis=None))


def test_what_the_circuit_wrote_stands_at_the_end_with_its_speed() -> None:
    written = {"prompt": "One ", "text": f"day {HOSTILE}", "tokens": 1300, "cycles": 2500.0, "lanes": 32}
    simulation = {**(data().simulation or {}), "written": written}
    slow = {**SYNTHESIS, "clocks": SYNTHESIS["clocks"][:1], "seed_mhz": {"1": 60.0, "2": 84.25, "3": 70.5}}  # type: ignore[index]
    text = " ".join(parsed(data(simulation=simulation, synthesis=slow)).text)
    end = text[text.index("What the circuit writes") :]
    assert f"day {HOSTILE}" in end
    assert "1,300 tokens" in end
    assert "2,500 in the mean, 20,000 tokens a second at the board’s 50 MHz" in end
    assert "Of 3 seeds the slowest reached 60.0 MHz, the median 70.5 MHz, the fastest, which was kept, 84.2 MHz" in text


def test_the_machines_pictures_name_gaps_cores_and_the_slowest_path() -> None:
    spans = [
        {"unit": "engine", "work": "scores", "layer": 0, "begin": 40, "end": 59},
        {"unit": "softmax", "work": "scores", "layer": 0, "begin": 50, "end": 70},
        {"unit": "engine", "work": f"up{HOSTILE}", "layer": 1, "begin": 90, "end": 99},
    ]
    gaps = [
        {"event": "normalized", "begin": 0, "cycles": 40},
        {"event": "hidden", "begin": 60, "cycles": 29},
        {"event": "hidden", "begin": 89, "cycles": 1},
    ]
    written = {"prompt": "a", "text": "b", "tokens": 1, "cycles": 100.0, "lanes": 32}
    timeline = {"position": 7, "cycles": 100, "spans": spans, "gaps": gaps}
    stage = {"name": HOSTILE, "exact": [0.5, -1.0], "integers": [0.5, -0.75], "size": 1.0, "error": 0.25}
    stages = [
        {**stage, "decibels": 13.0, "checksum": "0badcafe"},
        {**stage, "name": "logits", "decibels": None, "checksum": "00000001"},
    ]
    simulation = {**(data().simulation or {}), "written": written, "timeline": timeline, "layers": stages}
    step = {"net": "n", "x": 4, "y": 5, "wire": False}
    placement = {
        "cores": {
            f"norms{HOSTILE}": {"luts": 1234, "flip_flops": 5, "block_rams": 3, "multipliers": 15},
            "engine": {"luts": 77, "flip_flops": 6, "block_rams": 0, "multipliers": 64},
        },
        "tiles": [[3, 4, 0], [9, 2, 1]],
        "path": [
            {**step, "core": "engine", "nanoseconds": 0.5},
            {**step, "core": "engine", "nanoseconds": 1.25, "wire": True},
            {**step, "core": "norms", "nanoseconds": 2.0},
        ],
    }
    shown = data(simulation=simulation, synthesis={**SYNTHESIS, "placement": placement})
    text = " ".join(" ".join(parsed(shown).text).split())
    assert "waits 40 cycles for normalized" in text
    assert text.index("units over one token") < text.index("took 1 tokens and gave")
    assert f"The least is 13.0 dB, of {HOSTILE}." in text
    assert f"{HOSTILE} 13.0 dB 0badcafe logits exact 00000001" in text
    pictures = [base64.b64decode(one) for one in re.findall('base64,([^"]+)"', layers(stages))]
    raw = zlib.decompress(pictures[3][pictures[3].index(b"IDAT") + 4 : -16])  # integers below zero
    opacity = np.frombuffer(raw, np.uint8).reshape(2, -1)[:, 4::4]
    assert len(pictures) == 6 and opacity.shape == (2, STRIP)
    assert set(opacity[0, : STRIP // 2]) == {0} and set(opacity[0, STRIP // 2 :]) == {int(255 * 0.75**0.5)}
    steps = read_json(LADDER)["steps"]
    for step in steps:
        assert f"{step['step']} {step['cycles']:,} cycles, {1e8 / step['cycles']:,.0f}/s" in text
    table_of_steps = (LADDER.parent / "decoder.md").read_text(encoding="utf-8")
    for step in steps:
        figures = [f"{step['cycles']:,}", *("" if step[key] is None else f"{step[key]:,}" for key in SHOWN)]
        row = next(line for line in table_of_steps.splitlines() if line.startswith(f"| {step['step']} |"))
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert [cells[1], *cells[3:]] == figures
    assert table_of_steps.partition("| step | cycles |")[2].partition("\n\n")[0].count("\n") == len(steps) + 1
    assert ladder(LADDER.with_name("missing.json")) == ""
    assert "hidden 30 30.0%" in text
    assert "The engine works in 30 of them at most" in text
    assert f"norms{HOSTILE} 1,234 5 3 15" in text
    assert "takes 3.75 ns" in text
    assert "engine 1.75 1.25 norms 2.00 0.00" in text
    assert '<polyline class="path" points="4.5,5.5' in page(shown)
    assert "script" not in parsed(shown).elements


def test_lead_says_what_was_done() -> None:
    nothing = {"quantization": None, "simulation": None, "synthesis": None}
    assert lead(data(**nothing)).endswith("16 tokens of context), trained in NumPy.")
    text = lead(data(**{**nothing, "quantization": data().quantization}))
    assert text.endswith(", trained in NumPy and quantized to integers with 8-bit weights.")
    fast = {**SYNTHESIS, "clocks": SYNTHESIS["clocks"][:1]}  # type: ignore[index]
    assert lead(data(synthesis=fast)).endswith(
        ", trained in NumPy, quantized to integers with 8-bit weights and simulated as circuits that compute the same "
        "integers; the decoder was built for the board ulx3s-85f."
    )
    assert lead(data()).endswith("for the board ulx3s-85f, too slow for its clock.")
    benches = [{"equal": True}, {"equal": False}]
    assert "of whose 2 benches 1 gave other integers" in lead(data(simulation={"benches": benches}))
    ternary = {**data().quantization, "settings": {"weight_bits": "ternary"}}  # type: ignore[dict-item]
    assert "integers with ternary weights" in lead(data(quantization=ternary))


def test_dollar_signs_in_a_sample_are_kept() -> None:
    assert "$title costs $5" in page(data(sample="$title costs $5"))


def test_table_escapes_unless_told() -> None:
    html = table(("<a>", "b"), [("<i>", "<b>x</b>")], numeric=(1,), safe=(1,))
    assert "<th>&lt;a&gt;</th>" in html
    assert "<td>&lt;i&gt;</td>" in html
    assert '<td class="number"><b>x</b></td>' in html


def test_facts_without_a_value_are_left_out() -> None:
    assert "absent" not in fact_list({"absent": None, "count": 1234})
    assert "1,234" in fact_list({"absent": None, "count": 1234})


def test_runs_are_compared_side_by_side_with_one_front() -> None:
    def run(name: str, loss: float, size: int) -> ReportData:
        complete = data()
        assert complete.quantization is not None
        comparison = {**complete.quantization["comparison"], "fixed_loss": loss}
        quantization = {**complete.quantization, "comparison": comparison, "storage_bytes": size}
        return data(name=name, quantization=quantization)

    runs = [run("first", 1.25, 1000), run(HOSTILE, 1.125, 3000), run("worse", 1.5, 2000)]
    runs.append(data(name="bare", quantization=None, synthesis=None, simulation=None, loss_curves=[], training={}))
    html = comparison(runs, ["same text"] * 4)
    parser = Balance()
    parser.feed(html)
    parser.close()
    assert parser.open == []
    assert "script" not in parser.elements
    rows = re.findall(r"<tr><td>(.*?)</tr>", html)
    cells = {row[0]: row[1:] for row in (re.sub("<.*?>", "|", one).replace("||", "|").split("|") for one in rows)}
    assert cells["loss in integers, nats"][:4] == ["1.2500", "1.1250", "1.5000", ""]
    assert cells["clock reached"][:3] == ["12.0 MHz"] * 3
    front = html[html.index("Least loss") : html.index("What they write")]
    assert ("first" in front, "worse" in front, "alert" in front) == (True, False, True)
    assert html.count("<svg") == 2
    different = comparison(runs, ["a", "b", "a", "a"])
    assert "do not compare" in different
    assert "Least loss" not in different

"""The report's page: what a run holds, as one HTML file that loads nothing from elsewhere.

Every function returns HTML. What comes from a run (text, names, file contents) is escaped where it
enters the page.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from statistics import median
from string import Template
from typing import Any

from scripts.output import format_duration
from scripts.report.charts import bar, heat_map, line_chart
from scripts.report.data import COMMANDS, SHOWN_DIGITS, Gap, ReportData
from scripts.report.html import fact_list, table
from scripts.report.interactive import follow_form, policy, scripts, write_form
from scripts.report.machine import ladder, layers, placed, units_at_work
from scripts.report.others import shown
from scripts.report.quantized import charts

TEMPLATE = Path(__file__).with_name("template.html")
# Signal-to-noise ratio that fills a bar: 8 bits of a uniform signal have 50 dB.
FULL_BAR_DECIBELS = 60.0
LOG_AXIS_FROM = 20  # last over first step


def page(data: ReportData) -> str:
    """Return the whole page."""
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(data.name),
        lead=lead(data),
        figures=figures(data),
        training=training(data),
        sample=sample(data),
        write=write(data),
        attention=attention(data),
        follow=follow(data),
        quantization=quantization(data),
        simulation=simulation(data),
        synthesis=synthesis(data),
        circuit_text=circuit_text(data),
        others=shown(data.others) or '<p class="missing">No other results, such as an evaluation, are in this run.</p>',
        footer=footer(data),
        policy=policy(),
        scripts=scripts(data.interactive),
    )


def lead(data: ReportData) -> str:
    """Return the sentence under the title."""
    model = data.model
    layers = "1 layer" if model["num_layers"] == 1 else f"{model['num_layers']} layers"
    heads = "1 head" if model["num_heads"] == 1 else f"{model['num_heads']} heads"
    parts = ["trained in NumPy"]
    if data.quantization:
        parts.append(f"quantized to integers with {weights(data)}")
    if data.simulation:
        different = sum(not bench["equal"] for bench in data.simulation["benches"])
        parts.append(
            f"simulated as circuits, of whose {len(data.simulation['benches'])} benches {different} gave other integers"
            if different
            else "simulated as circuits that compute the same integers"
        )
    built = ""
    if data.synthesis:
        clock = slowest_clock(data.synthesis)
        missed = clock is not None and clock["achieved_mhz"] < clock["required_mhz"]
        built = (
            f"; the {data.synthesis['design']} was built for the board {data.synthesis['board']}"
            f"{', too slow for its clock' if missed else ''}"
        )
    done = " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))
    return escape(
        f"A transformer of {model['parameters']:,} parameters ({layers}, {heads}, {model['embed_dim']} wide, "
        f"{model['max_seq_len']} tokens of context), {done}{built}."
    )


def weights(data: ReportData) -> str:
    """Return how wide the integer model's weights are."""
    width = (data.quantization or {})["settings"]["weight_bits"]
    return f"{width} weights" if isinstance(width, str) else f"{width}-bit weights"


def model_name(data: ReportData) -> str:
    """Return which model a figure belongs to."""
    return f"model {data.model_sha256[:SHOWN_DIGITS]}"


def integer_model_name(data: ReportData) -> str:
    """Return which integer model a figure belongs to."""
    return f"integer model {(data.manifest_sha256 or 'unknown')[:SHOWN_DIGITS]}"


def belongs_to(*names: str) -> str:
    """Return the line that says which models a section's figures belong to."""
    return f'<p class="model">{" and ".join(map(escape, names))}</p>'


def figures(data: ReportData) -> str:
    """Return the key figures in cards."""
    cards: list[tuple[str, str, str]] = []
    integers = integer_model_name(data)
    if data.quantization:
        comparison = data.quantization["comparison"]
        cards.append(
            (f"{comparison['float_loss']:z.3f}", "nats a token on held-out text, in floating point", model_name(data))
        )
        cards.append((f"{comparison['difference']:+z.4f}", f"nats lost with {weights(data)}", integers))
    if data.simulation:
        benches = data.simulation["benches"]
        different = sum(not bench["equal"] for bench in benches)
        compared = sum(bench["compared"] for bench in benches)
        if different:
            cards.append((f"{different} of {len(benches)}", "simulations differ from the golden model", integers))
        else:
            cards.append((f"{compared:,}", "simulated values, each equal to the golden model’s", integers))
    clock = slowest_clock(data.synthesis) if data.synthesis else None
    if data.synthesis and clock:
        speed = f"reached on {data.synthesis['board']}; it runs at {clock['required_mhz']:.0f}"
        cards.append((f"{clock['achieved_mhz']:.0f} MHz", speed, integers))
    return "\n".join(
        f"<li><strong>{escape(value)}</strong><span>{escape(what)}</span><small>{escape(name)}</small></li>"
        for value, what, name in cards
    )


def training(data: ReportData) -> str:
    """Return the loss chart and the facts of the training."""
    parts = [belongs_to(model_name(data)), gap("training", data) if "training" in data.gaps else ""]
    if data.loss_curves:
        steps = [step for curve in data.loss_curves for step, _ in curve.points]
        wide = max(steps) >= LOG_AXIS_FROM * min(steps) > 0
        chart = line_chart(data.loss_curves, "training steps", "loss, nats a token", log_x=wide)
        parts.append(f"<figure>{chart}</figure>{loss_note(data)}{samples(data)}")
    facts = {
        "imported from": data.training.get("imported"),
        "text": data.training.get("text"),
        "characters": data.training.get("characters"),
        "vocabulary": data.model["vocab_size"],
        "positions": data.model["position"],
        "feed-forward width": data.model["ff_dim"],
        "activation": data.model["activation"],
        "seed": data.training.get("seed"),
        "training time": format_duration(data.training["seconds"]) if data.training.get("seconds") else None,
    }
    parts.append(fact_list(facts))
    return "\n".join(parts)


def loss_note(data: ReportData) -> str:
    """Return why the chart's last held-out loss is not that of the cards."""
    batches = data.training.get("evaluation_batches")
    if not batches or not data.quantization:
        return ""
    return (
        f'<p class="note">While it trained, the held-out loss was measured on {batches} batches of the held-out text. The '
        f"{data.quantization['comparison']['float_loss']:z.3f} nats above are over all of it, and of the weights with the "
        "lowest held-out loss.</p>"
    )


def samples(data: ReportData) -> str:
    """Return what the model wrote in the course of its training."""
    if not data.samples:
        return ""
    rows = [(f"{step:,}", text) for step, text in data.samples]
    return f"<h3>What it wrote while it learned</h3>{table(('step', 'text'), rows, numeric=(0,))}"


def sample(data: ReportData) -> str:
    """Return the text that the model wrote."""
    if not data.sample:
        return gap("sample", data)
    head, rest = data.sample[: len(data.prompt)], data.sample[len(data.prompt) :]
    if head != data.prompt:
        head, rest = "", data.sample
    note = '<p class="note">The prompt is in colour; everything after it is the model’s.</p>' if head else ""
    name = integer_model_name(data) if data.sample_is_of_integers else model_name(data)
    return f"{belongs_to(name)}{note}{quotation(head, rest)}"


def write(data: ReportData) -> str:
    """Return the form with which the integer model writes, in the page."""
    if data.interactive is None:
        return gap("write" if "write" in data.gaps else "quantization", data)
    return belongs_to(integer_model_name(data)) + write_form(data.prompt)


def quotation(prompt: str, text: str) -> str:
    """Return a prompt and what a model wrote after it."""
    return f"<blockquote><b>{escape(prompt)}</b>{escape(text)}</blockquote>"


def attention(data: ReportData) -> str:
    """Return a heat map of each head."""
    if data.attention is None:
        return gap("attention", data)
    maps = [
        heat_map(data.attention[layer, head], data.tokens, f"layer {layer + 1}, head {head + 1}")
        for layer in range(data.attention.shape[0])
        for head in range(data.attention.shape[1])
    ]
    intro = (
        '<p class="note">Each row is a character, and its colours say how much it draws on the characters before it '
        "(the scale is the square root, so that small weights show).</p>"
        '<p class="scale">0 <i class="heat"></i> 1</p>'
    )
    return f'{belongs_to(model_name(data))}{intro}<div class="heads">{"".join(f"<figure>{one}</figure>" for one in maps)}</div>'


def follow(data: ReportData) -> str:
    """Return the panel that follows one token."""
    if data.interactive is None:
        return gap("write" if "write" in data.gaps else "quantization", data)
    if data.interactive["follow"] is None:
        return gap("sample", data)
    command = f"<code>positron simulate {escape(shlex.quote(data.name))}</code>"
    return belongs_to(integer_model_name(data), model_name(data)) + follow_form(data.interactive["follow"], command)


def quantization(data: ReportData) -> str:
    """Return the losses and the formats of all tensors."""
    if not data.quantization:
        return gap("quantization", data)
    comparison, settings = data.quantization["comparison"], data.quantization["settings"]
    losses = table(
        ("held-out text", "loss, nats", "perplexity"),
        [
            (
                "floating point, 32 bits",
                f"{comparison['float_loss']:z.4f}",
                f"{math.exp(comparison['float_loss']):z.3f}",
            ),
            (
                f"integers: {weights(data)}, {settings['activation_bits']}-bit activations, "
                f"{settings['residual_bits']}-bit residuals",
                f"{comparison['fixed_loss']:z.4f}",
                f"{math.exp(comparison['fixed_loss']):z.3f}",
            ),
            ("difference", f"{comparison['difference']:+z.4f}", ""),
        ],
        numeric=(1, 2),
    )
    note = (
        f"<p>Over {comparison['tokens']:,} held-out tokens, both models find the same token the likeliest at "
        f"{comparison['same_choice']:.1%} of the positions. Every scale is a power of two, so that it is a shift in hardware. "
        f"The weights take {data.quantization['weight_bytes']:,} bytes.</p>"
    )
    tensors = [
        f"<h3>{title}</h3><div class='scroll'>{tensor_table(data.quantization[key])}</div>"
        for title, key in (("Weights", "weights"), ("Activations", "activations"))
    ]
    made_from = belongs_to(integer_model_name(data), model_name(data))
    command = f"positron quantize {escape(shlex.quote(data.name))}"
    return f"{made_from}{losses}{note}{charts(data, command)}<details><summary>Formats of all tensors</summary>{''.join(tensors)}</details>"


def tensor_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the formats of tensors and how well they fit."""
    cells = []
    for row in rows:
        decibels = row["signal_to_noise"]
        ratio = "exact" if decibels is None else f"{decibels:.1f}"
        filled = 1.0 if decibels is None else decibels / FULL_BAR_DECIBELS
        cells.append(
            "<tr>"
            f'<td class="name">{escape(row["name"])}</td><td>{" × ".join(str(int(size)) for size in row["shape"])}</td>'
            f'<td class="mono">{escape(row["format"])}</td><td class="number">{ratio}</td><td>{bar(filled)}</td>'
            f'<td class="number">{row["saturated"]:.2%}</td></tr>'
        )
    return (
        "<table><thead><tr><th>tensor</th><th>shape</th><th>format</th><th class='number'>SNR, dB</th><th></th>"
        "<th class='number'>clipped</th></tr></thead><tbody>" + "".join(cells) + "</tbody></table>"
    )


def simulation(data: ReportData) -> str:
    """Return the results of the benches."""
    if not data.simulation:
        return gap("simulation", data)
    rows = [
        (
            bench["name"],
            f"{bench['compared']:,}",
            f"{bench['cycles']:,}",
            "stalling at random" if bench["stalls"] else "full speed",
            '<span class="good">all equal</span>' if bench["equal"] else '<span class="bad">different</span>',
        )
        for bench in data.simulation["benches"]
    ]
    intro = (
        "<p>The circuits were fed with the weights and the activations of this model, and every value that they returned was "
        f"compared with the integer model’s, bit for bit. Simulator: {escape(data.simulation['simulator'])}, "
        f"seed {int(data.simulation['seed'])}.</p>"
    )
    return (
        belongs_to(integer_model_name(data))
        + intro
        + table(("circuit", "values", "cycles", "streams", "result"), rows, numeric=(1, 2), safe=(4,))
    )


def synthesis(data: ReportData) -> str:
    """Return resources, timing and the bitstream."""
    report = data.synthesis
    if not report:
        return gap("synthesis", data)
    resources = []
    for title, key in (
        ("lookup tables", "luts"),
        ("flip-flops", "flip_flops"),
        ("block RAMs", "block_rams"),
        ("multipliers", "multipliers"),
    ):
        used, available = int(report[key]["used"]), int(report[key]["available"])
        share = used / available if available else 0.0
        resources.append((title, f"{used:,}", f"{available:,}", f"{share:.1%}", bar(share)))
    clocks = [
        (
            clock["name"],
            f"{clock['required_mhz']:.1f}",
            f"{clock['achieved_mhz']:.1f}",
            '<span class="good">met</span>'
            if clock["achieved_mhz"] >= clock["required_mhz"]
            else '<span class="bad">not met</span>',
        )
        for clock in report["clocks"]
    ]
    facts = {
        "design": report["design"],
        "board": report["board"],
        **{stage: format_duration(seconds) for stage, seconds in report["seconds"].items()},
        "bitstream": report["bitstream"],
    }
    digest = (
        f'<p class="note">SHA-256 of the bitstream: <code>{escape(report["bitstream_sha256"] or "none")}</code></p>'
    )
    return (
        belongs_to(integer_model_name(data))
        + table(("resource", "used", "on the chip", "share", ""), resources, numeric=(1, 2, 3), safe=(4,))
        + table(("clock", "runs at, MHz", "reaches, MHz", "timing"), clocks, numeric=(1, 2), safe=(3,))
        + seeds(report)
        + placed(report.get("placement"))
        + fact_list(facts)
        + digest
    )


def circuit_text(data: ReportData) -> str:
    """Return what the decoder circuit wrote in simulation, and how fast it is at the board's
    clock.
    """
    written = (data.simulation or {}).get("written")
    if not written:
        return gap("simulation", data)
    clock = slowest_clock(data.synthesis) if data.synthesis else None
    speed = ""
    if clock:
        megahertz = float(clock["required_mhz"])
        speed = f", {megahertz * 1e6 / written['cycles']:,.0f} tokens a second at the board’s {megahertz:g} MHz"
    note = (
        f"<p>The whole decoder as a circuit with {int(written['lanes'])} multipliers in its engine, compiled by "
        f"Verilator, took {int(written['tokens']):,} tokens and gave the next of each. All are the integer model’s, "
        f"and each took as many cycles as predicted: {written['cycles']:,.0f} in the mean{speed}.</p>"
    )
    timeline = data.simulation["timeline"] if data.simulation and data.simulation.get("timeline") else None
    drawn = units_at_work(timeline) if timeline else ""
    if stages := (data.simulation or {}).get("layers"):
        drawn += layers(stages)
    text = note + quotation(written["prompt"], written["text"])
    return belongs_to(integer_model_name(data)) + drawn + ladder() + text


def seeds(report: Mapping[str, Any]) -> str:
    """Return what several seeds of place and route reached."""
    found = sorted((report.get("seed_mhz") or {}).values())
    if not found:
        return ""
    return (
        f"<p>Of {len(found)} seeds the slowest reached {found[0]:.1f} MHz, the median {median(found):.1f} MHz, the "
        f"fastest, which was kept, {found[-1]:.1f} MHz.</p>"
    )


def slowest_clock(report: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the clock with the least slack; None when the report has no clock."""
    return min(report["clocks"], key=lambda clock: clock["achieved_mhz"] / clock["required_mhz"], default=None)


def footer(data: ReportData) -> str:
    """Return the versions that made the run."""
    versions = ", ".join(f"{escape(name)} {escape(version)}" for name, version in data.versions.items())
    return f"Made by <code>positron report {escape(shlex.quote(data.name))}</code>. {versions}"


def gap(section: str, data: ReportData) -> str:
    """Return why a section shows nothing, and which commands make its figures."""
    found = data.gaps.get(section) or Gap("Not there yet.", (f"{COMMANDS[section]} {shlex.quote(data.name)}",))
    commands = ", then ".join(f"<code>positron {escape(command)}</code>" for command in found.commands)
    return f'<p class="missing">{escape(found.reason)} Make it: {commands}</p>'

"""The report's charts of the integer model: ranges, noise, sweep, and results of other commands."""

import json
import re
from dataclasses import asdict

import numpy as np
from model_kinds import make_model, with_rms_norms

from fixedpoint.quantization.calibration import QuantizationSettings
from model.files import file_digest
from model.run import RunDirectory
from model.training.log import add_sample, read_samples
from scripts.quantization.sweep import SERIES, points
from scripts.report.collect import collect
from scripts.report.page import page
from scripts.report.tensors import activations_used, histogram, usage, weights_used


def test_histograms_count_every_integer_in_its_part_of_the_range():
    four = usage("x", "4 bits", np.array([[-8, -8, 7, 0]]), 4)
    assert four.counts.tolist() == [2, *[0] * 7, 1, *[0] * 6, 1]
    assert four.at_ends == 0.75
    wide = usage("y", "Q6.10", np.array([-(1 << 15), (1 << 15) - 1, 1023, 1024]), 16)
    assert wide.counts.nonzero()[0].tolist() == [0, 32, 33, 63]
    drawn = histogram(four)
    assert drawn.count("M") == 3 + 2  # bars, and the two strokes of the axis
    assert "3 of 16 parts" in drawn


def test_every_tensor_has_its_histogram():
    for model in (make_model(1, rotary=True, gated=True, weight_bits=4), with_rms_norms(make_model(2))):
        held_out = np.random.default_rng(3).integers(0, model.vocab_size, size=50)
        rows = activations_used(model, held_out)
        assert [row.name for row in rows] == [operation.name for operation in model.operations]
        whole = len(held_out) // model.context_length * model.context_length
        assert [int(row.counts.sum()) for row in rows] == [whole * one.channels for one in model.operations]
        names = [row.name for row in weights_used(model)]
        assert names[0] == "embedding.token"
        assert {"blocks.1.feed_forward.down.weight", "final_norm.scale", "logits.weight"} < set(names)


def test_a_page_shows_the_sweep_the_samples_and_other_results(tiny_run, monkeypatch):
    run = RunDirectory(tiny_run)
    base = QuantizationSettings(weight_bits=4)
    wanted = {name: points(varied, base) for name, varied in SERIES.items()}
    measured = {repr(one): one for series in wanted.values() for one in series.values()}
    model_sha256 = file_digest(run.model_weights)
    figures = {
        "model_sha256": model_sha256,
        "float_loss": 1.0,
        "points": [
            {"settings": asdict(one), "loss": 1.5 + 0.001 * index, "bytes": 4321 - index}
            for index, one in enumerate(measured.values())
        ],
    }
    (run.path / "quantization_sweep.json").write_text(json.dumps(figures))
    evaluation = {"text": "another", "comparison": {"fixed_loss": 1.2345}, "model_sha256": model_sha256}
    (run.path / "evaluation.json").write_text(json.dumps(evaluation))
    (run.path / "netlist.json").write_text(json.dumps({"netlists": [{"core": "softmax", "equal": 77}]}))
    (run.path / "old.json").write_text(json.dumps({"secret": 5, "model_sha256": "other"}))
    add_sample(run.samples, 20, "bef")
    add_sample(run.samples, 20, "aft\n<er>")
    with run.samples.open("a") as file:
        file.write('{"step": 3')
    assert read_samples(run.samples) == [(20, "aft\n<er>")]
    data = collect(run)
    html = page(data)
    section = html[html.index("Bytes against loss") : html.index("Formats of all tensors")]
    assert len(re.findall("<td>[^<]*</td><td>(?:[0-9]+|ternary)</td>", section)) == sum(map(len, wanted.values()))
    for shown in (
        "4,321",
        "aft\n&lt;er&gt;",
        "another",
        "1.234",
        "softmax",
        "77",
        "embedding.position",
        "logits.weight",
    ):
        assert shown in html, shown
    assert "secret" not in html
    held_out = data.quantization["comparison"]["float_loss"]
    assert f"{held_out:.3f} nats above" in html
    assert set(data.usage) == {"Activations", "Tables, weights and scales"}
    figures["model_sha256"] = "other"
    (run.path / "quantization_sweep.json").write_text(json.dumps(figures))
    monkeypatch.setattr("scripts.report.collect.LARGEST_BYTES", 1000)
    data = collect(run)
    html = page(data)
    assert "--sweep</code>" in html
    assert html.count("a page holds 1,000.") == 2
    assert "<script" not in html
    assert set(data.usage) == {"Tables, weights and scales"}

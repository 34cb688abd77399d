"""The report's charts of the quantization: noise, ranges, bytes against loss, costliest parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fixedpoint.quantization.calibration import QuantizationSettings
from scripts.quantization.sweep import measured_series, pareto_front
from scripts.report.data import ReportData
from scripts.report.figures import loss_over_bytes, losses_by_bits, noise_by_layer
from scripts.report.html import table
from scripts.report.tensors import histograms

LISTED = 12  # of the costliest parts


def charts(data: ReportData, command: str) -> str:
    """Return all charts that there are figures for.

    Args:
        data: With a quantization.
        command: `positron quantize RUN`, as HTML.
    """
    figures = data.quantization or {}
    parts = [
        "<h3>Noise by layer</h3><p>The ratio of each activation to the error that rounding this one makes; 6 dB are a "
        "bit.</p>",
        f"<figure>{noise_by_layer(figures['activations'], 'activations')}</figure>",
    ]
    if data.usage:
        parts += [
            "<h3>Use of the ranges</h3><p>How often each integer of a format occurs, from the smallest to the largest; "
            "heights are square roots, so that rare values show. Activations are those of held-out text.</p>",
            *(
                f"<details><summary>{title}, {len(rows)} tensors</summary>{histograms(list(rows))}</details>"
                for title, rows in data.usage.items()
            ),
        ]
    parts += ["<h3>Bytes against loss</h3>", sweep(data.sweep, command)]
    if analysis := figures.get("analysis"):
        rows = [(row["name"], row["kind"], f"{row['difference']:+z.5f}") for row in analysis["parts"][:LISTED]]
        parts.append(
            f"<h3>What costs most alone</h3><p>Loss above float with one part in integers and all else in floats, over "
            f"{analysis['loss_tokens']:,} tokens.</p>{table(('part', 'of it', 'nats'), rows, numeric=(2,))}"
        )
    return "".join(parts)


def sweep(figures: Mapping[str, Any] | None, command: str) -> str:
    """Return a sweep's charts; without one, the command that makes it."""
    if not figures or not figures["points"]:
        return f'<p class="missing">Not there yet. Make it: <code>{command} --sweep</code></p>'
    # The sweep's other settings are those of the points of most series.
    bases = [QuantizationSettings(**point["settings"]) for point in figures["points"]]
    series = max((measured_series(figures, base) for base in bases), key=lambda found: sum(map(len, found.values())))
    front = pareto_front(series)
    rows = [
        (name, bits, f"{loss:+z.4f}", f"{size:,}", "front" if (name, bits, loss, size) in front else "")
        for name, points in series.items()
        for bits, loss, size in points
    ]
    listed = table(("series", "bits", "loss above float", "bytes", ""), rows, numeric=(2, 3))
    return (
        f"<figure>{loss_over_bytes(series, front, 'loss above float, nats')}</figure>"
        f"<figure>{losses_by_bits(series)}</figure><details><summary>All points</summary>{listed}</details>"
    )

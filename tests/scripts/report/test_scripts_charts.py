import struct
import xml.etree.ElementTree as ElementTree
import zlib

import numpy as np
import pytest

from scripts.report.charts import Series, alpha_png, bar, heat_map, line_chart, nice_ticks, visible

HOSTILE = '<script>alert("&")</script>'


def test_ticks_are_round_and_cover_the_range() -> None:
    assert nice_ticks(0, 1000) == [0, 200, 400, 600, 800, 1000]
    assert nice_ticks(1.53, 3.81) == [1.5, 2.0, 2.5, 3.0, 3.5, 4.0]
    assert nice_ticks(0.0301, 0.0302)[0] <= 0.0301
    assert nice_ticks(2.0, 2.0)[0] <= 2.0 <= nice_ticks(2.0, 2.0)[-1]


@pytest.mark.parametrize("seed", range(20))
def test_ticks_cover_any_range(seed: int) -> None:
    generator = np.random.default_rng(seed)
    low, high = np.sort(generator.normal(0, 10.0 ** generator.integers(-3, 5), 2))
    ticks = nice_ticks(float(low), float(high))
    steps = np.diff(ticks)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 3 <= len(ticks) <= 9
    np.testing.assert_allclose(steps, steps[0], rtol=1e-6)


def test_line_chart_is_well_formed_scaled_and_escaped() -> None:
    chart = line_chart(
        [
            Series(HOSTILE, [(0, 4.0), (50, 2.0), (100, 1.0)], "faint"),
            Series("held out", [(0, 4.0), (100, 1.1), (150, float("nan"))], "strong"),
        ],
        "steps",
        "nats",
    )
    root = ElementTree.fromstring(chart)
    assert "<script" not in chart
    lines = root.findall("polyline")
    assert len(lines) == 2
    first = [tuple(map(float, pair.split(","))) for pair in lines[0].attrib["points"].split()]
    assert [x for x, _ in first] == sorted(x for x, _ in first)
    # SVG's y grows downwards, the loss falls
    assert [y for _, y in first] == sorted(y for _, y in first)
    assert len(lines[1].attrib["points"].split()) == 2  # NaN is left out
    width, height = map(float, root.attrib["viewBox"].split()[2:])
    assert all(0 <= x <= width and 0 <= y <= height for x, y in first)
    assert "1.100" in "".join(root.itertext())


def test_labels_of_lines_that_end_together_do_not_touch() -> None:
    series = [Series(name, [(0, 3.0), (10, 1.0)], "faint") for name in "abc"]
    root = ElementTree.fromstring(line_chart(series, "steps", "nats"))
    heights = sorted(float(text.attrib["y"]) for text in root.findall("text") if "legend" in text.attrib["class"])
    axis = max(float(line.attrib["y1"]) for line in root.findall("line"))
    assert min(np.diff(heights)) >= 28
    assert heights[-1] + 14 <= axis


def test_line_chart_needs_a_point() -> None:
    with pytest.raises(ValueError, match="at least one finite point"):
        line_chart([Series("empty", [(1, float("nan"))], "faint")], "x", "y")


def test_heat_map_is_well_formed_and_shows_white_space() -> None:
    weights = np.tril(np.full((3, 3), 0.5))
    picture = heat_map(weights, ["<", " ", "\n"], HOSTILE)
    texts = [text for element in ElementTree.fromstring(picture).iter("text") for text in element.itertext()]
    assert texts == [HOSTILE, "<", "<", "␣", "␣", "⏎", "⏎"]
    with pytest.raises(ValueError, match=r"\(2, 2\)"):
        heat_map(weights, ["a", "b"], "two labels")


def test_png_holds_the_given_opacities() -> None:
    opacity = np.array([[0, 127], [255, 1], [2, 3]], dtype=np.uint8)
    data = alpha_png(opacity, (1, 2, 3))
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    chunks, position = {}, 8
    while position < len(data):
        (length,) = struct.unpack(">I", data[position : position + 4])
        name, body = data[position + 4 : position + 8], data[position + 8 : position + 8 + length]
        (check,) = struct.unpack(">I", data[position + 8 + length : position + 12 + length])
        assert check == zlib.crc32(name + body)
        chunks[name] = body
        position += 12 + length
    assert struct.unpack(">IIBBBBB", chunks[b"IHDR"]) == (2, 3, 8, 6, 0, 0, 0)
    pixels = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), dtype=np.uint8).reshape(3, 9)[:, 1:].reshape(3, 2, 4)
    np.testing.assert_array_equal(pixels[..., 3], opacity)
    assert (pixels[..., :3] == (1, 2, 3)).all()
    assert list(chunks)[-1] == b"IEND"


def test_bar_stays_within_its_width() -> None:
    assert "width:50.0%" in bar(0.5)
    assert "width:100.0%" in bar(7.0)
    assert "width:0.0%" in bar(-1.0)


def test_visible_white_space() -> None:
    assert visible(" a\n\t") == "␣a⏎⇥"

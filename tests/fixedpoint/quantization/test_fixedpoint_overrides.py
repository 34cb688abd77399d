"""Files of overrides: what they say is done, and what they cannot mean is refused by name."""

import json

import pytest

from fixedpoint import QFormat, QuantizationError
from fixedpoint.quantization.overrides import Overrides

LAYERS = (
    "blocks.0.attention.query",
    "blocks.0.feed_forward.up",
    "blocks.1.feed_forward.up",
    "logits",
    "token_embedding",
)
ACTIVATIONS = ("residual", "blocks.0.attention_norm", "blocks.0.feed_forward.up", "blocks.1.feed_forward.up", "logits")

TOML = """
["*.feed_forward.up"]
weight_bits = 8
activation_bits = 6

["blocks.1.feed_forward.up"]
weight_bits = "ternary"
format = "Q3.4"

["residual"]
format = "Q6.10"
"""


def resolve(content):
    return Overrides.from_dict(content).resolve(LAYERS, ACTIVATIONS)


@pytest.mark.parametrize("suffix", ["toml", "json"])
def test_later_tables_win(tmp_path, suffix):
    path = tmp_path / f"overrides.{suffix}"
    content = {
        "*.feed_forward.up": {"weight_bits": 8, "activation_bits": 6},
        "blocks.1.feed_forward.up": {"weight_bits": "ternary", "format": "Q3.4"},
        "residual": {"format": "Q6.10"},
    }
    path.write_text(TOML if suffix == "toml" else json.dumps(content), encoding="utf-8")
    overrides = Overrides.load(path)
    assert overrides.to_dict() == content
    assert Overrides.from_dict(overrides.to_dict()) == overrides
    resolved = overrides.resolve(LAYERS, ACTIVATIONS)
    assert resolved.weight_bits == {"blocks.0.feed_forward.up": 8, "blocks.1.feed_forward.up": "ternary"}
    assert resolved.activation_bits["blocks.0.feed_forward.up"] == 6
    assert resolved.formats == {"blocks.1.feed_forward.up": QFormat(7, 4), "residual": QFormat(16, 10)}


def test_a_width_after_a_format_wins():
    resolved = resolve({"blocks.0.*": {"format": "Q4.4"}, "*.up": {"activation_bits": 5}})
    assert "blocks.0.feed_forward.up" not in resolved.formats
    assert resolved.activation_bits["blocks.0.feed_forward.up"] == 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"blocks.7.*": {"weight_bits": 4}},
            r"'blocks\.7\.\*' matches nothing that has weight_bits; names are: blocks\.0\.attention\.query, ",
        ),
        ({"residual": {"weight_bits": 4}}, "'residual' matches nothing that has weight_bits"),
        ({"logits": {"activation_bits": 8}}, "'logits' matches nothing that has activation_bits"),
        ({"token_embedding": {"format": "Q4.4"}}, "matches nothing that has format; names are: .*residual"),
        ({"token_embedding": {"weight_bits": "ternary"}}, "token_embedding cannot be ternary"),
        ({"residual": {"format": "Q4.3"}}, "residual needs a signed format of 8 to 16 bits, not Q4.3"),
        ({"blocks.0.attention_norm": {"format": "UQ4.4"}}, "needs a signed format of 4 to 10 bits, not UQ4.4"),
        ({"*": {"weight_bits": 9}}, r"override '\*': weight_bits must be a whole number from 2 to 8"),
        ({"*": {"activation_bits": 3}}, "activation_bits must be a whole number from 4 to 10, not 3"),
        ({"*": {"activation_bits": True}}, "activation_bits must be a whole number"),
        ({"*": {"format": "4.4"}}, r"override '\*': a Q-format is written Qm\.n"),
        ({"*": {"bits": 4}}, "has 'bits'; keys are weight_bits, activation_bits, format"),
        ({"*": {"format": "Q4.4", "activation_bits": 8}}, "drop activation_bits"),
        ({"*": 4}, "must be a table"),
        ({"*": {}}, "must be a table"),
        ([1], "tables by layer name, not list"),
        (
            {"a": 4, "*": {"bits": 4, "weight_bits": 9, "format": "Q4", "activation_bits": 3}},
            "'a' must be a table.*has 'bits'.*2 to 8.*Qm.n.*4 to 10, not 3.*drop activation_bits",
        ),
        (
            {"a*": {"weight_bits": 4}, "*": {"weight_bits": "ternary", "format": "Q8.8"}, "b": {"format": "Q4.4"}},
            r"'a\*' matches.*token_embedding cannot.*attention_norm needs.*blocks.1.*up needs.*'b' matches",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused(content, message):
    with pytest.raises(QuantizationError, match=message):
        resolve(content)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.toml", "[broken", "is not valid TOML"),
        ("a.json", "{", "is not valid JSON"),
        ("a.json", "[]", r"a\.json: overrides are tables by layer name, not list"),
        ("a.yaml", "", r"a \.toml or \.json file, not a\.yaml"),
        ("missing.toml", None, "cannot be read: No such file"),
        ("a.toml", b"\xff\xfe", "is not valid TOML"),
    ],
)
def test_files_that_cannot_be_used_are_named(tmp_path, name, text, message):
    path = tmp_path / name
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(QuantizationError, match=message):
        Overrides.load(path)

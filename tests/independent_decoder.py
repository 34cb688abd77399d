"""The integer decoder, written from docs/fixedpoint/decoder.md alone: it imports nothing of the
project and reads an exported directory.

Slow and plain on purpose. Where it needs to know something, the page or the manifest must say it.
"""

import json
import math
import operator
from pathlib import Path

WORD = (1 << 32) - 1


class Format:
    """A Q-format, read from its text."""

    def __init__(self, text):
        digits = text.lstrip("UQ").split(".")
        self.bits, self.fraction = int(digits[0]) + int(digits[1]), int(digits[1])
        self.lowest = 0 if text.startswith("U") else -(1 << (self.bits - 1))
        self.highest = self.lowest + (1 << self.bits) - 1


def rounded(x, shift):
    return (x + (1 << (shift - 1))) >> shift if shift >= 1 else x << -shift


def saturated(x, form):
    return min(max(x, form.lowest), form.highest)


def cast(x, shift, form):
    return saturated(rounded(x, shift), form)


def nearest(x):
    return math.floor(x + 0.5)


def exponential(distance, *, fraction, table_bits, output_bits):
    steps = rounded(distance, fraction - table_bits)
    whole, index = steps >> table_bits, steps & ((1 << table_bits) - 1)
    if whole > output_bits:
        return 0
    return rounded(nearest(((1 << output_bits) - 1) * 2.0 ** (-index / (1 << table_bits))), whole)


def moved(x, left):
    return x << left if left >= 0 else x >> -left


def reciprocal(x, *, index_bits, mantissa_bits):
    position = x.bit_length() - 1
    index = moved(x, index_bits - position) - (1 << index_bits)
    return nearest(2.0**mantissa_bits / (1 + (index + 0.5) / (1 << index_bits))), position + mantissa_bits


def reciprocal_square_root(x, *, index_bits, mantissa_bits):
    position = x.bit_length() - 1 & ~1
    middle = (moved(x, index_bits - 2 - position) + 0.5) / (1 << (index_bits - 2))
    return nearest(2.0**mantissa_bits / math.sqrt(middle)), position // 2 + mantissa_bits


def dot(a, b):
    assert len(a) == len(b)
    return sum(map(operator.mul, a, b))


def avalanche(x):
    x ^= x >> 16
    x = x * 0x85EBCA6B & WORD
    x ^= x >> 13
    x = x * 0xC2B2AE35 & WORD
    return x ^ x >> 16


def mix(seed, index):
    return avalanche((avalanche(seed) + (index + 1) * 0x9E3779B9) & WORD) or 0x9E3779B9


def hashed(random, x, rounds):
    for rotation, left, right in rounds:
        x ^= (random << rotation | random >> (32 - rotation)) & WORD
        x = x + (x << left) & WORD
        x ^= x >> right
    return x


def gumbel(word, noise):
    half = word >> 31
    y = 2 * (WORD - word if half else word) + 1
    octave = 32 - y.bit_length()
    mantissa = moved(y, noise["segment_bits"] + noise["rest_bits"] - 31 + octave)
    segment = mantissa >> noise["rest_bits"] & ((1 << noise["segment_bits"]) - 1)
    rest = mantissa & ((1 << noise["rest_bits"]) - 1)
    row = min(octave, noise["octaves"] - 1)

    def f(m):
        u = m * 2.0 ** -(row + 2)
        return math.log2(-math.log2(u)) if half else -math.log2(-math.log2(1 - u)) - row

    first, middle, last = (f(1 + (segment + part) / (1 << noise["segment_bits"])) for part in (0, 0.5, 1))
    value = nearest(2.0 ** noise["fraction"] * (middle + (first + last) / 2) / 2)
    value = min(value, (1 << noise["value_bits"]) - 1)
    slope = nearest(2.0 ** noise["slope_fraction"] * (first - last))
    fall = slope * (2 * rest + 1 - (1 << noise["rest_bits"]))
    size = value - rounded(fall, noise["rest_bits"] + 1 - noise["fraction"] + noise["slope_fraction"])
    return -size if half else (octave << noise["fraction"]) + size


class Decoder:
    """A model from an exported directory."""

    def __init__(self, directory):
        self.manifest = json.loads((Path(directory) / "manifest.json").read_text(encoding="utf-8"))
        self.layers = self.manifest["layers"]
        self.residual = Format(self.manifest["residual"])
        self.tensors = {name: self.read(directory, entry) for name, entry in self.manifest["tensors"].items()}

    @staticmethod
    def read(directory, entry):
        """Return a tensor from its memory file: a list of numbers, or of rows."""
        bits, rows = entry["bits"], []
        columns = entry["shape"][1] if len(entry["shape"]) == 2 else 1
        for line in (Path(directory) / entry["memory"]).read_text(encoding="ascii").split():
            codes = [int(line, 16) >> (bits * k) & ((1 << bits) - 1) for k in range(columns)]
            rows.append([code - (code >> (bits - 1) << bits) for code in codes])
        assert len(rows) == entry["shape"][0]
        return rows if len(entry["shape"]) == 2 else [row[0] for row in rows]

    def formats(self, name, *ports):
        return [Format(self.layers[name][port]) for port in ports]

    def row(self, name, index):
        """Return a row of an embedding, rounded to the residual's fraction."""
        shift = self.tensors[f"{name}.weight_fraction"][index] - self.residual.fraction
        return [rounded(weight, shift) for weight in self.tensors[f"{name}.weight"][index]]

    def linear(self, name, x):
        source, target = self.formats(name, "input", "output")
        parts = (self.tensors[f"{name}.{part}"] for part in ("weight", "weight_fraction", "bias"))
        return [
            cast(bias + dot(weight, x), source.fraction + fraction - target.fraction, target)
            for weight, fraction, bias in zip(*parts, strict=True)
        ]

    def norm(self, name, x):
        layer, channels = self.layers[name], len(x)
        normalized, scale_format, output = self.formats(name, "normalized", "scale_format", "output")
        total = sum(x) if layer["kind"] == "layer" else 0
        variance = channels * dot(x, x) - total * total + layer["epsilon"]
        mantissa, exponent = reciprocal_square_root(variance, **layer["reciprocal_square_root"])
        scale = self.tensors[f"{name}.scale"]
        shift = self.tensors[f"{name}.shift"] if layer["kind"] == "layer" else [0] * channels
        result = []
        for value, gamma, beta in zip(x, scale, shift, strict=True):
            n = cast((channels * value - total) * mantissa, exponent - normalized.fraction, normalized)
            product_fraction = normalized.fraction + scale_format.fraction
            result.append(cast(n * gamma + beta, product_fraction - output.fraction, output))
        return result

    def attention(self, name, x, keys, values):
        """Return the result of the next token; its key and value join those of the tokens
        before.
        """
        query, key = self.linear(f"{name}.query", x), self.linear(f"{name}.key", x)
        if self.manifest["rotary"]:
            query = self.rotated(f"{name}.rotated_query", query, len(keys))
            key = self.rotated(f"{name}.rotated_key", key, len(keys))
        keys.append(key)
        values.append(self.linear(f"{name}.value", x))
        (context,), (value_format,) = self.formats(f"{name}.output", "input"), self.formats(f"{name}.value", "output")
        layer = self.layers[f"{name}.context"]
        size = len(query) // layer["num_heads"]
        merged = []
        for head in range(layer["num_heads"]):
            first = head * layer["num_kv_heads"] // layer["num_heads"] * size
            shared = slice(first, first + size)
            own = query[head * size : (head + 1) * size]
            scores = [dot(own, key[shared]) for key in keys]
            weights = [exponential(max(scores) - score, **layer["exponential"]) for score in scores]
            mantissa, exponent = reciprocal(sum(weights), **layer["reciprocal"])
            for channel in range(first, first + size):
                total = dot(weights, [value[channel] for value in values])
                shift = exponent + value_format.fraction - context.fraction
                merged.append(cast(total * mantissa, shift, context))
        return self.linear(f"{name}.output", merged)

    def rotated(self, name, x, position):
        source, target = self.formats(name, "input", "output")
        cosine, sine = (self.tensors[f"rotation.{part}"][position] for part in ("cosine", "sine"))
        shift, result = source.fraction + 14 - target.fraction, []
        for first in range(0, len(x), 2):
            c, s = (part[first // 2 % len(cosine)] for part in (cosine, sine))
            a, b = x[first], x[first + 1]
            result += [cast(a * c - b * s, shift, target), cast(a * s + b * c, shift, target)]
        return result

    def product(self, name, a, b):
        first, second, target = self.formats(name, "first", "second", "output")
        shift = first.fraction + second.fraction - target.fraction
        return [cast(x * y, shift, target) for x, y in zip(a, b, strict=True)]

    def activation(self, name, x):
        lowest = self.formats(name, "input")[0].lowest
        return [self.tensors[f"{name}.table"][value - lowest] for value in x]

    def add(self, x, branch):
        return [saturated(a + b, self.residual) for a, b in zip(x, branch, strict=True)]

    def empty(self):
        """Return the keys and values of a context without a token, block by block."""
        return [([], []) for _ in range(self.manifest["num_layers"])]

    def step(self, token, caches):
        """Return the logits after one more token of a context, whose keys and values join the
        caches.
        """
        position = len(caches[0][0])
        x = self.row("embedding.token", token)
        places = [0] * len(x) if self.manifest["rotary"] else self.row("embedding.position", position)
        x = self.add(x, places)
        for index, (keys, values) in enumerate(caches):
            block = f"blocks.{index}"
            normed = self.norm(f"{block}.attention_norm", x)
            x = self.add(x, self.attention(f"{block}.attention", normed, keys, values))
            normed, part = self.norm(f"{block}.feed_forward_norm", x), f"{block}.feed_forward"
            hidden = self.linear(f"{part}.up", normed)
            if self.manifest["gated"]:
                gate = self.activation(f"{part}.gate_activation", self.linear(f"{part}.gate", normed))
                activated = self.product(f"{part}.activation", gate, hidden)
            else:
                activated = self.activation(f"{part}.activation", hidden)
            x = self.add(x, self.linear(f"{block}.feed_forward.down", activated))
        return self.linear("logits", self.norm("final_norm", x))

    def logits(self, tokens):
        """Return the logits of every token of a context."""
        caches = self.empty()
        return [self.step(token, caches) for token in tokens]

    def context(self, tokens):
        """Return the tokens that the next one depends on."""
        length = self.manifest["context_length"]
        if len(tokens) <= length:
            return tokens
        kept = max(1, length // 2)
        return tokens[-(kept + (len(tokens) - length - 1) % (length - kept + 1)) :]

    def generate(self, prompt, num_tokens, temperature=0.0, seed=0, sequence=0):
        """Return the tokens that follow a prompt."""
        tokens, state, caches = list(prompt), mix(seed, sequence), self.empty()
        for _ in range(num_tokens):
            context, known = self.context(tokens), len(caches[0][0])
            if not 0 < known == len(context) - 1:  # the prompt, or a context that begins anew
                caches, known = self.empty(), 0
            for token in context[known:]:
                logits = self.step(token, caches)
            if temperature == 0:
                tokens.append(logits.index(max(logits)))
                continue
            state ^= state << 13 & WORD
            state ^= state >> 17
            state ^= state << 5 & WORD
            tokens.append(self.sample(logits, temperature, state))
        return tokens[len(prompt) :]

    def sample(self, logits, temperature, random):
        sampler, (form,) = self.manifest["sampler"], self.formats("logits", "output")
        bits, noise = sampler["multiplier_bits"], sampler["noise"]
        scale = math.log2(math.e) / temperature
        size = math.floor(math.log2(scale)) + 1
        multiplier, shift = nearest(scale * 2.0 ** (bits - size)), form.fraction - noise["fraction"] + bits - size
        if multiplier == 1 << bits:
            multiplier, shift = multiplier // 2, shift - 1
        scores = [
            rounded(x * multiplier, shift) + gumbel(hashed(random, token, noise["rounds"]), noise)
            for token, x in enumerate(logits)
        ]
        return scores.index(max(scores))

"""Decoders of random numbers, of any kind and size: what the machine is tested with.

They come the way a trained model does: a float model is calibrated on tokens, then quantized.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fixedpoint import QuantizedTransformer
from fixedpoint.quantization.calibration import QuantizationSettings, calibrate
from fixedpoint.quantization.quantize import quantize_transformer
from fixedpoint.row_scales import WeightBits
from model import Transformer
from model.config import ModelConfig

CALIBRATION_TOKENS = 2048


@dataclass(frozen=True)
class DecoderShape:
    """What a campaign of the machine runs on.

    Attributes:
        config: Sizes and kinds.
        weight_bits: Of the weights.
        sampling: Whether the machine samples.
        sequences: That share the machine.
    """

    config: ModelConfig
    weight_bits: WeightBits
    sampling: bool = False
    sequences: int = 1

    def model(self, seed: int = 1) -> QuantizedTransformer:
        """Return such a model of random weights."""
        return random_decoder(self.config, QuantizationSettings(weight_bits=self.weight_bits), seed)


LLAMA = {"activation": "swiglu", "position": "rotary", "norm": "rms", "use_bias": False, "tie_embeddings": True}
STORIES = {"vocab_size": 512, "embed_dim": 64, "num_heads": 8, "num_kv_heads": 4, "num_layers": 5, "ff_dim": 172}
GATE_GPT = {"vocab_size": 27, "embed_dim": 24, "num_layers": 1, "max_seq_len": 16, "norm": "rms", "use_bias": False}
ZYBO_GPT = {"vocab_size": 128, "embed_dim": 64, "num_heads": 2, "num_layers": 2, "max_seq_len": 128, "norm": "rms"}
# By their names in `hdl.catalog.names.DECODER_NAMES`.
SHAPES: Mapping[str, DecoderShape] = {
    "decoder-demo": DecoderShape(ModelConfig(vocab_size=65, embed_dim=64, num_layers=2), 8, True),
    "decoder-m": DecoderShape(ModelConfig(vocab_size=65), 3),
    "decoder-stories260k": DecoderShape(ModelConfig.from_dict({**STORIES, **LLAMA, "max_seq_len": 512}), 4),
    "decoder-gategpt": DecoderShape(ModelConfig.from_dict(GATE_GPT), 4, True),
    "decoder-zybogpt": DecoderShape(ModelConfig.from_dict(ZYBO_GPT), "ternary"),
    "decoder-two": DecoderShape(ModelConfig.from_dict({**STORIES, **LLAMA, "max_seq_len": 64}), 4, sequences=2),
}


def random_decoder(config: ModelConfig, settings: QuantizationSettings, seed: int) -> QuantizedTransformer:
    """Return a quantized model of random weights, whose rows differ in scale by octaves, as those
    of trained ones do.

    Raises:
        QuantizationError: An accumulator would need more than 32 bits.
    """
    generator = np.random.default_rng(seed)
    model = Transformer(config, seed=seed, dtype=np.float64)
    for name, values in model.parameters.items():
        if name.endswith(".scale"):
            values[...] = generator.uniform(0.5, 1.5, values.shape)
        elif values.ndim == 1:
            values[...] = generator.normal(0, 0.3, values.shape)
        else:
            octaves = np.exp2(generator.integers(-1, 2, (len(values), 1)))
            width = 1 if name.endswith("embedding") else values.shape[1]
            values[...] = generator.normal(size=values.shape) * octaves / np.sqrt(width)
    length = config.max_seq_len
    tokens = generator.integers(0, config.vocab_size, (max(2, CALIBRATION_TOKENS // length), length))
    return quantize_transformer(model, calibrate(model, tokens, settings), settings)

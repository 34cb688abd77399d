"""Numbers as options: NumPy's integers count, booleans do not, wherever an option is checked."""

import json
import warnings

import numpy as np
import pytest

from fixedpoint.errors import QuantizationError
from fixedpoint.operators.sampling import Sampler, mix
from fixedpoint.qformat import QFormat
from fixedpoint.quantization.calibration import QuantizationSettings
from fixedpoint.quantization.overrides import Overrides
from model.config import ModelConfig, TrainingConfig
from model.errors import InputError
from model.generation.generate import generate, generate_batch
from model.generation.sampling import Sampling
from model.loss import cross_entropy
from model.tokenizers.bpe import BPETokenizer
from model.tokenizers.word import WordTokenizer
from model.transformer import Transformer
from model.workspace import Workspace

MODEL = Transformer({"vocab_size": 5, "embed_dim": 8, "num_heads": 2, "num_layers": 1, "max_seq_len": 6})
LOGITS = QFormat(8, 4)


def batch(num_tokens):
    return generate_batch(MODEL, [[1]], num_tokens)


WHOLE = [
    lambda value: Sampling(top_k=value),
    lambda value: batch(value),
    lambda value: generate(MODEL, [value], 1),
    lambda value: generate(MODEL, [1], 1, seed=value),
    lambda value: ModelConfig(num_layers=value),
    lambda value: TrainingConfig(batch_size=value),
    lambda value: BPETokenizer(256 + value if type(value) is np.int64 else value),
    lambda value: WordTokenizer(1 + value if type(value) is np.int64 else value),
    lambda value: QuantizationSettings(activation_bits=3 + value if type(value) is np.int64 else value),
    lambda value: QuantizationSettings(weight_bits=1 + value if type(value) is np.int64 else value),
    lambda value: QFormat(7, value),
    lambda value: mix(value, 0),
]
REAL = [
    lambda value: Sampling(temperature=value),
    lambda value: Sampling(top_p=value),
    lambda value: Sampling(repetition_penalty=value),
    lambda value: TrainingConfig(learning_rate=value),
    lambda value: Sampler(LOGITS, value),
]


@pytest.mark.parametrize("use", WHOLE + REAL)
def test_numpy_numbers_are_numbers_and_booleans_and_texts_are_not(use):
    use(np.int64(1))
    for wrong in (True, np.True_, "1"):
        with pytest.raises((InputError, QuantizationError, TypeError), match="not"):
            use(wrong)


@pytest.mark.parametrize("use", WHOLE)
def test_a_fraction_is_no_whole_number(use):
    for wrong in (0.7, np.float32(1)):
        with pytest.raises((InputError, QuantizationError, TypeError), match="not"):
            use(wrong)


@pytest.mark.parametrize("use", REAL)
def test_numpy_floats_are_real_numbers(use):
    use(np.float32(0.5))


def test_configurations_from_numpy_numbers_are_ready_for_files():
    for config in (ModelConfig(num_layers=np.int32(3)), TrainingConfig(learning_rate=np.float32(0.5))):
        assert type(config).from_dict(json.loads(json.dumps(config.to_dict()))) == config
    overrides = Overrides.from_dict({"a": {"weight_bits": np.int64(4)}, "b": {"activation_bits": np.int8(5)}})
    assert Overrides.from_dict(json.loads(json.dumps(overrides.to_dict()))) == overrides
    assert json.dumps(
        [QFormat(np.int64(8), np.int8(4)).bits, QuantizationSettings(weight_bits=np.int64(4)).weight_bits]
    )


def test_tokens_are_whole_numbers():
    tokenizer = BPETokenizer(256)
    tokenizer.train("a")
    assert tokenizer.decode(np.array([97, 98])) == "ab"
    for use in (lambda: tokenizer.decode([97.0]), lambda: generate(MODEL, np.array([0.7]), 1)):
        with pytest.raises(InputError, match=r"token (97\.0|0\.7) is not a whole number"):
            use()


@pytest.mark.parametrize(("top_k", "expected"), [(2, {1, 3}), (3, {1, 3, 4}), (5, {0, 1, 3, 4, 5}), (6, set(range(6)))])
@pytest.mark.parametrize("temperature", [1.0, 1e-3, 1e300])
def test_top_k_keeps_k_of_equal_logits_those_with_the_smaller_numbers(top_k, expected, temperature):
    logits = np.array([0, 1, -1, 1, 1, 0], np.float32)
    logits = logits if top_k > 3 else np.maximum(logits, 0)
    sampling = Sampling(temperature, top_k=top_k)
    chosen = {sampling.choose(logits, random, []) for random in np.linspace(0, 1, 100, endpoint=False)}
    assert chosen == (expected if temperature != 1e-3 else expected & {1, 3, 4})


@pytest.mark.parametrize("logits", [np.zeros(6, np.float32), np.array([3, -3, 0, 0.1, 200, -1e7], np.float32)])
@pytest.mark.parametrize(
    "options", [{"temperature": 1e300}, {"repetition_penalty": 1e300}, {"repetition_penalty": 1e-300}]
)
def test_extreme_options_give_tokens_without_a_warning(options, logits):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sampling = Sampling(**options)
        alone = [sampling.choose(logits, random, [0, 1, 2]) for random in (0.1, 0.5, 0.9)]
        rows = sampling.choose_rows(np.stack([logits] * 3), np.array([0.1, 0.5, 0.9]), [[0, 1, 2]] * 3)
    assert rows == alone
    if "temperature" in options:
        assert alone == [0, 3, 5]


def test_a_loss_is_never_below_zero_and_a_wrong_one_stays_wrong():
    workspace = Workspace(np.dtype(np.float32))
    generator = np.random.default_rng(0)
    for _ in range(200):
        logits = generator.normal(size=(1, 4)).astype(np.float32)
        logits[0, 2] = 40
        assert cross_entropy(logits, np.array([2]), workspace) >= 0
    assert np.isnan(cross_entropy(np.full((1, 4), np.nan, np.float32), np.array([2]), workspace))

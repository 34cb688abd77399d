"""The model from outside: configuration, shapes, observation, counts, refusals."""

import random

import numpy as np
import pytest

from model import MODEL_CONFIG, TRAINING_CONFIG, ModelConfig, TrainingConfig
from model.config import DEFAULT_STEPS
from model.data import encode_texts, load_tokens, random_batch, save_tokens, split_tokens, text_parts, windows
from model.embedding import sinusoidal_positions
from model.errors import InputError
from model.parameters import parameter_shapes
from model.rotary import rotate, rotation_table
from model.stories import generate_stories
from model.tokenizers.bpe import BPETokenizer
from model.tokenizers.character import CharacterTokenizer
from model.tokenizers.word import WordTokenizer
from model.training.evaluation import evaluate_loss
from model.transformer import Transformer

SIZES = {"vocab_size": 11, "embed_dim": 8, "num_heads": 2, "num_layers": 2, "ff_dim": 20, "max_seq_len": 6}


def test_dictionaries_and_dataclasses_agree():
    config = MODEL_CONFIG.copy()
    config.update({"embed_dim": 32, "num_heads": 8})
    assert ModelConfig.from_dict(config).ff_dim == 128
    assert ModelConfig.from_dict(ModelConfig(**SIZES).to_dict()) == ModelConfig(**SIZES)
    assert TrainingConfig.from_dict(TRAINING_CONFIG) == TrainingConfig()
    assert TrainingConfig.from_dict(TrainingConfig().to_dict()) == TrainingConfig()
    assert Transformer(SIZES).config == Transformer(ModelConfig(**SIZES)).config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embed_dims": 8}, "no field 'embed_dims'; did you mean 'embed_dim'"),
        ({"xyzzy": 8}, "known are vocab_size"),
        ({"embed_dim": 9}, "multiple of num_heads 2"),
        ({"embed_dim": 8.0}, "embed_dim must be a whole number"),
        ({"num_layers": True}, "num_layers must be a whole number"),
        ({"num_layers": 0}, "from 1 to"),
        ({"dropout": 1.0}, "dropout must be a number from 0 below 1"),
        ({"dropout": "0"}, "dropout"),
        ({"activation": "tanh"}, "activation must be one of 'gelu'"),
        ({"position": None}, "position must be one of"),
        ({"norm": "batch"}, "norm must be one of"),
        ({"norm_epsilon": -1}, "norm_epsilon"),
        ({"num_kv_heads": 3}, "multiple of num_kv_heads 3"),
        ({"tie_embeddings": 1}, "tie_embeddings must be True or False"),
        ({"position": "rotary", "embed_dim": 6}, "must be even, not 3"),
        ({"embed_dim": 1 << 20, "ff_dim": 1 << 20}, "parameters, more than"),
        ({"num_layers": 0, "dropout": 2, "norm": "no"}, "num_layers must .*; dropout must .*; norm must"),
        ({"embed_dim": 9, "num_kv_heads": 3}, "embed_dim 9 must be .*; num_heads 2 must be a multiple of num_kv_heads"),
        ({"xyzzy": 8, "embed_dims": 8}, "no field 'xyzzy'; known .*; ModelConfig has no field 'embed_dims'"),
    ],
)
def test_impossible_configurations_are_named(change, message):
    with pytest.raises(InputError, match=message):
        Transformer({**SIZES, **change})


def test_steps_or_epochs_say_how_long_to_train():
    assert TrainingConfig().num_steps == DEFAULT_STEPS
    for changed in ({**TRAINING_CONFIG, "num_epochs": 3}, {"num_epochs": 3}):
        config = TrainingConfig.from_dict(changed)
        assert (config.num_steps, config.num_epochs) == (None, 3)
    custom = TRAINING_CONFIG.copy()
    custom.update({"num_epochs": 2.5, "batch_size": 8})
    assert TrainingConfig.from_dict(custom).num_epochs == 2.5
    assert TrainingConfig.from_dict({**TRAINING_CONFIG, "num_steps": 7}).num_steps == 7
    with pytest.raises(InputError, match="num_steps 7 and num_epochs 3 both say how long to train"):
        TrainingConfig.from_dict({**custom, "num_steps": 7, "num_epochs": 3})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_epoch": 3}, "TrainingConfig has no field 'num_epoch'; did you mean 'num_epochs'"),
        ({"learning_rate": 0, "seed": -1}, "learning_rate must .*; seed must"),
        ({"batch_size": 2, "accumulation_steps": 3}, "accumulation_steps must be a whole number from 1 to 2"),
    ],
)
def test_impossible_training_options_are_named(changes, message):
    with pytest.raises(InputError, match=message):
        TrainingConfig.from_dict({**TRAINING_CONFIG, **changes})


def test_parameter_names_and_shapes():
    shapes = parameter_shapes(ModelConfig(**SIZES))
    assert shapes["token_embedding"] == (11, 8)
    assert shapes["position_embedding"] == (6, 8)
    assert shapes["blocks.1.attention.query.weight"] == (8, 8)
    assert shapes["blocks.0.feed_forward.up.weight"] == (20, 8)
    assert shapes["blocks.0.feed_forward.down.bias"] == (8,)
    assert shapes["final_norm.shift"] == (8,)
    assert shapes["output.weight"] == (11, 8)
    assert "output.weight" not in parameter_shapes(ModelConfig(**SIZES, tie_embeddings=True))
    assert parameter_shapes(ModelConfig(**SIZES, num_kv_heads=1))["blocks.0.attention.key.weight"] == (4, 8)


def test_counts():
    model = Transformer(SIZES)
    per_block = 4 * (8 * 8 + 8) + 2 * 8 * 20 + 20 + 8 + 4 * 8
    assert model.get_num_parameters() == 2 * 11 * 8 + 6 * 8 + 2 * per_block + 16
    assert sum(array.size for array in model.parameters.values()) == model.get_num_parameters()
    counts = model.count_parameters()
    assert counts.pop("total") == sum(counts.values()) == model.get_num_parameters()
    operations = model.count_multiply_accumulates()
    assert operations["total"] == 2 * (4 * 64 + 2 * 8 * 20 + 2 * 8 * 6) + 11 * 8


def test_parameters_are_views_that_cannot_be_lost():
    model = Transformer(SIZES)
    before = model.forward(np.zeros((1, 3), int))
    model.parameters["output.weight"] = np.zeros((11, 8))
    assert not model.forward(np.zeros((1, 3), int)).any()
    assert before.any()
    with pytest.raises(InputError, match=r"shape \(11, 8\), not \(8, 11\)"):
        model.parameters["output.weight"] = np.zeros((8, 11))
    with pytest.raises(InputError, match="no parameter"):
        model.parameters["new"] = np.zeros(1)
    with pytest.raises(InputError, match="part of the model"):
        del model.parameters["output.weight"]


def test_seed_decides_the_weights():
    first, same, other = (Transformer(SIZES, seed=seed).parameters.flat for seed in (1, 1, 2))
    assert (first == same).all()
    assert (first != other).any()


def test_observed_tensors():
    config = ModelConfig(**SIZES)
    model = Transformer(config, seed=2)
    tokens = np.random.default_rng(0).integers(0, 11, (3, 5))
    seen = {}
    logits = model.forward(tokens, observe=seen.__setitem__)
    np.testing.assert_array_equal(logits, model.forward(tokens))
    expected = {"embedding": 8, "final_norm": 8, "logits": 11}
    for block in ("blocks.0", "blocks.1"):
        names = ("attention_norm", "attention.query", "attention.key", "attention.value", "attention.context")
        names += (
            "attention.output",
            "attention_residual",
            "feed_forward_norm",
            "feed_forward.down",
            "feed_forward_residual",
        )
        expected |= {f"{block}.{name}": 8 for name in names}
        expected |= {
            f"{block}.feed_forward.up": 20,
            f"{block}.feed_forward.activation": 20,
            f"{block}.attention.weights": None,
        }
    assert set(seen) == set(expected)
    for name, width in expected.items():
        assert seen[name].shape == ((3, 5, width) if width else (3, 2, 5, 5)), name
    weights = seen["blocks.1.attention.weights"]
    assert not np.triu(weights, 1).any()
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)
    np.testing.assert_allclose(
        seen["blocks.0.attention_residual"], seen["embedding"] + seen["blocks.0.attention.output"], rtol=1e-6, atol=1e-6
    )
    np.testing.assert_array_equal(seen["logits"], logits)


def test_logits_do_not_depend_on_later_tokens():
    model = Transformer({**SIZES, "max_seq_len": 80}, seed=2)
    tokens = np.random.default_rng(0).integers(0, 11, (2, 80))
    whole = model.forward(tokens)
    for length in (1, 31, 32, 33, 65):
        np.testing.assert_allclose(model.forward(tokens[:, :length]), whole[:, :length], atol=1e-6)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (np.zeros((1, 7), int), "length from 1 to 6"),
        (np.zeros((1, 0), int), "length from 1 to 6"),
        (np.zeros(3, int), "shape"),
        (np.zeros((1, 3)), "float64"),
        (np.full((1, 3), 11), "token 11 is outside the vocabulary of 11"),
        (np.full((1, 3), -1), "token -1 is outside"),
    ],
)
def test_wrong_tokens_are_refused(tokens, message):
    with pytest.raises(InputError, match=message):
        Transformer(SIZES).forward(tokens)


def test_wrong_targets_are_refused():
    tokens = np.zeros((2, 3), int)
    with pytest.raises(InputError, match="target 11 is outside"):
        Transformer(SIZES).loss(tokens, tokens + 11)
    with pytest.raises(InputError, match="tokens' shape"):
        Transformer(SIZES).loss(tokens, tokens[:1])


def test_sinusoidal_positions_follow_the_paper():
    table = sinusoidal_positions(50, 6, np.dtype(np.float64))
    assert table[7, 2] == pytest.approx(np.sin(7 / 10000 ** (2 / 6)))
    assert table[7, 5] == pytest.approx(np.cos(7 / 10000 ** (4 / 6)))
    model = Transformer({**SIZES, "position": "sinusoidal"})
    assert "position_embedding" not in model.parameters
    assert model.position_table().shape == (6, 8)
    assert not Transformer({**SIZES, "position": "rotary"}).position_table().any()


def test_rotation_keeps_lengths_and_depends_on_distance():
    generator = np.random.default_rng(0)
    query, key = generator.standard_normal((2, 1, 1, 8))
    table = rotation_table(20, 8, 10000.0, np.dtype(np.float64))
    products = []
    for shift in (0, 5, 11):
        turned = []
        for vector, position in ((query, 3 + shift), (key, 1 + shift)):
            copy = vector.copy()
            rotate(copy, table[position : position + 1])
            turned.append(copy.ravel())
            assert np.linalg.norm(copy) == pytest.approx(np.linalg.norm(vector))
        products.append(turned[0] @ turned[1])
    assert products == pytest.approx([products[0]] * 3)


def test_windows_and_evaluation():
    inputs, targets = windows(np.arange(14), 4)
    assert inputs.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert (targets == inputs + 1).all()
    assert len(windows(np.arange(13), 4)[0]) == 3
    with pytest.raises(InputError, match="do not fill one window"):
        windows(np.arange(4), 4)
    model = Transformer(SIZES, seed=1)
    tokens = np.random.default_rng(0).integers(0, 11, 200)
    whole = model.loss(*windows(tokens, 6))
    assert evaluate_loss(model, tokens) == pytest.approx(whole, rel=1e-6)
    assert evaluate_loss(model, tokens, batch_size=5) == pytest.approx(whole, rel=1e-6)


def test_random_batches_depend_on_seed_and_step_alone():
    tokens = np.arange(1000).astype(np.uint16)
    first, second = (random_batch(tokens, 4, 10, 3, 7) for _ in range(2))
    assert (first[0] == second[0]).all()
    assert (first[1] == first[0] + 1).all()
    assert (random_batch(tokens, 4, 10, 3, 8)[0] != first[0]).any()
    starts = {int(random_batch(np.arange(12), 1, 10, 0, step)[0][0, 0]) for step in range(50)}
    assert starts == {0, 1}


def test_token_files(tmp_path):
    tokens = np.arange(100, dtype=np.uint16)
    save_tokens(tmp_path / "t.npy", tokens)
    loaded = load_tokens(tmp_path / "t.npy", 100)
    assert isinstance(loaded, np.memmap)
    assert (loaded == tokens).all()
    with pytest.raises(InputError, match="token 99, outside the vocabulary of 50"):
        load_tokens(tmp_path / "t.npy", 50)
    data = (tmp_path / "t.npy").read_bytes()
    for damaged in (data[:-7], data[:50], b"", b"x" * 300):
        (tmp_path / "t.npy").write_bytes(damaged)
        with pytest.raises(InputError, match="not a whole"):
            load_tokens(tmp_path / "t.npy")
    with pytest.raises(InputError, match="does not exist"):
        load_tokens(tmp_path / "u.npy")


def test_split_is_at_the_end():
    training, validation = split_tokens(np.arange(1000), 0.1, 20)
    assert (len(training), validation[0]) == (900, 900)


def test_text_is_cut_without_changing_its_tokens():
    text = generate_stories(40_000, seed=2).replace(". ", ".\n") + "\n\n  end"
    for tokenizer in (CharacterTokenizer(), WordTokenizer(300), BPETokenizer(400)):
        tokenizer.train(text)
        parts = list(text_parts(text, 3000))
        assert len(parts) > 8
        assert "".join(parts) == text
        assert [token for part in parts for token in tokenizer.encode(part)] == tokenizer.encode(text)
    assert list(text_parts("no line end " * 1000, 100)) == ["no line end " * 1000]


def test_no_special_token_is_cut():
    special = ["x\nz", "\nend", "\nendless\nend"]
    tokenizer = BPETokenizer(300, special)
    words = ["story", "x\nz", "x\nzx\nz", "\nend", "a\nb", "\nendless", "\nendless\nend", " ", "z\nx"]
    generator = random.Random(4)
    text = "".join(generator.choices(words, k=3000))
    tokenizer.train(text)
    parts = list(text_parts(text, 20, special))
    assert len(parts) > 50
    assert "".join(parts) == text
    assert [token for part in parts for token in tokenizer.encode(part)] == tokenizer.encode(text)
    assert encode_texts(tokenizer, ["ab" * (1 << 19) + text]).tolist() == tokenizer.encode("ab" * (1 << 19) + text)


def test_texts_are_encoded_to_a_file(tmp_path):
    tokenizer = CharacterTokenizer()
    tokenizer.train("abc")
    tokens = encode_texts(tokenizer, (text for text in ["ab", "", "ca"]), tmp_path)
    assert isinstance(tokens, np.memmap)
    assert (tokens.dtype, tokens.tolist()) == (np.uint16, [0, 1, 2, 0])
    assert list(tmp_path.iterdir()) == []
    assert len(encode_texts(tokenizer, [])) == 0

"""GPT-2, llama2.c and ONNX: the same logits as another implementation."""

import math
import struct

import numpy as np
import pytest

from model.config import ModelConfig
from model.errors import InputError
from model.formats.gpt2 import from_gpt2, to_gpt2
from model.formats.llama2c import HEADER, load_llama2c, save_llama2c
from model.formats.onnx_export import export_onnx
from model.transformer import Transformer

GPT2 = ModelConfig(
    vocab_size=29, embed_dim=24, num_heads=3, num_layers=2, max_seq_len=16, activation="gelu_tanh", tie_embeddings=True
)
LLAMA = ModelConfig(
    vocab_size=29,
    embed_dim=24,
    num_heads=6,
    num_kv_heads=2,
    num_layers=2,
    ff_dim=40,
    max_seq_len=16,
    activation="swiglu",
    norm="rms",
    position="rotary",
    use_bias=False,
)
TOKENS = np.random.default_rng(0).integers(0, 29, (2, 16))


def shaken(config, seed=0):
    """A model whose biases, scales and shifts are not their starting values."""
    model = Transformer(config, seed=seed)
    noise = np.random.default_rng(seed).standard_normal(model.parameters.flat.size)
    model.parameters.flat[:] += (0.1 * noise).astype(np.float32)
    return model


def softmax(scores):
    exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def tanh_gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def exact_gelu(x):
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def gpt2_logits(state, tokens, num_heads, gelu=tanh_gelu):
    """GPT-2 as in its paper's code, in float64, from a state dict; what it lacks of biases is 0."""
    get = {name.removeprefix("transformer."): array.astype(np.float64) for name, array in state.items()}

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * get[f"{name}.weight"] + get.get(
            f"{name}.bias", 0
        )

    def conv(x, name):
        return x @ get[f"{name}.weight"] + get.get(f"{name}.bias", 0)

    x = get["wte.weight"][tokens] + get["wpe.weight"][: tokens.shape[1]]
    batch, length, width = x.shape
    for index in range(2):
        name = f"h.{index}"
        parts = np.split(conv(norm(x, f"{name}.ln_1"), f"{name}.attn.c_attn"), 3, axis=-1)
        q, k, v = (part.reshape(batch, length, num_heads, -1).transpose(0, 2, 1, 3) for part in parts)
        scores = q @ k.swapaxes(-1, -2) / math.sqrt(width / num_heads)
        scores = np.where(np.tri(length, dtype=bool), scores, -np.inf)
        context = (softmax(scores) @ v).transpose(0, 2, 1, 3).reshape(batch, length, width)
        x = x + conv(context, f"{name}.attn.c_proj")
        x = x + conv(gelu(conv(norm(x, f"{name}.ln_2"), f"{name}.mlp.c_fc")), f"{name}.mlp.c_proj")
    return norm(x, "ln_f") @ get["lm_head.weight"].T


def test_gpt2_both_ways():
    model = shaken(GPT2)
    state = to_gpt2(model)
    np.testing.assert_allclose(model.forward(TOKENS), gpt2_logits(state, TOKENS, 3), atol=2e-5)
    buffers = {"transformer.h.0.attn.bias": np.tri(16)[None, None], "transformer.h.0.attn.masked_bias": np.array(-1e4)}
    for source in (state | buffers, {name.removeprefix("transformer."): array for name, array in state.items()}):
        loaded = from_gpt2(source, num_heads=3)
        assert loaded.config == model.config
        assert loaded.parameters.flat.tobytes() == model.parameters.flat.tobytes()


def test_gpt2_with_an_output_layer_of_its_own():
    state = to_gpt2(shaken(GPT2))
    state["lm_head.weight"] = np.random.default_rng(5).standard_normal((29, 24)).astype(np.float32)
    model = from_gpt2(state, num_heads=3)
    assert not model.config.tie_embeddings
    np.testing.assert_allclose(model.forward(TOKENS), gpt2_logits(state, TOKENS, 3), atol=5e-5)
    with pytest.raises(InputError, match="tie_embeddings"):
        to_gpt2(model)
    del state["lm_head.weight"]
    assert from_gpt2(state, num_heads=3).config.tie_embeddings
    with pytest.raises(InputError, match=r"lm_head\.weight has shape \(30, 24\), not \(29, 24\)"):
        from_gpt2(state | {"lm_head.weight": np.ones((30, 24), np.float32)}, num_heads=3)


def linear_layout(state):
    """The same weights in nanoGPT's compiled state_dict(): nn.Linear's are transposed."""
    return {
        f"_orig_mod.{name}": array.T.copy() if ".c_" in name and array.ndim == 2 else array
        for name, array in state.items()
    }


@pytest.mark.parametrize("has_biases", [True, False])
def test_nanogpt(has_biases):
    state = {name: array for name, array in to_gpt2(shaken(GPT2)).items() if has_biases or "bias" not in name}
    expected = gpt2_logits(state, TOKENS, 3, exact_gelu)
    model = from_gpt2(linear_layout(state), num_heads=3)
    assert (model.config.activation, model.config.use_bias) == ("gelu", has_biases)
    np.testing.assert_allclose(model.forward(TOKENS), expected, atol=2e-5)
    older = from_gpt2(linear_layout(state), num_heads=3, activation="gelu_tanh")
    np.testing.assert_allclose(older.forward(TOKENS), gpt2_logits(state, TOKENS, 3), atol=2e-5)


def test_nanogpt_refusals_say_why():
    state = linear_layout(to_gpt2(shaken(GPT2)))
    prefix = "_orig_mod.transformer.h.1."
    for change, message in (
        ({"model": state}, "a whole nanoGPT checkpoint; give the weights in it"),
        ({"lm_head.weight": np.ones((29, 24))}, "lm_head.weight is there twice"),
        ({f"{prefix}attn.c_attn.weight": np.ones((24, 72))}, r"has shape \(24, 72\), not \(72, 24\)"),
        ({"_orig_mod.transformer.h.0.attn.c_attn.weight": np.ones((24, 24))}, r"neither \(24, 72\) \(Conv1D\) nor"),
        ({f"{prefix}ln_1.weight": np.ones(24, int)}, "has type int64, not a floating-point type"),
    ):
        with pytest.raises(InputError, match=message):
            from_gpt2(state | change, num_heads=3)
    with pytest.raises(InputError, match=r"missing \['h.1.ln_1.bias'\]"):
        from_gpt2({name: array for name, array in state.items() if name != f"{prefix}ln_1.bias"}, num_heads=3)
    with pytest.raises(InputError, match="no gate"):
        from_gpt2(state, num_heads=3, activation="swiglu")


def test_gpt2_of_hugging_face():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=29, n_positions=16, n_embd=24, n_layer=2, n_head=3)
    reference = transformers.GPT2LMHeadModel(config).eval()
    state = {name: tensor.numpy() for name, tensor in reference.state_dict().items()}
    model = from_gpt2(state, num_heads=3)
    with torch.no_grad():
        expected = reference(torch.from_numpy(TOKENS)).logits.numpy()
    np.testing.assert_allclose(model.forward(TOKENS), expected, atol=2e-5)
    other = transformers.GPT2LMHeadModel(config).eval()
    other.load_state_dict({name: torch.from_numpy(array) for name, array in to_gpt2(model).items()}, strict=True)
    with torch.no_grad():
        np.testing.assert_allclose(other(torch.from_numpy(TOKENS)).logits.numpy(), expected, atol=1e-6)


def test_gpt2_refuses_what_does_not_fit():
    state = to_gpt2(shaken(GPT2))
    for change, message in (
        ({"transformer.h.0.ln_1.weight": np.ones(23)}, "shape"),
        ({"transformer.h.0.extra": np.ones(2)}, "unknown"),
    ):
        with pytest.raises(InputError, match=message):
            from_gpt2(state | change, num_heads=3)
    with pytest.raises(InputError, match="missing"):
        from_gpt2({name: array for name, array in state.items() if "ln_f" not in name}, num_heads=3)
    with pytest.raises(InputError, match="not the weights"):
        from_gpt2({}, num_heads=3)
    with pytest.raises(InputError, match="num_heads"):
        from_gpt2(state, num_heads=5)
    with pytest.raises(InputError, match="GPT-2 has norm 'layer', not 'rms'; GPT-2 has activation 'gelu_tanh'"):
        to_gpt2(Transformer(LLAMA))


def llama_logits(path, tokens):
    """What run.c of llama2.c computes, in float64, one token after the other, from the file."""
    data = path.read_bytes()
    dim, hidden, layers, heads, kv_heads, vocab, length = HEADER.unpack_from(data)
    values = np.frombuffer(data, "<f4", offset=HEADER.size).astype(np.float64)
    place = 0

    def take(*shape):
        nonlocal place
        place += math.prod(shape)
        return values[place - math.prod(shape) : place].reshape(shape)

    shared, vocab, size = vocab > 0, abs(vocab), dim // heads
    embedding, norm_1 = take(vocab, dim), take(layers, dim)
    wq, wk, wv = take(layers, dim, dim), take(layers, kv_heads * size, dim), take(layers, kv_heads * size, dim)
    wo, norm_2 = take(layers, dim, dim), take(layers, dim)
    w1, w2, w3 = take(layers, hidden, dim), take(layers, dim, hidden), take(layers, hidden, dim)
    norm_3 = take(dim)
    take(length, size)
    head = embedding if shared else take(vocab, dim)
    assert place == len(values)

    def norm(x, weight):
        return x / math.sqrt((x**2).mean() + 1e-5) * weight

    def rotate(x, position):
        for channel in range(0, len(x), 2):
            angle = position / 10000 ** ((channel % size) / size)
            a, b = x[channel : channel + 2]
            x[channel] = a * math.cos(angle) - b * math.sin(angle)
            x[channel + 1] = a * math.sin(angle) + b * math.cos(angle)

    keys, values_ = [[[] for _ in range(layers)] for _ in range(2)]
    logits = []
    for position, token in enumerate(tokens):
        x = embedding[token].copy()
        for layer in range(layers):
            y = norm(x, norm_1[layer])
            q, k, v = wq[layer] @ y, wk[layer] @ y, wv[layer] @ y
            rotate(q, position)
            rotate(k, position)
            keys[layer].append(k)
            values_[layer].append(v)
            context = []
            for index in range(heads):
                shared_head = slice(index * kv_heads // heads * size, (index * kv_heads // heads + 1) * size)
                own = q[index * size : (index + 1) * size]
                weights = softmax(np.array([own @ key[shared_head] / math.sqrt(size) for key in keys[layer]]))
                context.append(sum(w * value[shared_head] for w, value in zip(weights, values_[layer], strict=True)))
            x += wo[layer] @ np.concatenate(context)
            y = norm(x, norm_2[layer])
            gate = w1[layer] @ y
            x += w2[layer] @ (gate / (1 + np.exp(-gate)) * (w3[layer] @ y))
        logits.append(head @ norm(x, norm_3))
    return np.array(logits)


@pytest.mark.parametrize("tied", [True, False])
def test_llama2c_both_ways(tmp_path, tied):
    model = shaken(ModelConfig.from_dict(LLAMA.to_dict() | {"tie_embeddings": tied}))
    save_llama2c(model, tmp_path / "model.bin")
    np.testing.assert_allclose(model.forward(TOKENS)[1], llama_logits(tmp_path / "model.bin", TOKENS[1]), atol=2e-5)
    loaded = load_llama2c(tmp_path / "model.bin")
    assert loaded.config == model.config
    assert loaded.parameters.flat.tobytes() == model.parameters.flat.tobytes()


def test_llama2c_refuses_what_does_not_fit(tmp_path):
    with pytest.raises(InputError, match=r"llama2\.c has norm 'rms', not 'layer'; llama2\.c has activation 'swiglu'"):
        save_llama2c(Transformer(GPT2), tmp_path / "model.bin")
    save_llama2c(Transformer(LLAMA), tmp_path / "model.bin")
    data = (tmp_path / "model.bin").read_bytes()
    for changed, message in (
        (data[:20], "less than the header"),
        (data[:-4], "its header describes"),
        (data + b"\0", "its header describes"),
        (HEADER.pack(2**31 - 1, *[1] * 6) + data, "not a llama2.c model"),
        (HEADER.pack(2**18, 2**18, 5000, 2, 2, 10, 10), "parameters, more than"),
    ):
        (tmp_path / "model.bin").write_bytes(changed)
        with pytest.raises(InputError, match=message):
            load_llama2c(tmp_path / "model.bin")
    with pytest.raises(InputError, match="does not exist"):
        load_llama2c(tmp_path / "none.bin")


@pytest.mark.parametrize(
    ("version", "content"), [(1, "float32 weights"), (2, "8-bit weights"), (3, "unknown here"), (-1, "unknown here")]
)
def test_llama2c_names_other_versions(tmp_path, version, content):
    """Headers of llama2.c's export.py: magic, version, seven sizes, shared flag, padding to 256."""
    header = struct.pack("<Ii7iB", 0x616B3432, version, 24, 40, 2, 6, 2, 29, 16, 1).ljust(256, b"\0")
    (tmp_path / "model.bin").write_bytes(header + bytes(4000))
    with pytest.raises(InputError, match=rf"a llama2\.c model of version {version} \({content}.*version 0 is read"):
        load_llama2c(tmp_path / "model.bin")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"activation": "gelu_tanh", "tie_embeddings": True, "position": "sinusoidal"},
        {"activation": "relu", "use_bias": False},
        {"activation": "relu_squared", "num_kv_heads": 1},
        {"activation": "silu", "norm": "rms"},
        LLAMA.to_dict(),
    ],
    ids=lambda changes: changes.get("activation", "gelu"),
)
def test_onnx_runtime_gives_the_same_logits(tmp_path, changes):
    onnxruntime = pytest.importorskip("onnxruntime")
    sizes = {"vocab_size": 29, "embed_dim": 24, "num_heads": 4, "num_layers": 2, "max_seq_len": 16}
    model = shaken(ModelConfig.from_dict({**sizes, **changes}))
    export_onnx(model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    for tokens in (TOKENS, TOKENS[:1, :5], TOKENS[:, :1]):
        (logits,) = session.run(["logits"], {"tokens": tokens.astype(np.int64)})
        np.testing.assert_allclose(logits, model.forward(tokens), atol=3e-5)


def test_onnx_checker_accepts_the_graph(tmp_path):
    onnx = pytest.importorskip("onnx")
    export_onnx(shaken(GPT2), tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(graph, full_check=True)
    assert [value.name for value in graph.graph.output] == ["logits"]

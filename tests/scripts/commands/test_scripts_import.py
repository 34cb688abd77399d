"""`import` and what later commands make of an imported run."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from stories260k import MODEL, TOKENIZER, needs_stories260k
from torch_files import torch_file

from fixedpoint.quantization.quantization_aware import QuantizationAware
from model import InputError, Llama2cTokenizer, ModelConfig, RunDirectory, Transformer, generate, generate_batch
from model.data import windows
from model.formats.gpt2 import to_gpt2
from model.formats.imported import import_model
from model.formats.llama2c import HEADER, save_llama2c
from model.formats.safetensors import read_safetensors, write_safetensors
from model.tokenizers.llama2c import BYTE_PIECES
from scripts import cli

LETTERS = "abcdefghijklmnopqrstuvwxyz"
PIECES = ["<unk>", "\n<s>\n", "\n</s>\n", *BYTE_PIECES, " ", *LETTERS, "the", " a"]
SIZES = {"vocab_size": len(PIECES), "embed_dim": 16, "num_heads": 4, "num_layers": 1, "ff_dim": 24, "max_seq_len": 8}
LLAMA = ModelConfig(
    **SIZES, num_kv_heads=2, norm="rms", activation="swiglu", position="rotary", use_bias=False, tie_embeddings=True
)
GPT2 = ModelConfig(**SIZES | {"vocab_size": 26}, activation="gelu_tanh", tie_embeddings=True)
ARGUMENTS = {"n_head": 4, "n_layer": 1, "n_embd": 16, "block_size": 8, "bias": True, "vocab_size": 26, "dropout": 0.0}


def llama(folder: Path) -> Path:
    save_llama2c(Transformer(LLAMA, seed=1), folder / "model.bin")
    Llama2cTokenizer(PIECES, [-float(rank) for rank in range(len(PIECES))]).write(folder / "tokenizer.bin")
    return folder / "model.bin"


def nano(folder: Path, vocab_size: int = 26, **arguments: object) -> Path:
    model = Transformer(ModelConfig.from_dict({**GPT2.to_dict(), "vocab_size": vocab_size}), seed=1)
    state = {
        f"_orig_mod.{name}": array.T.copy() if ".c_" in name and array.ndim == 2 else array
        for name, array in to_gpt2(model).items()
    }
    content = {"model": state, "model_args": {**ARGUMENTS, "vocab_size": vocab_size, **arguments}}
    (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": 26, "itos": dict(enumerate(LETTERS))}))
    return torch_file(folder / "ckpt.pt", content)


def run_of(path: Path, out: Path, *options: object) -> RunDirectory:
    assert cli.main(["import", str(path), "--out", str(out), *map(str, options)]) == 0
    return RunDirectory(out)


@pytest.mark.parametrize(("make", "config"), [(llama, LLAMA), (nano, GPT2)])
def test_a_run_is_made_and_writes(make, config, tmp_path, capsys):
    run = run_of(make(tmp_path), tmp_path / "run")
    model, tokenizer = run.load_model(), run.load_tokenizer()
    assert model.parameters.flat.tobytes() == Transformer(config, seed=1).parameters.flat.tobytes()
    capsys.readouterr()
    assert cli.main(["generate", str(run.path), "--prompt", "abc", "--length", "9", "--temperature", "0"]) == 0
    prompt = tokenizer.encode("abc")
    expected = tokenizer.incremental_decoder(prompt[-1]).decode(generate(model, prompt, 9, temperature=0), final=True)
    assert capsys.readouterr().out == f"abc{expected}\n"
    assert cli.main(["report", str(run.path)]) == 0
    assert "imported from" in run.report.read_text(encoding="utf-8")
    assert cli.main(["quantize", str(run.path)]) == 1
    assert "was imported without a text: positron quantize" in capsys.readouterr().err


def test_samples_and_text_are_calibrated_on(tmp_path, capsys):
    run = run_of(nano(tmp_path), tmp_path / "run")
    text = tmp_path / "text.txt"
    text.write_text("thequickbrownfoxjumpsoverthelazydog" * 9)
    assert cli.main(["quantize", str(run.path), "--calibrate-on-samples", "160", "--seed", "3"]) == 0
    contexts = np.asarray(run.load_training_tokens())[:-1].reshape(-1, 8)
    model, beginning = run.load_model(), run.load_tokenizer().beginning()
    assert len(contexts) == 15
    assert contexts[0].tolist() == [beginning, *generate(model, [beginning], 7, seed=3)]
    assert set(contexts[:, 0]) == {beginning}
    held_out = run.load_validation_tokens()
    assert held_out.shape == (5, 9)  # with the token that ends a context, which the model wrote too
    assert held_out[0].tolist() == [beginning, *generate_batch(model, [[beginning]] * 20, 8, seed=3)[15]]
    comparison = json.loads((run.path / "quantization.json").read_text(encoding="utf-8"))["comparison"]
    assert comparison["float_loss"] == pytest.approx(model.loss(held_out[:, :-1], held_out[:, 1:]), abs=1e-5)
    assert run.load_training_record()["source"]["seed"] == 3
    assert cli.main(["quantize", str(run.path), "--text", str(text)]) == 0
    assert run.load_tokenizer().decode(run.load_training_tokens()).startswith("thequick")
    for words in (["evaluate"], ["generate", "--quantized", "--length", "5"], ["report"]):
        assert cli.main([words[0], str(run.path), *words[1:]]) == 0
    capsys.readouterr()
    for options, message in (
        (["--text", str(text), "--calibrate-on-samples", "99"], "give one of them"),
        (["--seed", "1"], "give --calibrate-on-samples N too"),
        (["--calibrate-on-samples", "15"], "at least two contexts, 16, not 15"),
    ):
        assert cli.main(["quantize", str(run.path), *options]) == 1
        assert message in capsys.readouterr().err


def test_an_imported_model_is_distilled_into_integers_on_its_own_samples(tmp_path, capsys):
    """Rotary positions, a gate, shared keys and tied embeddings: 2-bit weights come nearer to the
    float model's probabilities, and sequences are shorter than the context.
    """
    sharp = Transformer(LLAMA, seed=1)
    sharp.parameters.flat[: sharp.parameters.num_decayed] *= 6
    llama(tmp_path)
    save_llama2c(sharp, tmp_path / "model.bin")
    run = run_of(tmp_path / "model.bin", tmp_path / "run", "--calibrate-on-samples", 1600)
    options = ("train", "--resume", str(run.path), "--quantize", "2", "--seq-len", "4", "--workers", "1")

    def divergence(steps):
        out = RunDirectory(tmp_path / f"{steps} steps")
        rate = ("--steps", str(steps), "--learning-rate", "1e-2", "--out", str(out.path))
        assert cli.main([*options, *rate]) == 0
        number_format = QuantizationAware.load(out)
        assert number_format.hard_target_share == 0
        integers = number_format.quantize(out.load_model())
        inputs, _ = windows(run.load_validation_tokens(), 8)
        student = log_softmax(integers.logits.output.dequantize(integers.forward(inputs)))
        teacher = log_softmax(sharp.forward(inputs).astype(np.float64))
        return (np.exp(teacher) * (teacher - student)).sum(axis=-1).mean()

    before, after = divergence(1), divergence(100)
    assert 0 < after < 0.8 * before
    record = RunDirectory(tmp_path / "100 steps").load_training_record()
    assert (record["training"]["seq_len"], record["source"]["samples"]) == (4, 1600)
    capsys.readouterr()
    assert cli.main([*options, "--seq-len", "9", "--out", str(tmp_path / "long")]) == 1
    assert "seq_len 9 exceeds the model's context of 8" in capsys.readouterr().err
    assert cli.main(["train", "--resume", "--out", str(tmp_path / "1 steps"), "--seq-len", "5"]) == 1
    assert "--seq-len 5 (the run: 4)" in capsys.readouterr().err


def log_softmax(logits):
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def test_a_trained_run_keeps_its_text(tiny_run, tmp_path, capsys):
    assert cli.main(["quantize", str(tiny_run), "--calibrate-on-samples", "99"]) == 1
    assert "has the text that it was trained on" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["llama2c", "gpt2", "safetensors"])
def test_what_is_exported_is_imported_again(form, tmp_path, capsys):
    config = LLAMA if form == "llama2c" else GPT2
    run = run_of(llama(tmp_path) if form == "llama2c" else nano(tmp_path), tmp_path / "run")
    if form == "gpt2":  # nanoGPT's activation is another
        run.save_model(Transformer(GPT2, seed=1))
    target = tmp_path / ("model.safetensors" if form == "safetensors" else form)
    assert cli.main(["export", str(run.path), "--format", form, "--out", str(target)]) == 0
    options = () if form == "llama2c" else ("--tokenizer", run.tokenizer)
    again = run_of(target / "model.bin" if form == "llama2c" else target, tmp_path / "again", *options)
    assert again.load_model().parameters.flat.tobytes() == Transformer(config, seed=1).parameters.flat.tobytes()
    assert again.load_tokenizer().fingerprint() == run.load_tokenizer().fingerprint()


def test_another_vocabulary_is_refused_before_generation(tmp_path, capsys):
    run = run_of(llama(tmp_path), tmp_path / "run")
    content = json.loads(run.tokenizer.read_text(encoding="utf-8"))
    a, b = (content["vocabulary"].index(letter) for letter in "ab")
    content["vocabulary"][a], content["vocabulary"][b] = "b", "a"
    run.tokenizer.write_text(json.dumps(content), encoding="utf-8")
    assert cli.main(["generate", str(run.path)]) == 1
    assert "holds another vocabulary than the one this run's model was trained with" in capsys.readouterr().err


def test_padding_of_the_vocabulary_is_left_out(tmp_path):
    imported = import_model(nano(tmp_path, vocab_size=64))
    assert (imported.unused, imported.model.config.vocab_size) == (38, 26)
    whole = Transformer(ModelConfig.from_dict({**GPT2.to_dict(), "vocab_size": 64}), seed=1)
    np.testing.assert_array_equal(
        imported.model.parameters["token_embedding"], whole.parameters["token_embedding"][:26]
    )
    with pytest.raises(InputError, match=r"has 26 tokens, .* 63: it is another model's tokenizer"):
        import_model(nano(tmp_path, vocab_size=63))


def refused(capsys, out, *words):
    assert cli.main(["import", *map(str, words), "--out", str(out)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert not out.exists()
    return lines[0]


def test_bad_llama2c_files_are_one_line(tmp_path, capsys):
    path, out = llama(tmp_path), tmp_path / "run"
    data, tokenizer = path.read_bytes(), (tmp_path / "tokenizer.bin").read_bytes()
    (tmp_path / "tokenizer.bin").write_bytes(tokenizer[:-1])
    assert "tokenizer.bin is not a whole llama2.c tokenizer: it ends within" in refused(capsys, out, path)
    Llama2cTokenizer(PIECES[:-1], [0.0] * (len(PIECES) - 1)).write(tmp_path / "tokenizer.bin")
    assert "it is another model's tokenizer" in refused(capsys, out, path)
    (tmp_path / "tokenizer.bin").unlink()
    assert "give --tokenizer FILE" in refused(capsys, out, path)
    for header, message in (
        ((12, 24, 1, 4, 2, len(PIECES), 8), "must be even, not 3"),
        ((16, 24, 1, 4, 3, len(PIECES), 8), "num_heads 4 must be a multiple of num_kv_heads 3"),
        ((16, 24, 1, 3, 3, len(PIECES), 8), "must be a multiple of num_heads 3"),
        ((16, 25, 1, 4, 2, len(PIECES), 8), "its header describes"),
    ):
        path.write_bytes(HEADER.pack(*header) + data[HEADER.size :])
        assert message in refused(capsys, out, path)
    path.write_bytes(data[:-4])
    assert "is damaged" in refused(capsys, out, path)


def test_bad_files_of_others_are_one_line(tmp_path, capsys):
    out = tmp_path / "run"
    path = nano(tmp_path, block_size=9)
    assert "the configuration says block_size 9, the weights are for 8" in refused(capsys, out, path)
    path = nano(tmp_path, n_head=5)
    assert "multiple of num_heads 5" in refused(capsys, out, path)
    path = nano(tmp_path)
    (tmp_path / "meta.pkl").write_bytes(b"\x80\x04cos\nsystem\n.")
    assert "meta.pkl is not read: it asks for os system" in refused(capsys, out, path)
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps({"itos": {0: "a", 2: "b"}}))
    assert "lacks 'itos'" in refused(capsys, out, path)
    path.write_bytes(path.read_bytes()[:500])
    assert "no whole file of torch.save" in refused(capsys, out, path)
    for name, content, message in (
        ("a.safetensors", b"no model", "not a whole safetensors file"),
        ("a.bin", b"no model", "is not a llama2.c model"),
        ("a.txt", b"text", "is not known as a model"),
    ):
        (tmp_path / name).write_bytes(content)
        assert message in refused(capsys, out, tmp_path / name)
    (tmp_path / "empty").mkdir()
    assert "holds neither model.safetensors nor pytorch_model.bin" in refused(capsys, out, tmp_path / "empty")


def test_a_gate_without_its_matrix_and_a_table_that_is_too_short(tmp_path, capsys):
    run = run_of(llama(tmp_path), tmp_path / "run")
    path = tmp_path / "model.safetensors"
    assert cli.main(["export", str(run.path), "--format", "safetensors", "--out", str(path)]) == 0
    arrays, metadata = read_safetensors(path)
    del arrays["blocks.0.feed_forward.gate.weight"]
    write_safetensors(path, arrays, metadata)
    capsys.readouterr()
    assert "missing ['blocks.0.feed_forward.gate.weight']" in refused(capsys, tmp_path / "x", path)
    folder = tmp_path / "gpt2"
    folder.mkdir()
    write_safetensors(folder / "model.safetensors", to_gpt2(Transformer(GPT2)))
    assert "give --heads" in refused(capsys, tmp_path / "x", folder)
    for settings, message in (
        ({"n_head": 4, "n_positions": 1024}, "says n_positions 1024, the weights are for 8"),
        ({"n_head": 4, "model_type": "llama"}, "says model_type 'llama', only 'gpt2' is read"),
        (
            {"model_type": "llama", "scale_attn_weights": False, "activation_function": "mish"},
            "'gpt2' is read; the configuration says scale_attn_weights False, only True is read; the weights do not show "
            "the number of heads, and no configuration says it: give --heads; activation_function 'mish'",
        ),
        (
            {"n_head": 4, "n_embd": 5, "n_layer": 6},
            "n_embd 5, the weights are for 16; the configuration says n_layer 6",
        ),
        ({"n_head": 4, "activation_function": "mish"}, "activation_function 'mish' is unknown"),
    ):
        (folder / "config.json").write_text(json.dumps(settings))
        assert message in refused(capsys, tmp_path / "x", folder)


@needs_stories260k
def test_the_published_text_of_stories260k(tmp_path, capsys):
    run = run_of(MODEL, tmp_path / "run", "--tokenizer", TOKENIZER)
    capsys.readouterr()
    assert cli.main(["generate", str(run.path), "--prompt", "", "--temperature", "0", "--length", "100"]) == 0
    assert capsys.readouterr().out.startswith(
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
        "One day, she saw a big, red ball. She wanted to play with it, but it was too high.\nLily's mom said, "
    )

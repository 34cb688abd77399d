"""The layout of a decoder on the machine."""

from amaranth.back import rtlil

from fixedpoint import load_export, save_export
from fixedpoint.quantization.calibration import QuantizationSettings
from hdl.decoder.machine import Machine
from hdl.decoder.plan import Plan
from model.config import ModelConfig
from sim.decoder_models import random_decoder


def test_exported_files_hold_all_that_the_circuit_needs(tmp_path):
    """Of two layers whose rows, norms and tensors have different formats."""
    sizes = {"vocab_size": 9, "embed_dim": 8, "num_heads": 2, "num_layers": 2, "max_seq_len": 2, "ff_dim": 8}
    llama = {"activation": "swiglu", "position": "rotary", "norm": "rms"}
    config = ModelConfig.from_dict({**sizes, **llama})
    model = random_decoder(config, QuantizationSettings(weight_bits=4), seed=2)
    save_export(model, tmp_path / "export")
    texts = [
        rtlil.convert(Machine(Plan(each, lanes=8)), emit_src=False)
        for each in (model, load_export(tmp_path / "export"))
    ]
    assert texts[0] == texts[1]

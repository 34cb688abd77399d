"""Small products run on one thread of BLAS wherever many of them follow each other."""

import numpy as np
import pytest

from fixedpoint.fast.transformer import FastTransformer
from fixedpoint.generation import generate_batch as generate_integers
from fixedpoint.quantization.calibration import QuantizationSettings, calibrate
from fixedpoint.quantization.quantize import quantize_transformer
from model import ModelConfig, Transformer, threads
from model.generation.cached_decoder import CachedDecoder
from model.generation.generate import generate_batch
from model.threads import BLAS_THREADS, LARGE_PRODUCT, one_blas_thread
from model.training.evaluation import evaluate_loss
from scripts.evaluation import compare

CONFIG = ModelConfig(vocab_size=12, embed_dim=16, num_heads=2, num_layers=1, max_seq_len=8)
TOKENS = np.arange(100) % 12


@pytest.fixture
def count_threads(monkeypatch):
    """Return a function that tells how many threads BLAS has: several, but for limits."""
    threadpoolctl = pytest.importorskip("threadpoolctl")

    def count():
        return max(library["num_threads"] for library in threadpoolctl.threadpool_info())

    for name in BLAS_THREADS:
        monkeypatch.delenv(name, raising=False)
    with threadpoolctl.threadpool_limits(2):
        if count() < 2:
            pytest.skip("this BLAS has one thread")
        yield count


def test_only_small_products_are_limited(count_threads):
    with one_blas_thread():
        assert count_threads() == 1
    with one_blas_thread(LARGE_PRODUCT - 1):
        assert count_threads() == 1
    with one_blas_thread(LARGE_PRODUCT):
        assert count_threads() == 2
    with pytest.raises(ZeroDivisionError), one_blas_thread():
        _ = 1 / 0
    assert count_threads() == 2


def test_what_the_environment_says_stays(count_threads, monkeypatch):
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "2")
    with one_blas_thread():
        assert count_threads() == 2


def test_without_the_package_nothing_changes(count_threads, monkeypatch):
    monkeypatch.setattr(threads, "ThreadpoolController", None)
    with one_blas_thread():
        assert count_threads() == 2


@pytest.mark.parametrize("work", ["generate", "integers", "evaluate", "compare", "calibrate", "integer loss"])
def test_the_work_that_consists_of_small_products_runs_on_one_thread(work, count_threads, monkeypatch):
    model = Transformer(CONFIG, seed=1)
    windows = TOKENS[:96].reshape(-1, 8)
    settings = QuantizationSettings()
    quantized = quantize_transformer(model, calibrate(model, windows, settings), settings)
    seen = set()

    def watch(owner, name):
        original = getattr(owner, name)

        def watched(*arguments, **options):
            seen.add(count_threads())
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, watched)

    watch(CachedDecoder, "step")
    watch(Transformer, "forward")
    watch(Transformer, "loss")
    watch(FastTransformer, "embed")
    {
        "generate": lambda: generate_batch(model, [[1], [2]], 5),
        "integers": lambda: generate_integers(quantized, [[1], [2]], 5),
        "evaluate": lambda: evaluate_loss(model, TOKENS),
        "compare": lambda: compare(model, quantized, TOKENS),
        "calibrate": lambda: calibrate(model, windows, settings),
        "integer loss": lambda: FastTransformer(quantized).loss(windows, windows),
    }[work]()
    assert seen == {1}
    assert count_threads() == 2

"""The benchmark of training steps, on a tiny model."""

import pytest

from model.training.workers import open_executor
from scripts.benchmarks import train


@pytest.mark.parametrize(("processor_time", "threads", "sequences"), [(False, 2, 4), (True, 1, 2)])
def test_one_core_has_half_of_the_batch(processor_time, threads, sequences, monkeypatch):
    tiny = {"num_layers": 1, "num_heads": 1, "embed_dim": 8, "max_seq_len": 8}
    asked = []

    def executor(model, training, *rest):
        asked.append((training.batch_size, training.num_workers))
        return open_executor(model, training, *rest)

    monkeypatch.setattr(train, "SHAPES", {"S": (tiny, 4)})
    monkeypatch.setattr(train, "SETTLE_SECONDS", 0)
    monkeypatch.setattr(train, "open_executor", executor)
    figures = train.measure("S", 0, processor_time=processor_time)
    assert figures["threads"] == threads
    assert asked == [(sequences, threads)]
    [row] = figures["shapes"]
    assert row["turns"] == 5
    assert row["gflops"] == pytest.approx(row["peak_gflops"] * row["peak_share"])
    # projections, attention over 4 tokens on average, feed-forward, logits
    operations = 6 * (4 * 64 + 64 + 8 * 64 + 65 * 8) * sequences * 8
    assert row["gflops"] * row["numpy_milliseconds"] * 1e6 == pytest.approx(operations)
    assert (row["ratio"] is None) == (not figures["pytorch"])

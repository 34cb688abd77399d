"""A worker process of quantization-aware training."""

from model.training.worker_process import run

from .quantization_aware import QuantizationAware

if __name__ == "__main__":
    run(QuantizationAware.from_dict)

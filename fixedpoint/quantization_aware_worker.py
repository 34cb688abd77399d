"""A worker process of quantization-aware training: `model.worker_process` with the integer model's roundings."""

from model.worker_process import run

from .quantization_aware import QuantizationAware

if __name__ == "__main__":
    run(QuantizationAware.from_dict)

"""Weights in other programs' formats: safetensors, GPT-2, llama2.c, ONNX."""

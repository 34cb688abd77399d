"""An integer model as files: manifest and memory files, C program, ONNX."""

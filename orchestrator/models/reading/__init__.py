"""What a model is, read from its own small files: sizes, layers, cache, quantization."""

"""Where a model comes from: checkpoints, GGUF files, tokenizers."""

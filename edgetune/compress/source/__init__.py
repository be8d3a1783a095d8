"""Sources of models: checkpoints, GGUF files, tokenizers."""

"""Other people's bytes: GGUF, bundles, signatures; read strictly, written whole."""

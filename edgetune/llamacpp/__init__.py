"""llama.cpp: its library, tokenizer, chat templates, contexts, sampling and quantizer."""

"""Ollama's API: its clients ask the daemon as they ask Ollama."""

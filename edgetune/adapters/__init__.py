"""What is trained: parameters, and adapters on disk."""

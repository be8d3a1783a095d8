"""Learning from feedback: what people said, what is learned from it, and when."""

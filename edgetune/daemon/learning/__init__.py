"""Learning from feedback: what was said, what is learned from it, and when."""

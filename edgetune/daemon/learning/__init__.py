"""Learning from feedback: its rows, the jobs that learn them, and the times when these begin."""

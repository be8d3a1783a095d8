"""Options, plan, optimizer, trainer and the run on disk."""

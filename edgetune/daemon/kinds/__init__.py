"""Kinds of jobs, a file each: over a client's file, over feedback, and those that evaluate an adapter."""

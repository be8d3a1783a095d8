"""Kinds of jobs, a file each: over a client's file, over feedback, by the tutor over prompts."""

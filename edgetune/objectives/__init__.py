"""What training aims at: each file of this folder is an objective, found by its name; no other file names it."""

"""What training aims at: each file of this folder but `base` is an objective, which is found by its name."""

"""A library of adapters, of which NAME:auto chooses one for each question."""

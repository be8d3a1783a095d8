"""Fewer bits a weight: what an error costs, a format for each tensor, codes, the file."""

"""The laptop's side: from a checkpoint to a bundle that fits the board. Only this room may import torch."""

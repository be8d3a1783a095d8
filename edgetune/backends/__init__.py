"""What computes: the operations of training, and the memory that they work in."""

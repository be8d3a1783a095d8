"""The way from rows to batches: parsing, tokenizing, packing, and the process that loads."""

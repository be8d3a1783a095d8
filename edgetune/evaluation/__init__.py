"""How good a model is: as it is served, and by our own engine."""

"""An encoder that answers before the model what it is sure of."""

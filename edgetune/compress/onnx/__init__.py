"""The second format: ONNX, in floats and in 8 bits."""

"""Export to ONNX graphs, and run them with ONNX Runtime."""

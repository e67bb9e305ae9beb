"""What is measured: quality, predictions, size. Nothing here loads a model."""

"""What is done to a model: pruning, its importances and amounts, smoothing, approximation."""

"""Pure tensor maths: thresholds, masks, int8. No models, files or recipes."""

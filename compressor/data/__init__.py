"""Sources of rows, tokenizers, and batches."""

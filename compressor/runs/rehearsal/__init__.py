"""Run a recipe's whole chain on a tiny model, as a smoke test."""

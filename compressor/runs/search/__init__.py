"""Search for the best point of a space of overrides."""

"""Run a recipe at each point of a grid of overrides."""

"""The ways to run a recipe: once, as a sweep, as a search, as a smoke test, or again."""

"""Compare runs, in tables and on a page."""

"""Run models with torch."""

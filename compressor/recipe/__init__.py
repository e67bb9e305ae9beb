"""Compose, validate and describe recipes."""

"""Compress transformer models from YAML recipes. Importing this loads no torch."""

__version__ = "0.1.0"

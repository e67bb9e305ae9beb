"""Sweeps: several runs of a recipe that differ in some overrides, and what they show together."""

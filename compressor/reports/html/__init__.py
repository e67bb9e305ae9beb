"""Render self-contained HTML pages."""

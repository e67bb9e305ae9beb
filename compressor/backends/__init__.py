"""Where a compressed model runs without torch: what writes it for a runtime, and what runs it."""

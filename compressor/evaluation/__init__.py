"""Score predictions, and measure time, memory and parity."""

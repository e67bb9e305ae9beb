"""Train and distil, on one process or several."""

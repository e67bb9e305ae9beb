"""One module an architecture: its parameters, stacks and groups, from its config alone."""

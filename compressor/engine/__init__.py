"""From a recipe to a plan of keyed nodes, and their work: the engine, its workers and the store."""

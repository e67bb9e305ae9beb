"""The `compressor` command: one file for each group of commands. They ask the package and print.

How a line of arguments becomes a call, and what an error becomes, is in `main`.
"""

DONE, FAILED, WRONG = 0, 1, 2
"""Exit codes: done; a stage failed; the recipe or the command is wrong."""

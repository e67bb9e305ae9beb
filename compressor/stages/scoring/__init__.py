"""How `evaluate` scores a model on the rows of each task, a file for each.

Each has what planning refuses and what a run does. The scores themselves are in `evaluation`.
"""

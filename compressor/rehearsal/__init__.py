"""`compressor run RECIPE --rehearse`: a recipe's whole chain on a tiny model, before the real one.

`derivation` says what the rehearsal's recipe is, `rows` and `models` what stands in for data and
models; `rehearse` runs it; `checks` looks at what came out. What a stage changes about its own
settings, the stage says: `Stage.rehearsed`.
"""

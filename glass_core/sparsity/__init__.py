"""Which neurons a request computes, and what that saves. numpy only, never a tensor framework.

`local_stats` and `global_stats` are measured, `ranking` and `selectors` order neurons, `budget` says how many each
layer keeps, `selection` puts them together into a `plan`, `flops` counts what it saves, `artifact` is the file.
"""

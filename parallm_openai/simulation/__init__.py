"""A capacity model: the engine's own scheduler under a cost model instead of MLX, at 1 to 10,000 replicas.

`costs` says what forwards take, as `measuring` has found on a machine. `trace` says which requests come when, and
`workloads` makes such traces. `core` is the engine's step without its models, `replica` gives it a virtual time, and
`fleet` puts replicas behind a router. docs/scaling.md has the method and what it is worth.
"""

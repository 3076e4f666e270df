"""One model over several ranks: rank 0 serves and decides everything, the others compute their shards of each forward.

`mx.distributed` carries what the layers exchange. What is to be computed goes over a channel of its own, operation by
operation: each is one call on one of the target's caches, as plain data (`operations.py`).
"""

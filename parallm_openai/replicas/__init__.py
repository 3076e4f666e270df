"""Replicas of the engine behind one address, by Ray Serve (the extra `parallm-openai[ray]`): docs/scaling.md.

An ingress takes every request and forwards it, whole, to one of the replicas, each of which is a server's app with an
engine of its own. Only `application.py`, `engine.py`, `router.py` and `shared.py` import Ray.
"""

"""How many replicas there are, as this process knows: the routers learn it, and the ingress admits requests by it.

It is a module of its own because Ray makes the class of a router anew in each process, with globals of its own.
"""

# None until it is known. All routers of a process are of the same deployment.
running: int | None = None

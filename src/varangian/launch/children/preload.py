"""Imported by the fork server alone: the libraries that every worker process needs.

Without the garbage collector, which otherwise searches the objects of half-imported libraries again and
again; frozen, because a search in a child would copy the memory that it shares with the fork server.
"""

import gc
from importlib import import_module

gc.disable()
import_module("varangian.launch.children.child")
gc.freeze()

"""TensorRT and TensorRT-RTX: engines built from a graph, run, timed and looked into.

The two libraries have one API under two import names, and everything here is written over both. Neither is imported before it
is asked for.
"""

"""Activations, layers and reference networks for demonstrations, tests and benchmarks, and the script that trains them."""

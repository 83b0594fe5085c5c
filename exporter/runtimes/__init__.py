"""The runtimes that models are run in: one module each, with one contract (`base`)."""

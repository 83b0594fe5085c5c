"""The command line: one module per verb, each calling one function of the library."""

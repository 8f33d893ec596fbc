"""A package, so that torch-fidelity's own `tests` does not take its place where it is installed."""

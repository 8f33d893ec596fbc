"""A package, so that no other `tests` among what is installed takes its place (torch-fidelity has one)."""

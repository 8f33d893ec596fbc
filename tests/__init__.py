"""A regular package: torch-fidelity installs one of this name, which would hide a folder."""

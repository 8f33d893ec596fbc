"""`halving_branches`: the end of a grid reduction of unequal inputs; a step of blocks, no op."""

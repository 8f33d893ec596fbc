"""The benches: one script per op and one for the network, over one harness.

    python -m bench --quick                     every op and the network, the short form
    python -m bench.factorized_conv2d           one op, every shape and batch
    python -m fused_inception bench             the same with a progress bar, pictures, comparisons

`docs/benchmarks.md` says how things are measured and what the columns mean.
"""

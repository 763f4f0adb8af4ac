"""A small interpreter for PTX, the assembly of NVIDIA GPUs, so that the compiled kernels can be executed without one.

`parse` turns text into instructions. `instructions` holds the table of what they do, after the PTX ISA manual, filled
by `arithmetic` (with `floats`), `conversions` and `movement`. `machine` runs them, every thread of a block in lock-step
and blocks in turn, over the checked buffers of `memory`. `cases` lists launches of the package's kernels, `dump`
compiles what the launch code would start for them, `launched` runs that and knows the right answers.

What it cannot show: ptxas may fuse a mul and an add that do not say .rn (the interpreter rounds twice), and a GPU may
order memory accesses of different threads in more ways than lock-step does (races are errors instead).
"""

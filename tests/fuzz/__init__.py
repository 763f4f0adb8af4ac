"""Random calls: options, shapes, strides and dtypes by hypothesis, against formulas in NumPy and SciPy (`formulas`).

A short run, the same each time, is part of the default suite; a long one has the `slow` marker and new examples each
time. A failure prints its example and a `@reproduce_failure` that repeats it; `--hypothesis-seed` repeats a whole run.
"""

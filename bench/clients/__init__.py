"""Training steps of the libraries that `fastvae.patch` supports: a module for each, and `measure`, which times them.

STEPS of a module: name -> function that builds model, data and optimiser and returns the step. The step returns its
loss, or a gradient: it is compared, patched and unpatched, before anything is timed.
"""

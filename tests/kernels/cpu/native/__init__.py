"""Tests written in C: the driver `check.c` and its headers check the C kernels without Python.

The Python files beside them build and run the driver, under sanitizers and for other processors (`build`, `sanitize`),
and plant faults in the kernels that the driver must notice (`faults`).
"""

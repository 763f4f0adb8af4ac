"""Reads the machine code of the compiled GPU kernels, with no GPU: `compiled` makes it, `analysis` counts it.

`sass` parses NVIDIA's listings, `gpus` holds the chips' data sheets. Run it with `python -m bench roofline`.
"""

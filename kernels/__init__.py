"""The arithmetic of fastvae, one folder a backend, installed as ``fastvae.kernels``.

``reference`` is plain PyTorch and the oracle of every test, ``cpu`` is C with SIMD, ``triton`` is for GPUs.
All three offer the same three functions over rank >= 1 tensors whose row ``b`` is sample ``b``:

    noise(seed, shape, row_offset, dtype)                                   -> eps
    forward(mu, logvar, seed, row_offset, reduction)                        -> (z, kl)
    backward(grad_z, grad_kl, mu, logvar, seed, row_offset, reduction, out) -> (grad_mu, grad_logvar)

``forward`` skips z when ``seed`` is None and kl when ``reduction`` is None; ``backward`` likewise skips the part whose
gradient is None (``mu`` and the returned ``grad_mu`` are None when no KL took part: d z / d mu is the identity).
``out`` says where to write the gradients, the halves of a packed one for instance; None makes new tensors.
``selection`` decides which backend serves a call. Nothing here knows of autograd.
"""

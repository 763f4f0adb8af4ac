"""The arithmetic of fastvae, one folder a backend, installed as ``fastvae.kernels``.

``reference`` is plain PyTorch and the oracle of every test, ``cpu`` is C with SIMD, ``triton`` is for GPUs.
All three offer the same three functions over rank >= 1 tensors whose row ``b`` is sample ``b``:

    noise(seed, shape, row_offset, dtype, draw)                             -> eps
    forward(mu, logvar, seed, row_offset, reduction)                        -> (z, kl)
    backward(grad_z, grad_kl, mu, logvar, seed, row_offset, reduction, out) -> (grad_mu, grad_logvar)

``forward`` skips z when ``seed`` is None and kl when ``reduction`` is None; ``backward`` likewise skips the part whose
gradient is None (``mu`` and the returned ``grad_mu`` are None when no KL took part: d z / d mu is the identity).
``out`` says where to write the gradients, the halves of a packed one for instance; None makes new tensors.

These are the shortest way for the most usual latent. All others, with the options of `family`, go through two more:

    latent_forward(mu, scale, prior_mu, prior_scale, seed, row_offset, num_samples, reduction, kl_mean, log_probs,
                   options) -> Latents
    latent_backward(grad_z, grad_kl, grad_log_q, grad_log_p, mu, scale, prior_mu, prior_scale, seed, row_offset,
                    num_samples, reduction, options, wants_prior, out) -> Gradients

``mu`` and ``scale`` have one shape, (B, *event), any strides. ``prior_mu`` and ``prior_scale`` are both None (N(0, I))
or both tensors of mu's dtype, each of mu's shape, of shape (*event) or (1, *event), which the batch shares, or of mu's
rank and of one element; their gradients, computed if ``wants_prior``, have the shape that was given: sums over the
batch in a fixed order.
``seed`` None: no z, no noise. ``num_samples`` None: z has mu's shape; K: z is (K, B, *event), and log_q and log_p,
wanted with ``log_probs``, are (K, B) instead of (B,), float32. ``reduction`` None: no KL; "channel", beside the public
words, sums over all dimensions behind the second: (B, shape[1]). ``kl_mean``: the KL of each coordinate averaged over
the batch, of shape (*event), float32, not cut off by free bits. Of the gradients that come in, any may be None, and any
strides are possible (grad_kl of "none" often is expanded); ``options.free_bits`` applies to what ``grad_kl`` is the
gradient of.

Likelihoods, the formulas of `likelihoods`:

    likelihood_forward(x, parameters, reduction, density)                -> log p(x|z)
    likelihood_backward(grad, x, parameters, reduction, density, wants)  -> for each parameter its gradient, or None

``parameters`` is a tuple of as many tensors as the kind takes. The first has x's shape, (B, *event); each other one has
x's shape, (*event) or (1, *event), which the batch shares, or x's rank and one element, and so has its gradient: a sum
over the batch in a fixed order. ``wants`` says of each parameter whether its gradient is wanted. Every tensor has a
dtype of its own, x also an integer one or bool, any strides (0 among them), and gradients take the dtype of their
parameter; results are float32 (float64 if x or a parameter is), reduced as the KL is, "channel" included. The parameter
of a mixture is (B, channels, ...), x is (B, C, ...), the result of "none" (B, ...) without the C, and "channel" does
not occur.

Each also has ``describe(shape, dtype, device)``, what a latent op of this shape would run as, in words.

``selection`` decides which backend serves a call. Nothing here knows of autograd.
"""

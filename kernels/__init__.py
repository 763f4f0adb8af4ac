"""The arithmetic of fastvae, one folder per backend, installed as ``fastvae.kernels``.

``reference`` is plain PyTorch and the oracle of every test, ``cpu`` is C with SIMD, ``triton`` is for GPUs. Each offers
the same functions, whose records `latent_spec`, `likelihood_spec` and `head_spec` describe:

    noise(seed, shape, row_offset, dtype, draw)                             -> eps
    latent_forward(inputs, spec, scalars)                                   -> LatentOutputs
    latent_backward(grads, inputs, spec, scalars, wants_prior)              -> LatentGradients
    likelihood_forward(x, parameters, spec, bounds, noticed=None)           -> log p(x|z)
    likelihood_backward(grad, x, parameters, spec, bounds, wants)           -> a gradient for each parameter, or None
    head(x, parameters, library, grad, spec, bounds, wants)                 -> HeadResults
    describe(shape, dtype, device)                                          -> what a latent op runs on, in words

``latent_backward``: ``grads`` is a `LatentOutputs` of gradients, any of which may be None or have any strides
(the gradient of a KL of "none" often is expanded). ``inputs.mu`` may be None where z alone has a gradient, no residual
and one draw: the gradient of mu is grad_z then, is not computed, and comes back as None. ``inputs.seed`` is None where
no gradient needs the noise. The prior's gradients are computed if ``wants_prior``; for a prior that the batch shares
they are sums over the batch in a fixed order. Of a packed latent (``spec.packed_dim``) mu holds mu and scale, and
so does its gradient; scale and its gradient are None.

Likelihoods: ``parameters`` is a tuple of as many tensors as the kind takes. The first has x's shape, (B, *event); each
other one has x's shape, (*event) or (1, *event), which the batch shares, (B, 1, ...), one number a row, or x's rank and
one element, and so has its gradient: a sum in a fixed order. ``wants`` says of each parameter whether its gradient is
wanted. ``noticed`` is a bool tensor of one element, set where a value is outside the domain (`likelihood_spec`). Every
tensor has a dtype of its own, x also an integer one or bool, any strides (0 among them), and gradients take the dtype
of their parameter; results are float32 (float64 if x or a parameter is). The parameter of a mixture is
(B, channels, ...), x is (B, C, ...), the result of "none" (B, ...) without the C, and "channel" does not occur.

``head``, a likelihood whose parameters are outputs of linear layers: ``parameters`` has one tensor for each parameter
of the kind. Outputs are (rows, event), dense along the event; of a mixture (rows, channels, pixels). x is (B, event),
of a mixture (B, C, pixels), and rows are K B: one draw after the other, with the same x. What is given is (event,) or
one element. log p is that of each row. If anything is wanted, every output is overwritten by its gradient, weighted by
``grad`` (None: 1 for each row). ``library`` and ``grad`` are (rows,), contiguous, in the dtype of log p.
`fastvae.head_chunks` cuts calls into chunks of rows and multiplies the matrices.

CONTRIBUTING.md says how to add an option, a likelihood or a backend.

`backend` decides which backend serves a call. Nothing here knows of autograd.
"""

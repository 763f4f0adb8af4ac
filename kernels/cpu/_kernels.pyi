from collections.abc import Callable

from torch import Tensor

def forward(
    mu: Tensor,
    logvar: Tensor,
    z: Tensor | None,
    kl: Tensor | None,
    seed: Tensor | None,
    dtype: int,
    row_offset: int,
    reduction: int,
    threads: int,
    /,
) -> bool:
    """Write z and the KL; False, and nothing written, if the strides need more than two event indices."""

def backward(
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
    mu: Tensor | None,
    logvar: Tensor,
    grad_mu: Tensor | None,
    grad_logvar: Tensor,
    seed: Tensor | None,
    dtype: int,
    row_offset: int,
    reduction: int,
    threads: int,
    /,
) -> bool:
    """Write the gradients; False, and nothing written, if the strides need more than two event indices."""

def noise(
    eps: Tensor,
    draw: int,
    seed: Tensor,
    dtype: int,
    row_offset: int,
    reduction: int,
    threads: int,
    /,
) -> bool:
    """Write eps, which is contiguous."""

def latent_forward(
    mu: Tensor,
    scale: Tensor,
    prior_mu: Tensor | None,
    prior_scale: Tensor | None,
    z: Tensor | None,
    kl: Tensor | None,
    kl_mean: Tensor | None,
    log_q: Tensor | None,
    log_p: Tensor | None,
    options: bytes,
    draws: int,
    seed: Tensor | None,
    dtype: int,
    row_offset: int,
    reduction: int,
    threads: int,
    /,
) -> bool:
    """As forward; draws 0 is one draw, and z then has no dimension for it."""

def latent_backward(
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
    grad_log_q: Tensor | None,
    grad_log_p: Tensor | None,
    mu: Tensor,
    scale: Tensor,
    prior_mu: Tensor | None,
    prior_scale: Tensor | None,
    grad_mu: Tensor,
    grad_scale: Tensor,
    grad_prior_mu: Tensor | None,
    grad_prior_scale: Tensor | None,
    options: bytes,
    draws: int,
    seed: Tensor | None,
    dtype: int,
    row_offset: int,
    reduction: int,
    threads: int,
    /,
) -> bool:
    """As backward; the prior's gradients have the prior's shapes."""

def likelihood_forward(
    x: Tensor,
    first: Tensor,
    second: Tensor | None,
    third: Tensor | None,
    log_prob: Tensor,
    density: bytes,
    seed: None,
    dtype: int,
    row_offset: int,
    reduction: int,
    threads: int,
    /,
) -> bool:
    """Write log p, reduced; False if two event indices do not do for these strides."""

def likelihood_backward(
    grad: Tensor,
    x: Tensor,
    first: Tensor,
    second: Tensor | None,
    third: Tensor | None,
    grad_first: Tensor | None,
    grad_second: Tensor | None,
    grad_third: Tensor | None,
    density: bytes,
    seed: None,
    dtype: int,
    row_offset: int,
    reduction: int,
    threads: int,
    /,
) -> bool:
    """Write the gradients that are given; each has its parameter's shape."""

def look_at_normal(loc: object, scale: object, /) -> int:
    """1 if no loc is NaN and all scales are positive, plus 2 if all are 0 and 1; -1 unless they are `alike`, float32,
    dense, and of at most `elements_worth_threads`."""

def gammas(arguments: int, n: int, lgamma: int, digamma: int, /) -> None: ...
def use_plain(tensor: type, parameter: type, is_neg: Callable, /) -> None: ...
def plain(tensors: int, /, *arguments: object) -> bool:
    """Whether the first so many arguments are None or tensors of these types, in the CPU's memory and no negative
    views, and the others Python's own numbers, strings and tuples."""

def alike(mu: object, logvar: object, /) -> bool:
    """Whether both are such tensors, of one shape that is neither () nor empty, both float32, bfloat16 or float16."""

def use_exchange(capsule: object, /) -> bool: ...
def words(counters: int, n: int, seed: int, words: int, /) -> None: ...
def instruction_set() -> str | None: ...

elements_worth_threads: int
"""Below so many elements a call stays on the calling thread."""

def threaded() -> bool: ...

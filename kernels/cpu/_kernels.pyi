from torch import Tensor

def forward(
    mu: Tensor | None,
    logvar: Tensor | None,
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

def use_exchange(capsule: object, /) -> bool: ...
def words(counters: int, n: int, seed: int, words: int, /) -> None: ...
def instruction_set() -> str | None: ...
def threaded() -> bool: ...

"""What the C extension offers. The kernels return False, and write nothing, if the strides of a call's
tensors need more than two event indices (`fastvae.kernels.layout`). `code`: structs that `__init__.py` packs."""

from collections.abc import Callable

from torch import Tensor, dtype

from ..latent_spec import LatentGradients, LatentInputs, LatentOutputs, LatentScalars
from ..likelihood_spec import Bounds

def noise(eps: Tensor, seed: Tensor, row_offset: int, draw: int, /) -> bool:
    """Write eps, which is contiguous."""

def latent_forward(inputs: LatentInputs, outputs: LatentOutputs, code: bytes, scalars: LatentScalars, /) -> bool:
    """Write those of the outputs that are not None."""

def latent_backward(
    grads: LatentOutputs,
    inputs: LatentInputs,
    gradients: LatentGradients,
    code: bytes,
    scalars: LatentScalars,
    /,
) -> bool:
    """Write those of the gradients that are not None."""

def likelihood_forward(
    x: Tensor,
    parameters: tuple[Tensor, ...],
    log_prob: Tensor,
    code: bytes,
    bounds: Bounds,
    noticed: Tensor | None,
    /,
) -> bool:
    """Write log p, reduced, and set ``noticed`` if a value is outside the domain."""

def likelihood_backward(
    grad: Tensor,
    x: Tensor,
    parameters: tuple[Tensor, ...],
    gradients: tuple[Tensor | None, ...],
    code: bytes,
    bounds: Bounds,
    /,
) -> bool:
    """Write those of the gradients that are not None; each has its parameter's shape."""

def head(
    x: Tensor,
    parameters: tuple[Tensor, ...],
    gradients: tuple[Tensor | None, ...],
    rows: tuple[Tensor | None, Tensor | None, Tensor, Tensor | None],
    code: bytes,
    bounds: Bounds,
    /,
) -> bool:
    """Write log p of each row, and over the parameters that are outputs of layers their gradients; into ``gradients``
    those of the others. ``rows``, one float32 a row: library sizes, gradients of log p, log p, gradients of the
    library sizes."""

def look_at_normal(loc: object, scale: object, /) -> int:
    """1 if no loc is NaN and all scales are positive, plus 2 if all are 0 and 1; -1 unless they are `alike`, on the
    CPU, float32, dense, and of at most `elements_worth_threads`."""

def plain(*tensors: object) -> bool:
    """Whether all are None or tensors of the types that `use_torch` was given, in the memory of the CPU or a GPU, not
    empty and no negative views."""

def alike(*tensors: object) -> bool:
    """Whether all are such tensors, on one device, of one shape other than (), and all float32, bfloat16 or float16."""

def layouts(*tensors: Tensor | None) -> bytes | None:
    """Equal for tensors of equal devices, dtypes, shapes and strides; None if that cannot be told of one of them."""

def launch_arguments(pointers: tuple[Tensor | None, ...], numbers: tuple, fixed: tuple, /) -> tuple | None:
    """Addresses of the pointers, None of None, and all else; None if one is no multiple of 16 or cannot be told."""

def use_torch(
    tensor: type, parameter: type, is_neg: Callable, get_num_threads: Callable, dtypes: dict[dtype, int], /
) -> None:
    """Types of plain tensors, the method that tells negative views, and the numbers of dtypes in call.h."""

def use_exchange(capsule: object, /) -> bool:
    """Look at tensors by DLPack's C exchange interface if this is one, else by their methods; whether it is one."""

def words(counters: int, n: int, seed: int, words: int, /) -> None: ...
def instruction_set() -> str | None: ...
def threaded() -> bool: ...

elements_worth_threads: int
"""Below so many elements a call stays on the calling thread."""

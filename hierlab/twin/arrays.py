"""Arithmetic that reads the same for NumPy arrays on the host and for torch tensors on a device.

NumPy's results are the twin: its pixels are fixed, bit for bit, on every machine. The same code run on tensors is for
speed on a GPU; there sums and products are rounded in another order, so a few digital numbers differ by one. Here
are the few things that the two write differently.
"""

import warnings
from typing import TypeAlias

import numpy as np
import torch
from scipy.ndimage import uniform_filter

Array: TypeAlias = np.ndarray | torch.Tensor
_TYPES = {"int32": (np.int32, torch.int32), "float32": (np.float32, torch.float32)}


def place(device: str | torch.device | None) -> torch.device | None:
    """Where arrays are computed: None for NumPy on the host, else a torch device.

    ValueError where there is no such device, or none that this can be done on.
    """
    if device is None:
        return None
    try:
        found = torch.device(device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of drivers: what matters is told below
            torch.zeros(1, device=found).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        here = "cuda" if torch.cuda.is_available() else "no GPU"
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device {str(device)!r}: images cannot be made there ({reason}). PyTorch finds {here} here; leave the "
            "device out to make them on the processor."
        ) from error
    return found


def of(a: Array):
    """The namespace of an array's functions: ``torch`` or ``np``."""
    return torch if isinstance(a, torch.Tensor) else np


def put(values: np.ndarray, device: torch.device | None) -> Array:
    """An array of the host on ``device``, in one piece."""
    values = np.ascontiguousarray(values)
    if device is None:
        return values
    return torch.from_numpy(values if values.flags.writeable else values.copy()).to(device)


def like(values: np.ndarray, a: Array) -> Array:
    """An array of the host where ``a`` is."""
    return put(values, a.device) if isinstance(a, torch.Tensor) else values


def empty(shape: tuple[int, ...], kind: str, a: Array) -> Array:
    """Room for ``shape`` numbers of the type ``kind`` where ``a`` is."""
    if isinstance(a, torch.Tensor):
        return torch.empty(shape, dtype=_TYPES[kind][1], device=a.device)
    return np.empty(shape, _TYPES[kind][0])


def integers(a: Array) -> Array:
    """As int32."""
    return a.to(torch.int32) if isinstance(a, torch.Tensor) else a.astype(np.int32)


def select(a: Array, index: np.ndarray, axis: int) -> Array:
    """Rows (axis 0) or columns (1) of an array (H, W) by their numbers."""
    return a.index_select(axis, like(index, a)) if isinstance(a, torch.Tensor) else a.take(index, axis)


def whole(a: Array) -> Array:
    """In one piece of memory."""
    return a.contiguous() if isinstance(a, torch.Tensor) else np.ascontiguousarray(a)


def matmul(a: Array, b: Array) -> Array:
    """The matrix product, with every digit of float32 whatever PyTorch is told to do elsewhere."""
    if not isinstance(a, torch.Tensor):
        return a @ b
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        return a @ b
    finally:
        torch.set_float32_matmul_precision(before)


def around(a: Array, size: int) -> Array:
    """Mean (H, W) over ``size`` × ``size`` samples round each, the outermost repeated beyond the edge."""
    if not isinstance(a, torch.Tensor):
        return uniform_filter(a, size, mode="nearest")
    n = size // 2
    a = torch.nn.functional.pad(a[None, None], (n, n, n, n), mode="replicate")
    return torch.nn.functional.avg_pool2d(torch.nn.functional.avg_pool2d(a, (size, 1), 1), (1, size), 1)[0, 0]


def numbers(a: Array, dtype: str) -> np.ndarray:
    """Whole numbers that fit ``dtype``, "uint8" or "uint16", on the host; what is there is left as it is."""
    if not isinstance(a, torch.Tensor):
        return a
    if dtype == "uint8":
        return a.to(torch.uint8).cpu().numpy()
    return a.to(torch.int32).to(torch.int16).cpu().numpy().view(np.uint16)  # the bits of a uint16

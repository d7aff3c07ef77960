"""Mixed precision, also on CPUs without bfloat16 instructions."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from options import cpu_has_bf16


@contextmanager
def autocast(device: str, amp: str) -> Iterator[None]:
    """Mixed precision: amp is "bf16" or "off". Run the backward pass outside this context.

    On a CPU without bfloat16 instructions, RoundedConvolutions is used: PyTorch's own bfloat16 convolutions take ten times longer
    there, and their gradients are summed in bfloat16.
    """
    with torch.autocast(device, torch.bfloat16, enabled=amp == "bf16"):
        if amp == "bf16" and device == "cpu" and _lacks_bf16():
            with RoundedConvolutions():
                yield
        else:
            yield


class RoundedConvolutions(TorchFunctionMode):
    """Convolutions under autocast with the arithmetic of bfloat16 hardware: bfloat16 operands, float32 sums, rounded once.

    Gradients are rounded to bfloat16 in the same places. Only the order of summation differs, as it does between processors.
    """

    def __torch_function__(self, function: Callable, types: list, args: tuple = (), kwargs: dict | None = None) -> object:
        kwargs = kwargs or {}
        if function is not F.conv2d or not torch.is_autocast_enabled("cpu"):
            return function(*args, **kwargs)
        args, kwargs = tree_map_only(Tensor, lambda operand: operand.bfloat16().float(), (args, kwargs))
        with torch.autocast("cpu", enabled=False):
            return F.conv2d(*args, **kwargs).bfloat16()


@cache
def _lacks_bf16() -> bool:
    return not cpu_has_bf16()

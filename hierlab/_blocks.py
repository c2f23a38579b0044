"""The blocks inside an encoder: their names, what passes through them, and their outputs as tokens.

Letters: B batch, D width, N = h·w tokens.
"""

import re
from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import Tensor, nn


def blocks_of(encoder: nn.Module) -> list[list[str]]:
    """The names of an encoder's blocks, stage by stage; a plain ViT has one stage.

    Known are the encoders of timm that keep their blocks in ``blocks`` or in ``layer1`` … ``layer4`` (ConvNeXt, Swin,
    ViT, ResNet, EfficientNet, MobileNet), and MSCAN. Raises ValueError for others.
    """
    stages = []
    for name, module in encoder.named_modules():
        if not re.fullmatch(r"blocks|layer[1-4]", name.rpartition(".")[2]):
            continue
        children = [(f"{name}.{child}", inner) for child, inner in module.named_children()]
        if all(isinstance(inner, nn.Sequential) for _, inner in children):  # EfficientNet: stages within `blocks`
            stages += [[f"{stage}.{child}" for child, _ in inner.named_children()] for stage, inner in children]
        else:
            stages.append([child for child, _ in children])
    if not stages:
        raise ValueError(
            "CDKS knows no blocks in this encoder; it takes ConvNeXt, Swin, ViT, ResNet, EfficientNet, MobileNet and "
            "SegNeXt. Use one of them, or cdks=False."
        )
    return stages


def after(hooks: ExitStack, module: nn.Module, function: Callable[[tuple, object], object]) -> None:
    """Until ``hooks`` close, ``function(inputs, output)`` of each call of ``module`` replaces its output."""
    handle = module.register_forward_hook(lambda _, inputs, output: function(inputs, output))
    hooks.callback(handle.remove)


class Watched:
    """What passes through an encoder: the ``size`` (H, W) of its image, its ``maps``, the output of some ``blocks``."""

    def __init__(self, encoder: nn.Module, names: list[str], hooks: ExitStack):
        self.size: tuple[int, int] = (0, 0)
        self.maps: list[Tensor] = []
        self.blocks: list[Tensor] = []
        for name in names:
            after(hooks, encoder.get_submodule(name), lambda _, output: self.blocks.append(output))
        after(hooks, encoder, self._encoded)

    def _encoded(self, inputs: tuple, maps: list[Tensor]) -> None:
        self.size, self.maps = tuple(inputs[0].shape[-2:]), list(maps)


class Layout:
    """How a block's output holds its N tokens: after a ViT's prefix, or as maps with channels first or last."""

    def __init__(self, output: Tensor, size: tuple[int, int], patch: int):
        """``output`` for an image of ``size``, which is not square; ``patch`` is that of a ViT."""
        self.patch = patch
        if output.ndim == 3:
            self.kind, self.width = "tokens", output.shape[-1]
            self.prefix = output.shape[1] - (size[0] // patch) * (size[1] // patch)
            return
        first, second = (output.shape[i] * size[1] == output.shape[i + 1] * size[0] for i in (1, 2))
        self.kind = "last" if first and not second else "first"
        self.width = output.shape[3 if self.kind == "last" else 1]

    def tokens(self, output: Tensor) -> Tensor:
        """(B, N, D)"""
        if self.kind == "tokens":
            return output[:, self.prefix :]
        return output.flatten(1, 2) if self.kind == "last" else output.flatten(2).mT

    def grid(self, output: Tensor, size: tuple[int, int]) -> tuple[int, int]:
        """(h, w), for an image of ``size``."""
        if self.kind == "tokens":
            return size[0] // self.patch, size[1] // self.patch
        return tuple(output.shape[1:3] if self.kind == "last" else output.shape[2:])

    def put_back(self, tokens: Tensor, output: Tensor) -> Tensor:
        """``output`` with other tokens."""
        if self.kind == "tokens":
            return torch.cat([output[:, : self.prefix], tokens], 1)
        return tokens.view_as(output) if self.kind == "last" else tokens.mT.reshape(output.shape)

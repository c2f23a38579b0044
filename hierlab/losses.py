"""Losses that several papers share: ``loss(outputs, batch)`` returns a scalar and its parts by name.

Ignored pixels (255) never count; a batch in which every pixel is ignored gives a zero that still carries gradients,
so that a training step on it changes nothing and does not fail.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .tree import IGNORE, ClassTree


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Cross entropy averaged over the pixels that are not ignored.

    ``logits`` (B, K, H, W), ``target`` (B, H, W) class indices or 255; a scalar, 0 with zero gradients when every
    pixel is ignored.
    """
    total = F.cross_entropy(logits, target, ignore_index=IGNORE, reduction="sum")
    return total / (target != IGNORE).sum().clamp(min=1)


class FlatLoss(nn.Module):
    """Cross entropy on the leaves, for a model whose ``logits`` is a list of one tensor (B, K, H, W)."""

    def __init__(self, tree: ClassTree):
        super().__init__()
        self.tree = tree

    def forward(self, outputs: dict, batch: dict) -> tuple[Tensor, dict[str, Tensor]]:
        """``batch["label"]`` (B, H, W) are labels of the tree; inner nodes and ignored pixels do not count."""
        target = self.tree.targets(batch["label"])[:, -1]
        loss = cross_entropy(outputs["logits"][-1].float(), target)
        return loss, {"cross_entropy": loss.detach()}


def zero_with_gradient(tensors: list[Tensor]) -> Tensor:
    """A zero that depends on every tensor given, so that ``backward`` reaches them with zero gradients."""
    return torch.stack([(tensor * 0.0).sum() for tensor in tensors]).sum()

"""Deformable cross-attention in plain PyTorch, on the CPU and on GPUs.

Letters: B batch, D width, N = h·w places of a map, M heads, K points a head.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DeformableAttention(nn.Module):
    """Each query looks at a few learned places of the value map (Deformable DETR, Zhu et al., 2021, eq. 2).

    With p_n the centre of query n's pixel, in pixels, heads m and points k::

        Attn(q)_n = W_out [ Σ_k A_mnk · V_m(p_n + Δp_mnk) ]_m,   A = softmax_k(W_A q_n),   Δp = W_Δ q_n,   V = W_V v

    V_m(p) is bilinear between pixel centres and 0 outside the map. Queries and values are (B, N, D), on the same h × w.

    Args:
        width: D.
        heads, points: M of them; K of them a head.
        ratio: width of V over D; V's width is shared by the heads.

    At the start A is uniform and Δp a ring: head m looks in direction 2π·m / M, its point k at k + 1 pixels.
    """

    def __init__(self, width: int, heads: int = 16, points: int = 4, ratio: float = 0.5):
        super().__init__()
        inner = int(width * ratio)
        if inner < 1 or inner % heads:
            raise ValueError(f"The values' width, {inner} ({ratio} of {width}), is no multiple of {heads} heads.")
        self.heads, self.points = heads, points
        self.offsets = nn.Linear(width, heads * points * 2)
        self.weights = nn.Linear(width, heads * points)
        self.value = nn.Linear(width, inner)
        self.out = nn.Linear(inner, width)
        for layer in (self.offsets, self.weights):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer in (self.value, self.out):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        angle = torch.arange(heads) * (2 * math.pi / heads)
        ring = torch.stack([angle.cos(), angle.sin()], -1)
        ring = ring / ring.abs().amax(-1, keepdim=True)
        with torch.no_grad():
            self.offsets.bias.copy_((ring[:, None] * torch.arange(1, points + 1)[:, None]).flatten())

    def forward(self, query: Tensor, value: Tensor, size: tuple[int, int]) -> Tensor:
        """query, value (B, N, D), size (h, w) -> (B, N, D). Places are always computed in float32."""
        b, n, _ = query.shape
        (h, w), m, k = size, self.heads, self.points
        v = self.value(value).unflatten(-1, (m, -1)).permute(0, 2, 3, 1).reshape(b * m, -1, h, w)
        offsets = self.offsets(query).float().view(b, n, m, k, 2)
        weights = self.weights(query).float().view(b, n, m, k).softmax(-1)
        y, x = torch.meshgrid(torch.arange(h, device=v.device), torch.arange(w, device=v.device), indexing="ij")
        centres = torch.stack([x, y], -1).view(n, 1, 1, 2) + 0.5
        places = 2 * (centres + offsets) / offsets.new_tensor([w, h]) - 1
        sampled = sample(v.float(), places.transpose(1, 2).reshape(b * m, n, k, 2))
        attended = (sampled * weights.transpose(1, 2).reshape(b * m, 1, n, k)).sum(-1)  # (B·M, D / 2M, N)
        return self.out(attended.view(b, -1, n).mT.to(query.dtype))


def sample(values: Tensor, places: Tensor) -> Tensor:
    """values (B, C, h, w) at places (B, N, K, 2), x and y in [-1, 1] from edge to edge -> (B, C, N, K); 0 outside.

    ``grid_sample``, but where deterministic algorithms are asked for on a GPU, for which its gradient has none.
    """
    if values.is_cuda and torch.are_deterministic_algorithms_enabled():
        return _sample_by_index(values, places)
    return F.grid_sample(values, places, mode="bilinear", padding_mode="zeros", align_corners=False)


def _sample_by_index(values: Tensor, places: Tensor) -> Tensor:
    b, _, h, w = values.shape
    x, y = (((places + 1) * places.new_tensor([w, h]) - 1) / 2).unbind(-1)
    rows = values.flatten(2).mT.flatten(0, 1)  # (B·h·w, C)
    first = torch.arange(b, device=values.device)[:, None, None] * (h * w)
    total: Tensor | float = 0.0
    for i in (0, 1):
        for j in (0, 1):
            row, column = y.floor() + i, x.floor() + j
            weight = (1 - (x - column).abs()) * (1 - (y - row).abs())
            weight = weight * ((row >= 0) & (row < h) & (column >= 0) & (column < w))
            index = first + (row.clamp(0, h - 1) * w + column.clamp(0, w - 1)).long()
            total = total + rows[index] * weight[..., None]
    return total.movedim(-1, 1)

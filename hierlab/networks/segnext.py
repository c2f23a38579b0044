"""SegNeXt (Guo et al., NeurIPS 2022): the convolutional attention encoder MSCAN and the decoder LightHam.

HieraRS compares it in Table II. Sizes are those of the paper's Tables 2 and 3; what they leave out (dropout, GroupNorm
of 32 groups in the decoder, rank and steps of the factorisation) follows the published configurations. Letters: B
batch, D channels, H W pixels, N = H·W, R rank.
"""

import contextlib
import re

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .parts import _resize

# Widths of the four stages (the same for all three), their blocks, channels of the decoder, stochastic depth.
VARIANTS = {
    "segnext-s": {"depths": (2, 2, 4, 2), "channels": 256, "drop_path_rate": 0.1},
    "segnext-b": {"depths": (3, 3, 12, 3), "channels": 512, "drop_path_rate": 0.1},
    "segnext-l": {"depths": (3, 5, 27, 3), "channels": 1024, "drop_path_rate": 0.3},
}
WIDTHS = (64, 128, 320, 512)
STRIDES = (4, 8, 16, 32)


# ---------------------------------------------------------------- MSCAN (Section 3.1)


class MSCA(nn.Module):
    """Multi-scale convolutional attention (eqs. 1 and 2, Fig. 2), (B, D, H, W) -> the same shape.

    Attention = Conv1×1(Σ_i Scale_i(DWConv5×5(x))), where Scale_0 is the identity and the others are a pair of strip
    convolutions 1×k, k×1 with k = 7, 11 and 21; the result is Attention ⊗ x. All but the 1×1 are depthwise.
    """

    def __init__(self, width: int, kernels: tuple[int, ...] = (7, 11, 21)):
        super().__init__()
        self.local = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.strips = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, (1, k), padding=(0, k // 2), groups=width),
                nn.Conv2d(width, width, (k, 1), padding=(k // 2, 0), groups=width),
            )
            for k in kernels
        )
        self.mix = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        local = self.local(x)
        return self.mix(local + sum(strip(local) for strip in self.strips)) * x


class Block(nn.Module):
    """A block of MSCAN (Fig. 2): attention and a convolutional MLP, each with norm, layer scale and shortcut."""

    def __init__(self, width: int, ratio: int, drop_path: float):
        super().__init__()
        from timm.layers import DropPath

        self.norm1 = nn.BatchNorm2d(width)
        self.project1 = nn.Conv2d(width, width, 1)
        self.attention = MSCA(width)
        self.project2 = nn.Conv2d(width, width, 1)
        self.norm2 = nn.BatchNorm2d(width)
        hidden = width * ratio
        self.mlp = nn.Sequential(
            nn.Conv2d(width, hidden, 1),
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden),
            nn.GELU(),
            nn.Conv2d(hidden, width, 1),
        )
        self.scale1 = nn.Parameter(torch.full((width,), 1e-2))
        self.scale2 = nn.Parameter(torch.full((width,), 1e-2))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W) -> the same shape."""
        y = self.norm1(x)
        y = self.project2(self.attention(F.gelu(self.project1(y)))) + y
        x = x + self.drop_path(self.scale1[:, None, None] * y)
        return x + self.drop_path(self.scale2[:, None, None] * self.mlp(self.norm2(x)))


class Stage(nn.Module):
    """Halve the resolution (the first stage quarters it), then blocks, then LayerNorm over channels."""

    def __init__(self, inputs: int, width: int, ratio: int, drop_paths: list[float], stem: bool):
        super().__init__()
        from timm.layers import LayerNorm2d

        down = [nn.Conv2d(inputs, width, 3, stride=2, padding=1), nn.BatchNorm2d(width)]
        if stem:
            half = width // 2
            first = [nn.Conv2d(inputs, half, 3, stride=2, padding=1), nn.BatchNorm2d(half), nn.GELU()]
            down = [*first, nn.Conv2d(half, width, 3, stride=2, padding=1), nn.BatchNorm2d(width)]
        self.downsample = nn.Sequential(*down)
        self.blocks = nn.Sequential(*(Block(width, ratio, drop_path) for drop_path in drop_paths))
        self.norm = LayerNorm2d(width, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.blocks(self.downsample(x)))


class MSCAN(nn.Module):
    """The encoder: (B, C, H, W) -> four maps (B, D_i, H / s_i, W / s_i) with strides s of 4, 8, 16 and 32.

    Args:
        in_chans: C.
        widths, depths, mlp_ratios: channels, blocks and expansion of the four stages.
        drop_path_rate: stochastic depth of the last block, rising to it from 0.
    """

    def __init__(
        self,
        in_chans: int,
        widths: tuple[int, ...] = WIDTHS,
        depths: tuple[int, ...] = VARIANTS["segnext-b"]["depths"],
        mlp_ratios: tuple[int, ...] = (8, 8, 4, 4),
        drop_path_rate: float = 0.1,
    ):
        super().__init__()
        from timm.models import FeatureInfo

        rates = [drop_path_rate * i / max(1, sum(depths) - 1) for i in range(sum(depths))]
        self.stages = nn.ModuleList()
        for i, (width, depth, ratio) in enumerate(zip(widths, depths, mlp_ratios, strict=True)):
            inputs = widths[i - 1] if i else in_chans
            self.stages.append(Stage(inputs, width, ratio, [rates.pop(0) for _ in range(depth)], stem=i == 0))
        described = [
            {"num_chs": width, "reduction": stride, "module": f"stages.{i}"}
            for i, (width, stride) in enumerate(zip(widths, STRIDES, strict=True))
        ]
        self.feature_info = FeatureInfo(described, range(4))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1] // module.groups
                nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
                nn.init.zeros_(module.bias)

    def forward(self, image: Tensor) -> list[Tensor]:
        maps = []
        for stage in self.stages:
            maps.append(stage(maps[-1] if maps else image))
        return maps


_PUBLISHED = (  # names in the published files, which count stages from 1, and what becomes of them
    (r"^patch_embed(\d)\.proj\.(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.downsample.{m[2]}."),
    (r"^patch_embed(\d)\.proj\.", lambda m: f"stages.{int(m[1]) - 1}.downsample.0."),
    (r"^patch_embed(\d)\.norm\.", lambda m: f"stages.{int(m[1]) - 1}.downsample.1."),
    (r"^block(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.blocks."),
    (r"^norm(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.norm."),
    (r"attn\.proj_([12])\.", lambda m: f"project{m[1]}."),
    (r"attn\.spatial_gating_unit\.conv0\.", lambda m: "attention.local."),
    (r"attn\.spatial_gating_unit\.conv3\.", lambda m: "attention.mix."),
    (r"attn\.spatial_gating_unit\.conv(\d)_([12])\.", lambda m: f"attention.strips.{m[1]}.{int(m[2]) - 1}."),
    (r"mlp\.fc1\.", lambda m: "mlp.0."),
    (r"mlp\.dwconv\.dwconv\.", lambda m: "mlp.1."),
    (r"mlp\.fc2\.", lambda m: "mlp.3."),
    (r"layer_scale_([12])$", lambda m: f"scale{m[1]}"),
)


def from_published(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a published MSCAN under the names that they have in a network here; others keep theirs."""
    renamed = {}
    for key, tensor in stored.items():
        name = before = key.removeprefix("backbone.")
        for pattern, to in _PUBLISHED:
            name = re.sub(pattern, to, name)
        renamed[key if name == before else f"encoder.model.{name}"] = tensor
    return renamed


# ---------------------------------------------------------------- LightHam (Section 3.2)


class NMF(nn.Module):
    """Non-negative matrix factorisation X ≈ D Cᵀ as a layer, (B, D, N) -> (B, D, N): global context of low rank.

    Multiplicative updates (Lee and Seung, 1999), as "Is attention better than matrix decomposition?" (Geng et al.,
    ICLR 2021) has them: C₀ = softmax(t · Xᵀ D₀), then in turn
    C ← C ⊗ (Xᵀ D) / (C Dᵀ D) and D ← D ⊗ (X C) / (D Cᵀ C). Gradients are that paper's one-step ones: they pass through
    the last update of C alone. X must not be negative.

    Args:
        width: D.
        rank: R, the columns of D and C.
        train_steps, eval_steps: pairs of updates.
        temperature: t.

    In training D₀ is drawn anew for each image, uniform with unit columns; in evaluation it is the buffer ``bases``,
    drawn once and saved with the weights, so that a model answers the same twice.
    """

    bases: Tensor

    def __init__(
        self, width: int, rank: int = 16, train_steps: int = 6, eval_steps: int = 7, temperature: float = 100.0
    ):
        super().__init__()
        self.train_steps, self.eval_steps, self.temperature = train_steps, eval_steps, temperature
        self.register_buffer("bases", F.normalize(torch.rand(1, width, rank), dim=1))

    def forward(self, x: Tensor) -> Tensor:
        bases = self.bases.float().expand(len(x), -1, -1)
        if self.training:
            bases = F.normalize(torch.rand_like(bases), dim=1)
        known = torch.amp.is_autocast_available(x.device.type)
        with torch.autocast(x.device.type, enabled=False) if known else contextlib.nullcontext():
            return self._factorise(x.float(), bases, self.train_steps if self.training else self.eval_steps).to(x)

    def _factorise(self, x: Tensor, bases: Tensor, steps: int) -> Tensor:
        with torch.no_grad():
            code = torch.softmax(self.temperature * (x.mT @ bases), -1)  # (B, N, R)
            for _ in range(steps):
                code = self._update(code, x.mT @ bases, bases.mT @ bases)
                bases = self._update(bases, x @ code, code.mT @ code)
        code = self._update(code, x.mT @ bases, bases.mT @ bases)
        return bases @ code.mT

    @staticmethod
    def _update(factor: Tensor, above: Tensor, gram: Tensor) -> Tensor:
        return factor * above / (factor @ gram + 1e-6)


class LightHam(nn.Module):
    """The decoder (Fig. 3 c): stages 2 to 4 joined at stride 8, squeezed, a Hamburger around NMF, and a last 1×1.

    Maps (B, D_i, h_i, w_i), fine to coarse, the first unused -> (B, channels, h_2, w_2).
    """

    def __init__(self, widths: tuple[int, ...], channels: int, **factorisation):
        super().__init__()
        self.channels = channels
        self.squeeze = self._conv(sum(widths[1:]), channels)
        self.ham_in = nn.Conv2d(channels, channels, 1)
        self.nmf = NMF(channels, **factorisation)
        self.ham_out = nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.GroupNorm(32, channels))
        self.align = self._conv(channels, channels)

    @staticmethod
    def _conv(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.GroupNorm(32, outputs), nn.ReLU())

    def forward(self, features: list[Tensor]) -> Tensor:
        fine = features[1]
        x = self.squeeze(torch.cat([fine, *(_resize(coarse, fine) for coarse in features[2:])], dim=1))
        context = self.nmf(F.relu(self.ham_in(x)).flatten(2)).unflatten(2, x.shape[2:])
        return self.align(F.relu(x + self.ham_out(context)))

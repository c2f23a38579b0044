"""The multi-resolution stream of HRNet (Wang et al., 2021) with any block on its branches, as Hi-ResNet varies it."""

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_unit(inputs: int, outputs: int, kernel: int, stride: int = 1, *, norm_first: bool, act: bool = False):
    """A convolution with its BN: BN first, no activation (Hi-ResNet), or BN behind it, and ReLU if ``act`` (HRNet)."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    if norm_first:
        return nn.Sequential(nn.BatchNorm2d(inputs), conv)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), *([nn.ReLU(inplace=True)] if act else []))


class Module(nn.Module):
    """Blocks on every branch, then every branch hears every other: maps (B, C_i, H/2^i, W/2^i) -> the same shapes.

    Up: 1×1 convolution and bilinear resizing. Down: one 3×3 convolution of stride 2 a halving. With ``norm_first`` the
    order is resizing, BN, convolution, and the sums are the output (Hi-ResNet, Fig. 5); without, convolution, BN,
    resizing, and ReLU after the sums (HRNet).
    """

    def __init__(self, channels: list[int], blocks: int, block: Callable[[int], nn.Module], norm_first: bool):
        super().__init__()
        self.norm_first = norm_first
        self.branches = nn.ModuleList(nn.Sequential(*(block(width) for _ in range(blocks))) for width in channels)
        every = range(len(channels))
        self.fuse_layers = nn.ModuleList(nn.ModuleList(self._path(channels, j, i) for j in every) for i in every)

    def _path(self, channels: list[int], source: int, target: int) -> nn.Module:
        """From branch ``source`` to the size and channels of branch ``target``."""
        if source == target:
            return nn.Identity()
        if source > target:
            unit = conv_unit(channels[source], channels[target], 1, norm_first=self.norm_first)
            resize = nn.Upsample(scale_factor=2 ** (source - target), mode="bilinear", align_corners=False)
            return nn.Sequential(*([resize, *unit] if self.norm_first else [*unit, resize]))
        widths = [channels[source]] * (target - source) + [channels[target]]
        units = enumerate(pairwise(widths), source + 1)
        return nn.Sequential(
            *(conv_unit(a, b, 3, 2, norm_first=self.norm_first, act=at < target) for at, (a, b) in units)
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        maps = [branch(x) for branch, x in zip(self.branches, maps, strict=True)]
        sums = [sum(path(x) for path, x in zip(paths, maps, strict=True)) for paths in self.fuse_layers]
        return sums if self.norm_first else [F.relu(x) for x in sums]


class MultiBranch(nn.Module):
    """Stem and stream: (B, C, H, W) -> maps (B, C_i, H/2^(i+2), W/2^(i+2)), fine to coarse.

    Every stage adds a branch at half the coarsest resolution, so H and W must be multiples of ``stride``. The parts are
    named as in timm's HRNet, whose weights so fit where the settings agree.

    Args:
        funnel: the stem, (B, C, H, W) -> (B, 4 · stem_width, H/4, W/4); None for HRNet's, two convolutions and
            ``stem_blocks`` bottlenecks.
        channels: of the branches; modules, blocks: modules a stage, and blocks a branch in each of them.
        block: makes a block from its channels; None for HRNet's, two 3×3 convolutions with a skip.
    """

    def __init__(
        self,
        bands: int,
        *,
        funnel: nn.Module | None,
        stem_width: int,
        stem_blocks: int,
        channels: tuple[int, ...],
        modules: tuple[int, ...],
        blocks: tuple[int, ...],
        block: Callable[[int], nn.Module] | None,
        norm_first: bool,
    ):
        super().__init__()
        from torchvision.models.resnet import BasicBlock, Bottleneck

        self.channels, self.stride = tuple(channels), 4 * 2 ** (len(channels) - 1)
        self.funnel = funnel
        if funnel is None:
            self.conv1, self.bn1, _ = conv_unit(bands, stem_width, 3, 2, norm_first=False, act=True)
            self.conv2, self.bn2, _ = conv_unit(stem_width, stem_width, 3, 2, norm_first=False, act=True)
            skip = conv_unit(stem_width, 4 * stem_width, 1, norm_first=False)
            first = Bottleneck(stem_width, stem_width, downsample=skip)
            rest = (Bottleneck(4 * stem_width, stem_width) for _ in range(1, stem_blocks))
            self.layer1 = nn.Sequential(first, *rest)
        above = [4 * stem_width]
        for number, (repeats, count) in enumerate(zip(modules, blocks, strict=True), 1):
            widths = list(channels[: number + 1])
            same = [
                nn.Identity() if a == b else conv_unit(a, b, 3, norm_first=norm_first, act=True)
                for a, b in zip(above, widths, strict=False)
            ]
            new = nn.Sequential(conv_unit(above[-1], widths[-1], 3, 2, norm_first=norm_first, act=True))
            self.add_module(f"transition{number}", nn.ModuleList([*same, new]))
            make = block or (lambda width: BasicBlock(width, width))
            stage = (Module(widths, count, make, norm_first) for _ in range(repeats))
            self.add_module(f"stage{number + 1}", nn.Sequential(*stage))
            above = widths
        if block is None:
            for module in self.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def stem(self, image: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 4 · stem_width, H/4, W/4)."""
        if self.funnel is not None:
            return self.funnel(image)
        x = F.relu(self.bn1(self.conv1(image)))
        return self.layer1(F.relu(self.bn2(self.conv2(x))))

    def forward(self, image: Tensor) -> list[Tensor]:
        maps = [self.stem(image)]
        for number in range(1, len(self.channels)):
            steps = self.get_submodule(f"transition{number}")
            maps = [step(x) for step, x in zip(steps, [*maps, maps[-1]], strict=True)]
            maps = self.get_submodule(f"stage{number + 1}")(maps)
        return maps


class Joined(nn.Module):
    """Maps of all branches -> one: resized to the finest, joined, 3×3 convolution, BN, ReLU: (B, width, H/4, W/4)."""

    def __init__(self, channels: tuple[int, ...], width: int = 512):
        super().__init__()
        self.unit = conv_unit(sum(channels), width, 3, norm_first=False, act=True)

    def forward(self, maps: list[Tensor]) -> Tensor:
        size = maps[0].shape[-2:]
        maps = [F.interpolate(x, size=size, mode="bilinear", align_corners=False) for x in maps]
        return self.unit(torch.cat(maps, 1))

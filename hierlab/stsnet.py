"""STSNet: hyperspectral images at 1 m and dense time series at 10 m in one segmentation network.

In the order of the paper (Section 2): the multi-scale spatial-spectral encoder with its spectral gate (2.1, eqs. 1-4),
the spatio-temporal encoder (2.2, eqs. 5-10, in ``_stsnet_series.py``), cross-resolution fusion (2.3, eqs. 11-12), the
multi-scale decoder, and the three networks: the whole one, and each encoder alone.

Letters: B batch, C bands, H W pixels of the image, T dates, h w pixels of the series, K classes. What a batch holds
is said at :class:`STSNet`.
"""

import itertools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._stsnet_series import (
    ConvLSTM,
    PatchMean,
    SpatioTemporalBlock,
    SpatioTemporalEncoder,
    SpectralConvolution,
    WindowAttention3d,
    grid_between,
    grid_of,
    resolution_ratio,
    sample,
)
from .networks.parts import BatchNorm2d, check_image, check_size
from .networks.weights import from_file

__all__ = ["NETWORKS", "ConvLSTM", "CrossResolutionFusion", "CrossScale", "Decoder", "PatchMean", "STSNet"]
__all__ += ["STSNetSpectral", "STSNetTemporal", "SpatialSpectralEncoder", "SpatioTemporalBlock"]
__all__ += ["SpatioTemporalEncoder", "SpectralConvolution", "SpectralGate", "WindowAttention3d", "build"]
__all__ += ["grid_between", "resolution_ratio", "sample"]

NETWORKS = {
    "stsnet": "STSNet: hyperspectral image and time series, fused across resolutions",
    "stsnet-spectral": "STSNet's spatial-spectral encoder and decoder: the image alone",
    "stsnet-temporal": "STSNet's spatio-temporal encoder: the series alone",
}


# ---------------------------------------------------------------- multi-scale spatial-spectral encoder (Section 2.1)


def _conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution without bias, batch normalisation, ReLU; ``stride`` 2 makes ⌈n / 2⌉ of n pixels."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def _halve(inputs: int, outputs: int, separable: bool) -> nn.Sequential:
    """Half the resolution: a depthwise-separable convolution (DSC), or an ordinary one, of 3×3 and stride 2."""
    if not separable:
        return _conv(inputs, outputs, stride=2)
    return nn.Sequential(_conv(inputs, inputs, stride=2, groups=inputs), _conv(inputs, outputs, 1))


def _enlarge(x: Tensor, size: Iterable[int], factor: int) -> Tensor:
    """(B, D, n, m) -> (B, D, *size), bilinear, where pixel j of ``x`` lies on pixel factor·j of the result.

    That is where convolutions of stride 2 put it; a resize that spreads the pixels evenly would move the map by up to
    half of ``factor``. What lies beyond the last pixel of ``x`` repeats the edge.
    """
    rows, columns = (factor * (n - 1) + 1 for n in x.shape[-2:])
    x = F.interpolate(x, size=(rows, columns), mode="bilinear", align_corners=True)
    height, width = size
    return F.pad(x, (0, width - columns, 0, height - rows), mode="replicate")


class SpectralGate(nn.Module):
    """Weights for the bands (eqs. 1-4): (B, C, H, W) -> the same, times σ(MLP(mean)) + σ(MLP(max)).

    Mean and maximum over all pixels, one shared MLP of C → C / reduction → C; the weights lie between 0 and 2.
    """

    def __init__(self, channels: int, reduction: int = 16):
        super().__init__()
        hidden = max(1, channels // reduction)
        self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, channels))

    def weights(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 1, 1)."""
        weights = torch.sigmoid(self.mlp(x.mean((2, 3)))) + torch.sigmoid(self.mlp(x.amax((2, 3))))
        return weights[:, :, None, None]

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weights(x)


class CrossScale(nn.Module):
    """A cross-scale connection: every branch plus all coarser ones, brought to its channels by 1×1 and to its size.

    Maps (B, C_i, H_i, W_i), fine to coarse, each half the size of the one before -> maps of the same shapes.
    """

    def __init__(self, channels: Sequence[int]):
        super().__init__()
        self.bring = nn.ModuleDict(
            {
                f"{j}_{i}": nn.Sequential(nn.Conv2d(channels[j], channels[i], 1, bias=False), BatchNorm2d(channels[i]))
                for i, j in itertools.combinations(range(len(channels)), 2)
            }
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        mixed = list(maps)
        for name, bring in self.bring.items():
            j, i = map(int, name.split("_"))
            mixed[i] = mixed[i] + _enlarge(bring(maps[j]), maps[i].shape[-2:], 2 ** (j - i))
        return mixed


class SpatialSpectralEncoder(nn.Module):
    """Four branches at 1/4, 1/8, 1/16 and 1/32 (Fig. 2): (B, C, H, W) -> maps (B, C_i, H_i, W_i), fine to coarse.

    Depthwise-separable convolutions lead into each branch, two of stride 2 into the first and one from each branch
    into the next; the spectral gate weights the first; every branch has a block of three 3×3 convolutions; the
    branches exchange at the start and at the end of their blocks.

    Args:
        bands: C.
        channels: C_i (Table 5).
        layers: convolutions in a block.
        gate, separable: without the spectral gate, with ordinary convolutions instead of DSCs (Table 4).
        exchanges: after how many convolutions the branches exchange; by default before the first and after the last,
            (0, layers). HRNet's habit would be all of range(layers + 1).
        reduction: of the gate's MLP.
    """

    stride = 32

    def __init__(
        self,
        bands: int,
        channels: Sequence[int] = (249, 300, 512, 512),
        layers: int = 3,
        gate: bool = True,
        separable: bool = True,
        exchanges: Iterable[int] | None = None,
        reduction: int = 16,
    ):
        super().__init__()
        exchanges = {0, layers} if exchanges is None else set(exchanges)
        if len(channels) != 4 or not exchanges <= set(range(layers + 1)):
            raise ValueError(
                f"The encoder has four branches, and exchanges after 0 to {layers} of its {layers} convolutions; "
                f"given channels={tuple(channels)}, exchanges={sorted(exchanges)}."
            )
        self.channels, self.layers = tuple(channels), layers
        first = channels[0]
        self.stem = nn.Sequential(_halve(bands, first, separable), _halve(first, first, separable))
        self.gate = SpectralGate(first, reduction) if gate else nn.Identity()
        self.down = nn.ModuleList(_halve(a, b, separable) for a, b in itertools.pairwise(channels))
        self.blocks = nn.ModuleList(nn.ModuleList(_conv(c, c) for c in channels) for _ in range(layers))
        self.exchange = nn.ModuleDict({str(n): CrossScale(channels) for n in sorted(exchanges)})

    def forward(self, image: Tensor) -> list[Tensor]:
        maps = [self.gate(self.stem(image))]
        for down in self.down:
            maps.append(down(maps[-1]))
        for n in range(self.layers + 1):
            if str(n) in self.exchange:
                maps = self.exchange[str(n)](maps)
            if n < self.layers:
                maps = [conv(x) for conv, x in zip(self.blocks[n], maps, strict=True)]
        return maps


# ---------------------------------------------------------------- cross-resolution fusion (Section 2.3)


class CrossResolutionFusion(nn.Module):
    """F_STS = F_SS + α · (F_SS ⊗ W_SS + F_ST ⊗ W_ST) (eqs. 11-12, Fig. 4).

    F_SS and F_ST (B, C, H, W), α (B,) -> (B, C, H, W). Each modality is described by the mean and the maximum over
    all pixels of its sigmoid (eq. 12 prints AP twice for ST; the fourth is MP), all four go through one shared
    convolution φ, C → C → C, and one MLP, 4·C → 4·C → 2·C, gives W_SS and W_ST, C weights each. With two layers in
    each, φ and the MLP have the 6.82 million parameters by which Table 9 says that fusion exceeds joining directly.
    """

    def __init__(self, channels: int):
        super().__init__()
        c = channels
        self.phi = nn.Sequential(nn.Conv2d(c, c, 1), nn.ReLU(inplace=True), nn.Conv2d(c, c, 1))
        self.mlp = nn.Sequential(nn.Linear(4 * c, 4 * c), nn.ReLU(inplace=True), nn.Linear(4 * c, 2 * c))

    def weights(self, f_ss: Tensor, f_st: Tensor) -> tuple[Tensor, Tensor]:
        """W_SS and W_ST, (B, C, 1, 1) each."""
        pooled = []
        for x in (f_ss.sigmoid(), f_st.sigmoid()):
            pooled += [x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)]
        described = torch.cat([self.phi(x) for x in pooled], 1).flatten(1)  # (B, 4·C)
        w_ss, w_st = self.mlp(described)[:, :, None, None].chunk(2, 1)
        return w_ss, w_st

    def forward(self, f_ss: Tensor, f_st: Tensor, alpha: Tensor) -> Tensor:
        w_ss, w_st = self.weights(f_ss, f_st)
        return f_ss + alpha.to(f_ss.dtype)[:, None, None, None] * (f_ss * w_ss + f_st * w_st)


# ---------------------------------------------------------------- multi-scale decoder (Section 2)


class Decoder(nn.Module):
    """Maps (B, C_i, H_i, W_i), fine to coarse -> their sum at the finest size, (B, width, H_1, W_1).

    1×1 convolutions to one width; fractional (transposed) convolutions of stride 2 upwards, a map joining on the way
    where its size is reached. Nothing bends in between, so this is the element-wise sum of all maps brought to the
    highest resolution, with the steps that they share made once.
    """

    def __init__(self, channels: Sequence[int], width: int):
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.up = nn.ModuleList(nn.ConvTranspose2d(width, width, 3, stride=2, padding=1) for _ in channels[1:])

    def forward(self, maps: list[Tensor]) -> Tensor:
        *finer, x = (lateral(m) for lateral, m in zip(self.laterals, maps, strict=True))
        for up, lateral in zip(self.up, reversed(finer), strict=True):
            x = lateral + up(x, output_size=lateral.shape[-2:])
        return x


# ---------------------------------------------------------------- the networks


class STSNetSpectral(nn.Module):
    """The spatial-spectral encoder with the multi-scale decoder: the image alone (Tables 2-5).

    ``model(batch) -> {"logits": [(B, K, H, W)]}`` of ``batch["image"]`` (B, C, H, W), any H and W. ``width`` is that
    of the decoder, by default that of the first branch; ``options`` go to :class:`SpatialSpectralEncoder`.
    """

    name = "stsnet-spectral"

    def __init__(self, bands: int, classes: int, width: int | None = None, **options):
        super().__init__()
        self.bands = bands
        self.encoder = SpatialSpectralEncoder(bands, **options)
        channels = self.encoder.channels
        self.decoder = Decoder(channels, width or channels[0])
        self.classifier = nn.Conv2d(width or channels[0], classes, 1)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, list[Tensor]]:
        image = check_image(batch["image"], self.bands, self.name)
        logits = self.classifier(self.decoder(self.encoder(image)))
        return {"logits": [_enlarge(logits, image.shape[-2:], 4)]}


class STSNetTemporal(nn.Module):
    """The spatio-temporal encoder with a 1×1 convolution: the series alone (Tables 6-8).

    ``model(batch) -> {"logits": [(B, K, H, W)]}`` of ``batch["series"]`` (B, T, C, h, w), with ``series_valid`` and
    ``series_days`` as :class:`SpatioTemporalEncoder` takes them. Of an image beside it only the size is read: the
    logits are brought to its grid, by ``series_grid`` as in :class:`STSNet`; without one they stay on the series'.

    A batch without ``series`` holds the series in its image, the bands of all dates in one stack (B, T·C, H, W),
    dates slowest, as a raster file has them, valid where ``batch["valid"]`` (B, H, W) is; so one image is one date.

    Args:
        bands: C, of one date.
        options: of :class:`SpatioTemporalEncoder`.
    """

    name = "stsnet-temporal"

    def __init__(self, bands: int, classes: int, **options):
        super().__init__()
        self.bands = bands
        self.encoder = SpatioTemporalEncoder(bands, **options)
        self.classifier = nn.Conv2d(self.encoder.channels, classes, 1)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, list[Tensor]]:
        if "series" in batch:
            series, valid = batch["series"], batch.get("series_valid")
        else:
            series, valid = self.unstacked(batch)
        logits = self.classifier(self.encoder(series, valid, batch.get("series_days")))  # (B, K, h, w)
        if "series" in batch and "image" in batch:
            size = batch["image"].shape[-2:]
            logits = sample(logits, size, grid_of(batch, size))
        return {"logits": [logits]}

    def unstacked(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """The series (B, T, C, H, W) that the image of a batch holds, and its validity (B, T, H, W)."""
        image, valid = batch["image"], batch.get("valid")
        if image.ndim != 4 or image.shape[1] % self.bands:
            raise ValueError(
                f"{self.name} takes batch['series'] (B, T, {self.bands}, h, w), or an image (B, T·{self.bands}, H, W) "
                f"that stacks the dates; given an image {tuple(image.shape)} and no series."
            )
        series = image.unflatten(1, (-1, self.bands))
        return series, None if valid is None else valid[:, None].expand(-1, series.shape[1], -1, -1)

    def example(self, size: int = 300) -> dict[str, Tensor]:
        """A batch of one as the paper has it, of zeros: the image gives the size, the series has 10 m to its 1 m."""
        side = -(-size // 10)
        series = torch.zeros(1, self.encoder.dates, self.bands, side, side)
        return {"image": torch.zeros(1, 1, size, size), "series": series}


class STSNet(nn.Module):
    """The whole network (Fig. 2): ``model(batch) -> {"logits": [(B, K, H, W)]}``, any H, W, h and w.

    The batch holds

    - ``image`` (B, C, H, W) and ``series`` (B, T, C', h, w), which need not share a grid;
    - ``series_valid`` bool (B, T) or (B, T, h, w), False where there is nothing to see (clouds, nodata); values that
      are not finite are invalid in any case;
    - ``series_days`` (B, T), days of the year, where samples differ in their dates: see
      :class:`SpatioTemporalEncoder`;
    - ``series_grid`` (6,) or (B, 6) of :func:`grid_between`, where the two do not cover the same ground. α of eq. 11
      and the resampling of the temporal features both come from it.

    In evaluation the series may be missing, and the image alone is decoded; in training that is a ValueError.

    22.81 and 6.33 million parameters (the encoders alone) and 6.82 (fusion) exceed the printed 28.71 of the whole, so
    not all of them can be in it. Here the spatial-spectral encoder is whole, and decoder and temporal encoder are
    narrower than alone.

    Args:
        bands, series_bands: C and C'.
        channels: C_i of the spatial-spectral encoder.
        width: of the decoder.
        ratio: α by ``"area"`` or by ``"length"``, see :func:`resolution_ratio`.
        dates, temporal: places for dates, and further options of :class:`SpatioTemporalEncoder`.
        options: further options of :class:`SpatialSpectralEncoder`.
    """

    name = "stsnet"

    def __init__(
        self,
        bands: int,
        classes: int,
        series_bands: int = 10,
        *,
        channels: Sequence[int] = (249, 300, 512, 512),
        width: int = 128,
        ratio: str = "area",
        dates: int = 31,
        temporal: dict | None = None,
        **options,
    ):
        super().__init__()
        if ratio not in ("area", "length"):
            raise ValueError(f"ratio is 'area' or 'length', given {ratio!r}.")
        self.bands, self.series_bands, self.ratio = bands, series_bands, ratio
        self.spectral = SpatialSpectralEncoder(bands, channels, **options)
        temporal = {"widths": (16, 48, 60), "heads": 2} | (temporal or {})
        self.temporal = SpatioTemporalEncoder(series_bands, dates, **temporal)
        self.project = nn.Conv2d(self.temporal.channels, channels[-1], 1)
        self.fusion = CrossResolutionFusion(channels[-1])
        self.decoder = Decoder(channels, width)
        self.classifier = nn.Conv2d(width, classes, 1)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, list[Tensor]]:
        image = check_image(batch["image"], self.bands, self.name)
        maps = self.spectral(image)
        if "series" in batch:
            maps[-1] = self.fused(maps[-1], batch)
        elif self.training:
            raise ValueError(f"{self.name} trains on batch['series'] (B, T, {self.series_bands}, h, w); there is none.")
        logits = self.classifier(self.decoder(maps))
        return {"logits": [_enlarge(logits, image.shape[-2:], 4)]}

    def fused(self, f_ss: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """F_STS (B, C_4, H_4, W_4) of F_SS and the batch's series."""
        series, valid, days = batch["series"], batch.get("series_valid"), batch.get("series_days")
        f_st = self.project(self.temporal(series, valid, days))  # (B, C_4, h, w)
        grid = grid_of(batch, batch["image"].shape[-2:])
        _, valid = self.temporal.checked(series, valid, days)
        seen = valid.any(1, keepdim=True)  # on at least one date
        f_st = sample(f_st, f_ss.shape[-2:], grid, self.spectral.stride, points=4, seen=seen)
        return self.fusion(f_ss, f_st, resolution_ratio(grid, self.ratio))

    def example(self, size: int = 300) -> dict[str, Tensor]:
        """A batch of one as the paper has it, of zeros: an image at 1 m, and its series at 10 m."""
        side = -(-size // 10)
        series = torch.zeros(1, self.temporal.dates, self.series_bands, side, side)
        return {"image": torch.zeros(1, self.bands, size, size), "series": series}


def build(
    name: str,
    bands: int,
    classes: int,
    weights: str | os.PathLike | None = None,
    *,
    width: float = 1.0,
    depth: float = 1.0,
    **options,
) -> nn.Module:
    """Build one of :data:`NETWORKS` for images of ``bands`` bands.

    For ``stsnet-temporal`` ``bands`` are those of one date, or of a stack of dates where the option ``series_bands``
    says how many one date has.

    Args:
        weights: None (random; none are published) or a file with the weights of this very network.
        width: the fraction kept of all channels, ``depth`` of the convolutions in a block of the spatial-spectral
            encoder; neither touches channels, widths, heads or layers that are given as options.
        options: keywords of :class:`STSNet`, :class:`STSNetSpectral` or :class:`STSNetTemporal`.

    Raises ValueError for what cannot be built and for weights that do not fit, OSError for those that cannot be read.
    """
    check_size(name, bands, classes, width, depth)

    def scaled(channels: int) -> int:
        return max(4, round(channels * width))

    def temporal(widths: tuple[int, int, int], heads: int) -> dict:
        d2, d3, d4 = widths
        kept = max(1, round(heads * width))  # heads, each as wide as before
        return {"widths": (2 * max(1, round(d2 * width / 2)), scaled(d3), d4 // heads * kept), "heads": kept}

    spectral = {"channels": tuple(map(scaled, (249, 300, 512, 512))), "layers": max(1, round(3 * depth))}
    if name == "stsnet":
        inner = temporal((16, 48, 60), 2) | (options.pop("temporal", None) or {})
        make, options = STSNet, spectral | {"width": scaled(128), "temporal": inner} | options
    elif name == "stsnet-spectral":
        make, options = STSNetSpectral, spectral | options
    elif name == "stsnet-temporal":
        bands = options.pop("series_bands", bands)
        make, options = STSNetTemporal, temporal((32, 96, 180), 6) | options
    else:
        raise ValueError(f"There is no network {name!r} here: choose one of {', '.join(NETWORKS)}.")
    try:
        network = make(bands, classes, **options)
    except TypeError as error:
        raise ValueError(f"{name} cannot be built ({error}); given {options}.") from error
    if weights is not None:
        try:
            network.load_state_dict(from_file(Path(weights)))
        except RuntimeError as error:
            raise ValueError(f"The weights of {weights} are not those of {name} as it was built: {error}") from error
    return network

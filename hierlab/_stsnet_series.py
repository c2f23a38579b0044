"""The series' side of STSNet, re-exported by :mod:`hierlab.stsnet`: its encoder (Section 2.2, Fig. 3), and its grid.

Letters: B batch, T dates, C bands (the paper's D1), D2 D3 D4 widths, h w pixels of the series, N tokens of a window.
Tokens are kept channels last, (B, T', h', w', D), beside their validity (B, T', h', w'): a token is valid where it
holds at least one valid pixel of one date. Invalid tokens are zero after every step, so that nothing of them, neither
a cloud's value nor a layer's bias, reaches a valid one.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

YEAR = 365.25  # days


# ---------------------------------------------------------------- spatio-temporal encoder (Section 2.2)


class SpectralConvolution(nn.Module):
    """Convolution along the bands of every pixel and date, with a skip: (B·T, C, h, w) -> (B·T, D2, h, w).

    Two 3-D kernels of 3 bands, one row and one column (a cloud stays in its pixel) with ``filters`` channels, then all
    bands and filters to D2 by 1×1, plus the skip, 1×1 from the bands themselves. ``enabled=False`` leaves the skip
    alone (the first row of Table 8).
    """

    def __init__(self, bands: int, width: int, filters: int = 8, enabled: bool = True):
        super().__init__()
        self.skip = nn.Conv2d(bands, width, 1)
        self.along = None
        if enabled:
            self.along = nn.Sequential(
                nn.Conv2d(1, filters, (3, 1), padding=(1, 0)),
                nn.GELU(),
                nn.Conv2d(filters, filters, (3, 1), padding=(1, 0)),
                nn.GELU(),
            )
            self.join = nn.Conv2d(filters * bands, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.along is None:
            return self.skip(x)
        y = self.along(x.flatten(2)[:, None])  # (B·T, filters, C, h·w)
        return self.skip(x) + self.join(y.flatten(1, 2).unflatten(2, x.shape[-2:]))


class PatchMean(nn.Module):
    """3-D patches of (2, 2, 2) through one linear layer: the patch partition with its embedding, and patch merging.

    Tokens (B, T', h', w', D), T', h' and w' even, and validity (B, T', h', w') -> tokens (B, T'/2, h'/2, w'/2, D')
    and theirs. The weights of a patch act on its valid entries only, scaled up by 8 / their number.
    """

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.project = nn.Linear(8 * inputs, outputs)

    def forward(self, x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        share = _patches(valid[..., None]).to(x.dtype).mean(-1, keepdim=True)  # 0, 1/8 … 1
        x = _patches(x * valid[..., None]) / share.clamp(min=1 / 8)
        valid = share[..., 0] > 0
        return self.project(x) * valid[..., None], valid


class PatchExpand(nn.Module):
    """Transposed 3-D convolution of (2, 2, 2): tokens (B, T', h', w', D) -> (B, 2·T', 2·h', 2·w', D'), then GELU."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.project = nn.Linear(inputs, 8 * outputs)

    def forward(self, x: Tensor) -> Tensor:
        b, t, h, w, _ = x.shape
        x = self.project(x).reshape(b, t, h, w, 2, 2, 2, -1).permute(0, 1, 4, 2, 5, 3, 6, 7)
        return F.gelu(x.reshape(b, 2 * t, 2 * h, 2 * w, -1))


def _patches(x: Tensor) -> Tensor:
    """(B, T, h, w, D) -> (B, T/2, h/2, w/2, 8·D)."""
    b, t, h, w, d = x.shape
    x = x.reshape(b, t // 2, 2, h // 2, 2, w // 2, 2, d).permute(0, 1, 3, 5, 2, 4, 6, 7)
    return x.reshape(b, t // 2, h // 2, w // 2, 8 * d)


class ConvLSTM(nn.Module):
    """Convolutional LSTM (eqs. 5-9): x (B, T, D, h, w) -> its hidden states h_1 … h_T, (B, T, D, h, w).

    i = σ(Z_ii * x_t + Z_hi * h_{t-1}), f = σ(Z_if * x_t + Z_hf * h_{t-1}), g = tanh(Z_ig * x_t + Z_hg * h_{t-1}),
    o = σ(Z_io * x_t + Z_ho * h_{t-1}), C_t = f ∘ C_{t-1} + i ∘ g, h_t = o ∘ tanh(C_t), with * a 3×3 convolution
    without bias, from h_0 = C_0 = 0. Equation 7 prints i * tanh(…) where the Hadamard product ∘ is meant.

    Where ``valid`` (B, T, h, w) is False nothing is seen: x counts as 0 and C and h stay what they were.
    """

    def __init__(self, width: int):
        super().__init__()
        self.z_x = nn.Conv2d(width, 4 * width, 3, padding=1, bias=False)  # Z_ii, Z_if, Z_ig, Z_io
        self.z_h = nn.Conv2d(width, 4 * width, 3, padding=1, bias=False)  # Z_hi, Z_hf, Z_hg, Z_ho

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        b, t, d, height, width = x.shape
        x = x * valid[:, :, None]
        from_x = self.z_x(x.flatten(0, 1)).unflatten(0, (b, t))
        hidden = cell = x.new_zeros(b, d, height, width)
        states = []
        for date in range(t):
            i, f, g, o = (from_x[:, date] + self.z_h(hidden)).chunk(4, 1)
            new_cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
            new_hidden = o.sigmoid() * new_cell.tanh()
            seen = valid[:, date, None]
            cell = torch.where(seen, new_cell, cell)
            hidden = torch.where(seen, new_hidden, hidden)
            states.append(hidden)
        return torch.stack(states, 1)


class WindowAttention3d(nn.Module):
    """Multi-head self-attention in 3-D windows of tokens (eq. 10), regular or shifted by half a window.

    Tokens (B, T', h', w', D) and validity (B, T', h', w') -> tokens of the same shape. Axes that the window does not
    divide are padded with invalid tokens; along an axis that fits into one window nothing is shifted. A token attends
    to the valid ones of its window that did not come from the other end when the grid was rolled, and to itself.
    To QK^T / √d a learned bias of the relative position is added, as in Video Swin, whose structure the paper takes
    over; eq. 10 prints none.
    """

    def __init__(self, width: int, heads: int, window: tuple[int, int, int], shifted: bool):
        super().__init__()
        if width % heads:
            raise ValueError(f"{heads} attention heads do not divide a width of {width}: choose a multiple.")
        self.heads, self.window, self.shifted = heads, tuple(window), shifted
        self.qkv = nn.Linear(width, 3 * width)
        self.bias = nn.Parameter(torch.zeros(heads, *(2 * side - 1 for side in window)))
        self.out = nn.Linear(width, width)
        nn.init.trunc_normal_(self.bias, std=0.02)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        sides = x.shape[1:4]
        window = [min(w, side) for w, side in zip(self.window, sides, strict=True)]
        shift = [w // 2 if self.shifted and side > w else 0 for w, side in zip(window, sides, strict=True)]
        padded = [math.ceil(side / w) * w for w, side in zip(window, sides, strict=True)]
        t, h, w = (p - side for p, side in zip(padded, sides, strict=True))
        x, valid = F.pad(x, (0, 0, 0, w, 0, h, 0, t)), F.pad(valid, (0, w, 0, h, 0, t))

        back = [-s for s in shift]
        q, k, v = (
            self._windows(part.roll(back, (1, 2, 3)), window).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(x).chunk(3, -1)
        )  # (B·windows, heads, N, D / heads)
        seen = self._windows(valid.roll(back, (1, 2, 3))[..., None], window)[..., 0]  # (B·windows, N)
        side = self._windows(_side(padded, shift, x.device)[None, ..., None], window)[..., 0]  # (windows, N)
        together = (side[:, :, None] == side[:, None]).repeat(len(x), 1, 1)
        allowed = together & seen[:, None] | torch.eye(seen.shape[1], dtype=torch.bool, device=x.device)
        mask = self._relative(window).to(q.dtype).masked_fill(~allowed[:, None], -torch.inf)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        y = self._grid(y, window, padded).roll(shift, (1, 2, 3))
        return self.out(y[:, : sides[0], : sides[1], : sides[2]])

    @staticmethod
    def _windows(x: Tensor, window: list[int]) -> Tensor:
        """(B, T, h, w, D) -> (B·windows, N, D)."""
        b, *sides, d = x.shape
        counts = [side // w for side, w in zip(sides, window, strict=True)]
        shape = [n for pair in zip(counts, window, strict=True) for n in pair]
        return x.reshape(b, *shape, d).permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, math.prod(window), d)

    @staticmethod
    def _grid(x: Tensor, window: list[int], sides: list[int]) -> Tensor:
        """(B·windows, N, D) -> (B, T, h, w, D)."""
        counts = [side // w for side, w in zip(sides, window, strict=True)]
        x = x.reshape(-1, *counts, *window, x.shape[-1]).permute(0, 1, 4, 2, 5, 3, 6, 7)
        return x.reshape(-1, *sides, x.shape[-1])

    def _relative(self, window: list[int]) -> Tensor:
        """The bias of every pair of tokens of a window, (heads, N, N)."""
        axes = [torch.arange(side, device=self.bias.device) for side in window]
        places = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 2)
        t, h, w = (places[:, None] - places[None] + torch.tensor(self.window, device=places.device) - 1).unbind(-1)
        return self.bias[:, t, h, w]


def _side(sides: list[int], shift: list[int], device: torch.device) -> Tensor:
    """Which end of the grid a token came from along the three axes when it was rolled, as a number (T, h, w)."""
    wrapped = [torch.arange(side, device=device) >= side - s for side, s in zip(sides, shift, strict=True)]
    t, h, w = (axis.long() for axis in wrapped)
    return 4 * t[:, None, None] + 2 * h[:, None] + w


class SpatioTemporalBlock(nn.Module):
    """ConvLSTM, 3-D window attention, shifted-window attention and MLP, each normalised first and added (Fig. 3b).

    Tokens (B, T', h', w', D) and validity -> tokens (B, T', h', w', D4). Where D differs from D4 a 1×1 layer adjusts
    the tokens first. ``convlstm`` and ``attention`` leave their parts out (Table 8).
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        heads: int,
        window: tuple[int, int, int],
        convlstm: bool = True,
        attention: bool = True,
    ):
        super().__init__()
        self.adjust = nn.Identity() if inputs == width else nn.Linear(inputs, width)
        self.local = ConvLSTM(width) if convlstm else None
        shifts = (False, True) if attention else ()
        self.attention = nn.ModuleList(WindowAttention3d(width, heads, window, shifted) for shifted in shifts)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(1 + len(shifts) + convlstm))

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        here, norms = valid[..., None], iter(self.norms)
        x = self.adjust(x) * here
        if self.local is not None:
            states = self.local(next(norms)(x).permute(0, 1, 4, 2, 3), valid)
            x = x + states.permute(0, 1, 3, 4, 2) * here
        for attention in self.attention:
            x = x + attention(next(norms)(x), valid) * here
        return x + self.mlp(next(norms)(x)) * here


class SpatioTemporalEncoder(nn.Module):
    """From a series to what its dates hold together: (B, T, C, h, w) -> (B, D2·dates, h, w), any h and w.

    The series is laid into ``dates`` places, then (Fig. 3a): spectral convolution to D2; 3-D patches of (2, 2, 2)
    embedded in D3; a spatio-temporal block to D4; patch merging; a second block; back to the first block's grid by a
    transposed convolution and joined to its output (2·D4); back to the dates and pixels with D2 channels; the dates
    laid side by side as channels. Dates and pixels are padded to multiples of 4 by invalid ones and cropped again.

    **Dates.** Without ``days`` the places are those of one calendar, the same in all samples, and fewer dates than
    places leave the last ones unseen. With ``days`` (B, T), each date's day of the year, every sample has its own
    dates: they are put in order, fully clouded ones last, and the day is added to the D2 channels as sines and cosines
    of 1 … D2/2 cycles a year. A fully clouded date then leaves no trace, as if it had not been taken.

    Args:
        bands: C.
        dates: places for dates, at least T.
        widths: D2, D3 and D4, which the paper does not print; D2 is even.
        heads: of the attention, a divisor of D4.
        window: tokens along time, height and width.
        spectral, convlstm, attention: False leaves that part out (Table 8).
    """

    def __init__(
        self,
        bands: int,
        dates: int = 31,
        widths: tuple[int, int, int] = (32, 96, 180),
        heads: int = 6,
        window: tuple[int, int, int] = (8, 4, 4),
        spectral: bool = True,
        convlstm: bool = True,
        attention: bool = True,
    ):
        super().__init__()
        d2, d3, d4 = widths
        if min(bands, dates, d3, d4) < 1 or d2 < 2 or d2 % 2:
            raise ValueError(
                f"The encoder needs bands, dates and widths of at least 1 and an even D2, given bands={bands}, "
                f"dates={dates}, widths={tuple(widths)}."
            )
        self.bands, self.dates, self.channels = bands, dates, d2 * dates
        self.spectral = SpectralConvolution(bands, d2, enabled=spectral)
        self.embed = PatchMean(d2, d3)
        self.first = SpatioTemporalBlock(d3, d4, heads, window, convlstm, attention)
        self.merge = PatchMean(d4, d4)
        self.second = SpatioTemporalBlock(d4, d4, heads, window, convlstm, attention)
        self.back = PatchExpand(d4, d4)
        self.expand = PatchExpand(2 * d4, d2)

    def forward(self, series: Tensor, valid: Tensor | None = None, days: Tensor | None = None) -> Tensor:
        """``valid`` bool (B, T) or (B, T, h, w); pixels that are not finite are invalid in any case.

        Raises ValueError for a series, a mask or days that do not fit.
        """
        series, valid = self.checked(series, valid, days)
        if days is not None:
            series, valid, days = in_order(series, valid, days)
        b, t, _, h, w = series.shape
        x = self.spectral(series.flatten(0, 1).to(self.spectral.skip.weight.dtype))  # (B·T, D2, h, w)
        x = x.unflatten(0, (b, t)).permute(0, 1, 3, 4, 2)
        if days is not None:
            x = x + self.of_year(days, x)[:, :, None, None]
        more = [-self.dates % 4 + self.dates - t, -h % 4, -w % 4]
        x = F.pad(x, (0, 0, 0, more[2], 0, more[1], 0, more[0]))
        valid = F.pad(valid, (0, more[2], 0, more[1], 0, more[0]))

        x, valid = self.embed(x, valid)
        x = self.first(x, valid)
        y = self.back(self.second(*self.merge(x, valid)))
        x = self.expand(torch.cat([x, y], -1))[:, : self.dates, :h, :w]  # (B, dates, h, w, D2)
        return x.permute(0, 4, 1, 2, 3).flatten(1, 2)

    def checked(self, series: Tensor, valid: Tensor | None, days: Tensor | None) -> tuple[Tensor, Tensor]:
        """The series with 0 wherever it is invalid, and its validity (B, T, h, w)."""
        if series.ndim != 5 or series.shape[2] != self.bands or not 1 <= series.shape[1] <= self.dates:
            raise ValueError(
                f"The series is (B, T, {self.bands}, h, w) with at most {self.dates} dates, given "
                f"{tuple(series.shape)}: build the network for its bands and dates (series_bands=…, dates=…)."
            )
        b, t, _, h, w = series.shape
        finite = series.isfinite().all(2)
        if valid is None:
            valid = finite
        elif valid.shape not in ((b, t), (b, t, h, w)) or valid.dtype != torch.bool:
            raise ValueError(
                f"series_valid is bool (B, T) or (B, T, h, w), here {(b, t)} or {(b, t, h, w)}, given {valid.dtype} "
                f"{tuple(valid.shape)}."
            )
        else:
            valid = finite & (valid if valid.ndim == 4 else valid[:, :, None, None])
        if days is not None and days.shape != (b, t):
            raise ValueError(f"series_days is (B, T), here {(b, t)}, one day of the year a date; given {days.shape}.")
        return torch.where(valid[:, :, None], series, 0), valid

    def of_year(self, days: Tensor, like: Tensor) -> Tensor:
        """Days of the year (B, T) -> sines and cosines (B, T, D2) of 1 … D2/2 cycles a year."""
        cycles = torch.arange(1, like.shape[-1] // 2 + 1, device=days.device)
        angle = (2 * torch.pi / YEAR) * days.float()[..., None] * cycles
        return torch.cat([angle.sin(), angle.cos()], -1).to(like.dtype)


def in_order(series: Tensor, valid: Tensor, days: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Dates (B, T, …) sorted by day within each sample, those without a single valid pixel at the end."""
    key = torch.where(valid.flatten(2).any(2), days.double(), torch.inf)
    order = key.sort(dim=1, stable=True).indices
    which = torch.arange(len(order), device=order.device)[:, None]
    return series[which, order], valid[which, order], days[which, order]


# ---------------------------------------------------------------- where the series lies in the image (Section 2.3)


def grid_between(transform: Sequence[float], series_transform: Sequence[float]) -> Tensor:
    """Where the image's pixels lie in the series, from the georeferencing of both: ``series_grid``, (6,) float32.

    Both are affine transforms (a, b, c, d, e, f) from (column, row) to coordinates of one CRS, as rasterio's
    ``.transform``; pixel n reaches from n to n + 1. The result takes the image's (column, row) to the series': a and e
    are the ratio of the pixel sizes, c and f the offset in pixels of the series. It is computed in float64, and small
    enough for float32, which map coordinates are not. Raises ValueError for transforms without an inverse.
    """
    square = torch.zeros(2, 3, 3, dtype=torch.float64)
    square[:, 2, 2] = 1
    for matrix, given in zip(square, (transform, series_transform), strict=True):
        matrix[:2] = torch.tensor([float(v) for v in tuple(given)[:6]], dtype=torch.float64).reshape(2, 3)
        if not matrix.isfinite().all() or torch.linalg.det(matrix) == 0:
            raise ValueError(
                f"{tuple(given)} is no georeferencing: it gives pixels no area. Pass rasterio's transform."
            )
    return (torch.linalg.inv(square[1]) @ square[0])[:2].flatten().float()


def resolution_ratio(grid: Tensor, by: str = "area") -> Tensor:
    """α of eq. 11 from ``series_grid`` (B, 6): (B,), the part of a pixel of the series that one of the image covers.

    By ``"area"``, (1/10)² = 0.01 for 1 m and 10 m: the "ratio of spatial resolution pixels" in numbers of pixels.
    By ``"length"``, 1/10: the ratio of the pixels' sides.
    """
    a, b, _, d, e, _ = grid.float().unbind(-1)
    area = (a * e - b * d).abs()
    return area if by == "area" else area.sqrt()


def sample(
    x: Tensor, size: tuple[int, int], grid: Tensor, stride: int = 1, points: int = 1, seen: Tensor | None = None
) -> Tensor:
    """A map on the series' grid brought to the image's: (B, D, h, w) -> (B, D) + ``size``, bilinear.

    ``grid`` is ``series_grid`` (B, 6); cell j of the result is centred on pixel ``stride``·j of the image and averages
    ``points`` × ``points`` spots spread over it. Beyond the series its edge is repeated, unless ``seen`` (B, 1, h, w)
    is given: then only what is seen counts, and a cell that sees nothing is 0.
    """
    b, _, h, w = x.shape
    steps = ((torch.arange(points, device=x.device) + 0.5) / points - 0.5) * stride
    rows, columns = ((torch.arange(n, device=x.device)[:, None] * stride + 0.5 + steps).flatten() for n in size)
    xa, xb, xc, ya, yb, yc = grid.float()[:, :, None, None].unbind(1)
    across, down = (u * columns + v * rows[:, None] + t for u, v, t in ((xa, xb, xc), (ya, yb, yc)))
    spots = torch.stack([2 * across / w - 1, 2 * down / h - 1], -1).expand(b, -1, -1, -1)
    if seen is None:
        found = F.grid_sample(x.float(), spots, padding_mode="border", align_corners=False)
        return F.avg_pool2d(found, points).to(x.dtype)
    both = torch.cat([x.float() * seen, seen.float()], 1)
    found = F.avg_pool2d(F.grid_sample(both, spots, align_corners=False), points)
    return (found[:, :-1] / found[:, -1:].clamp(min=1e-6)).to(x.dtype)


def grid_of(batch: dict, size: tuple[int, int]) -> Tensor:
    """``series_grid`` as (B, 6); where it is not given, image (of this size) and series cover the same ground."""
    series, (height, width) = batch["series"], size
    b, (h, w) = len(series), series.shape[-2:]
    grid = batch.get("series_grid")
    if grid is None:
        grid = torch.tensor([w / width, 0, 0, 0, h / height, 0], device=series.device)
    if grid.shape not in ((6,), (b, 6)):
        raise ValueError(
            f"series_grid is (6,) or (B, 6), here (6,) or {(b, 6)}, given {tuple(grid.shape)}: see grid_between."
        )
    return grid.to(series.device).expand(b, 6)

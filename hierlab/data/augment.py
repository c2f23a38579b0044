"""Augmentation of whole batches on the device they lie on."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hierlab.tree import IGNORE


@dataclass(frozen=True)
class Augment:
    """Settings of :func:`augment`.

    horizontal, vertical: probabilities of a flip. quarter_turns: turn by 0, 90, 180 or 270 degrees at random.
    scale: the factor by which a sample is enlarged is drawn uniformly from this range (None: no resizing).
    crop: side of the patches that come out (None: as they came in). max_share: of ``tries`` random crops, the
    first in which no class covers more than this share of the labelled pixels is taken, else the last (None:
    the first). brightness, contrast: per sample and band, values are stretched about their mean by a factor
    drawn from 1 ± contrast, and shifted by up to ± brightness standard deviations.
    """

    horizontal: float = 0.5
    vertical: float = 0.5
    quarter_turns: bool = True
    scale: tuple[float, float] | None = (0.5, 2.0)
    crop: int | None = None
    max_share: float | None = 0.75
    tries: int = 10
    brightness: float = 0.0
    contrast: float = 0.0

    def __post_init__(self) -> None:
        for name in ("horizontal", "vertical"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability, got {getattr(self, name)}")
        if self.scale is not None and not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale must be two factors, the smaller first, got {self.scale}")
        if self.max_share is not None and not 0 < self.max_share <= 1:
            raise ValueError(f"max_share is a share above 0, got {self.max_share}")
        if self.tries < 1 or (self.crop is not None and self.crop < 1):
            raise ValueError(f"tries and crop must be at least 1, got {self.tries} and {self.crop}")
        if self.brightness < 0 or not 0 <= self.contrast < 1:
            raise ValueError(f"brightness must be at least 0 and contrast in [0, 1), got {self}")


def augment(batch: dict[str, Tensor], settings: Augment, generator: torch.Generator) -> dict[str, Tensor]:
    """A new batch, every sample augmented by itself: resize and crop, flips, quarter turns, radiometry.

    batch: ``image`` float (B, C, H, W), ``label`` integers (B, H, W) with 255 = ignore, and optionally ``valid``
    bool (B, H, W). More tensors with at least three dimensions must end in H, W and are transformed alike;
    those with fewer (years, indices) pass untouched. Those whose names start with "series" may end in h, w of a grid
    of their own: beside ``series_grid`` (6,) or (B, 6), which leads from the image's (column, row) to the series', or
    where h, w are not H, W. They are flipped and turned together with the image, and the grid with them.
    generator: on the CPU; it takes all decisions, so a GPU's are the same.

    The image, and other floats, are resized bilinearly, everything else takes the nearest pixel; invalid pixels
    do not bleed into valid ones. What a crop sees beyond the sample is image 0, valid False, label 255
    (a tensor whose name starts with "label"), else 0. ``valid`` is added where it was missing.
    ValueError where shapes disagree, samples that are to be turned or cropped are not square, or samples whose
    series has a grid of its own are to be resized or cropped.
    """
    image, label = batch["image"], batch["label"]
    b, _, h, w = image.shape
    if generator.device.type != "cpu":
        raise ValueError("the generator must be on the CPU, so that every device takes the same decisions")
    series = _series(batch, (h, w))
    spatial = _spatial({k: v for k, v in batch.items() if k not in series}, (h, w))
    if (settings.quarter_turns or settings.crop) and h != w:
        raise ValueError(
            f"samples of {h}×{w} pixels are not square: quarter turns and crops need squares. "
            "Set quarter_turns=False and crop=None, or draw square patches"
        )
    _check_series(series, (h, w), settings)
    valid = batch.get("valid")
    if valid is None:
        valid = torch.ones_like(label, dtype=torch.bool)
    out = {**batch, "valid": valid}
    spatial["valid"] = valid
    size = (settings.crop or h, settings.crop or w)
    if settings.scale is not None or size != (h, w):
        factor = _uniform(generator, b, *(settings.scale or (1.0, 1.0)))
        rows, columns = _crops(factor, (h, w), size, settings, label, generator)
        out |= _resample(spatial, rows, columns)
        spatial = {k: out[k] for k in spatial}
    moves = _moves(b, settings, generator)
    out |= _turn(spatial | series, *moves)
    if "series_grid" in batch:
        out["series_grid"] = _turn_grid(batch["series_grid"].expand(b, 6), (h, w), series["series"].shape[-2:], *moves)
    if settings.brightness or settings.contrast:
        out["image"] = _radiometry(out["image"], out["valid"], settings, generator)
    return out


def _spatial(batch: dict[str, Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
    found = {k: v for k, v in batch.items() if isinstance(v, Tensor) and v.dim() >= 3}
    for name, value in found.items():
        if value.shape[-2:] != size:
            raise ValueError(
                f"'{name}' has shape {tuple(value.shape)} and the image {size[0]}×{size[1]} pixels: only what shares "
                "the image's grid can be augmented with it. Resample it to that grid, or augment without it"
            )
    return found


def _series(batch: dict[str, Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
    """The tensors of a series that has a grid of its own."""
    found = {k: v for k, v in batch.items() if k.startswith("series") and isinstance(v, Tensor) and v.dim() >= 3}
    own = "series_grid" in batch or any(v.shape[-2:] != size for v in found.values())
    return found if own else {}


def _check_series(series: dict[str, Tensor], size: tuple[int, int], settings: Augment) -> None:
    if not series:
        return
    if settings.scale is not None or settings.crop not in (None, size[0]):
        raise ValueError(
            f"scale={settings.scale} and crop={settings.crop} would resize and crop an image away from its time series "
            "('series'), which has a grid of its own: set scale=None and crop=None"
        )
    for name, value in series.items():
        h, w = value.shape[-2:]
        if settings.quarter_turns and h != w:
            raise ValueError(f"'{name}' has {h}×{w} pixels: quarter turns need squares. Set quarter_turns=False")


def _uniform(generator: torch.Generator, n: int | tuple[int, ...], low: float, high: float) -> Tensor:
    shape = n if isinstance(n, tuple) else (n,)
    return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)


# -- resizing and cropping ----------------------------------------------------------------------------


def _crops(
    factor: Tensor,
    source: tuple[int, int],
    size: tuple[int, int],
    settings: Augment,
    label: Tensor,
    generator,
) -> tuple[Tensor, Tensor]:
    """Positions, in pixels of the sample, of the rows (B, h) and columns (B, w) of the crops; float64, CPU.

    A crop of an enlarged sample is a smaller square of it; one of a reduced sample hangs over its edges.
    """
    tries = settings.tries if settings.max_share is not None else 1
    where = torch.rand((tries, 2, len(factor)), generator=generator, dtype=torch.float64)
    positions = []
    for axis in (0, 1):
        room = source[axis] - size[axis] / factor  # negative where the sample is smaller than the crop
        first = where[:, axis] * room
        step = (torch.arange(size[axis], dtype=torch.float64) + 0.5) / factor[:, None]
        positions.append(first[:, :, None] + step - 0.5)  # (tries, B, size)
    chosen = torch.full((len(factor),), tries - 1)
    undecided = torch.arange(len(factor))
    for attempt in range(tries - 1):
        there = [_nearest(p[attempt, undecided], n) for p, n in zip(positions, source, strict=True)]
        picked = _take(label[undecided.to(label.device)], *there, fill=IGNORE)
        fine = _largest_share(picked).cpu() <= (settings.max_share or 1)
        chosen[undecided[fine]] = attempt
        undecided = undecided[~fine]
        if not len(undecided):
            break
    every = torch.arange(len(factor))
    return positions[0][chosen, every], positions[1][chosen, every]


def _largest_share(label: Tensor) -> Tensor:
    """Share (B,) of the most frequent class among the labelled pixels of (B, h, w); 2 where none is labelled."""
    flat = label.flatten(1).long().clamp(0, IGNORE)
    counts = torch.zeros((len(flat), IGNORE + 1), dtype=torch.int64, device=flat.device)
    counts.scatter_add_(1, flat, torch.ones_like(flat))
    counts = counts[:, :IGNORE]
    total = counts.sum(dim=1)
    return torch.where(total > 0, counts.amax(dim=1).double() / total.clamp(min=1), 2.0)


def _nearest(position: Tensor, length: int) -> Tensor:
    """Pixel that holds each position (pixel centres lie at whole numbers); -1 outside."""
    index = torch.floor(position + 0.5).long()
    return torch.where((index < 0) | (index >= length), -1, index)


def _take(x: Tensor, rows: Tensor, columns: Tensor, fill: float) -> Tensor:
    """x (B, ..., H, W) at rows (B, h) and columns (B, w); ``fill`` where either is -1."""
    b, h, w = len(x), rows.shape[1], columns.shape[1]
    rows, columns = rows.to(x.device), columns.to(x.device)
    flat = x.reshape(b, -1, *x.shape[-2:])
    n = flat.shape[1]
    flat = flat.gather(2, rows.clamp(min=0)[:, None, :, None].expand(b, n, h, flat.shape[3]))
    flat = flat.gather(3, columns.clamp(min=0)[:, None, None, :].expand(b, n, h, w))
    outside = (rows < 0)[:, None, :, None] | (columns < 0)[:, None, None, :]
    return flat.masked_fill(outside, fill).reshape(*x.shape[:-2], h, w)


def _bilinear(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """x (B, n, H, W) at positions rows (B, h) and columns (B, w); the edge pixel is continued outward."""
    for dim, position in ((2, rows), (3, columns)):
        length = x.shape[dim]
        position = position.clamp(0, length - 1)
        low = position.floor()
        weight = (position - low).to(x.dtype).to(x.device)
        low = low.long().to(x.device)
        high = (low + 1).clamp(max=length - 1)
        shape = list(x.shape)
        shape[dim] = low.shape[1]
        view = (len(x), 1, -1, 1) if dim == 2 else (len(x), 1, 1, -1)
        a, b = (x.gather(dim, i.view(view).expand(shape)) for i in (low, high))
        x = torch.lerp(a, b, weight.view(view))
    return x


def _resample(spatial: dict[str, Tensor], rows: Tensor, columns: Tensor) -> dict[str, Tensor]:
    h, w = spatial["valid"].shape[-2:]
    nearest = (_nearest(rows, h), _nearest(columns, w))
    outside = ((nearest[0] < 0)[:, :, None] | (nearest[1] < 0)[:, None, :]).to(spatial["valid"].device)
    out = {}
    for name, x in spatial.items():
        if not x.is_floating_point():
            out[name] = _take(x, *nearest, fill=IGNORE if name.startswith("label") else 0)
        elif name != "image":
            flat = _bilinear(x.reshape(len(x), -1, h, w), rows, columns).masked_fill(outside[:, None], 0)
            out[name] = flat.reshape(*x.shape[:-2], *flat.shape[-2:])
    valid = spatial["valid"][:, None]
    image = spatial["image"].masked_fill(~valid, 0)
    weighted = _bilinear(torch.cat([image, valid.to(image.dtype)], dim=1), rows, columns)
    image = weighted[:, :-1] / weighted[:, -1:].clamp(min=torch.finfo(weighted.dtype).eps)
    out["image"] = image.masked_fill(~out["valid"][:, None], 0)
    return out


# -- flips and turns, radiometry ----------------------------------------------------------------------


def _moves(b: int, settings: Augment, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Which samples (B,) are transposed, then flipped across, then flipped down."""
    draws = torch.rand((3, b), generator=generator, dtype=torch.float64)
    across, down = draws[0] < settings.horizontal, draws[1] < settings.vertical
    transpose = torch.zeros(b, dtype=torch.bool)
    if settings.quarter_turns:  # k quarter turns are a transposition, if k is odd, between flips
        k = (draws[2] * 4).long()
        transpose = k % 2 == 1
        across, down = across ^ ((k == 2) | (k == 3)), down ^ ((k == 1) | (k == 2))
    return transpose, across, down


def _turn(spatial: dict[str, Tensor], transpose: Tensor, across: Tensor, down: Tensor) -> dict[str, Tensor]:
    out = {}
    for name, x in spatial.items():
        for which, change in (
            (transpose, lambda t: t.transpose(-1, -2)),
            (across, lambda t: t.flip(-1)),
            (down, lambda t: t.flip(-2)),
        ):
            if which.any():
                x = torch.where(which.to(x.device).view(-1, *[1] * (x.dim() - 1)), change(x), x)
        out[name] = x
    return out


def _turn_grid(
    grid: Tensor, size: tuple[int, int], series: tuple[int, int], transpose: Tensor, across: Tensor, down: Tensor
) -> Tensor:
    """``series_grid`` (B, 6) of samples whose image and series have been moved: S · G · M⁻¹.

    M and S take (column, row) where the moves take them in the image and in the series.
    """
    image, there = (_moved(*length, transpose, across, down) for length in (size, series))
    full = torch.eye(3, dtype=torch.float64).repeat(len(grid), 1, 1)
    full[:, :2] = grid.detach().cpu().double().reshape(-1, 2, 3)
    full = there @ full @ torch.linalg.inv(image)
    return full[:, :2].flatten(1).to(grid.dtype).to(grid.device)


def _moved(height: int, width: int, transpose: Tensor, across: Tensor, down: Tensor) -> Tensor:
    """(B, 3, 3) float64: where the moves take the point (column, row, 1) of a grid of this size."""
    swap = torch.tensor([[0, 1, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.float64)
    mirror = torch.tensor([[-1, 0, width], [0, 1, 0], [0, 0, 1]], dtype=torch.float64)
    topple = torch.tensor([[1, 0, 0], [0, -1, height], [0, 0, 1]], dtype=torch.float64)
    matrix = torch.eye(3, dtype=torch.float64).repeat(len(transpose), 1, 1)
    for which, step in ((transpose, swap), (across, mirror), (down, topple)):
        matrix[which] = step @ matrix[which]
    return matrix


def _radiometry(image: Tensor, valid: Tensor, settings: Augment, generator: torch.Generator) -> Tensor:
    b, c = image.shape[:2]
    stretch = _uniform(generator, (b, c), 1 - settings.contrast, 1 + settings.contrast)
    shift = _uniform(generator, (b, c), -settings.brightness, settings.brightness)
    stretch, shift = (v.to(image.dtype).to(image.device)[:, :, None, None] for v in (stretch, shift))
    seen = valid[:, None].to(image.dtype)
    n = seen.sum(dim=(2, 3), keepdim=True).clamp(min=1)
    mean = (image * seen).sum(dim=(2, 3), keepdim=True) / n
    std = (((image - mean) * seen).square().sum(dim=(2, 3), keepdim=True) / n).sqrt()
    return (mean + (image - mean) * stretch + shift * std) * seen

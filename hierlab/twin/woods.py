"""Trees: crowns one by one where they can be told apart, and woods as a whole where they cannot."""

from typing import TYPE_CHECKING

import numpy as np

from hierlab.twin.fields import Grid
from hierlab.twin.ground import Ground
from hierlab.twin.hashing import derive, key, mix, unit
from hierlab.twin.spectra import KIND

if TYPE_CHECKING:
    from hierlab.twin.rural import Land

CROWNS = 2.5  # metres between samples up to which crowns are drawn one by one
_JITTER = 0.3  # a crown stands at most this part of a cell from the cell's middle
_THIN = 0.22  # share of the crowns that are thin: much of the floor shows through them
_WIDEST = 0.7  # and is at most this part of a cell wide: a sample then sees no crowns but those of four cells


def crowns(
    grid: Grid, name: str, cell: int, index: np.ndarray, radius: tuple[float, float] = (0.5, 0.7), present: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Crowns on a jittered lattice of ``cell`` metres at the samples with the flat ``index`` (N,).

    ``radius``: smallest and largest, in cells, at most 0.7; ``present``: share of the cells that have one.
    Returns, for the crown that rises highest at each sample, 1 − (distance / radius)², which is 1 at its middle and
    not above 0 outside every crown, and the crown's hash.
    """
    (i, fx, columns), (j, fy, rows) = (_cells(a, o, cell) for a, o in ((grid.ax, grid.x), (grid.ay, grid.y)))
    h = mix(key(grid.seed, grid.region, "crowns", name), columns[None], rows[:, None])
    jx, jy = (np.float32(0.5 - _JITTER) + np.float32(2 * _JITTER) * unit(h, n).ravel() for n in (1, 2))
    low, high = radius
    size = np.float32(low) + np.float32(min(high, _WIDEST) - low) * unit(h, 3).ravel()
    steep = np.where(unit(h, 4).ravel() < present, 1 / size**2, np.float32(1e6)).astype(np.float32)
    row, column = np.divmod(index, grid.shape[1])
    base = j.take(row) * len(columns) + i.take(column)
    px, py = fx.take(column), fy.take(row)
    best, own = np.full(len(index), np.float32(-1e6)), base.copy()
    for a, b in ((0, 0), (1, 0), (0, 1), (1, 1)):
        k = base + (b * len(columns) + a)
        dx, dy = px - jx.take(k), py - jy.take(k)
        if a:
            dx -= 1
        if b:
            dy -= 1
        dx *= dx
        dy *= dy
        dx += dy
        dx *= steep.take(k)
        rise = np.subtract(np.float32(1), dx, out=dx)
        higher = rise > best
        np.copyto(own, k, where=higher)
        np.copyto(best, rise, where=higher)
    return best, h.ravel().take(own)


def _cells(anchor: int, offsets: np.ndarray, cell: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First of the two cells next to each offset, the place in it (0.5 to 1.5), and the cells' numbers."""
    first, rest = divmod(anchor, cell)
    p = (rest + offsets.astype(np.float64)) / cell
    i = np.floor(p - 0.5).astype(np.int64)
    return i - i[0], (p - i).astype(np.float32), first + np.arange(i[0], i[-1] + 2)


def byte(h: np.ndarray, salt: int) -> np.ndarray:
    """A hash as a phase (uint8)."""
    return (derive(h, salt) & np.uint32(255)).astype(np.uint8)


def canopy(grid: Grid, ground: Ground, s: "Land", q: np.ndarray, conifer: np.ndarray, tall: np.ndarray) -> None:
    """Closed woods at the samples with the flat index ``q`` (N,); ``s`` is the ``rural.Land`` there.

    ``conifer`` (N,) says which stands are of conifers and ``tall`` (N,) how high they are, metres. Where crowns
    cannot be told apart the canopy has their mean cover, brightness and height, and varies with the grain.
    """
    for stand, name, cell, share in ((~conifer, "broadleaf", 7, 0.07), (conifer, "conifer", 4, 0.94)):
        k = q[stand]
        if not len(k):
            continue
        rise, h = crowns(grid, name, cell, k)
        needles = unit(h, 6) < np.float32(share)
        draw = _each if grid.step <= CROWNS else _together
        kind = np.where(needles, KIND["conifer forest"], KIND["broadleaf forest"])
        ground.at(k, kind=kind, phase=byte(h, 7), **draw(grid, s, k, tall[stand], needles, rise, h))


def _together(grid: Grid, s: "Land", k: np.ndarray, tall, needles, rise, h) -> dict[str, np.ndarray | np.float32]:
    """The canopy at the samples ``k`` where a sample sees several crowns: their means, as measured on ``_each``."""
    lump = np.clip(np.float32(0.5 * min(1.0, 4 / grid.step)) * s.take("grain", k), -1, 1)
    return {
        "cover": np.clip(np.float32(0.864) + np.float32(0.1) * lump, 0, 1),
        "dirt": np.float32(0.147),
        "bright": np.float32(0.923) + np.float32(0.11) * lump,
        "height": tall * (np.where(needles, np.float32(0.515), np.float32(0.69)) + np.float32(0.16) * lump),
    }


def _each(grid: Grid, s: "Land", k: np.ndarray, tall, needles, rise, h) -> dict[str, np.ndarray]:
    """Crowns one by one at the samples ``k``, given what ``crowns`` says of them, and the dark between them."""
    speck = s.take("speck", k)
    inside = rise + np.float32(0.2) * speck > 0  # leaves, not circles
    dome, u = np.sqrt(np.maximum(rise, 0)), unit(h, 5)
    thin = unit(h, 8) < _THIN
    shape = np.where(needles, 1 - np.sqrt(np.maximum(1 - rise, 0)), dome)
    bright = np.where(inside, (np.float32(0.864) + np.float32(0.2) * u) * (0.86 + 0.16 * dome), 0.8)
    return {
        "cover": np.where(inside, np.where(thin, np.float32(0.49), np.float32(0.93)) + np.float32(0.07) * dome, 0.67),
        "dirt": np.where(inside & ~thin, np.float32(0.05), np.float32(0.362)),
        "bright": bright * (1 + np.float32(0.07) * speck),
        "height": tall * np.where(inside, (0.75 + 0.4 * u) * (0.35 + 0.65 * shape), 0.1),
    }


def scatter(
    grid: Grid,
    ground: Ground,
    s: "Land",
    where: np.ndarray,
    name: str,
    cell: int,
    kinds: tuple[str, str],
    tall: float,
    present: float,
    radius: tuple[float, float],
) -> None:
    """Single trees ``where`` (H, W bool) allows their middles; drawn only where crowns can be told apart.

    ``kinds`` are the usual kind and a rarer one (every fifth), ``tall`` metres the mean height. The leaf class stays.
    """
    if grid.step > CROWNS:
        return
    q = np.flatnonzero(where)
    if not len(q):
        return
    rise, h = crowns(grid, name, cell, q, radius, present)
    k = rise + np.float32(0.2) * s.take("speck", q) > 0
    rise, h, u = np.sqrt(np.maximum(rise[k], 0)), h[k], unit(h[k], 5)
    ground.at(
        q[k],
        kind=np.where(unit(h, 6) < 0.2, KIND[kinds[1]], KIND[kinds[0]]),
        cover=np.float32(0.75) + np.float32(0.2) * rise,
        dirt=np.float32(0.1),
        bright=(np.float32(0.8) + np.float32(0.35) * u) * (np.float32(0.82) + np.float32(0.2) * rise),
        height=np.float32(tall) * (np.float32(0.6) + np.float32(0.8) * u) * (np.float32(0.4) + np.float32(0.6) * rise),
        phase=byte(h, 7),
    )

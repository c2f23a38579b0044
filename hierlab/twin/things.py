"""Things: houses, trees, cars, marks on the road, each a small shape with a place and a direction, and their drawing.

Whatever has an outline of its own is a row of a table (``Things``) in metres from an integer anchor. ``draw`` lays
all rows on a tile at once, later rows over earlier ones; a row that is too small for the tile's step is left out.
"""

from typing import NamedTuple

import numpy as np

from hierlab.twin.fields import Grid
from hierlab.twin.ground import Ground
from hierlab.twin.hashing import key, mix, unit
from hierlab.twin.spectra import KIND

FLAT, GABLE, HIP, DOME, DISC, PARAPET, VAULT, SAW, CAR, RING = range(10)
_SUN = np.float32(0.5), np.float32(0.87)  # where the light mostly comes from: east and south of a sample
_ROUND = (DOME, DISC, RING)
STEP = 8.0  # metres: the largest step at which a thing is drawn, unless it says another
_CHUNK = 1_500_000  # candidate samples looked at together


class Things(NamedTuple):
    """A table (N,) of things.

    ``x``, ``y`` centres (float64 metres), ``cos``, ``sin`` the direction of the long axis, ``a``, ``b`` half length
    and half width, ``shape``, ``kind``; ``cover``, ``dirt``, ``bright`` as in ``Ground``; ``base`` height of the
    eaves or of a flat top and ``rise`` what the middle (or the rim) adds to it, metres; ``rib`` metres between the
    ribs of a roof, 0 for none; ``step`` the largest grid step, metres, at which the thing is drawn;
    ``phase`` a byte by which it differs from others.
    """

    x: np.ndarray
    y: np.ndarray
    cos: np.ndarray
    sin: np.ndarray
    a: np.ndarray
    b: np.ndarray
    shape: np.ndarray
    kind: np.ndarray
    cover: np.ndarray
    dirt: np.ndarray
    bright: np.ndarray
    base: np.ndarray
    rise: np.ndarray
    rib: np.ndarray
    step: np.ndarray
    phase: np.ndarray

    def moved(self, dx: float, dy: float) -> "Things":
        """The same things, seen from another anchor."""
        return self._replace(x=self.x + dx, y=self.y + dy)

    def where(self, chosen: np.ndarray) -> "Things":
        """Some of them: a boolean or an index array."""
        return Things(*(column[chosen] for column in self))


_TYPES = Things(
    *(np.float64, np.float64, np.float32, np.float32, np.float32, np.float32, np.uint8, np.uint8),
    *(np.float32, np.float32, np.float32, np.float32, np.float32, np.float32, np.float32, np.uint8),
)


def things(x, y, direction, a, b, shape, kind, **values) -> Things:
    """A table from columns or single values, which broadcast; ``direction`` in radians, ``kind`` a name or numbers."""
    columns = {"cover": 0.9, "dirt": 0.08, "bright": 1.0, "base": 0.0, "rise": 0.0, "rib": 0.0}
    columns |= {"step": STEP, "phase": 0} | values
    kind = KIND[kind] if isinstance(kind, str) else kind
    columns |= {"x": x, "y": y, "cos": np.cos(direction), "sin": np.sin(direction), "a": a, "b": b}
    columns |= {"shape": shape, "kind": kind}
    ordered = [columns[name] for name in Things._fields]
    shape = np.broadcast_shapes((1,), *(np.shape(c) for c in ordered))
    table = Things(*(np.empty(shape, t) for t in _TYPES))
    for column, values in zip(table, ordered, strict=True):
        column[...] = values
    return table


def joined(tables: list[Things]) -> Things:
    """One table of several, in their order; an empty one of none."""
    if not tables:
        return Things(*(np.zeros(0, t) for t in _TYPES))
    return Things(*(np.concatenate(columns) for columns in zip(*tables, strict=True)))


def ragged(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For counts (N,): the owner and the number within it of each of their sum of places."""
    owner = np.repeat(np.arange(len(counts)), counts)
    return owner, np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)


def draw(grid: Grid, ground: Ground, table: Things, allowed: np.ndarray | None = None, lift: bool = False) -> None:
    """Lay things on a tile.

    ``table`` in metres from the grid's anchor, ``allowed`` (H, W bool) where they may be, ``lift`` whether their
    height is counted from what they lie on.
    """
    if not len(table.x):
        return
    gx, gy, step = grid.x, grid.y, grid.step
    ex = np.abs(table.a * table.cos) + np.abs(table.b * table.sin)
    ey = np.abs(table.a * table.sin) + np.abs(table.b * table.cos)
    keep = table.step >= step
    keep &= (table.x + ex > gx[0]) & (table.x - ex < gx[-1]) & (table.y + ey > gy[0]) & (table.y - ey < gy[-1])
    n = np.flatnonzero(keep)
    if not len(n):
        return
    t, ex, ey = table.where(n), ex[n], ey[n]
    rows, columns = grid.shape
    c0 = np.clip(np.ceil((t.x - ex - gx[0]) / step), 0, columns).astype(np.int32)
    c1 = np.clip(np.floor((t.x + ex - gx[0]) / step) + 1, 0, columns).astype(np.int32)
    r0 = np.clip(np.ceil((t.y - ey - gy[0]) / step), 0, rows).astype(np.int32)
    r1 = np.clip(np.floor((t.y + ey - gy[0]) / step) + 1, 0, rows).astype(np.int32)
    wide, total = np.maximum(c1 - c0, 0), np.maximum(c1 - c0, 0).astype(np.int64) * np.maximum(r1 - r0, 0)
    ends = np.cumsum(total)
    leafy = None
    if step <= 0.6 and (t.shape == DOME).any():
        leafy = grit(grid, "boughs", 900).ravel(), grit(grid, "leaves", 330).ravel()
    start = 0
    while start < len(n):
        stop = int(np.searchsorted(ends, (ends[start - 1] if start else 0) + _CHUNK, "right"))
        part = slice(start, max(stop, start + 1))
        _lay(grid, ground, t.where(part), c0[part], r0[part], wide[part], total[part], allowed, lift, leafy)
        start = part.stop


def _lay(
    grid: Grid, ground: Ground, t: Things, c0, r0, wide, total, allowed: np.ndarray | None, lift: bool, leafy
) -> None:
    owner, k = ragged(total)
    if not len(owner):
        return
    k = k.astype(np.int32)
    row = k // wide[owner]
    column = k - row * wide[owner]
    row += r0[owner]
    column += c0[owner]
    flat = row * np.int32(grid.shape[1]) + column
    if allowed is not None:
        free = allowed.ravel()[flat]
        owner, row, column, flat = owner[free], row[free], column[free], flat[free]
    px, py = grid.x[column] - t.x.astype(np.float32)[owner], grid.y[row] - t.y.astype(np.float32)[owner]
    cos, sin = t.cos[owner], t.sin[owner]
    p, q = px * cos + py * sin, py * cos - px * sin
    p /= t.a[owner]
    q /= t.b[owner]
    shape = t.shape[owner]
    far = p * p + q * q
    crown = np.flatnonzero(shape == DOME) if leafy else ()
    if len(crown):  # crowns are lumpy
        far[crown] *= 1.15 + np.float32(0.22) * leafy[0][flat[crown]] + np.float32(0.10) * leafy[1][flat[crown]]
    inside = np.where(np.isin(shape, _ROUND), far < 1, (np.abs(p) < 1) & (np.abs(q) < 1))
    inside &= (shape != RING) | (far > 0.6)
    owner, flat, p, q, shape, far = (v[inside] for v in (owner, flat, p, q, shape, far))
    # Where the step shows slopes, they are lit by the sun of the day; elsewhere the sides differ by a usual sun.
    strength = np.float32(0.25 if grid.step <= 1.25 else 1)
    rise, tone = _form(shape, p, q, far, t.a[owner], t.b[owner], t.cos[owner] * strength, t.sin[owner] * strength)
    bright = t.bright[owner] * (1 + tone)
    crown = np.flatnonzero(shape == DOME) if leafy else ()
    if len(crown):
        clump = np.float32(0.10) * leafy[0][flat[crown]] + np.float32(0.11) * leafy[1][flat[crown]]
        bright[crown] *= 1 + clump
        rise[crown] *= 1 + np.float32(0.7) * clump
    rib = t.rib[owner]
    ribbed = (rib > 0) & (rib > 2.5 * grid.step)
    if ribbed.any():
        across = np.where(shape == GABLE, q * t.b[owner], p * t.a[owner])[ribbed]
        bright[ribbed] *= 1 + np.float32(0.07) * np.sin(across * (np.float32(2 * np.pi) / rib[ribbed]))
    ground.kind.ravel()[flat] = t.kind[owner]
    ground.cover.ravel()[flat] = t.cover[owner]
    ground.dirt.ravel()[flat] = t.dirt[owner]
    ground.bright.ravel()[flat] = bright
    top = t.base[owner] + t.rise[owner] * rise
    ground.height.ravel()[flat] = top + ground.height.ravel()[flat] if lift else top
    ground.phase.ravel()[flat] = t.phase[owner]


def _form(shape, p, q, far, a, b, cos, sin) -> tuple[np.ndarray, np.ndarray]:
    """Share of the rise (N,) and tone (N,) of samples at (p, q), −1 to 1 along the two axes."""
    rise, tone = np.zeros_like(p), np.zeros_like(p)
    east, south = _SUN
    along, across = cos * east + sin * south, cos * south - sin * east  # light from the ends, from the sides
    for kind in np.flatnonzero(np.bincount(shape, minlength=10)):
        n = np.flatnonzero(shape == kind)
        pn, qn, fn = p[n], q[n], far[n]
        if kind == GABLE:
            rise[n], tone[n] = 1 - np.abs(qn), np.float32(0.17) * np.sign(qn) * across[n]
        elif kind == HIP:
            side, end = 1 - np.abs(qn), (1 - np.abs(pn)) * a[n] / b[n]
            rise[n] = np.minimum(side, end)
            tone[n] = np.float32(0.17) * np.where(side < end, np.sign(qn) * across[n], np.sign(pn) * along[n])
        elif kind == DOME:
            rise[n] = np.sqrt(1 - fn)
            tone[n] = np.float32(0.30) * (pn * along[n] + qn * across[n]) + np.float32(0.10) - np.float32(0.22) * fn
        elif kind == PARAPET:
            rim = np.minimum((1 - np.abs(pn)) * a[n], (1 - np.abs(qn)) * b[n]) < np.float32(0.4)
            rise[n], tone[n] = rim, np.float32(0.14) * rim
        elif kind == VAULT:
            rise[n], tone[n] = np.sqrt(1 - qn * qn), np.float32(0.2) * qn * across[n]
        elif kind == SAW:
            tooth = np.mod(pn * a[n], np.float32(8)) / np.float32(8)
            rise[n], tone[n] = tooth, np.where(tooth > 0.8, np.float32(-0.35), np.float32(0.05) * across[n])
        elif kind == CAR:
            cabin = (np.abs(pn + np.float32(0.1)) < 0.52) & (np.abs(qn) < 0.86)
            glass = cabin & (np.abs(pn + np.float32(0.1)) > 0.33)
            rise[n] = cabin
            tone[n] = np.where(glass, np.float32(-0.6), np.float32(0.05) * cabin)
    return rise, tone


def grit(grid: Grid, name: str, millimetres: int) -> np.ndarray:
    """A texture (H, W) of mean 0 and variance about 1, with features of some hundred millimetres."""
    k = key(grid.seed, grid.region, name)
    axes = []
    for anchor, offsets in ((grid.ax, grid.x), (grid.ay, grid.y)):
        first, rest = divmod(anchor * 1000, millimetres)
        p = (offsets.astype(np.float64) * 1000 + rest) / millimetres
        i = np.floor(p).astype(np.int64)
        axes.append((i - i[0], (p - i).astype(np.float32), (first + int(i[0])) % 2**62 + np.arange(i[-1] - i[0] + 2)))
    (i, s, columns), (j, t, rows) = axes
    lattice = (unit(mix(k, columns[None], rows[:, None])) - np.float32(0.5)) * np.float32(5.2)
    across = lattice.take(i, 1) * (1 - s) + lattice.take(i + 1, 1) * s
    return across.take(j, 0) * (1 - t)[:, None] + across.take(j + 1, 0) * t[:, None]

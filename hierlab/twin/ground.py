"""What lies on the ground, sample by sample, and the shapes that several parts of the world are drawn with."""

from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np

from hierlab.twin.fields import Grid
from hierlab.twin.hashing import derive, pick, unit
from hierlab.twin.spectra import KIND, MATERIAL, PHASES, SOILS, mixtures, season

LEAVES = (
    *("paddy field", "dry cropland", "forest", "natural meadow", "artificial meadow", "river", "lake", "pond"),
    *("industrial area", "urban residential", "rural residential", "stadium", "park & square", "road", "overpass"),
    *("railway station", "airport", "bare land"),
)
LEAF = {name: n for n, name in enumerate(LEAVES)}


@dataclass
class Ground:
    """One value a sample, all of one shape: (H, W), or (N,) for a part of it.

    ``leaf`` is the class 0–17 and ``kind`` the finer one (``spectra.KINDS``); ``cover`` the share of the kind's top
    material at full growth, ``dirt`` the share of its third one, ``bright`` a factor on reflectance, ``height`` in
    metres, ``soil`` one of three soil types and ``phase`` how late the field's calendar is.
    """

    leaf: np.ndarray
    kind: np.ndarray
    cover: np.ndarray
    dirt: np.ndarray
    bright: np.ndarray
    height: np.ndarray
    soil: np.ndarray
    phase: np.ndarray

    @classmethod
    def blank(cls, shape: tuple[int, ...]) -> "Ground":
        integer, real = (np.zeros(shape, np.uint8) for _ in range(4)), (np.zeros(shape, np.float32) for _ in range(4))
        leaf, kind, soil, phase = integer
        return cls(leaf, kind, *real, soil, phase)

    def paint(self, where: np.ndarray, leaf: str | None = None, kind: str | np.ndarray | None = None, **values) -> None:
        """Overwrite what is ``where``: a leaf and kind by name (or an array of kind numbers), other fields by value."""
        if leaf is not None:
            self.leaf[where] = LEAF[leaf]
        if kind is not None:
            values["kind"] = KIND[kind] if isinstance(kind, str) else kind
        for name, value in values.items():
            np.copyto(getattr(self, name), value, where=where, casting="unsafe")

    def at(self, index: np.ndarray, leaf: str | None = None, kind: str | np.ndarray | None = None, **values) -> None:
        """``paint`` for few samples: those with the flat ``index`` (N,); values are scalars or (N,)."""
        if leaf is not None:
            values["leaf"] = LEAF[leaf]
        if kind is not None:
            values["kind"] = KIND[kind] if isinstance(kind, str) else kind
        for name, value in values.items():
            getattr(self, name).ravel()[index] = value

    def take(self, index: np.ndarray) -> "Ground":
        """The samples at a flat ``index``, as a copy."""
        return Ground(*(getattr(self, f.name).ravel()[index] for f in fields(self)))

    def put(self, index: np.ndarray, part: "Ground", keep: np.ndarray) -> None:
        """Write back those samples of ``part`` = ``take(index)`` that ``keep`` marks."""
        for f in fields(self):
            getattr(self, f.name).ravel()[index[keep]] = getattr(part, f.name)[keep]

    def materials(self, day: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Material numbers and their fractions (they sum to 1) on a day of the year: two lists of three arrays."""
        green, straw = season(day)
        when = self.kind.astype(np.int64) * PHASES + self.phase
        top, under, third = (m[self.kind] for m in mixtures())
        under = np.where(under == _DARK_SOIL, under + self.soil % SOILS, under)
        first = np.clip(self.cover * green[when], 0, 1)
        last = (1 - first) * np.clip(self.dirt + straw[when], 0, 1)
        return [top, under, third], [first, 1 - first - last, last]


_DARK_SOIL = MATERIAL["dark soil"]


class Boxes(NamedTuple):
    """The rectangle that each sample falls in: its hash and its sides."""

    h: np.ndarray
    u0: np.ndarray
    u1: np.ndarray
    v0: np.ndarray
    v1: np.ndarray

    def edge(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Distance to the nearest side."""
        return np.minimum(np.minimum(u - self.u0, self.u1 - u), np.minimum(v - self.v0, self.v1 - v))

    @property
    def area(self) -> np.ndarray:
        return (self.u1 - self.u0) * (self.v1 - self.v0)

    @property
    def centre(self) -> tuple[np.ndarray, np.ndarray]:
        return (self.u0 + self.u1) * np.float32(0.5), (self.v0 + self.v1) * np.float32(0.5)


def squares(u: np.ndarray, v: np.ndarray, size: np.ndarray | float, h: np.ndarray) -> Boxes:
    """Squares of a regular grid in the frame (u, v); their hashes follow from ``h`` and their place."""
    iu, iv = np.floor(u / size), np.floor(v / size)
    number = (iu.astype(np.int64) * 0x8DA6B343 + iv.astype(np.int64) * 0xD8163841) & 0xFFFFFFFF
    u0, v0 = (iu * size).astype(np.float32), (iv * size).astype(np.float32)
    return Boxes(
        derive(h ^ number.astype(np.uint32), 3), u0, (u0 + size).astype(np.float32), v0, (v0 + size).astype(np.float32)
    )


def numbered(h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different values of hashes (N,): where one of each stands, and for each sample the number of its value."""
    low = (h ^ (h >> np.uint32(13))) & np.uint32(2**20 - 1)
    table = np.full(2**20, -1, np.int32)
    table[low] = np.arange(len(h), dtype=np.int32)
    if not (h[table[low]] == h).all():  # two values share a slot: seldom
        _, first, number = np.unique(h, return_index=True, return_inverse=True)
        return first, number
    slots = np.flatnonzero(table >= 0)
    first = table[slots]
    table[slots] = np.arange(len(slots), dtype=np.int32)
    return first, table[low].astype(np.intp)


class Tree(NamedTuple):
    """Rectangles cut again and again. ``leaves`` are the last ones; nodes (M,) say where each cut lies."""

    leaves: Boxes
    along: np.ndarray  # whether the cut compares v (else u)
    place: np.ndarray
    child: np.ndarray  # the lower part; the upper one follows it; of a leaf, itself
    leaf: np.ndarray  # number of the node among the leaves
    depth: int

    def find(self, root: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """The leaf (N,) that each sample (u, v) of the box number ``root`` falls in."""
        by_u, by_v = (side.astype(u.dtype) for side in (~self.along, self.along))
        place, node = self.place.astype(u.dtype), root
        for _ in range(self.depth):
            at = by_u.take(node)
            at *= u
            at += by_v.take(node) * v  # one of the two factors is 0, the other 1
            beyond = at > place.take(node)
            node = self.child.take(node)
            node += beyond
        return self.leaf.take(node)


def divide(boxes: Boxes, target: np.ndarray | float, depth: int, jitter: float = 0.22) -> Tree:
    """Cut rectangles (M,) across their longer side, again and again, until they are near ``target`` square metres.

    Positions keep the precision of the boxes: in float64 nothing depends on where the frame is anchored.
    """
    h, u0, u1, v0, v1 = boxes
    real = u0.dtype.type
    target = np.broadcast_to(np.asarray(target, real), h.shape)
    nodes, levels, start = [], 0, 0
    place_of = {name: [] for name in ("along", "place", "child")}
    while True:
        du, dv = u1 - u0, v1 - v0
        on = (du * dv > target * (np.float32(0.7) + unit(h))) & (levels < depth)
        share = np.float32(0.5 - jitter / 2) + np.float32(jitter) * unit(h, 1)
        tall = du <= dv * np.float32(1.1)
        place = np.where(tall, v0 + dv * share, u0 + du * share)
        child = start + np.arange(len(h))
        child[on] = start + len(h) + 2 * np.arange(on.sum())
        nodes.append(Boxes(h, u0, u1, v0, v1))
        for name, value in (("along", tall), ("place", np.where(on, place, np.inf)), ("child", child)):
            place_of[name].append(value)
        if not on.any():
            break
        start += len(h)
        k = np.repeat(np.flatnonzero(on), 2)
        beyond = np.tile([False, True], on.sum())
        h, u0, u1, v0, v1, place, tall, target = (x[k] for x in (h, u0, u1, v0, v1, place, tall, target))
        u0, u1 = np.where(~tall & beyond, place, u0), np.where(~tall & ~beyond, place, u1)
        v0, v1 = np.where(tall & beyond, place, v0), np.where(tall & ~beyond, place, v1)
        h = derive(h + beyond, 20 + levels)
        levels += 1
    along, place, child = (np.concatenate(place_of[name]) for name in ("along", "place", "child"))
    last = np.flatnonzero(child == np.arange(len(child)))
    leaf = np.zeros(len(child), np.int64)
    leaf[last] = np.arange(len(last))
    leaves = Boxes(*(np.concatenate(part)[last] for part in zip(*nodes, strict=True)))
    return Tree(leaves, along, place, child, leaf, levels)


def cut(
    boxes: Boxes, u: np.ndarray, v: np.ndarray, target: np.ndarray | float, depth: int, jitter: float = 0.22
) -> Boxes:
    """``divide`` sample by sample: the boxes (N,) or (H, W) that the samples stand in, to the pieces they stand in.

    ``target`` is one value a box: it must not differ between the samples of a box.
    """
    shape = u.shape
    first, root = numbered(boxes.h.ravel())
    target = np.broadcast_to(np.asarray(target, np.float32), shape).ravel()[first]
    tree = divide(Boxes(*(a.ravel()[first] for a in boxes)), target, depth, jitter)
    leaf = tree.find(root, u.ravel(), v.ravel())
    return Boxes(*(a.take(leaf).reshape(shape) for a in tree.leaves))


def modulo(t: np.ndarray, period: np.ndarray) -> np.ndarray:
    """``np.mod`` for float32 and a positive period, many times faster."""
    return t - np.floor(t / period) * period


def stripes(t: np.ndarray, period: np.ndarray | float, width: np.ndarray | float, step: float) -> np.ndarray:
    """Share of a sample ``step`` metres wide that stripes cover, at ``t`` metres across them, float32.

    Stripes are ``width`` wide, one a ``period``, the first one from 0 to ``width``. The mean is width / period at
    any step; where the stripes cannot be told apart there is nothing but the mean.
    """
    period, width, step = (np.asarray(a, np.float32) for a in (period, width, step))
    d = np.abs(modulo(t - np.float32(0.5) * width, period) - np.float32(0.5) * period)
    d = np.float32(0.5) * period - d  # distance to the middle of the nearest stripe
    share = np.clip(np.float32(0.5) * (width + step) - d, 0, np.minimum(width, step))
    share /= step
    told = width + step <= period
    if told.all():
        return share
    return np.where(told, share, width / period)


def choose(h: np.ndarray, salt: int, names: list[str]) -> np.ndarray:
    """One of several kinds, by hash: an array of kind numbers."""
    table = np.array([KIND[n] for n in names], np.uint8)
    return table[np.minimum(pick(h, salt, 0, len(names)).astype(np.int64), len(names) - 1)]


def distance(grid: Grid, lines: np.ndarray, reach: float, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance (H, W) in metres to the edge of the nearest line, clamped at ``reach``; negative inside.

    ``lines`` (N, 5 or 6): x0, y0, x1, y1 and the half width, at the start and, if given, at the end. ``x``, ``y``
    are the samples' coordinates, at most 40 m away from those of the grid.
    """
    out = np.full(grid.shape, np.float32(reach))
    rows, columns = grid.shape
    slack = reach + 40
    for line in lines:
        x0, y0, x1, y1, w0, w1 = (float(n) for n in (*line, line[-1])[:6])
        pad = slack + max(w0, w1)
        a = max(int((min(x0, x1) - pad - float(grid.x[0])) / grid.step), 0)
        b = min(int((max(x0, x1) + pad - float(grid.x[0])) / grid.step) + 2, columns)
        c = max(int((min(y0, y1) - pad - float(grid.y[0])) / grid.step), 0)
        d = min(int((max(y0, y1) + pad - float(grid.y[0])) / grid.step) + 2, rows)
        if a >= b or c >= d:
            continue
        window = np.s_[c:d, a:b]
        vx, vy = x1 - x0, y1 - y0
        square = max(vx * vx + vy * vy, 1e-6)
        px, py = x[window] - np.float32(x0), y[window] - np.float32(y0)
        t = px * np.float32(vx / square)
        t += py * np.float32(vy / square)
        np.clip(t, 0, 1, out=t)
        px -= t * np.float32(vx)
        py -= t * np.float32(vy)
        px *= px
        py *= py
        px += py
        np.sqrt(px, out=px)
        px -= np.float32(w0) if w0 == w1 else np.float32(w0) + t * np.float32(w1 - w0)
        np.minimum(out[window], px, out=out[window])
    return out

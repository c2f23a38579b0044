"""Water and its edges: rivers, lakes, ponds, and the reeds, trees, mud and sand along them."""

from dataclasses import dataclass

import numpy as np

from hierlab.twin import drainage, woods
from hierlab.twin.fields import Grid
from hierlab.twin.ground import Ground, distance
from hierlab.twin.hashing import pick, unit
from hierlab.twin.parcels import Parcels
from hierlab.twin.rural import Land
from hierlab.twin.spectra import KIND

_LAKE = 100  # metres of radius from which standing water is a lake and no pond
_BANKS = 90.0  # metres beyond which the distance to water is not needed


@dataclass(frozen=True)
class Shores:
    """Signed distances (H, W) in metres to the edge of the water, negative in it, clamped at 90 m."""

    river: np.ndarray
    lake: np.ndarray


def flood(grid: Grid, ground: Ground, s: Land, p: Parcels, lived: np.ndarray) -> Shores:
    """Rivers, lakes and ponds with their banks; ``lived`` (M, bool): parcels near houses, that are no fish ponds."""
    box = (float(grid.x[0]) - 150, float(grid.y[0]) - 150, float(grid.x[-1]) + 150, float(grid.y[-1]) + 150)
    water = [drainage.near(grid.seed, grid.region, k, grid.ax, grid.ay, box) for k in drainage.LEVELS]
    x, y = grid.mesh
    wander = np.clip(np.float32(7) * s.broad + np.float32(3) * s.middle + np.float32(0.5) * s.fine, -26, 26)
    x, y = x + wander, y - wander
    river = np.minimum(*(distance(grid, w.courses, _BANKS, x, y) for w in water))
    pools = np.concatenate([w.lakes for w in water])
    lake, small = (_lakes(grid, s, pools[chosen]) for chosen in (pools[:, 2] >= _LAKE, pools[:, 2] < _LAKE))
    still = np.minimum(lake, small)
    both = np.minimum(river, still)
    _ponds(grid, ground, s, p, both, lived)
    q = np.flatnonzero(both < 40)
    if len(q):
        _banks(grid, ground, s, q, river.ravel()[q], still.ravel()[q])
    q = np.flatnonzero(both < 0)
    if len(q):
        _open_water(ground, s, q, river.ravel()[q], lake.ravel()[q], both.ravel()[q])
        _reeds(grid, ground, s, np.flatnonzero((still < 6) & (river > 0)), still)
    return Shores(river, still)


def _ponds(grid: Grid, ground: Ground, s: Land, p: Parcels, water: np.ndarray, lived: np.ndarray) -> None:
    """Fish ponds: whole parcels, in clusters, away from running water, in dikes."""
    wish = grid.scattered("fish", 2300, p.x, p.y) + 0.5 * p.damp + unit(p.h, 60)
    pond = ((wish > 2.7) | (unit(p.h, 61) < 0.008)) & (p.length * p.width > 900)
    pond &= ~lived
    if not pond.any():
        return
    q = np.flatnonzero(p.spread(pond) & (ground.leaf < 2))
    n, edge, fine = p.number.ravel()[q], p.edge.ravel()[q], s.fine.ravel()[q]
    ring = pick(p.h, 62, 2.5, 4.5).take(n) + np.float32(0.4) * fine
    dike = q[edge <= ring + 4]
    ground.at(dike, "dry cropland", "dirt road", cover=np.float32(0.5), dirt=np.float32(0.3), height=0)
    ground.at(q[(edge > ring - 1.2) & (edge <= ring + 4)], kind="meadow", cover=np.float32(0.7))
    basin = (edge > ring) & (water.ravel()[q] > 14)
    green = np.clip(pick(p.h, 63, 0.15, 0.95).take(n) + np.float32(0.06) * s.middle.ravel()[q], 0, 1)[basin]
    ground.at(q[basin], "pond", "pond water", cover=green, dirt=np.float32(0.06), **_calm(s, q[basin]))
    _reeds(grid, ground, s, q[(edge < ring + 5) & (edge > ring)], -p.edge)


def _calm(s: Land, q: np.ndarray) -> dict[str, np.ndarray | int]:
    """What is the same for all open water."""
    return {"height": 0, "bright": 1 + np.float32(0.03) * s.fine.ravel()[q], "phase": 0}


def _banks(grid: Grid, ground: Ground, s: Land, q: np.ndarray, river: np.ndarray, still: np.ndarray) -> None:
    """Wet meadow, trees and sand at the samples ``q``, given their distances to the water."""
    broad, middle, fine = (a.ravel()[q] for a in (s.broad, s.middle, s.fine))
    bank = np.minimum(river, still) < np.float32(7) + np.float32(7) * middle
    cover = np.clip(np.float32(0.65) + np.float32(0.2) * fine[bank], 0, 1)
    ground.at(q[bank], "natural meadow", "wet meadow", cover=cover, dirt=np.float32(0.15), height=0, bright=1, phase=96)
    wooded = bank & (broad + np.float32(0.6) * fine > 0.5)
    ground.at(q[wooded], leaf="forest")
    tall = np.full(wooded.sum(), np.float32(10))
    woods.canopy(grid, ground, s, q[wooded], np.zeros(wooded.sum(), bool), tall)
    sand = (river < np.float32(9) * (middle - np.float32(0.5))) & (broad > -0.3)
    cover = np.clip(np.float32(0.7) + np.float32(0.2) * fine[sand], 0, 1)
    ground.at(q[sand], "bare land", "sand", cover=cover, dirt=np.float32(0.1), height=0, bright=1)
    if grid.step <= 1:  # boulders on the sand and along the banks
        near = q[(sand | bank) & (middle > 0.3) & (river < 12)]
        rise = woods.crowns(grid, "boulders", 5, near, (0.06, 0.24), 0.25)[0]
        ground.at(near[rise > 0], kind="rock", bright=np.float32(1.1), height=np.float32(0.8))


def _open_water(ground: Ground, s: Land, q: np.ndarray, river: np.ndarray, lake: np.ndarray, both: np.ndarray) -> None:
    depth = np.clip(both / np.float32(-25), 0, 1)
    mud = np.float32(0.35) * np.exp(np.float32(-8) * depth) + np.float32(0.05)
    murk = np.clip(np.float32(0.6) + np.float32(0.25) * np.tanh(s.broad.ravel()[q]), 0, 1)
    flows, stands = river < 0, lake < 0
    small = ~flows & ~stands
    for where, leaf, cover in (
        (flows & ~stands, "river", murk),
        (stands, "lake", np.clip(np.float32(0.35) + np.float32(0.6) * depth, 0, 1)),
        (small, "pond", np.full(len(q), np.float32(0.6))),
    ):
        k = q[where]
        ground.at(k, leaf, f"{leaf} water", cover=cover[where], dirt=mud[where], **_calm(s, k))


def _reeds(grid: Grid, ground: Ground, s: Land, q: np.ndarray, still: np.ndarray) -> None:
    """Belts of reeds in and beside standing water, at the samples ``q`` near its edge."""
    patch = np.float32(0.7) * s.broad.ravel()[q] + np.float32(0.5) * s.middle.ravel()[q]
    patch += np.float32(0.35) * s.fine.ravel()[q]
    d = still.ravel()[q]
    reeds = q[(patch > 0.35) & (d > -3 - 3 * patch) & (d < 4 * patch) & ~np.isin(ground.kind.ravel()[q], _KEPT)]
    fine = s.fine.ravel()[reeds]
    ground.at(
        reeds,
        "natural meadow",
        "reeds",
        cover=np.clip(np.float32(0.75) + np.float32(0.15) * fine, 0, 1),
        dirt=np.float32(0.25),
        bright=np.float32(0.95) + np.float32(0.06) * s.grain.ravel()[reeds],
        height=np.float32(1.8),
        phase=96,
    )


_KEPT = [KIND[name] for name in ("broadleaf forest", "conifer forest", "river water", "dirt road")]


def _lakes(grid: Grid, s: Land, lakes: np.ndarray) -> np.ndarray:
    """Signed distance, roughly, to lakes whose shores bend at several scales."""
    out = np.full(grid.shape, np.float32(_BANKS))
    x, y = grid.mesh
    if not len(lakes):
        return out
    bend = np.clip(np.float32(0.30) * grid.noise("shore", 620, 3, 0.65), -0.5, 0.7)
    cove = grid.noise("cove", 170, 4, 0.6) + np.float32(0.06) * s.middle
    for cx, cy, radius, angle, stretch in lakes:
        dx, dy, cos, sin = x - np.float32(cx), y - np.float32(cy), np.float32(np.cos(angle)), np.float32(np.sin(angle))
        r = np.hypot((dx * cos + dy * sin) / np.float32(stretch), (dy * cos - dx * sin) * np.float32(stretch))
        shore = r - np.float32(radius) * (1 + bend) + np.clip(np.float32(min(0.22 * radius, 32)) * cove, -45, 45)
        np.minimum(out, np.minimum(shore, r - np.float32(0.7 * radius)), out=out)
    return out

"""The open country: the fields of terrain and texture that all parts share, crops, and what grows by itself."""

from dataclasses import dataclass

import numpy as np

from hierlab.twin import woods
from hierlab.twin.fields import Grid
from hierlab.twin.ground import LEAF, Ground
from hierlab.twin.hashing import derive, key, mix, pick, unit
from hierlab.twin.parcels import Parcels, Use
from hierlab.twin.regions import style
from hierlab.twin.spectra import KIND, PHASES

_BEND = 62  # metres by which districts and fields are bent
_CLOSE = 0.6  # metres between samples up to which textures of less than a metre are drawn
_WOODS = [KIND[name] for name in ("broadleaf forest", "conifer forest")]


@dataclass(frozen=True)
class Land:
    """Fields (H, W) float32 that the parts of the world share: warped coordinates, hills, moisture, textures."""

    x: np.ndarray
    y: np.ndarray
    hill: np.ndarray
    moist: np.ndarray
    broad: np.ndarray  # features of hundreds of metres
    middle: np.ndarray  # of some fifty metres
    fine: np.ndarray  # of about ten metres
    grain: np.ndarray  # of the size of a tree
    speck: np.ndarray  # of decimetres; a single 0 where samples are too far apart for it
    relief: np.ndarray  # elevation, metres

    def take(self, name: str, q: np.ndarray) -> np.ndarray:
        """One of the fields at the samples with the flat index ``q``."""
        field = getattr(self, name)
        return field.ravel()[q] if field.size > 1 else field.ravel()


def land(grid: Grid) -> Land:
    """The shared fields of a tile."""
    region = style(grid.seed, grid.region)
    x, y = grid.mesh
    x = x + np.float32(_BEND) * grid.noise("bend x", 900, 3)
    y = y + np.float32(_BEND) * grid.noise("bend y", 900, 3)
    hill = grid.noise("hills", 6100, 3, 0.6) + np.float32(region.hilly)
    relief = grid.noise("relief", 1500, 5, 0.48) * np.float32(70) * np.clip(hill + np.float32(0.35), 0.06, 1.6)
    moist = np.float32(0.8) * grid.smooth("moist", 4300) + np.float32(0.55) * grid.smooth("damp", 1500)
    broad, middle, fine = (
        grid.noise(name, scale, n, 0.65) for name, scale, n in (("broad", 420, 3), ("middle", 48, 3), ("fine", 13, 2))
    )
    speck = grid.noise("speck", 0.8, 3, 0.8) if grid.step <= _CLOSE else np.zeros((1, 1), np.float32)
    return Land(x, y, hill, moist, broad, middle, fine, grid.noise("grain", 4), speck, relief)


def cultivate(grid: Grid, ground: Ground, s: Land, p: Parcels, plan: Use) -> None:
    """Give every sample what its parcel is used for; ``farmland.work`` draws the detail."""
    region, h = style(grid.seed, grid.region), p.h
    year = mix(key(grid.year, "state"), h.astype(np.int64), 0)
    ground.leaf[:], ground.kind[:] = p.spread(plan.leaf), p.spread(plan.kind)
    # A field is worked on one day, and some fields in two goes.
    late, later = ((derive(year, n) & np.uint32(PHASES - 1)).astype(np.uint8) for n in (40, 41))
    two = unit(year, 42) < 0.1
    ground.phase[:] = p.spread(late)
    if two.any():
        q = np.flatnonzero(p.spread(two))
        n = p.number.ravel()[q]
        far = p.u.ravel()[q] - (p.u0 + p.length * (0.3 + 0.4 * unit(year, 43))).astype(np.float32).take(n) > 0
        ground.phase.ravel()[q[far]] = later.take(n[far])
    soil = 1.2 + 0.7 * region.soil + 0.6 * grid.scattered("soil", 3400, p.x, p.y) + 0.9 * (unit(p.district, 41) - 0.5)
    ground.soil[:] = p.spread(np.clip(soil, 0, 2.99).astype(np.uint8))
    sown = plan.kind == KIND["sown grass"]
    level = np.where(sown, 0.78 + 0.2 * plan.vigour, 0.5 + 0.45 * plan.vigour).astype(np.float32)
    vine = plan.kind == KIND["vineyard"]
    level[vine] *= np.float32(0.6)
    patchy = np.where(sown, np.float32(0.5), pick(h, 44, 0.4, 1.4))
    wash = np.float32(0.11) * s.middle
    wash += np.float32(0.045) * s.fine
    wash += np.float32(0.06) * s.broad
    spread = p.spread(patchy)
    spread *= wash
    np.clip(p.spread(level) + spread, 0.1, 1, out=ground.cover)
    dirt = np.float32(0.08) + np.float32(0.25) * unit(year, 44)
    np.clip(p.spread(dirt) + np.float32(0.08) * s.middle, 0, 0.7, out=ground.dirt)
    tone = np.float32(0.88) + np.float32(0.24) * unit(year, 45)
    ground.bright[:] = p.spread(tone)
    ground.bright += np.float32(0.03) * s.fine
    ground.bright += np.float32(0.05) * s.speck
    meadow = p.spread((plan.kind == KIND["meadow"]) | (plan.kind == KIND["bare soil"]))
    if meadow.any():
        q = np.flatnonzero(meadow)
        fine, middle = s.fine.ravel()[q], s.middle.ravel()[q]
        ground.at(
            q,
            cover=np.clip(np.float32(0.55) + np.float32(0.16) * middle + np.float32(0.08) * fine, 0, 1),
            dirt=np.clip(np.float32(0.2) + np.float32(0.13) * fine, 0, 0.7),
        )


def grow(grid: Grid, ground: Ground, s: Land, p: Parcels, plan: Use, near: np.ndarray) -> None:
    """Forest, meadow and bare land where nobody farms; ``near`` (H, W), 0 to 1, is nearness to people.

    Woods are felled parcel by parcel and grow again.
    """
    region = style(grid.seed, grid.region)
    wild = s.hill + np.float32(0.38) * s.broad
    wild += np.float32(0.05) * s.middle
    wild += np.float32(0.02) * s.fine
    wild += p.spread(np.float32(0.35) * (unit(p.h, 31) - np.float32(0.5)))
    wild -= np.float32(0.9) * near
    wild = wild > np.float32(0.62 - region.woods)
    _wood_edges(ground, s, p, plan)
    q = np.flatnonzero(wild)
    if len(q):
        growth = np.float32(0.75) * (s.moist.ravel()[q] + np.float32(region.wet))
        growth += np.float32(0.75) * grid.noise("growth", 760, 6, 0.6).ravel()[q]
        growth += np.float32(0.45) * s.hill.ravel()[q]
        growth += np.float32(0.06) * s.fine.ravel()[q] + np.float32(0.04) * s.grain.ravel()[q]
        _wild(grid, ground, s, p, q, growth)
    k = np.flatnonzero((ground.leaf == LEAF["forest"]) & np.isin(ground.kind, _WOODS))
    if len(k):
        n = p.number.ravel()[k]
        age = np.where(wild.ravel()[k], _age(grid, p).take(n), 200)
        stands = np.float32(0.5) * s.hill.ravel()[k] + np.float32(0.6) * grid.noise("stands", 330, 3).ravel()[k]
        stands += np.float32(0.3) * (unit(p.h, 72).take(n) - np.float32(0.5))
        conifer = stands > np.float32(0.75 - region.conifers)
        tall = (np.float32(14) + np.float32(2.5) * s.take("broad", k)) * np.clip(age / np.float32(35), 0.15, 1)
        tall = np.clip(tall, 2, 22)
        woods.canopy(grid, ground, s, k, conifer, tall.astype(np.float32))


def _wood_edges(ground: Ground, s: Land, p: Parcels, plan: Use) -> None:
    """The outermost trees of a wooded parcel do not stand in line: grass between them."""
    q = np.flatnonzero((p.edge < 5) & p.spread(np.isin(plan.kind, _WOODS)))
    if len(q):
        edge = p.edge.ravel()[q] + np.float32(1.1) * s.grain.ravel()[q] + np.float32(0.8) * s.fine.ravel()[q]
        q = q[edge < 1.5]
        ground.at(q, "dry cropland", "meadow", cover=np.float32(0.6), dirt=np.float32(0.2), phase=96)


def _age(grid: Grid, p: Parcels) -> np.ndarray:
    """Years since the wood of each parcel was felled (M,); 200 where it never is."""
    cycle = np.floor(pick(p.h, 73, 60, 110)).astype(np.int64)
    first = np.floor(unit(p.h, 74) * cycle).astype(np.int64)
    managed = unit(p.district, 73) < 0.55
    return np.where(managed, (grid.year - first) % cycle, 200)


def _wild(grid: Grid, ground: Ground, s: Land, p: Parcels, q: np.ndarray, growth: np.ndarray) -> None:
    """What grows at the samples with the flat index ``q`` by terrain and moisture."""
    middle, fine, grain, broad = (a.ravel()[q] for a in (s.middle, s.fine, s.grain, s.broad))
    age = _age(grid, p).take(p.number.ravel()[q])
    tone = np.float32(0.06) * middle + np.float32(0.04) * fine + np.float32(0.05) * s.take("speck", q)
    ground.at(q, bright=1 + tone, dirt=np.clip(np.float32(0.14) + np.float32(0.1) * middle, 0, 0.6), height=0, phase=96)
    forest, bare = growth > -0.35, growth <= -1.25
    meadow = ~forest & ~bare
    # Felled woods: bare for a year or two, then grass and bushes.
    felled, young = forest & (age < 2), forest & (age >= 2) & (age < 6)
    k = q[forest & ~felled & ~young]
    ground.at(k, "forest", "broadleaf forest")
    n = meadow | young
    k, cover = q[n], np.clip(0.5 + 0.3 * (growth[n] + 1.25) + 2 * tone[n], 0.1, 1)
    ground.at(k, "natural meadow", "meadow", cover=np.where(young[n], 0.55 + 2 * tone[n], cover))
    bushy = np.where(young, np.float32(0.4), np.float32(1.1))
    _bushes(grid, ground, q, n & (young | (growth < -0.6)), fine + grain - bushy)
    n = bare | felled
    ground.at(
        q[n],
        "bare land",
        "bare soil",
        cover=np.clip(0.5 + 0.35 * middle[n] + 0.15 * broad[n], 0, 1),
        dirt=np.clip(np.float32(0.2) + np.float32(0.16) * (fine[n] + grain[n]), 0, 0.8),
    )
    ground.at(q[bare & (middle + 0.6 * fine > 1.2)], kind="rock")
    ground.at(q[felled], dirt=np.clip(np.float32(0.4) + np.float32(0.2) * grain[felled], 0, 0.9))


def _bushes(grid: Grid, ground: Ground, q: np.ndarray, where: np.ndarray, thick: np.ndarray) -> None:
    """Bushes ``where`` (N,) they grow and ``thick`` (N,) is high enough; coarse samples show their mean."""
    k = np.flatnonzero(where & (thick > -0.5))
    rise, h = woods.crowns(grid, "bushes", 4, q[k], (0.25, 0.7), 0.85)
    seen = rise > 0
    k, h, dome = k[seen], h[seen], np.sqrt(rise[seen])
    cover, bright, height = np.float32(0.81), np.float32(0.925), np.float32(1.1)
    if grid.step <= woods.CROWNS:
        u = unit(h, 5)
        cover = np.float32(0.6) + np.float32(0.3) * dome
        bright = (np.float32(0.82) + np.float32(0.3) * u) * (np.float32(0.85) + np.float32(0.15) * dome)
        height = (np.float32(0.8) + np.float32(1.6) * u) * dome
    ground.at(q[k], kind="shrubland", cover=cover, bright=bright, height=height, phase=woods.byte(h, 7))

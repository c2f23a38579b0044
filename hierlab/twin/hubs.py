"""Where ways meet: interchanges, railway stations and airports, each a stamp in its own frame (p along, q across)."""

import numpy as np

from hierlab.twin.fields import Grid
from hierlab.twin.ground import LEAF, Ground
from hierlab.twin.hashing import key, mix, unit
from hierlab.twin.places import AIRPORT, INTERCHANGE, STATION
from hierlab.twin.rural import Land
from hierlab.twin.spectra import KIND
from hierlab.twin.things import CAR, DISC, DOME, FLAT, PARAPET, VAULT, Things, draw, joined, ragged, things

AVENUE = 1000.0  # metres of street from an interchange towards the city
Spot = tuple[float, float, float]
_CAR = np.array([KIND[n] for n in (*("white car", "dark car") * 3, "red car")], np.uint8)


def interchange_grounds(p: np.ndarray, q: np.ndarray, margin) -> np.ndarray:
    """What the four ramps of an interchange enclose."""
    a, b = np.abs(p), np.abs(q)
    return (a < INTERCHANGE + margin) & (b < INTERCHANGE + margin) & (np.hypot(a - 195, b - 195) > 173 - margin)


def station_grounds(p: np.ndarray, q: np.ndarray, margin) -> np.ndarray:
    """The rectangle of a station."""
    return (np.abs(p) < STATION[0] + margin) & (np.abs(q) < STATION[1] + margin)


def airport_grounds(p: np.ndarray, q: np.ndarray, margin) -> np.ndarray:
    """A strip along the runway and a wider middle for apron and terminal."""
    strip = (np.abs(p) < AIRPORT[0] + margin) & (np.abs(q + 300) < 150 + margin)
    return strip | ((np.abs(p) < 900 + margin) & (np.abs(q) < AIRPORT[1] + margin))


class Kit:
    """Collects the things of a stamp at (p, q) and places them."""

    def __init__(self, grid: Grid, spot: Spot, name: str):
        self.grid, self.spot = grid, spot
        x, y = int(np.floor(spot[0])), int(np.floor(spot[1]))
        self.h = mix(key(grid.seed, grid.region, name), np.array([grid.ax + x]), np.array([grid.ay + y]))[0]
        self.tables: list[Things] = []

    def add(self, p, q, turn, a, b, shape, kind, **values) -> None:
        """Things at (p, q), their long axis ``turn`` radians from p; drawn in this order."""
        if np.size(p) == 0:
            return
        p, q = np.asarray(p, float), np.asarray(q, float)
        x, y, angle = self.spot
        cos, sin = np.cos(angle), np.sin(angle)
        self.tables.append(
            things(x + p * cos - q * sin, y + p * sin + q * cos, angle + np.asarray(turn), a, b, shape, kind, **values)
        )

    def hashes(self, count: int, salt: int) -> np.ndarray:
        """Hashes (count,) of this stamp."""
        return mix(self.h, np.arange(count), np.array([salt]))

    def cars(self, p0: float, p1: float, q0: float, q1: float, share: float, salt: int) -> None:
        """Parked cars in double rows along p, with lanes between the rows."""
        across, rows = int((p1 - p0) / 2.7), int((q1 - q0) / 16.5)
        h = self.hashes(across * rows * 2, salt)
        k = np.arange(len(h))
        i, j = k % across, k // across
        p, q = p0 + (i + 0.5) * 2.7, q0 + (j // 2) * 16.5 + 3 + (j % 2) * 10.4
        if self.grid.step <= 0.3:
            self.add(p - 1.35, q, np.pi / 2, 2.4, 0.05, FLAT, "road marking", cover=0.7, step=0.3)
        k = np.flatnonzero(unit(h, 1) < share)
        kind = _CAR[(h[k] % len(_CAR)).astype(int)]
        self.add(p[k], q[k], np.pi / 2, 2.2, 0.9, CAR, kind, base=0.9, rise=0.6, step=1.2)

    def draw(self, ground: Ground, allowed: np.ndarray | None = None) -> None:
        draw(self.grid, ground, joined(self.tables), allowed)


def interchange(grid: Grid, ground: Ground, s: Land, p: np.ndarray, q: np.ndarray, spot: Spot, taken) -> None:
    """A clover leaf where a highway meets the ring road, and an avenue on into the city, but where it is ``taken``.

    p points out of the city, q along the ring.
    """
    a, b = np.abs(p), np.abs(q)
    box = interchange_grounds(p, q, 0)
    avenue = (b < 11) & (p < 0) & (p > -AVENUE) & ~taken & ~box
    if avenue.any():
        ground.paint(avenue, "road", "asphalt", cover=0.75, dirt=0.1, height=0, bright=1 + np.float32(0.04) * s.middle)
        if grid.step <= 0.5:
            lines = (np.abs(b - 0.3) < 0.08) | (np.abs(b - 10.5) < 0.08) | (np.abs(b - 5.4) < 0.08) & (np.mod(p, 9) < 3)
            ground.paint(avenue & lines, kind="road marking", cover=0.8)
    if not box.any():
        return
    ramp = np.abs(np.hypot(a - 195, b - 195) - 178)
    loop = np.abs(np.hypot(a - 72, b - 72) - 58)
    lawn = box & ~np.isin(ground.leaf, (LEAF["river"], LEAF["lake"], LEAF["pond"]))
    values = {"dirt": np.clip(0.15 + 0.1 * s.fine, 0, 0.6), "height": 0, "bright": 1, "phase": 2}
    ground.paint(lawn, "artificial meadow", "sown grass", cover=np.clip(0.85 + 0.1 * s.middle, 0, 1), **values)
    arms, tone = (b < 13) | (a < 13), 1 + np.float32(0.04) * s.middle
    if grid.step > 2.5:
        ground.paint(lawn & (s.middle + 0.4 * s.grain > 0.9), kind="street trees", height=5)
    else:
        kit = Kit(grid, spot, "clover")
        h = kit.hashes(900, 1)
        tp, tq = (unit(h, 2) - 0.5) * 2 * INTERCHANGE, (unit(h, 3) - 0.5) * 2 * INTERCHANGE
        ta, tb = np.abs(tp), np.abs(tq)
        off = (np.abs(np.hypot(ta - 195, tb - 195) - 178) > 9) & (np.abs(np.hypot(ta - 72, tb - 72) - 58) > 9)
        wish = np.sin(tp / 23) + np.sin(tq / 19) + unit(h, 4)
        k = np.flatnonzero(off & (ta > 18) & (tb > 18) & (wish > 1.0))
        radius = 1.4 + 2.2 * unit(h[k], 5)
        look = {
            "base": radius,
            "rise": 1.3 * radius,
            "phase": h[k] & np.uint32(255),
            "bright": 0.86 + 0.3 * unit(h[k], 6),
        }
        kit.add(tp[k], tq[k], 0.0, radius, 0.9 * radius, DOME, "street trees", **look)
        kit.draw(ground, lawn)
    flat = {"dirt": 0.2, "height": 0, "bright": tone * np.float32(1.03)}
    ground.paint(box & ((loop < 4.8) | (ramp < 4.8) | arms), "overpass", "asphalt", cover=0.6, **flat)
    ground.paint(box & arms & (a < 60) & (b < 60), kind="old asphalt", cover=0.7, height=7)
    if grid.step <= 0.5:
        lines = (np.abs(loop - 4.3) < 0.08) | (np.abs(ramp - 4.3) < 0.08)
        lines &= ~arms
        for off in (1.0, 12.5):
            lines |= (np.abs(b - off) < 0.08) & (a > 13) | (np.abs(a - off) < 0.08)
        ground.paint(box & lines & (ground.leaf == LEAF["overpass"]), kind="road marking", cover=0.8)
    if grid.step <= 1.2:
        kit = Kit(grid, spot, "clover cars")
        h = kit.hashes(140, 1)
        lane = np.array([-10.7, -7.1, -3.5, 3.5, 7.1, 10.7])[(h % 6).astype(int)]
        run = (unit(h, 2) - 0.5) * 2 * INTERCHANGE
        up = unit(h, 3) < 0.5
        look = {"base": 0.9, "rise": 0.6, "step": 1.2}
        kit.add(
            np.where(up, lane, run), np.where(up, run, lane), up * np.pi / 2, 2.2, 0.9, CAR, _CAR[(h >> 8) % 7], **look
        )
        t = 6.283 * unit(h[:60], 4)
        turn = np.sign(np.cos(5 * t)), np.sign(np.sin(9 * t))
        cp, cq = turn[0] * (72 + 58 * np.cos(t)), turn[1] * (72 + 58 * np.sin(t))
        heading = np.arctan2(turn[1] * np.cos(t), -turn[0] * np.sin(t))
        ok = (np.abs(cp) > 15) & (np.abs(cq) > 15)
        kit.add(cp[ok], cq[ok], heading[ok], 2.2, 0.9, CAR, _CAR[(h[:60] >> 8) % 7][ok], **look)
        draw(grid, ground, joined(kit.tables), box & (ground.leaf == LEAF["overpass"]), lift=True)


def station(grid: Grid, ground: Ground, s: Land, p: np.ndarray, q: np.ndarray, spot: Spot) -> None:
    """Tracks and roofed platforms side by side, trains, a hall and a forecourt with cars."""
    taper = np.clip((STATION[0] - np.abs(p)) / 120, 0, 1)
    yard = (np.abs(p) < STATION[0]) & (np.abs(q) < 7 + (STATION[1] - 7) * taper)
    if not yard.any():
        return
    dirt = np.clip(0.2 + 0.1 * s.fine, 0, 0.6)
    ground.paint(yard, "railway station", "ballast", cover=0.8, dirt=dirt, height=0, bright=1 + 0.04 * s.middle)
    if grid.step <= 1.2:
        gap = np.mod(q + 51, 21)  # from the edge of a platform
        off = np.minimum(np.abs(gap - np.float32(2.5)), np.abs(gap - np.float32(9.5)))
        ground.paint(yard & (off < 1.3) & (q < 36), bright=0.82, dirt=0.35)
        if grid.step <= 0.3:
            ground.paint(yard & (np.abs(off - 0.72) < 0.06) & (q < 36), kind="train", cover=0.9, bright=0.9)
    platform = yard & (np.abs(p) < 240) & (np.mod(q + 60, 21) < 9) & (q < 34)
    ground.paint(platform, kind="paving", cover=0.85, dirt=0.1, height=1, bright=1.05)
    ground.paint(yard & (q >= 36), kind="paving", cover=0.85, dirt=0.1, bright=1 + 0.03 * s.fine)
    ground.paint(yard & (q > 57) & (np.abs(p) < 190), kind="old asphalt", cover=0.8)
    kit = Kit(grid, spot, "station")
    rows = np.arange(5)
    kit.add(np.zeros(5), -55.5 + 21 * rows, 0.0, 225.0, 3.4, VAULT, "steel roof", base=5.5, rise=1.0, rib=5.0)
    tracks = np.concatenate([-51 + 21 * np.arange(4) + off for off in (2.5, 9.5)])
    h = kit.hashes(len(tracks), 2)
    k, m = ragged(np.where(unit(h, 1) < 0.5, 6 + np.floor(10 * unit(h, 2)), 0).astype(np.int64))
    at = -180 + 120 * unit(h[k], 3) + 26.2 * m
    ok = np.abs(at) < 280
    k, at = k[ok], at[ok]
    look = {"base": 3.2, "rise": 0.9, "cover": 0.3 + 0.7 * unit(h[k], 4), "dirt": 0.6 * unit(h[k], 5), "step": 1.5}
    kit.add(at, tracks[k], 0.0, 12.8, 1.55, VAULT, "train", **look)
    kit.add([0.0], [46.0], 0.0, 78.0, 9.5, VAULT, "white roof", base=15.0, rise=5.0, rib=6.0, cover=0.85)
    kit.add([-110.0, 110.0], [45.0, 45.0], 0.0, 30.0, 7.5, PARAPET, "grey roof", base=9.0, rise=0.8)
    kit.add(np.arange(-7, 8) * 9.0, np.full(15, 46.0), np.pi / 2, 7.0, 0.8, FLAT, "solar panel", base=19.0, step=1.2)
    if grid.step <= 1.2:
        h = kit.hashes(120, 4)
        lane, ok = np.where(unit(h, 2) < 0.5, 59.0, 60.8), unit(h, 1) < 0.55
        kit.add(
            (np.arange(120) * 3.1 - 186)[ok], lane[ok], 0.0, 1.4, 0.85, CAR, _CAR[(h >> 8) % 7][ok], base=0.9, rise=0.6
        )
    kit.draw(ground, yard)


def airport(grid: Grid, ground: Ground, s: Land, p: np.ndarray, q: np.ndarray, spot: Spot) -> None:
    """A runway with its taxiway at q < 0, an apron with aircraft, a terminal, hangars and car parks towards q > 0."""
    grounds = airport_grounds(p, q, 0)
    if not grounds.any():
        return
    a = np.abs(p)
    grass = np.clip(0.65 + 0.15 * s.broad + 0.08 * s.fine, 0, 1)
    mown = 1 + np.float32(0.04) * np.sign(np.sin(q * np.float32(0.35))) * (grid.step < 2.5)
    dirt = np.clip(0.15 + 0.08 * s.middle, 0, 0.6)
    ground.paint(grounds, "airport", "meadow", cover=grass, dirt=dirt, height=0, bright=mown, phase=3)
    off, taxi = np.abs(q + 330), np.abs(q + 210)
    runway = (a < 1450) & (off < 25)
    links = (a < 1462) & (np.mod(p + 1450, 725) < 24) & (q > -330) & (q < -150) | (a < 14) & (q > -210) & (q < -90)
    shoulder = (a < 1470) & ((off < 31) | (taxi < 16))
    ground.paint(grounds & shoulder, kind="asphalt", cover=0.7, dirt=0.2, bright=1 + 0.03 * s.middle)
    hard = runway | (a < 1450) & (taxi < 11) | links
    ground.paint(grounds & hard, kind="old asphalt", cover=0.85, dirt=0.1, bright=1 + 0.03 * s.middle)
    rubber = np.float32(0.32) * np.exp(-((off - 4) ** 2) / 18) * ((a > 980) & (a < 1380))
    ground.paint(runway, bright=1 - rubber)
    marks = (
        (off < 0.45) & (np.mod(p, 50) < 30)
        | (np.abs(off - 22.5) < 0.45)
        | (a > 1390) & (a < 1420) & (np.mod(off, 3.6) < 1.8) & (off < 22)
    )
    marks |= (np.abs(a - 1040) < 23) & (np.abs(off - 10) < 4) | (np.abs(np.mod(a, 150) - 75) < 11) & (a > 1100) & (
        np.abs(off - 9) < 2
    ) & (a < 1350)
    ground.paint(runway & marks, kind="road marking", cover=0.8)
    apron = (a < 640) & (q > -150) & (q < 24)
    slab = np.float32(0.05) * ((np.mod(p, 7.5) < 0.25) | (np.mod(q, 7.5) < 0.25)) * (grid.step < 0.6)
    ground.paint(grounds & apron, kind="concrete", cover=0.85, dirt=0.1, bright=1 + 0.04 * s.middle - slab)
    if grid.step <= 0.6:
        stand = np.mod(p, 62) - 31
        line = (
            (taxi < 0.2)
            | (np.abs(q + 110) < 0.2) & (a < 630)
            | (np.abs(stand) < 0.2) & (q > -110) & (q < 5) & (a < 430)
        )
        ground.paint(grounds & line & (hard | apron), kind="road marking", cover=0.7)
    front = (a < 640) & (q > 84) & (q < 128)
    ground.paint(grounds & front & (np.abs(q - 106) < 9), kind="asphalt", cover=0.7, dirt=0.15, bright=1)
    ground.paint(grounds & front & (np.abs(q - 106) >= 9), kind="paving", cover=0.8, dirt=0.1)
    parking = (a < 380) & (q > 130) & (q < 290)
    ground.paint(grounds & parking, kind="asphalt", cover=0.6, dirt=np.clip(0.2 + 0.1 * s.fine, 0, 0.9), bright=1)
    if grid.step > 1.2:
        ground.paint(grounds & parking & (np.abs(np.mod(q - 138, 16.5) - 8.2) > 3), kind="old asphalt", bright=1.12)
    ground.paint(grounds & (a < 9) & (q > 90), kind="asphalt", cover=0.8, height=0, bright=1)
    kit = Kit(grid, spot, "airport")
    _terminal(kit)
    _aircraft(kit)
    kit.draw(ground, grounds)


def _terminal(kit: Kit) -> None:
    """The terminal with its piers, the tower, hangars, a car park with trees."""
    n = np.arange(-5, 6) * 62.0
    kit.add([0.0], [62.0], 0.0, 345.0, 20.0, VAULT, "steel roof", base=15.0, rise=5.0, rib=4.0, cover=0.85)
    kit.add([0.0], [66.0], 0.0, 120.0, 26.0, VAULT, "white roof", base=19.0, rise=6.0, rib=4.0, cover=0.85)
    kit.add(n, np.full(11, 62.0), np.pi / 2, 12.0, 1.5, FLAT, "solar panel", base=21.0, step=2.5)
    kit.add(n + 9, np.full(11, 31.0), np.pi / 2, 13.0, 1.7, FLAT, "steel roof", base=6.0, step=5.0)
    kit.add([420.0], [75.0], 0.0, 7.0, 7.0, DISC, "concrete", base=38.0)
    kit.add([420.0], [75.0], 0.0, 5.0, 5.0, DISC, "dark roof", base=44.0)
    at = np.array([-760.0, -690.0, 720.0, 800.0])
    kit.add(at, np.full(4, -20.0), np.pi / 2, 36.0, 31.0, VAULT, "white roof", base=14.0, rise=7.0, rib=3.0)
    kit.add(at, np.full(4, 40.0), 0.0, 32.0, 22.0, FLAT, "old asphalt", step=8.0)
    h = kit.hashes(24, 5)
    side = np.where(unit(h, 1) < 0.5, -1, 1)
    where = side * (430 + 180 * unit(h, 2)), 150 + 130 * unit(h, 3)
    size = {"base": 8 + 10 * unit(h, 5), "rise": 0.8, "rib": 0.0}
    kit.add(*where, 0.0, 14 + 14 * unit(h, 4), 9.0, PARAPET, "grey roof", **size)
    h = kit.hashes(160, 6)
    q = 130 + 16.5 * np.floor(9.5 * unit(h, 2)) + 0.2
    p = np.where(unit(h, 5) < 0.5, -1, 1) * (14 + 356 * unit(h, 3))
    for side, salt in ((-370.0, 7), (14.0, 10)):
        kit.cars(side, side + 356.0, 133.0, 290.0, 0.6, salt)
    radius = 1.4 + unit(h, 4)
    look = {"base": radius, "rise": radius, "phase": h & np.uint32(255), "step": 4.0}
    kit.add(p, q, 0.0, radius, radius, DOME, "street trees", **look)
    h = kit.hashes(40, 8)
    kind = np.where(unit(h, 3) < 0.4, KIND["truck"], KIND["white car"])
    kit.add(-600 + 1200 * unit(h, 1), 10 + 12 * unit(h, 2), 3 * unit(h, 4), 2.6, 1.2, FLAT, kind, base=2.2, step=1.5)


def _aircraft(kit: Kit) -> None:
    """Aircraft nose-in at the stands, and one on the taxiway."""
    stands = np.arange(-6, 7) * 62.0 + 31
    h = kit.hashes(len(stands) + 1, 9)
    here = np.append(unit(h[:-1], 1) < 0.68, True)
    p = np.append(stands, -900 + 1800 * unit(h[-1:], 2))
    heading = np.append(np.full(len(stands), np.pi / 2), 0.0)
    big = unit(h, 3) < 0.25
    span, long = np.where(big, 52.0, 34.0), np.where(big, 58.0, 37.0)
    q = np.append(np.full(len(stands), 16.0) - long[:-1] / 2, -210.0)
    p, q, heading, span, long = (c[here] for c in (p, q, heading, span, long))
    h, big = h[here], big[here]
    cos, sin = np.cos(heading), np.sin(heading)

    def part(along, across, turn, a, b, shape, kind="aircraft", base=4.0, **values):
        look = {"cover": 0.95, "dirt": 0.0, "bright": 0.95 + 0.15 * unit(h, 4), "base": base, "step": 5.0} | values
        x, y = p + along * cos - across * sin, q + along * sin + across * cos
        kit.add(x, y, heading + turn, a, b, shape, kind, **look)

    wide = np.where(big, 2.9, 1.95)
    for side in (-1, 1):
        sweep = 0.48
        half = span / 2
        back, turn = -0.04 * long - 0.5 * half * sweep, np.arctan2(side * 1.0, -sweep)
        part(back, side * 0.5 * half, turn, 0.55 * half, 0.075 * half, FLAT, base=3.0)
        part(0.0, side * 0.22 * half, np.arctan2(side * 1.0, -0.6), 0.26 * half, 0.12 * half, FLAT, base=3.0)
        part(-0.45 * long, side * 0.19 * half, np.arctan2(side * 1.0, -0.5), 0.18 * half, 0.055 * half, FLAT, base=5.0)
        part(0.05 * long, side * 0.34 * half, 0.0, 2.4, 1.1, DISC, "steel roof", base=2.4, step=1.5)
    part(0.36 * long, 0.0, 0.0, 0.14 * long, wide, DISC, base=4.0)
    part(-0.36 * long, 0.0, 0.0, 0.15 * long, wide, DISC, base=4.0)
    part(0.0, 0.0, 0.0, 0.38 * long, wide, VAULT, base=3.5, rise=2.0)
    tail = np.array([KIND["blue roof"], KIND["red roof"], KIND["white roof"], KIND["dark roof"]])[(h >> 12) % 4]
    part(-0.44 * long, 0.0, 0.0, 0.07 * long, 0.35, FLAT, tail, base=11.0, step=1.0)

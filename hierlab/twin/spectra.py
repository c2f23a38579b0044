"""Reflectance of materials from physical shapes, and the kinds of ground that are made of them.

A material is a curve over 390–2400 nm in steps of 5 nm. The shapes are textbook ones: pigment absorption round 440
and 675 nm, the red edge near 705 nm and leaf water at 970, 1200, 1450 and 1940 nm for plants; a rising soil line
with iron bands near 500 and 880 nm and hydroxyl bands at 1410, 1920 and 2205 nm for soils; absorption by water
itself, particles and algae for open water; smooth greys, paints and C–H bands near 1730 and 2310 nm for what is
built. They are not measured spectra.

A **kind** is the finer class below the 18 leaves (a crop, a roof, a pavement): the three materials that a sample of
it mixes, and the calendar by which the first of them comes and goes.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

WAVELENGTHS = np.arange(390, 2401, 5).astype(float)
_W = WAVELENGTHS


def _bump(centre: float, width: float, height: float = 1.0) -> np.ndarray:
    return height * np.exp(-0.5 * ((_W - centre) / width) ** 2)


def _step(centre: float, width: float) -> np.ndarray:
    return 1 / (1 + np.exp(-(_W - centre) / width))


def _plant(pigment: float, plateau: float, water: float = 1.0, dry: float = 0.0, flower: float = 0.0) -> np.ndarray:
    """Canopy: ``pigment`` and ``water`` relative to a healthy leaf, ``plateau`` the near-infrared reflectance."""
    pigments = _bump(440, 48, 2.2) + _bump(490, 32, 1.1) + _bump(600, 50, 0.75) + _bump(675, 24, 2.3)
    liquid = _bump(970, 28, 0.07) + _bump(1200, 45, 0.17) + _bump(1450, 60, 1.1) + _bump(1940, 95, 1.8)
    liquid = liquid + 0.15 * _step(1330, 40) + _bump(2600, 330, 1.6)
    lignin = _bump(2100, 65, 0.3) + _bump(2310, 70, 0.4)
    green = 0.115 + 0.30 * flower * _step(515, 12)
    level = green + (plateau - green) * _step(712, 13)
    return 0.012 + level * np.exp(-pigment * pigments * (1 - _step(720, 9)) - water * liquid - dry * lignin)


def _litter(level: float) -> np.ndarray:
    """Dry plant matter: straw, dead grass."""
    absorption = _bump(1450, 50, 0.25) + _bump(1940, 70, 0.4) + _bump(2100, 75, 0.35) + _bump(2310, 65, 0.3)
    return level * (0.22 + 0.95 * _step(655, 120)) * np.exp(-absorption)


def _soil(level: float, iron: float, moist: float = 0.0, clay: float = 0.3) -> np.ndarray:
    line = level * (0.22 + 0.95 * (1 - np.exp(-(_W - 330) / 480)))
    iron_bands = iron * (_bump(470, 60, 0.5) + _bump(540, 42, 0.22) + _bump(880, 75, 0.12))
    water = _bump(1410, 28, 0.1 + 0.5 * moist) + _bump(1920, 50, 0.2 + 0.8 * moist) + _bump(2205, 20, clay)
    return line * np.exp(-iron_bands - water) * (1 - 0.5 * moist)


def _water(particles: float, algae: float) -> np.ndarray:
    """Open water seen from above: backscatter over backscatter plus absorption, and a little surface glint."""
    table = (390, 450, 550, 600, 650, 700, 750, 800, 850, 900, 950, 1000, 2400)
    pure = np.interp(_W, table, (0.02, 0.01, 0.06, 0.22, 0.34, 0.62, 2.6, 2.1, 4.3, 6.5, 35, 40, 500))
    absorbed = pure + (0.08 + 0.25 * algae) * np.exp(-(_W - 440) / 85) + algae * _bump(675, 14, 0.35)
    absorbed = absorbed + 0.5 * particles * np.exp(-(_W - 440) / 110)
    back = 0.006 + 0.13 * particles * (550 / _W) ** 0.6
    return 0.012 + 0.33 * back / (absorbed + back)


def _grey(level: float, slope: float = 0.0, tar: float = 0.0) -> np.ndarray:
    tilt = (1 + slope * (_W - 1000) / 1000) * (1 - 0.3 * np.exp(-(_W - 390) / 95))
    return level * tilt * np.exp(-tar * (_bump(1730, 25) + 1.5 * _bump(2310, 35)))


def _paint(centre: float, width: float, height: float, infrared: float) -> np.ndarray:
    return 0.05 + _bump(centre, width, height) + infrared * _step(760, 40) * np.exp(-0.2 * _bump(2310, 40))


def _clay_tile(level: float) -> np.ndarray:
    return level * (0.24 + 0.78 * _step(588, 32)) * np.exp(-_bump(870, 80, 0.12) - _bump(2210, 25, 0.06))


MATERIALS: dict[str, np.ndarray] = {
    "clear water": _water(0.06, 0.05),
    "turbid water": _water(0.42, 0.12),
    "green water": _water(0.22, 1.1),
    "mud": _soil(0.24, 0.4, moist=0.8),
    "dark soil": _soil(0.21, 0.35),
    "light soil": _soil(0.33, 0.5),
    "red soil": _soil(0.29, 1.6),
    "sand": _soil(0.43, 0.35, clay=0.1),
    "rock": 0.5 * _grey(0.21, 0.3) + 0.5 * _soil(0.25, 0.5),
    "new asphalt": _grey(0.085, 0.3, 0.06),
    "old asphalt": _grey(0.165, 0.3, 0.05),
    "concrete": _grey(0.31, 0.14),
    "ballast": _grey(0.19, 0.3) * np.exp(-_bump(480, 80, 0.25)),
    "red tile": _clay_tile(0.34),
    "brown tile": _clay_tile(0.21),
    "grey roof": _grey(0.22, 0.2, 0.04),
    "dark roof": _grey(0.11, 0.15, 0.1),
    "white roof": _grey(0.5, -0.04, 0.05),
    "blue steel": _paint(470, 55, 0.22, 0.28),
    "bare steel": _grey(0.38, 0.1),
    "plastic film": _grey(0.42, -0.08, 0.35),
    "synthetic turf": 0.03 + _bump(545, 45, 0.05) + 0.20 * _step(730, 40),
    "running track": _clay_tile(0.28),
    "broad leaf": _plant(1.15, 0.43),
    "conifer": _plant(1.3, 0.28, dry=0.4),
    "shrub": _plant(0.95, 0.33, dry=0.6),
    "grass": _plant(0.82, 0.40),
    "lawn": _plant(0.95, 0.44),
    "dead grass": _litter(0.33),
    "rice": _plant(0.95, 0.41, water=1.3),
    "wheat": _plant(1.0, 0.44),
    "maize": _plant(1.05, 0.47),
    "vegetables": _plant(0.75, 0.45),
    "rape": _plant(0.7, 0.46, flower=0.5),
    "straw": _litter(0.41),
}
MATERIAL = {name: n for n, name in enumerate(MATERIALS)}
SOILS = 3  # dark, light and red soil follow each other, and a sample's soil type is added to the first


class Kind(NamedTuple):
    """``top`` over ``under``, with a share of ``third`` ("dirt"); ``calendar`` by name."""

    top: str
    under: str
    third: str
    calendar: str = "always"


KINDS: dict[str, Kind] = {
    "rice": Kind("rice", "mud", "straw", "rice"),
    "early rice": Kind("rice", "mud", "straw", "early rice"),
    "wheat and maize": Kind("maize", "dark soil", "straw", "wheat and maize"),
    "wheat": Kind("wheat", "dark soil", "straw", "wheat"),
    "maize": Kind("maize", "dark soil", "straw", "summer crop"),
    "vegetables": Kind("vegetables", "dark soil", "plastic film", "vegetables"),
    "rape": Kind("rape", "dark soil", "straw", "rape"),
    "fallow": Kind("grass", "dark soil", "dead grass", "weeds"),
    "greenhouse": Kind("plastic film", "dark soil", "vegetables"),
    "orchard": Kind("broad leaf", "dark soil", "dead grass", "leaves"),
    "broadleaf forest": Kind("broad leaf", "shrub", "dead grass", "leaves"),
    "conifer forest": Kind("conifer", "shrub", "dark soil"),
    "shrubland": Kind("shrub", "dark soil", "dead grass", "leaves"),
    "meadow": Kind("grass", "dead grass", "dark soil", "grass"),
    "wet meadow": Kind("grass", "mud", "dead grass", "grass"),
    "sown grass": Kind("lawn", "dead grass", "dark soil", "sown grass"),
    "lawn": Kind("lawn", "dark soil", "dead grass", "sown grass"),
    "street trees": Kind("broad leaf", "lawn", "concrete", "leaves"),
    "river water": Kind("turbid water", "clear water", "mud"),
    "lake water": Kind("clear water", "turbid water", "green water"),
    "pond water": Kind("green water", "turbid water", "mud"),
    "bare soil": Kind("light soil", "dark soil", "dead grass"),
    "sand": Kind("sand", "mud", "grass"),
    "rock": Kind("rock", "dark soil", "shrub"),
    "building site": Kind("light soil", "concrete", "dead grass"),
    "asphalt": Kind("new asphalt", "old asphalt", "concrete"),
    "old asphalt": Kind("old asphalt", "concrete", "dark soil"),
    "concrete": Kind("concrete", "old asphalt", "dark soil"),
    "dirt road": Kind("dark soil", "light soil", "dead grass"),
    "ballast": Kind("ballast", "dark soil", "concrete"),
    "red roof": Kind("red tile", "grey roof", "concrete"),
    "brown roof": Kind("brown tile", "grey roof", "concrete"),
    "grey roof": Kind("grey roof", "concrete", "dark roof"),
    "dark roof": Kind("dark roof", "grey roof", "concrete"),
    "white roof": Kind("white roof", "concrete", "grey roof"),
    "blue roof": Kind("blue steel", "bare steel", "concrete"),
    "steel roof": Kind("bare steel", "grey roof", "concrete"),
    "turf": Kind("synthetic turf", "lawn", "dead grass"),
    "track": Kind("running track", "concrete", "old asphalt"),
}
KIND = {name: n for n, name in enumerate(KINDS)}
PHASES = 8  # a field's calendar is early or late by its phase

# A calendar is a list of (day of year, share of the canopy that is green, share of the ground under straw or dead).
_CALENDARS: dict[str, list[tuple[int, float, float]]] = {
    "always": [(1, 1, 0), (366, 1, 0)],
    "rice": [
        (1, 0, 0.5),
        (135, 0, 0.3),
        (155, 0.05, 0),
        (200, 0.9, 0),
        (255, 0.8, 0.1),
        (285, 0.1, 0.9),
        (366, 0, 0.5),
    ],
    "early rice": [
        *[(1, 0, 0.4), (95, 0, 0.1), (150, 0.9, 0), (195, 0.5, 0.4), (205, 0, 0.3), (245, 0.85, 0)],
        *[(295, 0.5, 0.4), (310, 0, 0.9), (366, 0, 0.4)],
    ],
    "wheat and maize": [
        *[(1, 0.3, 0), (60, 0.35, 0), (110, 0.95, 0), (150, 0.4, 0.6), (162, 0, 0.7), (185, 0.15, 0.4)],
        *[(220, 0.95, 0), (260, 0.6, 0.3), (275, 0, 0.7), (300, 0.1, 0.1), (366, 0.3, 0)],
    ],
    "wheat": [
        (1, 0.3, 0),
        (110, 0.95, 0),
        (150, 0.4, 0.6),
        (165, 0, 0.9),
        (250, 0.05, 0.4),
        (310, 0.1, 0),
        (366, 0.3, 0),
    ],
    "summer crop": [
        (1, 0, 0.3),
        (115, 0, 0.1),
        (150, 0.2, 0),
        (200, 0.95, 0),
        (255, 0.6, 0.4),
        (275, 0, 0.8),
        (366, 0, 0.3),
    ],
    "vegetables": [(1, 0.4, 0.3), (90, 0.6, 0.15), (180, 0.7, 0), (270, 0.6, 0), (366, 0.4, 0.3)],
    "rape": [
        (1, 0.45, 0),
        (90, 0.95, 0),
        (130, 0.8, 0),
        (150, 0.2, 0.8),
        (180, 0.6, 0),
        (240, 0.5, 0.2),
        (366, 0.45, 0),
    ],
    "weeds": [(1, 0.05, 0.5), (100, 0.15, 0.3), (180, 0.5, 0.1), (260, 0.35, 0.3), (366, 0.05, 0.5)],
    "leaves": [(1, 0.12, 0), (85, 0.15, 0), (125, 0.95, 0), (270, 0.95, 0), (320, 0.2, 0), (366, 0.12, 0)],
    "grass": [(1, 0.1, 0), (85, 0.2, 0), (140, 0.85, 0), (200, 0.9, 0), (270, 0.55, 0), (320, 0.15, 0), (366, 0.1, 0)],
    "sown grass": [(1, 0.35, 0), (80, 0.5, 0), (125, 0.95, 0), (280, 0.9, 0), (330, 0.45, 0), (366, 0.35, 0)],
}
_SHIFTED = {"always", "leaves"}  # what does not depend on a farmer's choices has no phase


@lru_cache(maxsize=64)
def season(day: int) -> tuple[np.ndarray, np.ndarray]:
    """Green share and straw share of every kind and phase on a day of the year: two float32 (K · PHASES,)."""
    out = np.empty((2, len(KINDS), PHASES), np.float32)
    for n, kind in enumerate(KINDS.values()):
        days, green, straw = np.array(_CALENDARS[kind.calendar], float).T
        late = 0 if kind.calendar in _SHIFTED else 5.0 * (np.arange(PHASES) - (PHASES - 1) / 2)
        when = (day - late - 1) % 365 + 1
        out[0, n], out[1, n] = np.interp(when, days, green), np.interp(when, days, straw)
    return out[0].ravel(), out[1].ravel()


@lru_cache(maxsize=1)
def mixtures() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Material numbers (K,) of the top, the under and the third of every kind."""
    return tuple(np.array([MATERIAL[k[n]] for k in KINDS.values()], np.int64) for n in range(3))


def endmembers(centres: tuple[float, ...], widths: tuple[float, ...]) -> np.ndarray:
    """Reflectance (M, C) float32 of every material in bands with Gaussian responses (centre, full width, nm)."""
    c, w = np.array(centres, float)[:, None], np.array(widths, float)[:, None]
    response = np.exp(-4 * np.log(2) * ((_W - c) / w) ** 2)
    response /= response.sum(1, keepdims=True)
    curves = np.stack(list(MATERIALS.values()))
    return np.stack([(curves * r).sum(1) for r in response], 1).astype(np.float32)

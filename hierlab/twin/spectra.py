"""Reflectance of materials from physical shapes, and the kinds of ground that are made of them.

A material is a curve over 390–2400 nm in steps of 2.5 nm, and ``MODES`` ways in which one object of it differs from
another. The curves are drawn from the absorption features that the literature names, not measured:

- Plants: pigments round 440, 490 and 675 nm, the red edge near 705–720 nm, leaf water at 970, 1200, 1450 and 1940 nm,
  lignin and cellulose at 1730, 2100 and 2310 nm (Jacquemoud and Baret, 1990, "PROSPECT", Remote Sensing of
  Environment 34; Curran, 1989, "Remote sensing of foliar chemistry", ibid. 30). Straw and litter: Nagler, Daughtry
  and Goward (2000), ibid. 71.
- Soils: a rising line, iron oxides near 480, 540, 650 and 880 nm, water at 1410 and 1920 nm, clay at 2205 nm,
  carbonate at 2340 nm (Baumgardner et al., 1985, Advances in Agronomy 38; Ben-Dor et al., 1999).
- Water: backscatter over absorption plus backscatter (Gordon et al., 1988, J. Geophysical Research 93); absorption of
  the water itself (Pope and Fry, 1997, Applied Optics 36; Kou et al., 1993, ibid. 32), of algae at 440 and 675 nm
  with the phycocyanin shoulder at 620 nm, and of dissolved matter.
- What is built: fired clay with iron at 530 and 870 nm, bitumen, paints and plastics with C–H bands at 1215, 1730
  and 2310 nm and weak overtones at 930 nm, concrete with carbonate at 2340 nm, roofs and roads as they age (Herold,
  Roberts, Gardner and Dennison, 2004, Remote Sensing of Environment 91; Heiden et al., 2007, ibid. 111).

The modes are, in this order: what the material is made of (pigment, iron, algae, ageing), its second constituent
(water and structure, moisture, particles, dust), how bright and how warm it is in the visible alone. The first two
follow narrow features of the material itself; the last two have the same broad shape for every material, so that
visible colour says less than it seems to.

A **kind** is the finer class below the 18 leaves (a crop, a roof, a pavement): the three materials that a sample of
it mixes, and the calendar by which the first of them comes and goes.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from hierlab.twin.calendars import PHASES as PHASES
from hierlab.twin.calendars import states

WAVELENGTHS = np.arange(390, 2400.1, 2.5)
MODES = 4
_W = WAVELENGTHS


def _bump(centre: float, width: float, height: float = 1.0) -> np.ndarray:
    return height * np.exp(-0.5 * ((_W - centre) / width) ** 2)


def _step(centre: float, width: float) -> np.ndarray:
    return 1 / (1 + np.exp(-(_W - centre) / width))


def _plant(
    pigment: float,
    plateau: float,
    water: float = 1.0,
    dry: float = 0.0,
    flower: float = 0.0,
    edge: float = 712.0,
    carotene: float = 1.0,
) -> np.ndarray:
    """Canopy: ``pigment`` and ``water`` relative to a healthy leaf, ``plateau`` the near-infrared reflectance.

    ``edge`` is where the red edge stands (nm), ``carotene`` the yellow pigments relative to the green ones.
    """
    pigments = _bump(440, 45, 2.2) + _bump(488, 24, 1.1 * carotene) + _bump(600, 48, 0.75) + _bump(675, 22, 2.3)
    liquid = _bump(970, 26, 0.07) + _bump(1200, 45, 0.17) + _bump(1450, 60, 1.1) + _bump(1940, 95, 1.8)
    liquid = liquid + 0.15 * _step(1330, 40) + _bump(2600, 330, 1.6)
    lignin = _bump(1730, 35, 0.08) + _bump(2100, 65, 0.3) + _bump(2310, 70, 0.4) + _bump(920, 22, 0.02)
    green = 0.115 + 0.30 * flower * _step(515, 12)
    level = green + (plateau - green) * _step(edge, 12)
    return 0.012 + level * np.exp(-pigment * pigments * (1 - _step(edge + 8, 9)) - water * liquid - dry * lignin)


def _litter(level: float, cellulose: float = 1.0, age: float = 0.0) -> np.ndarray:
    """Dry plant matter: straw, dead grass, leaves on the ground."""
    absorption = _bump(1450, 50, 0.25) + _bump(1730, 30, 0.08) + _bump(1940, 70, 0.4)
    absorption = absorption + cellulose * (_bump(2100, 70, 0.35) + _bump(2310, 65, 0.3))
    return level * (0.22 + 0.95 * _step(655 + 60 * age, 120)) * np.exp(-absorption)


def _soil(level: float, iron: float, moist: float = 0.0, clay: float = 0.3, lime: float = 0.1) -> np.ndarray:
    line = level * (0.22 + 0.95 * (1 - np.exp(-(_W - 330) / 480)))
    oxides = _bump(480, 45, 0.5) + _bump(540, 35, 0.24) + _bump(650, 40, 0.06) + _bump(885, 65, 0.14)
    water = _bump(970, 30, 0.05 * moist) + _bump(1200, 50, 0.09 * moist)
    water = water + _bump(1410, 28, 0.1 + 0.5 * moist) + _bump(1920, 50, 0.2 + 0.8 * moist)
    minerals = _bump(2205, 20, clay) + _bump(2340, 25, lime)
    return line * np.exp(-iron * oxides - water - minerals) * (1 - 0.5 * moist)


_PURE = (  # absorption of pure water, 1/m, at wavelengths in nm
    (390, 450, 500, 550, 575, 600, 625, 650, 675, 700, 725, 740, 750, 775, 800, 830, 850, 900, 930, 960, 1000, 2400),
    (
        0.02,
        0.01,
        0.02,
        0.06,
        0.08,
        0.22,
        0.28,
        0.34,
        0.44,
        0.62,
        1.5,
        2.4,
        2.6,
        2.4,
        2.1,
        3.2,
        4.3,
        6.5,
        14,
        38,
        40,
        500,
    ),
)


def _water(particles: float, algae: float, dissolved: float = 0.08, bottom: float = 0.0) -> np.ndarray:
    """Open water seen from above: backscatter over backscatter plus absorption, a bottom, and surface glint."""
    pure = np.interp(_W, *_PURE)
    absorbed = pure + (dissolved + 0.25 * algae) * np.exp(-(_W - 440) / 85)
    absorbed = absorbed + algae * (_bump(675, 12, 0.4) + _bump(622, 14, 0.16))
    absorbed = absorbed + 0.5 * particles * np.exp(-(_W - 440) / 110)
    back = 0.006 + 0.13 * particles * (550 / _W) ** 0.6 + 0.03 * algae * _bump(705, 12)
    return 0.012 + 0.33 * back / (absorbed + back) + bottom * np.exp(-3.2 * pure)


def _grey(level: float, slope: float = 0.0, tar: float = 0.0, lime: float = 0.0, rust: float = 0.0) -> np.ndarray:
    """Stone, asphalt, steel, plastic: a straight line with bands of C–H (``tar``), carbonate and iron oxide."""
    tilt = (1 + slope * (_W - 1000) / 1000) * (1 - 0.3 * np.exp(-(_W - 390) / 95))
    bands = tar * (_bump(930, 20, 0.25) + _bump(1215, 25, 0.5) + _bump(1730, 25) + _bump(2310, 35, 1.5))
    oxides = rust * (_bump(480, 60, 0.6) + _bump(540, 40, 0.25) + _bump(880, 70, 0.2))
    return level * tilt * np.exp(-bands - oxides - lime * (_bump(2340, 28) + _bump(1940, 60, 0.8)))


def _paint(
    centre: float, width: float, height: float, infrared: float, dull: float = 0.05, tar: float = 0.2
) -> np.ndarray:
    bands = tar * (_bump(930, 20, 0.3) + _bump(1730, 25) + _bump(2310, 40))
    return dull + _bump(centre, width, height) + infrared * _step(760, 40) * np.exp(-bands)


def _clay_tile(level: float, iron: float = 1.0, moss: float = 0.0) -> np.ndarray:
    tile = level * (0.24 + 0.78 * _step(588, 30)) * np.exp(-iron * (_bump(530, 25, 0.15) + _bump(870, 65, 0.16)))
    return tile * np.exp(-_bump(2210, 25, 0.06) - moss * (_bump(675, 22, 0.5) + _bump(1450, 60, 0.3)))


def _cell(level: float, silicon: float = 1.0, glare: float = 0.02) -> np.ndarray:
    return glare + _bump(450, 45, 0.03 * silicon) + level * _step(1090, 35)


class Material(NamedTuple):
    """Reflectance (W,) and its relative change (MODES, W) by one standard deviation of each mode."""

    curve: np.ndarray
    modes: np.ndarray


_VISIBLE = 1 - _step(735, 28)
_BRIGHT, _WARM = 0.17 * _VISIBLE, 0.13 * (_W - 550) / 150 * _VISIBLE


def _made(
    shape: Callable,
    first: dict[str, float],
    second: dict[str, float],
    bright: float = 1.0,
    warm: float | None = None,
    **base,
) -> Material:
    """A material of a family: ``first`` and ``second`` are its parameters one standard deviation away.

    ``bright`` and ``warm`` (as ``bright`` unless given) scale the modes of the visible alone.
    """
    curve = shape(**base)
    modes = [0.5 * np.tanh(2 * np.log(shape(**(base | changed)) / curve)) for changed in (first, second)]
    return Material(curve, np.stack([*modes, bright * _BRIGHT, (bright if warm is None else warm) * _WARM]))


def _canopy(pigment: float, plateau: float, **base) -> Material:
    """A plant: more or less pigment (ripe, young, ill), and more or less water and leaves."""
    edge = base.get("edge", 712.0)
    ripe = {"pigment": 0.8 * pigment, "edge": edge - 4, "carotene": base.get("carotene", 1.0) * 1.12}
    if base.get("flower") is not None:
        ripe["flower"] = base["flower"] + 0.2
    lush = {"water": 0.8 * base.get("water", 1.0), "plateau": plateau * 0.91}
    return _made(_plant, ripe, lush, 0.9, 0.45, pigment=pigment, plateau=plateau, **base)


def _earth(level: float, iron: float, **base) -> Material:
    moist = base.get("moist", 0.0)
    return _made(_soil, {"iron": iron * 1.5 + 0.05}, {"moist": moist + 0.16}, 0.7, level=level, iron=iron, **base)


def _pool(particles: float, algae: float, **base) -> Material:
    return _made(
        _water,
        {"algae": algae * 1.5 + 0.02},
        {"particles": particles * 1.35},
        0.5,
        particles=particles,
        algae=algae,
        **base,
    )


def _stone(level: float, **base) -> Material:
    """Greys: ageing brings rust, dust and a steeper line."""
    aged = {"slope": base.get("slope", 0.0) + 0.06, "rust": base.get("rust", 0.0) + 0.12}
    worn = {"level": level * 1.1, "tar": base.get("tar", 0.0) * 0.7}
    return _made(_grey, aged, worn, level=level, **base)


def _tiles(level: float) -> Material:
    return _made(_clay_tile, {"iron": 1.5}, {"moss": 0.3}, level=level)


def _film(level: float, **base) -> Material:
    tar = base["tar"]
    return _made(_grey, {"tar": 1.25 * tar}, {"level": 0.92 * level}, 0.6, level=level, **base)


def _coat(centre: float, width: float, height: float, infrared: float, **base) -> Material:
    return _made(
        _paint,
        {"centre": centre + 10, "tar": 0.26},
        {"dull": 0.07},
        0.6,
        centre=centre,
        width=width,
        height=height,
        infrared=infrared,
        **base,
    )


def _dead(level: float, **base) -> Material:
    return _made(_litter, {"cellulose": 0.7}, {"age": base.get("age", 0.0) + 0.4}, 0.8, level=level, **base)


def _blend(a: Material, b: Material, share: float) -> Material:
    curve = (1 - share) * a.curve + share * b.curve
    return Material(curve, ((1 - share) * a.curve * a.modes + share * b.curve * b.modes) / curve)


_MUD, _TURBID = _earth(0.24, 0.4, moist=0.8), _pool(0.42, 0.12)
_GRAVEL = _blend(_stone(0.26, slope=0.25, lime=0.08), _earth(0.33, 0.45), 0.4)

MATERIALS: dict[str, Material] = {
    "clear water": _pool(0.06, 0.05),
    "turbid water": _TURBID,
    "green water": _pool(0.22, 1.1),
    "mud": _MUD,
    "dark soil": _earth(0.21, 0.35),
    "light soil": _earth(0.33, 0.5, lime=0.25),
    "red soil": _earth(0.29, 1.6, clay=0.4),
    "sand": _earth(0.43, 0.35, clay=0.1),
    "rock": _blend(_stone(0.21, slope=0.3, lime=0.1), _earth(0.25, 0.5), 0.5),
    "new asphalt": _stone(0.085, slope=0.3, tar=0.06),
    "old asphalt": _stone(0.165, slope=0.3, tar=0.04, rust=0.1),
    "concrete": _stone(0.31, slope=0.14, lime=0.12),
    "ballast": _stone(0.19, slope=0.3, rust=0.45),
    "red tile": _tiles(0.34),
    "brown tile": _tiles(0.21),
    "grey roof": _stone(0.22, slope=0.2, tar=0.04),
    "dark roof": _stone(0.11, slope=0.15, tar=0.1),
    "white roof": _stone(0.5, slope=-0.04, tar=0.12),
    "blue steel": _coat(470, 55, 0.22, 0.28),
    "bare steel": _stone(0.38, slope=0.1),
    "plastic film": _film(0.42, slope=-0.08, tar=0.35),
    "synthetic turf": _coat(545, 42, 0.05, 0.2, dull=0.03, tar=0.3),
    "running track": _tiles(0.28),
    "broad leaf": _canopy(1.15, 0.43, carotene=1.05),
    "conifer": _canopy(1.3, 0.28, dry=0.4, edge=707.0, carotene=0.9),
    "shrub": _canopy(0.95, 0.33, dry=0.6, edge=709.0),
    "grass": _canopy(0.82, 0.40, edge=710.0),
    "lawn": _canopy(0.95, 0.44, edge=713.0, carotene=0.92),
    "dead grass": _dead(0.33),
    "rice": _canopy(0.95, 0.41, water=1.3, edge=714.0),
    "wheat": _canopy(1.0, 0.44, edge=717.0, carotene=1.1),
    "maize": _canopy(1.05, 0.47, edge=715.0, carotene=0.95),
    "vegetables": _canopy(0.75, 0.45, water=1.25),
    "rape": _canopy(0.9, 0.46, flower=0.0, edge=711.0, carotene=1.1),
    "straw": _dead(0.41),
    "soybean": _canopy(0.9, 0.54, edge=713.0, carotene=0.9),
    "barley": _canopy(0.85, 0.42, dry=0.3, edge=715.0, carotene=1.15),
    "oats": _canopy(0.88, 0.41, water=1.15, edge=714.0),
    "sunflower": _canopy(0.85, 0.48, flower=0.0, edge=710.0),
    "potatoes": _canopy(1.0, 0.50, water=1.3, edge=711.0, carotene=0.95),
    "alfalfa": _canopy(1.08, 0.48, edge=716.0, carotene=1.05),
    "vine": _canopy(0.95, 0.38, dry=0.2, edge=709.0, carotene=1.08),
    "reeds": _canopy(0.7, 0.31, dry=0.9, edge=708.0),
    "woodland floor": _blend(_dead(0.2, age=0.8), _canopy(0.95, 0.3, dry=0.6), 0.3),
    "flooded mud": _blend(_MUD, _TURBID, 0.6),
    "white paint": _stone(0.62, slope=-0.1, tar=0.03),
    "dark paint": _stone(0.05, slope=0.1, tar=0.05),
    "red paint": _coat(640, 38, 0.3, 0.3),
    "blue paint": _coat(460, 40, 0.18, 0.22),
    "glass": _stone(0.13, slope=0.05),
    "solar cell": _made(_cell, {"silicon": 1.5}, {"glare": 0.03}, 0.5, level=0.12),
    "black film": _film(0.06, slope=0.1, tar=0.3),
    "gravel": _GRAVEL,
    "pool water": _made(_water, {"particles": 0.03}, {"bottom": 0.32}, 0.4, particles=0.02, algae=0.0, bottom=0.38),
    "tarpaulin": _coat(470, 42, 0.22, 0.25, tar=0.4),
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
    "rice": Kind("rice", "flooded mud", "straw", "rice"),
    "early rice": Kind("rice", "flooded mud", "straw", "early rice"),
    "wheat and maize": Kind("maize", "dark soil", "straw", "wheat and maize"),
    "wheat": Kind("wheat", "dark soil", "straw", "wheat"),
    "maize": Kind("maize", "dark soil", "straw", "maize"),
    "vegetables": Kind("vegetables", "dark soil", "plastic film", "vegetables"),
    "rape": Kind("rape", "dark soil", "straw", "rape"),
    "fallow": Kind("grass", "dark soil", "dead grass", "weeds"),
    "greenhouse": Kind("plastic film", "dark soil", "vegetables"),
    "orchard": Kind("broad leaf", "dark soil", "dead grass", "leaves"),
    "broadleaf forest": Kind("broad leaf", "woodland floor", "dead grass", "leaves"),
    "conifer forest": Kind("conifer", "woodland floor", "dark soil"),
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
    "soybean": Kind("soybean", "dark soil", "straw", "soybean"),
    "barley": Kind("barley", "dark soil", "straw", "barley"),
    "oats": Kind("oats", "dark soil", "straw", "oats"),
    "sunflower": Kind("sunflower", "dark soil", "straw", "sunflower"),
    "potatoes": Kind("potatoes", "dark soil", "straw", "potatoes"),
    "alfalfa": Kind("alfalfa", "dark soil", "dead grass", "alfalfa"),
    "vineyard": Kind("vine", "dark soil", "dead grass", "vines"),
    "street conifers": Kind("conifer", "lawn", "concrete"),
    "hedge": Kind("shrub", "lawn", "dead grass", "leaves"),
    "white car": Kind("white paint", "old asphalt", "glass"),
    "dark car": Kind("dark paint", "old asphalt", "glass"),
    "red car": Kind("red paint", "old asphalt", "glass"),
    "truck": Kind("white paint", "old asphalt", "dark paint"),
    "aircraft": Kind("white paint", "concrete", "bare steel"),
    "train": Kind("bare steel", "ballast", "blue paint"),
    "paving": Kind("concrete", "gravel", "lawn"),
    "gravel": Kind("gravel", "light soil", "dead grass"),
    "road marking": Kind("white paint", "old asphalt", "concrete"),
    "swimming pool": Kind("pool water", "concrete", "clear water"),
    "container": Kind("red paint", "blue paint", "bare steel"),
    "solar panel": Kind("solar cell", "bare steel", "lawn"),
    "glass greenhouse": Kind("glass", "vegetables", "dark soil"),
    "plastic mulch": Kind("black film", "dark soil", "vegetables"),
    "reeds": Kind("reeds", "mud", "dead grass", "reeds"),
    "tarpaulin": Kind("tarpaulin", "plastic film", "dark soil"),
}
KIND = {name: n for n, name in enumerate(KINDS)}

GROUPS: dict[str, tuple[str, ...]] = {
    "roofs": ("red roof", "brown roof", "grey roof", "dark roof", "white roof", "blue roof", "steel roof"),
    "cars": ("white car", "dark car", "red car", "truck"),
    "paved": ("asphalt", "old asphalt", "concrete", "paving", "gravel", "road marking"),
    "trees": ("orchard", "broadleaf forest", "conifer forest", "street trees", "street conifers", "hedge"),
    "grasses": ("meadow", "wet meadow", "sown grass", "lawn", "fallow", "alfalfa", "reeds"),
    "crops": (
        *("rice", "early rice", "wheat and maize", "wheat", "maize", "vegetables", "rape", "fallow", "soybean"),
        *("barley", "oats", "sunflower", "potatoes", "alfalfa", "vineyard", "plastic mulch"),
    ),
    "water": ("river water", "lake water", "pond water", "swimming pool"),
    "soils": ("bare soil", "sand", "rock", "building site", "dirt road"),
    "greenhouses": ("greenhouse", "glass greenhouse"),
}


@lru_cache(maxsize=64)
def _states(day: float) -> np.ndarray:
    return np.stack([states(kind.calendar, day) for kind in KINDS.values()], 1).astype(np.float32).reshape(3, -1)


def season(day: float) -> tuple[np.ndarray, np.ndarray]:
    """Green share and straw share of every kind and phase on a day of the year: two float32 (K · PHASES,)."""
    green, straw, _ = _states(day)
    return green, straw


def ripeness(day: float) -> np.ndarray:
    """How ripe or in flower the top of every kind and phase is, in units of its first mode: float32 (K · PHASES,)."""
    return _states(day)[2]


@lru_cache(maxsize=1)
def mixtures() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Material numbers (K,) of the top, the under and the third of every kind."""
    return tuple(np.array([MATERIAL[k[n]] for k in KINDS.values()], np.int64) for n in range(3))


def endmembers(centres: tuple[float, ...], widths: tuple[float, ...]) -> np.ndarray:
    """Reflectance (M, 1 + MODES, C) float32 of every material in bands with Gaussian responses (centre, width, nm).

    The first row of a material is its reflectance, the others what one standard deviation of each mode adds to it.
    Widths are full widths at half maximum, at least 2.5 nm.
    """
    c, w = np.array(centres, float)[:, None], np.array(widths, float)[:, None]
    if (w < 2.5).any() or (c < WAVELENGTHS[0]).any() or (c > WAVELENGTHS[-1]).any():
        raise ValueError("bands must lie within 390–2400 nm and be at least 2.5 nm wide.")
    response = np.exp(-4 * np.log(2) * ((_W - c) / w) ** 2)
    response /= response.sum(1, keepdims=True)
    curves = np.stack([np.concatenate([m.curve[None], m.curve * m.modes]) for m in MATERIALS.values()])
    return (curves @ response.T).astype(np.float32)

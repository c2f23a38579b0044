"""When plants are green: the year of every crop and of every kind of wild plant.

A year is a sum of growths, each a double logistic curve of the day of the year (Beck et al., 2006, "Improved
monitoring of vegetation dynamics at very high latitudes", Remote Sensing of Environment 100), which is the usual
form for the greenness of a field: it rises about one day and falls about another, and a harvest ends it within two
days. Dates are those of warm temperate farming as crop calendars give them (USDA, "Major world crop areas and
climatic profiles", Agriculture Handbook 664); a region shifts them.

Farmers differ: every name has up to four years (one crop or two, early or late varieties, spring or winter sowing),
and each field is up to 10 days early or late.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

PHASES = 256  # a hash of the parcel or plant: its low 3 bits say how late it is, the next 2 which year it follows
_DAYS = np.arange(365.0)
_LATE = np.array([-10, -7, -4, -1, 1, 4, 7, 10], float)  # days


class Growth(NamedTuple):
    """Half green on day ``up``, half withered on day ``down``, cut on day ``cut`` (0: never); 366 and more: next year.

    ``level`` is the share of full cover that it reaches, ``rise`` and ``fall`` the days that the change takes, and
    ``left`` the share of the ground that straw covers after the cut.
    """

    up: float
    down: float
    cut: float = 0
    level: float = 1.0
    rise: float = 9.0
    fall: float = 7.0
    left: float = 0.75


class Year(NamedTuple):
    """Growths on top of a cover that stays (``floor``), the dead matter between (``litter``), and flowers.

    ``flower`` is (day, days, how strong) or None.
    """

    growths: tuple[Growth, ...]
    floor: float = 0.0
    litter: float = 0.05
    flower: tuple[float, float, float] | None = None


def _winter(down: float, cut: float) -> tuple[Growth, Growth]:
    """A winter cereal: a thin cover from November, closed in spring."""
    return Growth(308, 440, level=0.32, rise=10, fall=9), Growth(75, down, cut, rise=10)


_WHEAT = _winter(148, 161)
_LEAVES = Growth(107, 301, rise=6, fall=8)
YEARS: dict[str, tuple[Year, ...]] = {
    "always": (Year((), floor=1.0, litter=0.0),),
    "rice": (
        Year((Growth(184, 268, 284),)),
        Year((Growth(176, 258, 273),)),
        Year((Growth(192, 279, 296),)),
        Year((Growth(70, 138, 150, 0.85), Growth(190, 272, 288))),
    ),
    "early rice": (
        Year((Growth(122, 190, 203), Growth(226, 298, 311))),
        Year((Growth(116, 184, 196), Growth(219, 292, 305))),
    ),
    "wheat and maize": (
        Year((*_WHEAT, Growth(196, 259, 273))),
        Year((*_winter(143, 155), Growth(190, 252, 266))),
    ),
    "wheat": (
        Year(_WHEAT),
        Year(_winter(156, 170)),
        Year((*_WHEAT, Growth(235, 320, 0, 0.6, left=0))),  # a catch crop after it
        Year((Growth(112, 188, 203),)),  # sown in spring
    ),
    "maize": (
        Year((Growth(160, 255, 273),)),
        Year((Growth(146, 240, 257),)),
        Year((Growth(170, 285, 246),)),  # silage
        Year((Growth(60, 120, 128, 0.6), Growth(172, 265, 283))),
    ),
    "soybean": (
        Year((Growth(172, 258, 276),)),
        Year((Growth(160, 247, 264),)),
        Year((*_WHEAT, Growth(203, 272, 288))),
    ),
    "barley": (Year(_winter(136, 149)), Year(_winter(140, 153)), Year((Growth(108, 180, 195),))),
    "oats": (Year((Growth(110, 189, 206),)), Year((Growth(102, 182, 198), Growth(240, 325, 0, 0.5, left=0)))),
    "sunflower": (
        Year((Growth(157, 234, 262),), flower=(201, 8, 1.6)),
        Year((Growth(146, 225, 250),), flower=(190, 8, 1.6)),
    ),
    "potatoes": (
        Year((Growth(146, 226, 250, left=0.25),)),
        Year((Growth(128, 190, 205, left=0.25), Growth(235, 320, 0, 0.5, left=0))),
    ),
    "alfalfa": (
        Year(
            (
                Growth(88, 200, 141, left=0.2),
                Growth(155, 250, 186, left=0.2),
                Growth(199, 290, 230, left=0.2),
                Growth(243, 310),
            ),
            floor=0.15,
        ),
        Year((Growth(92, 220, 156, left=0.2), Growth(170, 270, 209, left=0.2), Growth(224, 305)), floor=0.15),
    ),
    "rape": (
        Year((Growth(282, 447, level=0.6), Growth(84, 146, 158)), flower=(107, 9, 3.0)),
        Year((Growth(282, 447, level=0.6), Growth(84, 143, 155), Growth(196, 270, 286)), flower=(101, 9, 3.0)),
    ),
    "vegetables": (
        Year((Growth(75, 128, 130, 0.8), Growth(150, 205, 207, 0.8), Growth(230, 300, 303, 0.8)), 0.08, 0.1),
        Year((Growth(95, 170, 158, 0.85), Growth(185, 260, 250, 0.8)), 0.05, 0.15),
        Year((Growth(120, 200, 185, 0.9), Growth(215, 330, 318, 0.85)), 0.05, 0.1),
        Year((Growth(45, 105, 104, 0.8), Growth(128, 230, 222, 0.9), Growth(262, 400, 380, 0.6)), 0.05, 0.1),
    ),
    "weeds": (Year((Growth(120, 275, level=0.5, rise=18, fall=20),), 0.05, 0.35),),
    "leaves": (Year((_LEAVES,), floor=0.13, litter=0.0),),
    "vines": (Year((Growth(128, 297, rise=9),), floor=0.08),),
    "grass": (
        Year((Growth(96, 292, level=0.8, rise=12, fall=16),), 0.15, 0.1),
        Year((Growth(96, 205, level=0.8, rise=12, fall=16), Growth(255, 300, level=0.5, rise=10, fall=14)), 0.15, 0.1),
        Year((Growth(96, 182, level=0.75, rise=12, fall=14), Growth(258, 304, level=0.45, rise=10, fall=14)), 0.1, 0.4),
    ),
    "sown grass": (
        Year((Growth(84, 310, level=0.55, rise=10, fall=14),), 0.4),
        Year(
            (Growth(82, 220, 152, 0.55, left=0.1), Growth(170, 270, 214, 0.5, left=0.1), Growth(232, 315, 0, 0.5)), 0.4
        ),
        Year((Growth(84, 178, level=0.5, rise=10, fall=12), Growth(252, 312, level=0.4, rise=10, fall=14)), 0.27, 0.4),
    ),
    "reeds": (Year((Growth(128, 283, level=0.95, rise=12, fall=12),), 0.04, 0.5),),
}


@lru_cache(maxsize=1)
def _curves() -> dict[str, np.ndarray]:
    """Every name's curves (years, 3, 365): green share, straw share, and how ripe or in flower the green part is."""
    return {name: np.stack([_year(year) for year in years]) for name, years in YEARS.items()}


def _rise(day: float, width: float, days: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(np.clip((day - days) / width, -40, 40)))


def _year(year: Year) -> np.ndarray:
    out = np.zeros((3, 365))
    for shift in (-365, 0, 365):
        t = _DAYS + 1 + shift
        for g in year.growths:
            up, down, cut = _rise(g.up, g.rise, t), _rise(g.down, g.fall, t), _rise(g.cut, 1.0, t) if g.cut else 0.0
            standing = (1 - cut) if g.cut else 1.0
            out[0] += g.level * up * (1 - down) * standing
            out[1] += 0.8 * g.level * up * down * standing if g.cut > g.down else 0.0
            if g.cut:
                out[1] += g.left * cut * np.exp(-np.clip(t - g.cut, 0, None) / 45)
            ripe = _rise(g.down - 9, 6.0, t) * (1 - _rise(max(g.cut, g.down + 25), 6.0, t))
            out[2] += 2.0 * ripe if g.level > 0.5 else 0.0
        if year.flower:
            day, width, strength = year.flower
            out[2] += strength * np.exp(-0.5 * ((t - day) / width) ** 2)
    out[0] += year.floor
    out[1] += year.litter
    return np.clip(out, 0, [[1.0], [1.0], [3.0]])


def states(name: str, day: float) -> np.ndarray:
    """Green share, straw share and ripeness (3, PHASES) of every phase of a calendar on a day of the year.

    What is always there and what grows wild keeps its own time: there a phase is late by a third of the days.
    """
    curves = _curves()[name]
    phase = np.arange(PHASES)
    late = _LATE[phase % 8] * (1 / 3 if name in ("always", "leaves", "grass", "reeds") else 1)
    when = (day - late - 1) % 365
    index, share = np.floor(when).astype(int), when % 1
    year = phase // 8 % len(curves)
    now, next_ = curves[year, :, index % 365], curves[year, :, (index + 1) % 365]
    return (now * (1 - share[:, None]) + next_ * share[:, None]).T

"""The data sets of the twin, as data: which sensors see which places, under which legend, how many and how large.

Every preset stands for a published data set and has its bands, pixel size, legend, patch size and splits; ``paper``
is the size of the real one, the other profiles are smaller. Nothing here renders; ``datasets`` does.

Where the patches lie is said by ``Area``. Areas of different splits are never the same region, or lie ``APART``
metres from each other in it, which is more than the search for a rare class may wander.
"""

from dataclasses import dataclass, field
from functools import lru_cache

from hierlab.twin import regions

EXTENT = 61_440  # metres: patches start from uniform places in a square of this side
REACH = 120_000  # metres: how far from there a town, and from the town a class, is looked for
APART = 800_000  # metres from the square of one split to that of the next in the same region
SPLITS = ("train", "val", "test")
PROFILES = ("smoke", "laptop", "gpu", "paper")


@dataclass(frozen=True)
class Area:
    """A square of ``EXTENT`` metres whose corner is (x, y), in the ``turn``-th region that the preset wishes for."""

    turn: int
    x: int = 0
    y: int = 0

    @property
    def reach(self) -> tuple[int, int, int, int]:
        """West, north, east, south of all ground that patches started here may show, metres."""
        room = 2 * REACH + 20_000
        return self.x - room, self.y - room, self.x + EXTENT + room, self.y + EXTENT + room


@dataclass(frozen=True)
class Part:
    """A part of a data set that an option may pick: a state of Chesapeake, LoveDA's towns or its countryside.

    ``areas`` by split; ``share`` how many of the real set's patches lie in it, by split; ``near`` the leaf classes
    near which its patches start (none: anywhere).
    """

    value: str | int
    areas: dict[str, tuple[Area, ...]]
    share: dict[str, int]
    near: tuple[str, ...] = ()


@dataclass(frozen=True)
class Preset:
    """One data set.

    ``sensor`` makes the image and ``series`` the time series (None: there is none); ``tree`` is the class tree and
    the legend of the same name; ``scenes``: one class an image in place of a label map. ``product`` names the label
    product of ``label_lr``. ``patch`` is the side of an item in pixels by profile, ``count`` the number of items by
    profile and split. ``tile`` is, by profile, the (height, width) of the real set's files where these are larger
    than an item, and ``tiles`` their number, by profile and split. ``wish`` bounds the style of the regions
    (``regions.like``) and ``first`` is the number from which they are looked for. ``group``: sets of one group
    show the same places. ``option`` is the option that picks one of ``parts`` and ``whole`` its value for all of
    them, the default; ``options`` are the others with their values, the default first.
    """

    title: str
    sensor: str | None
    tree: str
    patch: dict[str, int]
    count: dict[str, dict[str, int]]
    parts: tuple[Part, ...]
    first: int
    series: str | None = None
    product: str | None = None
    scenes: bool = False
    year: int = 2020
    wish: dict[str, tuple[float, float]] = field(default_factory=dict)
    group: str | None = None
    option: str | None = None
    whole: str = "all"
    options: dict[str, tuple] = field(default_factory=dict)
    tile: dict[str, tuple[int, int]] | None = None
    tiles: dict[str, dict[str, int]] | None = None

    @property
    def values(self) -> dict[str, tuple]:
        """Every option with the values that it may take, the default first."""
        parts = {self.option: (self.whole, *(p.value for p in self.parts))} if self.option else {}
        return parts | self.options


@lru_cache(maxsize=256)
def region_of(name: str, seed: int, turn: int) -> int:
    """The number of the ``turn``-th region of a preset: the style that it wishes for, under this seed."""
    preset = PRESETS[name]
    if not preset.wish:
        return preset.first + turn
    return regions.like(seed, turn + 1, preset.first, **preset.wish)[turn]


def _turns(smoke: tuple, laptop: tuple, gpu: tuple, paper: tuple) -> dict[str, dict[str, int]]:
    """Counts by profile and split from triples (train, val, test)."""
    return {p: dict(zip(SPLITS, n, strict=True)) for p, n in zip(PROFILES, (smoke, laptop, gpu, paper), strict=True)}


def _patch(smoke: int, laptop: int, gpu: int, paper: int) -> dict[str, int]:
    return {"smoke": smoke, "laptop": laptop, "gpu": gpu, "paper": paper}


def _regions(train: int, val: int, test: int) -> dict[str, tuple[Area, ...]]:
    """Splits in different regions: so many for each."""
    ends = (0, train, train + val, train + val + test)
    return {split: tuple(Area(n) for n in range(ends[i], ends[i + 1])) for i, split in enumerate(SPLITS)}


def _squares(*turns: int) -> dict[str, tuple[Area, ...]]:
    """Splits side by side in the same regions."""
    return {split: tuple(Area(n, i * APART) for n in turns) for i, split in enumerate(SPLITS)}


def _one(areas: dict[str, tuple[Area, ...]], *near: str) -> tuple[Part, ...]:
    """The only part of a set that is not divided."""
    return (Part("all", areas, dict.fromkeys(SPLITS, 1), near),)


def _share(train: int, val: int, test: int) -> dict[str, int]:
    return dict(zip(SPLITS, (train, val, test), strict=True))


_STATES = ("de", "md", "ny", "pa", "va", "wv")
_MM5B = {"tree": "mm5b", "group": "mm5b", "parts": _one(_regions(8, 3, 3)), "first": 0}
_MM5B_SMALL = ((16, 8, 8), (256, 64, 64), (640, 128, 128))

PRESETS: dict[str, Preset] = {
    # 107 and 29 scenes; the paper counts 15,091 and 4,110 patches (Section V.A) and has no test split: as long as val.
    "mm5b-gaofen2": Preset(
        title="MM-5B, GaoFen-2: 18 land uses at 4 m",
        sensor="gaofen2",
        patch=_patch(64, 128, 640, 640),
        count=_turns(*_MM5B_SMALL, (15_091, 4_110, 4_110)),
        **_MM5B,
    ),
    "mm5b-sentinel2": Preset(
        title="MM-5B, Sentinel-2: the same places in 10 bands at 10 m",
        sensor="sentinel2",
        patch=_patch(64, 128, 512, 512),
        count=_turns(*_MM5B_SMALL, (2_370, 632, 632)),
        **_MM5B,
    ),
    "mm5b-google": Preset(
        title="MM-5B, Google Earth: the same places in RGB at 2 m",
        sensor="google-2m",
        patch=_patch(64, 128, 896, 896),
        count=_turns(*_MM5B_SMALL, (28_679, 7_635, 7_635)),
        **_MM5B,
    ),
    # Cool plains where soybean, maize and rice grow, as in Heilongjiang. The paper has no test split.
    "crop10m": Preset(
        title="Crop10m: rice, corn and soybean on Sentinel-2",
        sensor="sentinel2",
        tree="crop10m",
        patch=_patch(64, 128, 512, 512),
        count=_turns((16, 8, 8), (192, 64, 64), (320, 96, 96), (678, 296, 296)),
        parts=_one(_regions(3, 2, 2), "dry cropland", "paddy field"),
        first=20_000,
        wish={"warm": (0.3, 0.75), "wet": (0.05, 0.5), "hilly": (-0.35, 0.1)},
    ),
    "whdld": Preset(
        title="WHDLD: six classes of a city and its surroundings, RGB at 2 m",
        sensor="google-2m",
        tree="whdld",
        patch=_patch(64, 128, 256, 256),
        count=_turns((16, 8, 8), (256, 64, 64), (768, 256, 256), (3_294, 1_646, 1_646)),
        parts=_one(_squares(0), "urban residential", "lake", "river", "dry cropland"),
        first=40_000,
        wish={"warm": (0.4, 1), "wet": (0, 0.5)},
    ),
    # 50 random 224 patches a tile. 100 train, 5 validation and 20 test tiles a state, 82 for training in Delaware.
    "chesapeake": Preset(
        title="Chesapeake Bay: NAIP at 1 m, NLCD at 30 m as training labels",
        sensor="naip",
        tree="chesapeake",
        product="nlcd",
        patch=_patch(64, 128, 224, 224),
        count=_turns((12, 6, 6), (192, 48, 96), (960, 120, 480), (29_100, 1_500, 6_000)),
        option="state",
        parts=tuple(
            Part(n, _squares(n), _share(82 if state == "de" else 100, 5, 20)) for n, state in enumerate(_STATES)
        ),
        first=60_000,
        tile={"smoke": (150, 120), "laptop": (750, 600), "gpu": (1500, 1200), "paper": (7500, 6000)},
        tiles=_turns((6, 6, 6), (12, 6, 6), (60, 12, 24), (582, 30, 120)),
    ),
    # All 403 tiles are mapped from their low-resolution labels, and all are scored; val is the twin's own.
    "poland": Preset(
        title="Poland: aerial RGB at 0.5 m, one of four global products as training labels",
        sensor="aerial-50cm",
        tree="poland",
        patch=_patch(64, 128, 224, 1024),
        count=_turns((14, 6, 6), (192, 48, 96), (640, 96, 320), (403, 42, 403)),
        parts=_one({s: tuple(Area(n, i * APART) for n in range(14)) for i, s in enumerate(SPLITS)}),
        first=80_000,
        wish={"warm": (0.1, 0.6)},
        options={"product": ("from-glc10", "esa-worldcover", "esri", "glc-fcs30")},
    ),
    "loveda": Preset(
        title="LoveDA: towns and countryside, RGB at 0.3 m",
        sensor="aerial-30cm",
        tree="loveda",
        patch=_patch(64, 128, 512, 1024),
        count=_turns((16, 8, 8), (192, 64, 64), (640, 160, 160), (2_522, 1_669, 1_796)),
        option="domain",
        whole="both",
        parts=(
            Part("rural", _regions(3, 2, 2), _share(1_366, 992, 976), ("rural residential", "dry cropland", "forest")),
            Part("urban", _regions(3, 2, 2), _share(1_156, 677, 820), ("urban residential", "industrial area")),
        ),
        first=100_000,
        wish={"warm": (0.4, 1)},
    ),
    # 11 × 11 whole crops of 512 a tile of 6000.
    "potsdam": Preset(
        title="Potsdam: RGB and near infrared at 5 cm",
        sensor="ortho-5cm",
        tree="potsdam",
        patch=_patch(64, 128, 512, 512),
        count=_turns((16, 8, 8), (192, 64, 64), (640, 160, 160), (2_783, 1_694, 1_694)),
        parts=_one(_squares(0), "urban residential", "park & square"),
        first=120_000,
        wish={"density": (0.9, 1.4), "gardens": (0.3, 1)},
        tile={"smoke": (128, 128), "laptop": (512, 512), "gpu": (2048, 2048), "paper": (6000, 6000)},
        tiles=_turns((4, 2, 2), (23, 14, 14), (23, 14, 14), (23, 14, 14)),
    ),
    # 4 × 4 whole crops of 512 a tile of 2064 × 2494, the mean size of the real ones.
    "vaihingen": Preset(
        title="Vaihingen: near infrared, red and green at 9 cm",
        sensor="ortho-9cm",
        tree="vaihingen",
        patch=_patch(64, 128, 512, 512),
        count=_turns((16, 8, 8), (192, 64, 64), (256, 128, 128), (256, 272, 272)),
        parts=_one(_squares(0), "rural residential", "urban residential"),
        first=140_000,
        wish={"gardens": (0.4, 1)},
        tile={"smoke": (128, 160), "laptop": (512, 640), "gpu": (1024, 1280), "paper": (2064, 2494)},
        tiles=_turns((4, 2, 2), (16, 17, 17), (16, 17, 17), (16, 17, 17)),
    ),
    # The paper's pre-training takes patches of 400 from a million images; val and test are the twin's own.
    "million-aid": Preset(
        title="Million-AID: whole scenes with one class each, RGB at 1 m",
        sensor="google-1m",
        tree="million-aid",
        scenes=True,
        patch=_patch(64, 128, 400, 400),
        count=_turns((16, 8, 8), (510, 102, 102), (4_080, 510, 510), (1_000_000, 10_000, 10_000)),
        parts=_one(_regions(6, 2, 2)),
        first=160_000,
    ),
    # The paper keeps 400,000 of two million crops of 256 by class balance.
    "mapillary": Preset(
        title="Stand-in for Mapillary: many fine classes, RGB at 0.25 m, for supervised pre-training",
        sensor="aerial-25cm",
        tree="mapillary",
        patch=_patch(64, 128, 256, 256),
        count=_turns((16, 8, 8), (256, 64, 64), (2_560, 256, 256), (400_000, 10_000, 10_000)),
        parts=_one(_regions(6, 2, 2), "urban residential", "road", "industrial area", "rural residential"),
        first=180_000,
    ),
    # 2,531 pairs, 6:1:3.
    "whu-h2sr-mt": Preset(
        title="WHU-H²SR-MT: 249 bands at 1 m and 31 dates of Sentinel-2",
        sensor="hyperspectral-1m",
        series="sentinel2-series",
        tree="h2sr",
        patch=_patch(60, 120, 300, 300),
        count=_turns((8, 4, 4), (96, 24, 48), (480, 80, 240), (1_519, 253, 759)),
        parts=_one(_squares(0, 1), "paddy field", "dry cropland", "rural residential"),
        first=200_000,
        wish={"warm": (0.3, 0.7), "film": (0.1, 0.5), "hilly": (-0.35, 0.2)},
        options={"series": ("sentinel2-series", "landsat8-series")},
    ),
    # One flight line of 1973 × 3975 pixels, cut 6:2:2 across; 64 × 64 chips.
    "aerorit": Preset(
        title="AeroRIT: a campus in 51 bands at 0.4 m",
        sensor="aerorit",
        tree="aerorit",
        patch=_patch(64, 64, 64, 64),
        count=_turns((12, 6, 6), (192, 64, 64), (1_116, 372, 372), (1_116, 372, 372)),
        parts=_one(_squares(0), "urban residential", "park & square"),
        first=220_000,
        wish={"density": (0.9, 1.4), "gardens": (0.3, 1)},
        tile={"smoke": (64, 96), "laptop": (256, 512), "gpu": (987, 1987), "paper": (1973, 2385)},
        tiles=_turns((1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 1, 1)),
    ),
    # 180,000 pairs, 6:2:2.
    "sen4agrinet": Preset(
        title="Sen4AgriNet: seven crops in 12 dates of Sentinel-2, 13 bands",
        sensor=None,
        series="sentinel2-12-dates",
        tree="sen4agrinet",
        patch=_patch(61, 61, 61, 61),
        count=_turns((8, 4, 4), (128, 48, 48), (1_200, 400, 400), (108_000, 36_000, 36_000)),
        parts=_one(_regions(6, 2, 2), "dry cropland", "paddy field"),
        first=240_000,
        wish={"warm": (0.4, 0.9), "hilly": (-0.35, 0.2)},
        year=2019,
    ),
}

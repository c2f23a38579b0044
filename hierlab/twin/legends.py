"""Every data set's class list as a mapping of one truth: the leaf of MM-5B and the kind below it.

A legend is a handful of rules. A rule gives a class to some kinds in some leaves, and a later rule overrules an
earlier one, so that each list reads from the general to the particular: ``("forest", "tree")`` says that crowns are
forest wherever they stand, ``("background", "tree", "settled")`` that those in settlements are not. Kinds are named
one by one or by cover (``COVERS``), leaves one by one or by group (``PLACES``); "*" is all. The class ``None`` is the
ignore label, given on purpose. Together the rules say something about every leaf with every kind, which is
checked when a legend is built.

``MERGES`` holds the published tables by which source codes (NLCD, the four products of the Poland set, …) are joined
to a few common classes. NLCD has two; "nlcd-dfc2021" is the default, and whoever reports a number says which it used.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from hierlab.tree import IGNORE, ClassTree
from hierlab.twin.ground import LEAVES
from hierlab.twin.spectra import GROUPS, KINDS

COVERS: dict[str, tuple[str, ...]] = {
    "roof": (*GROUPS["roofs"], "solar panel"),
    "vehicle": GROUPS["cars"],
    "object": ("aircraft", "train", "container", "tarpaulin"),
    "paved": GROUPS["paved"],
    "court": ("ballast", "track", "turf"),
    "dirt": ("dirt road",),
    "soil": ("bare soil", "sand", "rock", "building site"),
    "crop": tuple(k for k in GROUPS["crops"] if k != "vineyard"),
    "vineyard": ("vineyard",),
    "under glass": GROUPS["greenhouses"],
    "tree": ("broadleaf forest", "conifer forest", "street trees", "street conifers"),
    "orchard": ("orchard",),
    "shrub": ("shrubland", "hedge"),
    "grass": ("meadow", "sown grass", "lawn"),
    "marsh": ("wet meadow", "reeds"),
    "water": ("river water", "lake water", "pond water"),
    "pool": ("swimming pool",),
}
"""A partition of the kinds by what a land-cover map would call them."""

PLACES: dict[str, tuple[str, ...]] = {
    "cropland": ("paddy field", "dry cropland"),
    "meadow": ("natural meadow", "artificial meadow"),
    "settled": ("industrial area", "urban residential", "rural residential", "stadium", "park & square"),
    "street": ("road", "overpass"),
    "traffic": ("road", "overpass", "railway station", "airport"),
    "open": ("forest", "natural meadow", "artificial meadow", "river", "lake", "pond", "bare land"),
}
"""Groups of leaves that the rules speak of."""

_BUILT = "roof | vehicle | object | paved | court | dirt | under glass | pool"
_GREEN = "crop | vineyard | tree | orchard | shrub | grass | marsh"

# (class, kinds or covers, leaves or places); the last two are "*" unless given.
_RULES: dict[str, tuple[tuple[str | None, ...], ...]] = {
    "mm5b": tuple((leaf, "*", leaf) for leaf in LEAVES),
    "crop10m": (
        ("other",),
        ("rice", "rice | early rice"),
        ("corn", "maize | wheat and maize"),  # the crop that stands in summer
        ("soybean", "soybean"),
    ),
    "whdld": (
        ("vegetation", _GREEN),
        ("pavement", _BUILT),
        ("road", "paved | vehicle | object | court | dirt", "street"),
        ("bare soil", "soil | dirt"),
        ("road", "dirt", "street"),
        ("building", "roof | under glass"),
        ("water", "water | pool"),
    ),
    "chesapeake": (
        ("low vegetation", _GREEN),
        ("impervious", f"{_BUILT} | soil"),  # barren ground joins the impervious
        ("low vegetation", "dirt", "cropland"),  # tracks between fields are grown over
        ("tree", "tree | orchard | hedge"),
        ("water", "water"),
    ),
    "nlcd16": (
        ("cultivated crops",),
        ("deciduous forest", "broadleaf forest | street trees"),
        ("evergreen forest", "conifer forest | street conifers"),
        ("shrub/scrub", "shrub"),
        ("grassland/herbaceous", "grass | fallow", "natural meadow | bare land | river | lake | pond | forest"),
        ("pasture/hay", "sown grass | alfalfa"),
        ("pasture/hay", "grass", "artificial meadow"),
        ("emergent herbaceous wetlands", "marsh"),
        ("barren land (rock/sand/clay)", "soil"),
        ("developed, low intensity", "roof | vehicle | object | paved | court | pool"),
        ("developed, low intensity", "dirt", "open"),
        ("developed, open space", "*", "settled | traffic"),
        ("developed, low intensity", _BUILT, "rural residential"),
        ("developed, medium intensity", _BUILT, "urban residential | park & square | street"),
        ("developed high intensity", _BUILT, "industrial area | stadium | railway station | airport"),
        ("barren land (rock/sand/clay)", "soil", "settled | traffic"),
        ("open water", "water"),
    ),
    "poland": (
        ("low vegetation", _GREEN),
        ("built-up", f"{_BUILT} | soil"),  # OpenEarthMap's bare land joins the built-up
        ("tree", "tree | orchard | hedge"),
        ("water", "water | pool"),
    ),
    "loveda": (
        ("background",),
        ("forest", "tree | hedge"),
        ("background", "tree | hedge", "settled | traffic"),
        ("forest", "tree", "park & square"),
        ("agriculture", "crop | vineyard | orchard | under glass"),
        ("agriculture", "grass | marsh | shrub | dirt | hedge", "cropland"),
        ("barren", "soil"),
        ("road", "paved | vehicle | object | court | dirt", "street"),
        ("building", "roof | glass greenhouse"),
        ("water", "water"),
    ),
    "potsdam": (
        ("impervious surfaces", "paved | dirt | court"),
        ("low vegetation", f"{_GREEN} | bare soil"),
        ("clutter", "object | water | pool | sand | rock | building site"),
        ("building", "roof | under glass"),
        ("tree", "tree | orchard | hedge"),
        ("car", "vehicle"),
    ),
    "h2sr": (
        (None,),  # bare land has no class
        ("grassland", "grass | marsh | crop"),
        ("paddy field", "*", "paddy field"),
        ("dry farmland", "*", "dry cropland"),
        ("dry farmland", "crop | vineyard", "open"),
        ("building", f"{_BUILT} | soil", "settled"),
        ("highway", "paved | vehicle | object | court | dirt", "traffic"),
        ("forest land", "tree | orchard | shrub"),
        ("forest land", "vineyard", "settled | traffic"),
        ("building", "roof"),
        ("greenhouse", "under glass"),
        ("water body", "water | pool"),
    ),
    "aerorit": (
        (None,),  # unspecified: bare ground, trains, containers, sports grounds
        ("vegetation", _GREEN),
        ("roads", "paved | dirt"),
        ("buildings", "roof | under glass"),
        ("water", "water | pool"),
        ("cars", "vehicle"),
    ),
    "sen4agrinet": (
        (None,),  # the seven crops that STSNet selects, nothing else
        ("wheat", "wheat"),
        ("maize", "maize | wheat and maize"),
        ("rice", "rice | early rice"),
        ("barley", "barley"),
        ("grapes", "vineyard"),
        ("rapeseed", "rape"),
        ("potatoes", "potatoes"),
    ),
    "mapillary": (
        *((kind, kind) for kind in KINDS),
        ("bridge deck", "paved", "overpass"),
        ("runway", "paved", "airport"),
    ),
    "million-aid": (
        (None,),
        ("dry field", "*", "dry cropland"),
        ("paddy field", "*", "paddy field"),
        ("meadow", "*", "meadow"),
        ("forest", "*", "forest"),
        ("bare land", "*", "bare land"),
        ("works", "*", "industrial area"),
        ("apartment", "*", "urban residential"),
        ("detached house", "*", "rural residential"),
        ("road", "*", "road"),
        ("railway", "ballast | train", "road"),
        ("viaduct", "*", "overpass"),
        ("train station", "*", "railway station"),
        ("runway", "*", "airport"),
        ("apron", "concrete | aircraft | roof", "airport"),
        ("stadium", "*", "stadium"),
        ("ground track field", "track | turf | lawn", "stadium"),
        ("orchard", "orchard"),
        ("sparse shrub land", "shrubland"),
        ("rock land", "rock"),
        ("greenhouse", "under glass"),
        ("parking lot", "vehicle", "settled"),
        ("solar power plant", "solar panel"),
        ("swimming pool", "pool"),
        ("river", "*", "river"),
        ("lake", "*", "lake | pond"),
    ),
    "from-glc10": (
        ("cropland", "*"),
        ("forest", "tree | orchard"),
        ("shrubland", "shrub"),
        ("grassland", "grass", "open"),
        ("impervious", "roof | vehicle | object | paved | court | dirt | pool"),
        ("grassland", "grass | crop", "settled | traffic"),
        ("wetland", "marsh"),
        ("bareland", "soil"),
        ("water", "water"),
    ),
    "worldcover": (
        ("cropland", "crop | vineyard"),
        ("grassland", "grass"),
        ("cropland", "*", "cropland"),
        ("tree cover", "tree | orchard"),
        ("shrubland", "shrub"),
        ("built-up", _BUILT),
        ("cropland", "under glass | dirt", "cropland"),
        ("herbaceous wetland", "marsh"),
        ("bare / sparse vegetation", "soil"),
        ("permanent water bodies", "water"),
    ),
    "esri": (
        ("crops", "crop | vineyard | orchard"),
        ("rangeland", "grass | shrub"),
        ("crops", "*", "cropland"),
        ("trees", "tree"),
        ("built area", _BUILT),
        ("built area", "grass | soil | shrub", "settled | traffic"),
        ("crops", "under glass | dirt", "cropland"),
        ("flooded vegetation", "marsh"),
        ("bare ground", "soil", "open | cropland"),
        ("water", "water"),
    ),
    "glc-fcs30": (
        ("rainfed cropland",),
        ("irrigated cropland", "*", "paddy field"),
        ("orchard", "orchard | vineyard"),
        ("herbaceous cover", "alfalfa | vegetables"),
        ("grassland", "grass", "open"),
        ("impervious surfaces", _BUILT),
        ("grassland", "grass", "settled | traffic"),
        ("rainfed cropland", "under glass | dirt", "cropland"),
        ("deciduous broadleaved forest", "broadleaf forest | street trees"),
        ("evergreen needleleaved forest", "conifer forest | street conifers"),
        ("shrubland", "shrub"),
        ("wetlands", "marsh"),
        ("bare areas", "soil"),
        ("water body", "water"),
    ),
}
_RULES["vaihingen"] = _RULES["potsdam"]
_TREES = {"nlcd16": "nlcd"}  # where the tree's name is not the legend's

SCENES: dict[str, float] = {
    **{"solar power plant": 0.2, "swimming pool": 0.1, "parking lot": 0.12, "ground track field": 0.08},
    **{"stadium": 0.08, "train station": 0.08, "viaduct": 0.04, "apron": 0.15, "runway": 0.2, "railway": 0.05},
    **{"greenhouse": 0.25, "orchard": 0.4, "rock land": 0.3, "sparse shrub land": 0.25},
}
"""From what share of the pixels on a scene of Million-AID is called so; the first that applies. Else the commonest."""


@dataclass(frozen=True)
class Legend:
    """A class list: ``table`` (18 leaves, K kinds) uint8 holds the index of a class, 255 for ignore.

    ``tree`` names the class tree whose leaves, in their order, are ``classes``.
    """

    name: str
    tree: str
    classes: tuple[str, ...]
    table: np.ndarray


@dataclass(frozen=True)
class Merge:
    """A published table that joins source codes to the leaves of the tree ``tree``; all other codes are void."""

    name: str
    tree: str
    source: str
    codes: dict[str, tuple[int, ...]]

    @cached_property
    def table(self) -> np.ndarray:
        """(256,) uint8: the label of every code, 255 where it is void."""
        classes = tree(self.tree).classes[-1]
        table = np.full(256, IGNORE, np.uint8)
        for name, codes in self.codes.items():
            table[list(codes)] = classes.index(name)
        return table

    def apply(self, codes: np.ndarray) -> np.ndarray:
        """Labels of the tree, uint8, for an array of source codes of any shape (integers 0–255)."""
        return self.table[codes]


def _merge(name: str, tree: str, source: str, *groups: str) -> Merge:
    codes = {c: tuple(map(int, group.split())) for c, group in zip(_UNIFIED[tree], groups, strict=True)}
    return Merge(name, tree, source, codes)


_UNIFIED = {
    "chesapeake": ("water", "tree", "low vegetation", "impervious"),
    "poland": ("tree", "low vegetation", "water", "built-up"),
}
_POLAND = "the four-class reading of Paraformer's Poland set that is in circulation"
MERGES: dict[str, Merge] = {
    m.name: m
    for m in (
        _merge(
            *("nlcd-dfc2021", "chesapeake", "2021 IEEE GRSS Data Fusion Contest, track MSD"),
            *("11", "41 42 43 52 90 95", "21 71 81 82", "22 23 24 31"),
        ),
        _merge(
            *("nlcd-later", "chesapeake", "a later table in use, with wetland and shrub as low vegetation"),
            *("11", "41 42 43 90", "31 52 71 81 82 95", "21 22 23 24"),
        ),
        _merge("chesapeake-hr", "chesapeake", "Chesapeake Conservancy land cover, seven codes", "1", "2", "3", "4 5 6"),
        _merge("openearthmap", "poland", _POLAND, "5", "2 7", "6", "1 3 4 8"),
        _merge("from-glc10", "poland", _POLAND, "2", "1 3 4", "5 6", "8 9"),
        _merge("esa-worldcover", "poland", _POLAND, "10 95", "20 30 40 100", "80 90", "50 60"),
        _merge("esri", "poland", _POLAND, "2", "3 5 6 11", "1 4", "7 8"),
        _merge("glc-fcs30", "poland", _POLAND, "60 61 62 70 72 90 120 180", "10 11 12 130 150", "210", "190"),
    )
}


def _numbers(text: str, groups: dict[str, tuple[str, ...]], names: tuple[str, ...]) -> list[int]:
    if text == "*":
        return list(range(len(names)))
    found = [n for part in text.split(" | ") for n in ([part] if part in names else groups[part])]
    return [names.index(n) for n in found]


@lru_cache(maxsize=32)
def tree(name: str) -> ClassTree:
    """A shipped class tree, read once."""
    return ClassTree.load(name)


@lru_cache(maxsize=32)
def _build(name: str) -> Legend:
    of_tree = _TREES.get(name, name)
    classes = tree(of_tree).classes[-1]
    table = np.full((len(LEAVES), len(KINDS)), IGNORE - 1, np.uint8)
    for rule in _RULES[name]:
        of, kinds, leaves = (*rule, "*", "*")[:3]
        where = np.ix_(_numbers(leaves, PLACES, LEAVES), _numbers(kinds, COVERS, tuple(KINDS)))
        table[where] = IGNORE if of is None else classes.index(of)
    if (table == IGNORE - 1).any():
        leaf, kind = np.argwhere(table == IGNORE - 1)[0]
        raise ValueError(f"The legend '{name}' says nothing about {list(KINDS)[kind]} in {LEAVES[leaf]}; add a rule.")
    table.setflags(write=False)
    return Legend(name, of_tree, classes, table)


class _Legends(Mapping):
    """The legends by name, each built when it is first asked for."""

    def __getitem__(self, name: str) -> Legend:
        if name not in _RULES:
            raise KeyError(name)
        return _build(name)

    def __iter__(self) -> Iterator[str]:
        return iter(_RULES)

    def __len__(self) -> int:
        return len(_RULES)


LEGENDS: Mapping[str, Legend] = _Legends()


def lookup(legend: str | Legend) -> Legend:
    """The legend of that name; a ``Legend`` is returned as it is. ValueError if there is none."""
    if isinstance(legend, Legend):
        return legend
    if legend not in LEGENDS:
        raise ValueError(f"no legend {legend!r} in the twin: choose one of {', '.join(LEGENDS)}.")
    return LEGENDS[legend]


def classify(leaf: np.ndarray, kind: np.ndarray, legend: str | Legend) -> np.ndarray:
    """Class indices (uint8, 255 = ignore) in a legend for leaves and kinds, integer arrays of one shape."""
    return lookup(legend).table[leaf, kind]


def scene(leaf: np.ndarray, kind: np.ndarray) -> int:
    """The scene class (index in the legend ``million-aid``) that a whole window (H, W) shows; 255 if it shows none.

    The first class of ``SCENES`` that reaches its share, else the commonest of the others.
    """
    classes = LEGENDS["million-aid"].classes
    counts = np.bincount(classify(leaf, kind, "million-aid").ravel(), minlength=IGNORE + 1)
    share = counts / leaf.size
    for name, least in SCENES.items():
        if share[classes.index(name)] >= least:
            return classes.index(name)
    common = [0 if name in SCENES else counts[n] for n, name in enumerate(classes)]
    return int(np.argmax(common)) if max(common) > 0 else IGNORE

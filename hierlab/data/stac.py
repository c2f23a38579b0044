"""Imagery from SpatioTemporal Asset Catalogs (STAC): search by collection, place and dates, choose, fetch.

A catalogue is a JSON document, on disk or on the web. Of a static one, the links ``child`` and ``item`` are followed;
one with a link ``search`` is an API and is asked. Nothing but plain JSON is read, and no key or token is used or sent.
"""

import json
import os
import re
import urllib.parse
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
from affine import Affine
from rasterio.features import rasterize
from rasterio.warp import transform_geom

from hierlab.data.download import answer_to, check_whole, download, multihash
from hierlab.data.grid import Grid, extent
from hierlab.data.mosaic import Band

MOST_DOCUMENTS = 100_000  # a catalogue with more is not walked to its end
LARGEST_DOCUMENT = 2**26  # bytes
# Names under which catalogues offer the bands of Sentinel-2 and of colour photographs
SENTINEL2 = {
    "B2": ("B2", "B02", "blue"), "B3": ("B3", "B03", "green"), "B4": ("B4", "B04", "red"),
    "B5": ("B5", "B05", "rededge1"), "B6": ("B6", "B06", "rededge2"), "B7": ("B7", "B07", "rededge3"),
    "B8": ("B8", "B08", "nir"), "B8A": ("B8A", "nir08"), "B11": ("B11", "swir16"), "B12": ("B12", "swir22"),
}  # fmt: skip
RGB = {"red": ("red", "Red", "R"), "green": ("green", "Green", "G"), "blue": ("blue", "Blue", "B")}


@dataclass(frozen=True)
class Item:
    """One item of a catalogue: an image taken at a place and a time, as ``assets`` (files, by key).

    ``geometry`` and ``bbox`` are in degrees; ``start`` and ``end`` its time (UTC); ``home`` the address of the item, to
    which its assets' addresses are relative.
    """

    id: str
    collection: str
    start: datetime
    end: datetime
    bbox: tuple[float, float, float, float]
    geometry: dict
    properties: dict
    assets: dict[str, dict]
    home: str

    @property
    def cloud(self) -> float:
        """Cloud cover in percent, 0 where the catalogue does not say."""
        return float(self.properties.get("eo:cloud_cover") or 0)

    @classmethod
    def from_dict(cls, content: dict, home: str) -> "Item":
        """From an item's JSON; ValueError where it has no time, place or assets."""
        try:
            facts = content["properties"]
            start = facts.get("datetime") or facts["start_datetime"]
            end = facts.get("datetime") or facts["end_datetime"]
            corners, half = content["bbox"], len(content["bbox"]) // 2
            return cls(
                content["id"], content.get("collection", ""), _time(start), _time(end),
                (*map(float, corners[:2]), *map(float, corners[half : half + 2])), content["geometry"],
                facts, content["assets"], home,
            )  # fmt: skip
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{home}: no STAC item ({type(error).__name__}: {error})") from None

    def address(self, key: str) -> str:
        """The absolute address of an asset."""
        return resolve(self.home, self.assets[key]["href"])

    def band(self, names: Sequence[str]) -> tuple[str, int]:
        """(asset key, number from 1) of the band that has one of ``names``; KeyError where there is none.

        First an asset of that key with a single band, then a band of that name inside one. Previews are left out.
        """
        for name in names:
            if name in self.assets and len(_bands(self.assets[name])) <= 1:
                return name, 1
        for key, asset in self.assets.items():
            if not {"thumbnail", "overview"} & set(asset.get("roles") or ()):
                for number, band in enumerate(_bands(asset), start=1):
                    if band.get("name") in names or band.get("common_name", band.get("eo:common_name")) in names:
                        return key, number
        raise KeyError(f"{self.home}: no band {' or '.join(names)} among the assets {', '.join(self.assets)}")

    def value(self, key: str, number: int) -> tuple[float, float, float | None]:
        """(scale, offset, nodata) of a band: its value is stored × scale + offset.

        As the catalogue says (``raster:bands``, or ``bands`` of STAC 1.1), with what is known of Sentinel-2 besides:
        from processing baseline 04.00 on, reflectance is (stored - 1000) / 10000, also where nothing is said; and where
        ``earthsearch:boa_offset_applied`` is set the offset is in the stored values already, whatever is said.
        """
        asset = self.assets[key]
        said = (asset.get("raster:bands") or asset.get("bands") or [{}] * number)[number - 1]
        scale, offset = (said.get(n, said.get(f"raster:{n}", asset.get(f"raster:{n}"))) for n in ("scale", "offset"))
        nodata = said.get("nodata", asset.get("nodata"))
        if scale is None and offset is None and float(self.properties.get("s2:processing_baseline") or 0) >= 4:
            scale, offset = 1e-4, -0.1
        if self.properties.get("earthsearch:boa_offset_applied") is True:
            offset = None
        return (
            1.0 if scale is None else float(scale),
            0.0 if offset is None else float(offset),
            float(nodata) if isinstance(nodata, int | float) else None,
        )


def dates(text: str) -> tuple[datetime, datetime]:
    """The first and the last moment of "2019-07-01/2019-10-31", or of one day or month (UTC); ValueError otherwise."""
    first, _, last = text.partition("/")
    try:
        start, end = _day(first)[0], _day(last or first)[1]
    except ValueError:
        raise ValueError(f"dates are given as YYYY-MM-DD, YYYY-MM or START/END, not {text!r}") from None
    if start > end:
        raise ValueError(f"the dates {text!r} end before they begin")
    return start, end


def search(
    catalog: str | os.PathLike,
    collection: str,
    bbox: tuple[float, float, float, float],
    start: datetime,
    end: datetime,
) -> list[Item]:
    """The items of a collection that meet a box (left, bottom, right, top; degrees) between two moments, by time.

    OSError where a document cannot be read, ValueError where it is no STAC document or the collection is unknown.
    """
    home = os.fspath(catalog)
    if not _remote(home):
        home = os.path.abspath(home)
        if os.path.isdir(home):
            home = os.path.join(home, "catalog.json")
    root = _read(home)
    ask = next((link for link in _links(root) if link.get("rel") == "search"), None)
    found = _ask(home, ask, collection, bbox, start, end) if ask else _walk(home, root, collection, bbox, start, end)
    items = {item.id: item for item in found if _meets(item, collection, bbox, start, end)}
    return sorted(items.values(), key=lambda item: (item.start, item.id))


def cover(items: Sequence[Item], grid: Grid, least: float = 1e-3, side: int = 512) -> tuple[list[Item], float]:
    """The items that cover a grid, clearest first, each of which adds ground, and the share that stays uncovered.

    An item is taken where it adds at least ``least`` of the grid, found on at most ``side`` cells a side. Items of
    equal cloud cover come in the order given.
    """
    left, _, _, top = extent(grid.transform, grid.height, grid.width)
    step = max(1, -(-max(grid.height, grid.width) // side))
    shape = -(-grid.height // step), -(-grid.width // step)
    transform = Affine(grid.transform.a * step, 0, left, 0, -abs(grid.transform.e) * step, top)
    open_, chosen = np.ones(shape, bool), []
    for item in sorted(items, key=lambda item: item.cloud):
        shape_there = transform_geom("EPSG:4326", grid.crs, item.geometry)
        seen = rasterize([shape_there], shape, transform=transform, all_touched=False).astype(bool)
        if (seen & open_).mean() >= least:
            chosen.append(item)
            open_ &= ~seen
    return chosen, float(open_.mean())


def bands(
    item: Item, names: dict[str, Sequence[str]], files: dict[str, str | os.PathLike], factor: float = 1.0
) -> list[Band]:
    """An item's bands as a layer of :func:`hierlab.data.mosaic.read_mosaic`.

    names: what the bands wanted may be called, say :data:`SENTINEL2`. files: the asset key's file, as fetched. factor:
    what a value is multiplied by after the catalogue's scale and offset; where it names neither, values stay as stored.
    """
    found = []
    for aliases in names.values():
        key, number = item.band(aliases)
        scale, offset, nodata = item.value(key, number)
        factor_here = 1.0 if (scale, offset) == (1.0, 0.0) else factor
        found.append(Band(files[key], number, scale * factor_here, offset * factor_here, nodata))
    return found


def assets(item: Item, names: dict[str, Sequence[str]]) -> list[str]:
    """The keys of the assets that hold the bands of :func:`bands`, each once. ValueError where a band is missing."""
    try:
        return list(dict.fromkeys(item.band(aliases)[0] for aliases in names.values()))
    except KeyError as error:
        raise ValueError(error.args[0]) from None


def fetch(item: Item, key: str, folder: str | os.PathLike) -> Path:
    """The file of an asset: the one on disk, or downloaded into ``folder``.

    Where the catalogue gives the file's size or checksum, another one is a ValueError. OSError where it cannot be had.
    """
    asset, address = item.assets[key], item.address(key)
    size, hashed = asset.get("file:size"), multihash(str(asset.get("file:checksum") or ""))
    if _remote(address):
        return download(address, folder, size, hashed)
    path = Path(address)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, which {item.home} names as its asset {key}")
    check_whole(path, size, hashed)
    return path


def resolve(home: str, address: str) -> str:
    """An address as a document at ``home`` means it. ValueError for schemes other than http(s) and files on disk, and
    where a document from the web points at a file on this disk."""
    if address.startswith("file://"):
        address = urllib.request.url2pathname(urllib.parse.urlsplit(address).path)
        if _remote(home):
            raise ValueError(f"{home} points at a file on this disk ({address}), which is not followed")
    if _remote(address):
        return address
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+:", address):
        raise ValueError(f"{home}: {address} is neither http(s) nor a file: use a catalogue that offers http")
    if _remote(home):
        return urllib.parse.urljoin(home, address)
    return os.path.normpath(os.path.join(os.path.dirname(home), address))


def _remote(address: str) -> bool:
    return address.startswith(("http://", "https://"))


def _time(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _day(text: str) -> tuple[datetime, datetime]:
    if re.fullmatch(r"\d{4}-\d{2}", text):
        first = date.fromisoformat(f"{text}-01")
        last = date(first.year + first.month // 12, first.month % 12 + 1, 1)
    else:
        first = date.fromisoformat(text)
        last = first + timedelta(1)
    start, end = (datetime(day.year, day.month, day.day, tzinfo=UTC) for day in (first, last))
    return start, end - timedelta(microseconds=1)


def _bands(asset: dict) -> list[dict]:
    return asset.get("eo:bands") or asset.get("bands") or []


def _links(document: dict) -> list[dict]:
    return [link for link in document.get("links") or () if isinstance(link, dict)]


def _meets(item: Item, collection: str, bbox, start: datetime, end: datetime) -> bool:
    left, bottom, right, top = item.bbox
    here = left < bbox[2] and right > bbox[0] and bottom < bbox[3] and top > bbox[1]
    return here and item.collection == collection and item.start <= end and item.end >= start


# -- reading documents ------------------------------------------------------------------------------------------------


def _read(address: str, body: dict | None = None) -> dict:
    """A JSON document from disk or from the web (with ``body``: the answer to it)."""
    if _remote(address):
        request = urllib.request.Request(address, headers={"Accept": "application/geo+json, application/json"})
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        with answer_to(request) as answer:
            text = answer.read(LARGEST_DOCUMENT + 1)
    else:
        if not os.path.isfile(address):
            raise FileNotFoundError(f"{address}: no such document of a STAC catalogue")
        text = Path(address).read_bytes()
    try:
        content = json.loads(text) if len(text) <= LARGEST_DOCUMENT else None
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise ValueError(f"{address}: no STAC document, which is a JSON object of at most {LARGEST_DOCUMENT} bytes")
    return content


def _ask(home: str, link: dict, collection: str, bbox, start: datetime, end: datetime) -> list[Item]:
    """All pages of an API's answer."""
    query = {"collections": [collection], "bbox": list(bbox), "limit": 200}
    query["datetime"] = "/".join(moment.strftime("%Y-%m-%dT%H:%M:%SZ") for moment in (start, end))
    flat = {key: ",".join(map(str, value)) if isinstance(value, list) else value for key, value in query.items()}
    address, body, found = f"{resolve(home, link['href'])}?{urllib.parse.urlencode(flat)}", None, []
    for _ in range(MOST_DOCUMENTS):
        page = _read(address, body)
        found += [Item.from_dict(feature, _self(feature, address)) for feature in page.get("features") or ()]
        following = next((link for link in _links(page) if link.get("rel") == "next"), None)
        if following is None:
            return found
        if following.get("method", "GET").upper() == "POST":
            body = (query if following.get("merge") else {}) | (following.get("body") or {})
        address = resolve(address, following["href"])
    raise ValueError(f"{home}: its answer does not end after {MOST_DOCUMENTS} pages")


def _self(feature: dict, address: str) -> str:
    own = next((link["href"] for link in _links(feature) if link.get("rel") == "self"), None)
    return resolve(address, own) if own else address


def _walk(home: str, root: dict, collection: str, bbox, start: datetime, end: datetime) -> list[Item]:
    """The items below a static catalogue, as far as they can belong to the collection."""
    found, names, seen, todo = [], set(), {home}, [(home, root)]
    while todo:
        address, document = todo.pop()
        kind = document.get("type")
        if kind == "Feature":
            found.append(Item.from_dict(document, address))
            continue
        if kind == "Collection":
            names.add(document.get("id"))
            if document.get("id") != collection:
                continue
        for link in _links(document):
            if link.get("rel") in ("child", "item") and "href" in link:
                there = resolve(address, link["href"])
                if there not in seen:
                    seen.add(there)
                    if len(seen) > MOST_DOCUMENTS:
                        raise ValueError(
                            f"{home} holds more than {MOST_DOCUMENTS} documents: use one that has a search"
                        )
                    todo.append((there, _read(there)))
    if not found and collection not in names:
        known = ", ".join(sorted(map(str, names))) or "none"
        raise ValueError(f"{home} has no collection '{collection}': it has {known}")
    return found

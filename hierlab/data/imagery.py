"""Images of a catalogue over a grid: chosen, fetched, and put together."""

import os
from collections.abc import Sequence
from pathlib import Path

from hierlab.data.grid import Grid, extent_in
from hierlab.data.manifest import checksum
from hierlab.data.mosaic import Band
from hierlab.data.ortho import WGS84
from hierlab.data.stac import Item, assets, bands, cover, dates, fetch, search


def choose(
    catalog: str | os.PathLike, collection: str, grid: Grid, when: str, most_cloud: float = 100.0
) -> tuple[list[Item], float]:
    """The clearest items that cover a grid, and the share of it that they cover.

    when: as :func:`hierlab.data.stac.dates` reads it. most_cloud: percent up to which an item is taken.
    """
    found = search(catalog, collection, extent_in(grid, WGS84), *dates(when))
    chosen, uncovered = cover([item for item in found if item.cloud <= most_cloud], grid)
    return chosen, 1 - uncovered


def layers(
    items: Sequence[Item], names: dict[str, Sequence[str]], folder: str | os.PathLike, factor: float = 1.0
) -> tuple[list[list[Band]], list[dict]]:
    """The items as layers of a mosaic, fetched into ``folder`` where they are on the web, and what they are, as JSON.

    names and factor: as for :func:`hierlab.data.stac.bands`. The JSON has, for an item, its id, time and cloud cover,
    its bands' scales and offsets, and its files' checksums.
    """
    made, told = [], []
    for item in items:
        files: dict[str, Path] = {key: fetch(item, key, folder) for key in assets(item, names)}
        made.append(bands(item, names, files, factor))
        about = {"id": item.id, "datetime": item.start.isoformat(), "cloud": item.cloud}
        about |= {"scale_offset": [[band.scale, band.offset] for band in made[-1]]}
        told.append(about | {"sha256": {key: checksum(path) for key, path in files.items()}})
    return made, told

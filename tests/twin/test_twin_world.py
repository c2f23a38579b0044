"""The world of the twin: exact at any cut and place, connected across tiles, all classes to be found."""

import numpy as np
import pytest

from hierlab import twin
from hierlab.twin import drainage, index, places, regions, sensor, spectra, world
from hierlab.twin.fields import Grid, scattered
from hierlab.twin.ground import LEAVES
from hierlab.twin.hashing import derive, key, mix, unit
from hierlab.twin.world import HALO, TILE

FAR = 10**12 // 4  # pixels: 10¹² m from the origin


def forget():
    """Empty every cache, so that nothing is remembered from a window rendered before."""
    for module in (drainage, index, places, regions, sensor, spectra, world):
        for f in vars(module).values():
            if hasattr(f, "cache_clear"):
                f.cache_clear()


def test_hashes_depend_on_all_64_bits_and_are_uniform():
    cells = np.array([0, 1, 2**32, 2**32 + 1, -1, 2**62])
    h = mix(key(1, "cells"), cells[None], cells[:, None])
    assert len(np.unique(h)) == h.size
    assert (mix(key(1, "cells"), cells, cells) == np.diag(h)).all()
    u = unit(derive(mix(key(0), np.arange(200)[None], np.arange(200)[:, None]), 3)).astype(float)
    assert u.min() >= 0 and u.max() < 1
    assert abs(u.mean() - 0.5) < 0.01 and abs(u.var() - 1 / 12) < 0.003
    assert abs(np.corrcoef(u[:, :-1].ravel(), u[:, 1:].ravel())[0, 1]) < 0.02


def test_scattered_does_not_depend_on_the_anchor():
    x, y = np.random.default_rng(0).integers(-9000, 9000, (2, 500)).astype(float)
    first = scattered(key(5), 1700, 10**12, -37, x, y)
    second = scattered(key(5), 1700, 10**12 - 123_456, 4321, x + 123_456, y - 4358)
    assert (first == second).all()


def test_noise_has_the_stated_variance():
    grid = Grid.of(0, 0, 0, 0, 400, 4000)
    for name, scale, octaves in (("a", 40, 1), ("b", 40, 3)):
        n = grid.noise(name, scale, octaves)
        assert abs(n.mean()) < 0.15 and 0.8 < n.std() < 1.2


@pytest.mark.parametrize("origin", [(3100, -2900), (FAR + 77, -FAR - 50)])
def test_a_window_is_the_same_however_it_is_cut(origin):
    x, y = origin
    whole = twin.render("gaofen2", 3, 1, (x, y, 150, 140))
    forget()
    image, label = np.zeros_like(whole.image), np.zeros_like(whole.label)
    g = np.random.default_rng(0)
    xs, ys = ([0, *sorted(g.choice(np.arange(1, n), 2, replace=False)), n] for n in (150, 140))
    parts = [(a, b) for a in range(3) for b in range(3)]
    g.shuffle(parts)
    for a, b in parts:
        window = (x + xs[a], y + ys[b], xs[a + 1] - xs[a], ys[b + 1] - ys[b])
        part = twin.render("gaofen2", 3, 1, window)
        place = np.s_[ys[b] : ys[b + 1], xs[a] : xs[a + 1]]
        image[(..., *place)], label[place] = part.image, part.label
    assert (image == whole.image).all()
    assert (label == whole.label).all()
    forget()
    assert (twin.truth(3, 1, (x + 9, y + 8, 90, 120), 4) == whole.label[8:128, 9:99]).all()


def test_seed_and_region_make_other_worlds():
    a, b, c = (twin.render("gaofen2", s, r, (0, 0, 64, 64)) for s, r in ((0, 0), (1, 0), (0, 1)))
    assert (a.image != b.image).mean() > 0.9 and (a.image != c.image).mean() > 0.9


@pytest.mark.parametrize("column, row", [(-9, 14), (FAR // TILE, 2)])
def test_neighbouring_tiles_agree_where_their_halos_meet(column, row):
    tile, east, south = (world.tile(0, 5, column + i, row + j, 4000).ground for i, j in ((0, 0), (1, 0), (0, 1)))
    for name in ("leaf", "kind"):
        a, b, c = (getattr(g, name) for g in (tile, east, south))
        assert (a[:, -2 * HALO :] == b[:, : 2 * HALO]).mean() > 0.999
        assert (a[-2 * HALO :] == c[: 2 * HALO]).mean() > 0.999


def test_rivers_flow_on_into_the_next_block():
    """A river's end is the start of another, a lake, or lies outside: no course ends on dry land."""
    box = (0, 0, 80_000, 80_000)
    water = drainage.near(0, 2, drainage.RIVER, 0, 0, box)
    pieces = drainage.RIVER.pieces
    starts, ends = water.courses[:, :2], water.courses[pieces - 1 :: pieces, 2:4]
    starts = np.concatenate([starts, water.lakes[:, :2]])
    inside = ((ends > 15_000) & (ends < 65_000)).all(1)
    assert inside.sum() > 20
    gap = np.hypot(*(ends[inside, None] - starts[None]).transpose(2, 0, 1)).min(1)
    assert gap.max() < 1


@pytest.mark.parametrize("leaf", LEAVES)
def test_every_class_is_found_where_the_index_says(leaf):
    x, y = twin.nearest(leaf, 20_000, 20_000, seed=0, region=9)
    around = twin.truth(0, 9, (x // 4 - 8, y // 4 - 8, 16, 16), 4)
    assert (around == LEAVES.index(leaf)).any()


def test_nothing_is_found_beyond_the_limit():
    assert twin.nearest("airport", 0, 0, limit=1) is None


def test_the_names_are_those_of_the_tree():
    from hierlab.tree import ClassTree

    assert tuple(ClassTree.load("mm5b").classes[-1]) == LEAVES


def test_bad_questions_get_clear_answers():
    with pytest.raises(ValueError, match="gaofen2"):
        twin.render("hubble", 0, 0, (0, 0, 8, 8))
    with pytest.raises(ValueError, match="four integers"):
        twin.render("gaofen2", 0, 0, (0, 0, 8, 0))
    with pytest.raises(ValueError, match="2\\*\\*61"):
        twin.render("gaofen2", 0, 0, (2**62, 0, 8, 8))
    with pytest.raises(ValueError, match="stadium"):
        twin.nearest("castle", 0, 0)
    with pytest.raises(ValueError, match="millimetres"):
        twin.truth(0, 0, (0, 0, 8, 8), 0.00015)

"""The open country at any GSD and in any year: exact, the same land at every GSD, changing as it should."""

import numpy as np
import pytest

from hierlab.twin import (
    drainage,
    fields,
    ground,
    hashing,
    index,
    parcels,
    places,
    regions,
    rural,
    spectra,
    woods,
    world,
)
from hierlab.twin.fields import Grid
from hierlab.twin.ground import LEAF, LEAVES
from hierlab.twin.hashing import derive, mix, unit
from hierlab.twin.spectra import KIND, KINDS

GSDS = [(50, 1), (250, 1), (1000, 1), (4000, 1), (10_000, 4), (30_000, 4)]  # millimetres, samples a pixel side
FAR = 10**15  # millimetres: 10¹² m
# The first places on the diagonal of regions 7 to 13 with less than 1% of streets and houses; the constants of
# ``woods`` and ``farmland`` were measured elsewhere (regions 0, 3, 4, 5 and 6).
OPEN_COUNTRY = tuple((region, 10_000, 10_000) for region in (7, 8, 10, 12, 13))
WOODS = [KIND["broadleaf forest"], KIND["conifer forest"]]


def forget():
    """Empty every cache, so that nothing is remembered from a window made before."""
    for module in (drainage, fields, ground, hashing, index, parcels, places, regions, rural, spectra, woods, world):
        for f in vars(module).values():
            if hasattr(f, "cache_clear"):
                f.cache_clear()


def assembled(window, step, oversample, region=6, year=2020):
    """Leaf and kind (2, H·n, W·n) of a window, pixel by pixel from canonical tiles."""
    n = oversample
    out = np.full((2, window[3] * n, window[2] * n), 255, np.uint8)
    for column, row, part, place in world.windows(window, step):
        g = world.tile(0, region, column, row, step, n, year).ground
        inside, target = ((..., *(slice(s.start * n, s.stop * n) for s in piece)) for piece in (part, place))
        for k, field in enumerate((g.leaf, g.kind)):
            out[k][target] = field[world.inner(step, n)][inside]
    return out


@pytest.mark.parametrize("origin", [(11_100_000, 34_300_000), (FAR + 7_000, -FAR - 13_000)])
@pytest.mark.parametrize("step, oversample", GSDS)
def test_the_ground_is_the_same_however_a_window_is_cut(step, oversample, origin):
    size = world.tile_size(step)
    # Across the corner of a tile, or at the finest steps across one of its sides.
    x = origin[0] // step // size * size - 31
    y = origin[1] // step // size * size + (size // 2 if step < 4000 else -17)
    whole = assembled((x, y, 64, 40), step, oversample)
    assert whole.max() < 255
    forget()
    g = np.random.default_rng(step)
    cuts = [(0, *sorted(g.choice(np.arange(1, n), 2, replace=False).tolist()), n) for n in (64, 40)]
    parts = [(a, b) for a in range(3) for b in range(3)]
    g.shuffle(parts)
    again, n = np.full_like(whole, 255), oversample
    for a, b in parts:
        (x0, x1), (y0, y1) = cuts[0][a : a + 2], cuts[1][b : b + 2]
        again[:, y0 * n : y1 * n, x0 * n : x1 * n] = assembled((x + x0, y + y0, x1 - x0, y1 - y0), step, oversample)
    assert (again == whole).all()


@pytest.mark.parametrize("step, oversample", GSDS)
def test_tiles_meet_without_a_seam(step, oversample):
    column = 11_100_000 // step // world.tile_size(step)
    row = 34_300_000 // step // world.tile_size(step)
    a, b = (world.tile(0, 6, column + n, row, step, oversample).ground for n in (0, 1))
    width = 2 * world.halo(step) * oversample
    for name in ("leaf", "kind"):
        assert (getattr(a, name)[:, -width:] == getattr(b, name)[:, :width]).mean() > 0.998
    for name, close in (("cover", 2e-3), ("bright", 2e-3), ("height", 2e-2)):
        difference = np.abs(getattr(a, name)[:, -width:] - getattr(b, name)[:, :width])
        assert np.quantile(difference, 0.99) < close, name


def test_a_tile_asks_for_whole_millimetres():
    with pytest.raises(ValueError, match="millimetres"):
        world.tile(0, 0, 0, 0, 1000, 3)


def test_the_land_is_the_same_land_at_every_gsd():
    """The middle one of 5 × 5 samples lies where the coarse sample does."""
    for region, x, y in ((6, 11_000, 34_000), (0, 8_600, 10_000), (5, 20_300, 30_300)):
        coarse = world.survey(Grid.of(0, region, x // 4, y // 4, 90, 4000)).ground
        fine = world.survey(Grid.of(0, region, x // 4 * 5, y // 4 * 5, 450, 800)).ground
        assert (fine.leaf[2::5, 2::5] == coarse.leaf).mean() > 0.995
        assert (fine.kind[2::5, 2::5] == coarse.kind).mean() > 0.93  # crowns, bushes and tufts are their own


@pytest.fixture(scope="module")
def sums():
    """Share and means of cover, dirt, brightness and height (6 m, 1 m and 0.5 m samples) of the kinds."""
    out = []
    for step in (500, 1000, 6000):
        total = np.zeros((len(KINDS), 5))
        for region, x, y in OPEN_COUNTRY:
            n = 480_000 // step
            g = world.survey(Grid.of(0, region, x * 1000 // step, y * 1000 // step, n, step)).ground
            for c, field in enumerate((np.ones_like(g.cover), g.cover, g.dirt, g.bright, g.height)):
                total[:, c] += np.bincount(g.kind.ravel(), field.ravel(), len(KINDS)) / field.size / len(OPEN_COUNTRY)
        out.append(np.column_stack([total[:, 0], total[:, 1:] / np.maximum(total[:, :1], 1e-9)]))
    return out


def test_what_cannot_be_told_apart_keeps_its_mean(sums):
    fine, middle, coarse = sums
    common = coarse[:, 0] > 0.02
    assert common.sum() >= 5
    for a in (fine, middle):
        assert np.abs(a[common, 0] / coarse[common, 0] - 1).max() < 0.12
        assert np.abs(a[common, 1:4] - coarse[common, 1:4]).max() < 0.025
        assert np.abs(a[common, 4] - coarse[common, 4]).max() < 0.5


def test_crowns_and_rows_are_drawn_only_where_they_can_be_seen():
    def relief(step):
        g = world.survey(Grid.of(0, 6, 11_200_000 // step, 34_400_000 // step, 100_000 // step, step)).ground
        wood = np.isin(g.kind, WOODS)
        return g.height[wood].std() / g.height[wood].mean()

    assert relief(500) > 0.35 > 2 * relief(10_000)


@pytest.mark.parametrize("step", [0.05, 0.3, 0.5, 1.0, 4.0])
def test_stripes_have_the_same_mean_at_any_step(step):
    t = np.arange(0, 600, 0.013).astype(np.float32)
    for period, width in ((0.75, 0.45), (2.3, 1.0), (24.0, 0.5)):
        share = ground.stripes(t, period, width, step)
        assert abs(share.mean() - width / period) < 0.01
        assert share.min() >= 0 and share.max() <= 1
        if step + width <= period:
            assert share.max() > 0.9 * min(1, width / step) and share.min() < 0.01
        else:
            assert np.ptp(share) == 0


def test_numbering_survives_hashes_that_share_a_slot():
    for h in (np.array([5, 9, 5, 7, 9], np.uint32), np.arange(300_000, dtype=np.uint32) * np.uint32(0x9E3779B1)):
        first, number = ground.numbered(h)
        assert (h[first][number] == h).all() and len(first) == len(np.unique(h))


def test_cutting_is_the_same_sample_by_sample_and_box_by_box():
    """Every piece is a rectangle that its samples lie in, near the size that was asked for, and tiles its square."""
    u, v = (a.astype(np.float32) for a in np.meshgrid(np.arange(0.5, 300), np.arange(0.5, 300)))
    boxes = ground.squares(u, v, 150.0, np.full(u.shape, 77, np.uint32))
    pieces = ground.cut(boxes, u, v, 900.0, 9)
    assert (pieces.u0 <= u).all() and (u <= pieces.u1).all() and (pieces.v0 <= v).all() and (v <= pieces.v1).all()
    assert pieces.area.max() <= 900 * 1.7
    first, number = ground.numbered(pieces.h.ravel())
    assert np.abs(np.bincount(number) / pieces.area.ravel()[first] - 1).max() < 0.25
    assert abs(pieces.area.ravel()[first].sum() / u.size - 1) < 1e-4


@pytest.fixture(scope="module")
def years():
    grid = (0, 1, 8192 // 16, 8192 // 16, 256, 16_000)
    return {year: world.survey(Grid.of(*grid, year=year)).ground for year in (1990, 2019, 2020)}


def test_crops_rotate_and_paddy_stays(years):
    a, b = years[2019], years[2020]
    assert (a.leaf == b.leaf).mean() > 0.99
    dry = (a.leaf == LEAF["dry cropland"]) & (b.leaf == LEAF["dry cropland"])
    assert 0.4 < (a.kind[dry] != b.kind[dry]).mean() < 0.95
    paddy = years[1990].leaf == LEAF["paddy field"]
    assert paddy.any() and (b.leaf[paddy] == LEAF["paddy field"]).mean() > 0.85


def test_the_land_changes_over_thirty_years(years):
    changed = years[1990].leaf != years[2020].leaf
    assert 0.01 < changed.mean() < 0.15
    assert (years[2019].leaf != years[2020].leaf).mean() < 0.25 * changed.mean()


def test_woods_are_felled_and_grow_again():
    grid = (0, 5, 18_000 // 16, 28_000 // 16, 256, 16_000)
    seen = [world.survey(Grid.of(*grid, year=year)).ground for year in range(2000, 2013, 4)]
    wood = [np.isin(g.kind, WOODS) for g in seen]
    felled = wood[0] & ~wood[1]
    assert 0.002 < felled.sum() / wood[0].sum() < 0.1
    assert wood[3][felled].mean() > 0.8  # eight years later
    assert seen[3].height[felled & wood[3]].mean() < 0.6 * seen[3].height[wood[0] & wood[3] & ~felled].mean()


def test_regions_differ_and_hang_together():
    styles = [regions.style(0, n) for n in range(200)]
    assert len({s.field for s in styles}) == 200
    for s in styles:
        assert abs(sum(w for _, w in s.crops) - 1) < 1e-6 and abs(sum(w for _, w in s.roofs) - 1) < 1e-6
        assert all(name in KIND for name, _ in s.crops + s.roofs)
        assert -0.45 <= s.wet <= 0.5 and 0 <= s.warm <= 1 and 0.6 <= s.field <= 2.4 and -25 <= s.season <= 25
    warm = np.array([s.warm for s in styles])
    for name, sign in (("barley", -1), ("wheat and maize", 1)):
        assert sign * np.corrcoef(warm, [dict(s.crops)[name] for s in styles])[0, 1] > 0.3
    assert {s.streets for s in styles} == {"grid", "bent", "irregular"}


def test_regions_of_a_sort_are_found():
    found = regions.like(3, 5, first=100, warm=(0, 0.3), hilly=(0, 1))
    assert len(found) == 5 and min(found) >= 100
    assert all(regions.style(3, n).warm <= 0.3 and regions.style(3, n).hilly >= 0 for n in found)
    with pytest.raises(ValueError, match="widen"):
        regions.like(0, 1, warm=(2, 3))


def test_classes_have_a_long_tail_and_crops_are_many():
    sheets = [index.sheet(0, region, i, j) for region in range(8) for i, j in ((2, 3), (9, 5))]
    leaf = np.bincount(np.concatenate([s.leaf.ravel() for s in sheets]), minlength=len(LEAVES)) / (16 * 128**2)
    share = dict(zip(LEAVES, leaf, strict=True))
    assert 0.35 < share["paddy field"] + share["dry cropland"] < 0.75 and share["paddy field"] > 0.04
    assert 0.1 < share["forest"] < 0.4
    for name in ("natural meadow", "artificial meadow", "bare land", "river", "lake", "rural residential", "road"):
        assert 0.003 < share[name] < 0.15, name
    assert sum(v < 0.005 for v in leaf) >= 4
    kinds = np.bincount(np.concatenate([s.kind.ravel() for s in sheets]), minlength=len(KINDS))
    for name in (*spectra.GROUPS["crops"], "orchard", "hedge", "greenhouse", "reeds", "shrubland", "rock", "sand"):
        assert kinds[KIND[name]] > 0, name


@pytest.mark.parametrize("kind", ["greenhouse", "vineyard", "reeds", "sunflower", "turf"])
def test_a_kind_is_found_where_the_index_says(kind):
    x, y = index.nearest_kind(kind, 30_000, 30_000, 0, 0)
    near = world.survey(Grid.of(0, 0, x - 40, y - 40, 80, 1000)).ground
    assert (near.kind == KIND[kind]).any()


def test_the_index_answers_for_a_year_and_refuses_what_there_is_not():
    for year in (1990, 2020):
        x, y = index.nearest_kind("maize", 30_000, 30_000, 0, 4, year=year)
        assert world.survey(Grid.of(0, 4, x // 32, y // 32, 1, 32_000, year)).ground.kind[0, 0] == KIND["maize"]
    h = derive(np.arange(20, dtype=np.uint32), 0)
    found = {index.sample_kind("maize", 30_000, 30_000, one, 0, 4, year=1990) for one in h}
    assert len(found) > 5
    with pytest.raises(ValueError, match="greenhouse"):
        index.nearest_kind("castle", 0, 0)
    assert index.nearest_kind("aircraft", 0, 0, limit=1) is None


def test_crowns_are_round_and_do_not_depend_on_which_samples_are_asked_for():
    grid = Grid.of(0, 0, 10**6, -(10**6), 120, 250)
    q = np.arange(120 * 120)
    rise, h = woods.crowns(grid, "trees", 7, q)
    part = np.random.default_rng(0).permutation(q)[:700]
    again, h2 = woods.crowns(grid, "trees", 7, part)
    assert (rise[part] == again).all() and (h[part] == h2).all()
    assert rise.max() <= 1 and 0.6 < (rise > 0).mean() < 0.98
    few = woods.crowns(grid, "trees", 7, q, (0.2, 0.3), 0.2)[0]
    assert 0 < (few > 0).mean() < 0.12


def test_year_and_parcel_make_independent_draws():
    h = mix(np.uint32(3), np.arange(5000), 0)
    a, b = (unit(mix(hashing.key(year, "season"), h.astype(np.int64), 0)).astype(float) for year in (2019, 2020))
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.05

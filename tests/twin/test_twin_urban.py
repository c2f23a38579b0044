"""Towns, ways and stamps: exact at any cut, true to the year and the region, and the same on average at any step."""

import numpy as np
import pytest
from scipy import ndimage

from hierlab.twin import buildings, index, places, precincts, quarters, spectra, things, transport, world
from hierlab.twin.fields import Grid
from hierlab.twin.ground import LEAF, Ground
from hierlab.twin.quarters import FARMS, HOUSES, STADIUM, Town
from hierlab.twin.spectra import KIND

REGION = 9
CARS = [KIND[n] for n in ("white car", "dark car", "red car", "truck")]


@pytest.fixture(scope="module")
def city() -> places.City:
    return next(c for c in places.cities(0, REGION, 20_000, 20_000, (-9000, -9000, 9000, 9000)) if c.radius > 2000)


def town_of(c: places.City) -> Town:
    return Town(0, REGION, c.x, c.y, c.radius, places.CITY, c.angle, int(c.h))


def survey(x: float, y: float, step_mm: int, size: int, year: int = 2020, region: int = REGION) -> world.Scene:
    column, row = (round(v * 1000 / step_mm) - size // 2 for v in (x, y))
    return world.survey(Grid.of(0, region, column, row, size, step_mm, year))


def read(window: tuple[int, int, int, int], step_mm: int) -> list[np.ndarray]:
    """Leaf, kind and height of a window, from canonical tiles."""
    out = [np.zeros(window[:1:-1], t) for t in (np.uint8, np.uint8, np.float32)]
    for column, row, part, place in world.windows(window, step_mm):
        ground = world.tile(0, REGION, column, row, step_mm).ground
        for values, name in zip(out, ("leaf", "kind", "height"), strict=True):
            values[place] = getattr(ground, name)[world.inner(step_mm)][part]
    return out


def forget() -> None:
    for f in (world.tile, quarters.plan, places.city, places._ways, transport._obstacles):
        f.cache_clear()


@pytest.mark.parametrize("step_mm", [50, 250, 1000, 4000])
def test_windows_cut_differently_are_equal(city, step_mm):
    """Across the corner of four tiles, in the middle of a city."""
    size = world.tile_size(step_mm)
    x, y = (v * 1000 // step_mm // size * size - 30 for v in (city.x + 400, city.y + 400))
    whole = read((x, y, 70, 60), step_mm)
    assert len(np.unique(whole[1])) > 1
    forget()
    parts = read((x, y, 41, 60), step_mm), read((x + 41, y, 29, 60), step_mm)
    for values, left, right in zip(whole, *parts, strict=True):
        assert (np.concatenate([left, right], 1) == values).all()


@pytest.mark.parametrize("step_mm", [250, 1000, 4000])
def test_neighbouring_tiles_agree_where_their_halos_meet(city, step_mm):
    size, halo = world.tile_size(step_mm), world.halo(step_mm)
    column, row = ((v * 1000 // step_mm) // size for v in (city.x + 300, city.y - 500))
    west, east = (world.tile(0, REGION, column + i, row, step_mm).ground for i in (0, 1))
    for name in ("leaf", "kind"):
        a, b = getattr(west, name)[:, -2 * halo :], getattr(east, name)[:, : 2 * halo]
        assert (a == b).mean() > 0.995


def test_a_far_town_is_built_like_a_near_one():
    far = 10**12
    x, y = index.nearest("urban residential", far, -far, 0, REGION)
    scene = survey(x, y, 1000, 200)
    roofs = np.isin(scene.ground.kind, [KIND[n] for n in spectra.GROUPS["roofs"]])
    assert 0.04 < roofs.mean() < 0.7
    assert scene.ground.height[roofs].min() > 1.5


def test_the_bent_frame_can_be_reversed(city):
    town = town_of(city)
    x, y = np.random.default_rng(0).uniform(-2000, 2000, (2, 500))
    px, py, turn = town.place(*town.bend(x, y))
    assert np.hypot(px - x, py - y).max() < 0.02
    u, v = town.bend(x, y)
    du, dv = town.bend(x + 0.5 * np.cos(turn), y + 0.5 * np.sin(turn))
    assert np.abs(np.arctan2(dv - v, du - u)).max() < 0.35  # what is laid along u stays along it, but for the shear


def test_blocks_tile_the_squares_and_lots_their_blocks(city):
    p = quarters.plan(town_of(city), -2, 1, 3, 2)
    b = p.blocks
    assert np.isclose(((b.u1 - b.u0) * (b.v1 - b.v0)).sum(), 6 * p.size**2)
    g = np.random.default_rng(1)
    u, v = (g.uniform(a * p.size, (a + n) * p.size, 4000).astype(np.float32) for a, n in ((-2, 3), (1, 2)))
    n = p.find(u, v)
    assert ((u >= b.u0[n] - 0.01) & (u <= b.u1[n] + 0.01) & (v >= b.v0[n] - 0.01) & (v <= b.v1[n] + 0.01)).all()
    plots = quarters.lots(town_of(city), b)
    inner = (u > b.i0[n] + 0.1) & (u < b.i1[n] - 0.1) & (v > b.j0[n] + 0.1) & (v < b.j1[n] - 0.1)
    lot = plots.find(b, n, u, v)
    assert (plots.block[lot] == n).all()
    along = np.where(plots.tall[n], v, u)
    assert ((along > plots.l0[lot] - 0.01) & (along < plots.l1[lot] + 0.01))[inner].all()


def lone(**values) -> Ground:
    grid = Grid.of(0, 0, 0, 0, 400, 50)
    ground = Ground.blank(grid.shape)
    things.draw(grid, ground, things.things(**{"x": 10.0, "y": 9.0, "direction": 0.4, "a": 6.0, "b": 4.0} | values))
    return ground


def test_things_have_their_size_direction_and_form():
    flat = lone(shape=things.FLAT, kind="truck", base=3.0)
    inside = flat.kind == KIND["truck"]
    assert abs(inside.sum() * 0.05**2 - 4 * 6 * 4) < 0.6 and (flat.height[inside] == 3).all()
    rows, columns = np.nonzero(inside)
    axes = np.linalg.eigh(np.cov(columns, rows))[1]
    assert abs(np.arctan(axes[1, 1] / axes[0, 1]) - 0.4) < 0.01
    gable = lone(shape=things.GABLE, kind="red roof", base=3.0, rise=2.0)
    assert abs(gable.height.max() - 5) < 0.05 and abs(gable.height[inside].mean() - 4) < 0.03
    assert len(np.unique(gable.bright[inside].round(3))) == 2
    crown = lone(shape=things.DISC, kind="street trees")
    assert abs((crown.kind == KIND["street trees"]).sum() * 0.05**2 - np.pi * 24) < 0.6
    assert (lone(shape=things.FLAT, kind="truck", step=0.01).kind == 0).all()


def test_cars_stand_along_a_slanted_highway():
    """Single vehicles on an open stretch of highway lie in its direction, which is no axis of the grid."""
    net = places.network(0, REGION, 20_000, 20_000, (-12_000, -12_000, 12_000, 12_000), 0)
    lines = net.highways[(np.hypot(*(net.highways[:, 2:4] - net.highways[:, :2]).T) > 200)]
    turn = np.arctan2(lines[:, 3] - lines[:, 1], lines[:, 2] - lines[:, 0])
    slanted = lines[np.abs(np.mod(turn, np.pi / 2) - np.pi / 4) < 0.3]
    angles = []
    for line in slanted[:6]:
        x, y = 20_000 + (line[:2] + line[2:4]) / 2
        scene = survey(x, y, 200, 500)
        transported = (scene.ground.leaf == LEAF["road"]) & np.isin(scene.ground.kind, CARS)
        labels, count = ndimage.label(transported)
        for n in range(1, count + 1):
            rows, columns = np.nonzero(labels == n)
            if len(rows) < 120 or rows.min() < 3 or columns.min() < 3 or max(rows.max(), columns.max()) > 496:
                continue
            values, axes = np.linalg.eigh(np.cov(columns, rows))
            if values[1] > 4 * values[0]:
                road = np.arctan2(line[3] - line[1], line[2] - line[0])
                off = np.arctan2(axes[1, 1], axes[0, 1]) - road
                angles.append(abs((off + np.pi / 2) % np.pi - np.pi / 2))
    assert len(angles) >= 8
    assert np.median(angles) < 0.06


def test_small_things_keep_the_leaf_of_what_lies_below(city):
    scene = survey(city.x + 350, city.y + 200, 250, 500)
    cars = np.isin(scene.ground.kind, CARS)
    assert cars.sum() > 200
    assert np.isin(LEAF["road"], scene.ground.leaf[cars])
    crowns = scene.ground.kind == KIND["street trees"]
    assert not (scene.ground.leaf[crowns] == LEAF["forest"]).any()


def test_towns_grow_and_big_ways_do_not(city):
    x, y = city.x + 0.85 * city.radius, city.y
    scenes = {year: survey(x, y, 8000, 300, year).ground for year in (1985, 2005, 2019, 2032)}
    built = {
        year: np.isin(g.leaf, (LEAF["urban residential"], LEAF["industrial area"])).mean() for year, g in scenes.items()
    }
    assert built[1985] < built[2005] < built[2019] < built[2032]
    net = places.network(0, REGION, city.x, city.y, (-4000, -4000, 4000, 4000), 0)
    assert len(net.highways)
    box = survey(city.x, city.y, 8000, 700, 1990), survey(city.x, city.y, 8000, 700, 2030)
    d = transport.Ways(box[0].grid, places.network(0, REGION, box[0].grid.ax, box[0].grid.ay, (0, 0, 5600, 5600), 90))
    core = d.highway < -3
    assert core.sum() > 20
    assert (box[0].ground.leaf[core] == box[1].ground.leaf[core]).all()


def test_a_block_is_a_building_site_before_it_stands(city):
    p = quarters.plan(town_of(city), -9, -9, 18, 18)
    b = p.blocks
    n = np.flatnonzero(b.inside & ~b.renewed & (b.zone == HOUSES) & (b.year > 1995) & (b.year < 2026))[0]
    u, v = ((a + c)[n : n + 1] / 2 for a, c in ((b.u0, b.u1), (b.v0, b.v1)))
    x, y, _ = town_of(city).place(u, v)
    kinds = {late: survey(city.x + x[0], city.y + y[0], 1000, 24, int(b.year[n]) + late).ground for late in (-9, -1, 0)}
    assert (kinds[-1].kind == KIND["building site"]).mean() > 0.5
    assert (kinds[0].leaf == LEAF["urban residential"]).mean() > 0.5
    assert not np.isin(kinds[-9].leaf, (LEAF["urban residential"],)).any()


def colours(step_mm: int, spots: list[tuple[float, float]], leaf: str) -> np.ndarray:
    """Mean reflectance of a leaf in red, near and short-wave infrared over some places of 400 m."""
    table = spectra.endmembers((660.0, 830.0, 1610.0), (60.0, 120.0, 90.0))[:, 0]
    total, count = np.zeros(3), 0
    for x, y in spots:
        g = survey(x, y, step_mm, 400_000 // step_mm).ground
        chosen = g.leaf == LEAF[leaf]
        materials, shares = g.materials(180)[:2]
        image = sum(table[m] * s[..., None] for m, s in zip(materials, shares, strict=True)) * g.bright[..., None]
        total, count = total + image[chosen].sum(0), count + chosen.sum()
    return total / count


@pytest.mark.parametrize("leaf", ["urban residential", "rural residential", "road"])
def test_class_means_do_not_jump_with_the_step(city, leaf):
    if leaf == "rural residential":
        s = places.settlements(0, REGION, 20_000, 20_000, (-9000, -9000, 9000, 9000))
        village = np.flatnonzero(s.level == places.VILLAGE)[:4]
        spots = [(20_000 + s.x[n], 20_000 + s.y[n]) for n in village]
    else:
        spots = [(city.x + a * city.radius, city.y + b * city.radius) for a, b in ((0.4, 0), (0, 0.5), (-0.6, 0.2))]
    fine = colours(1000, spots, leaf)
    for step_mm in (2500, 4000, 8000):
        assert np.abs(colours(step_mm, spots, leaf) / fine - 1).max() < 0.12


def test_regions_build_differently():
    """Roofs, the width of streets and the bends of the plan follow the region."""
    waves, wide, roofs = set(), set(), []
    for region in range(8):
        town = Town(0, region, 0, 0, 2500.0, places.CITY, 0.3, 5)
        waves.add(len(town.waves))
        wide.add(round(town.wide, 3))
        roofs.append(dict(town.style.roofs)["red roof"])
    assert waves == {0, 3} and len(wide) == 8 and max(roofs) > 2 * min(roofs)


def test_tall_buildings_stand_in_the_middle_and_low_ones_outside(city):
    inner = survey(city.x, city.y, 1000, 500).ground.height
    outer = survey(city.x + 0.7 * city.radius, city.y, 1000, 500).ground.height
    assert inner.max() > 40
    assert np.percentile(inner[inner > 2.5], 60) > np.percentile(outer[outer > 2.5], 60)


def test_only_a_village_is_farms_and_a_stadium_has_its_square(city):
    b = quarters.plan(town_of(city), -9, -9, 18, 18).blocks
    assert not (b.zone == FARMS).any()
    assert (b.zone == STADIUM).sum() == 1
    village = Town(0, REGION, 0, 0, 200.0, places.VILLAGE, 0.1, 77)
    assert (quarters.plan(village, -2, -2, 4, 4).blocks.zone == FARMS).all()


def test_airports_and_stations_hold_what_belongs_there():
    found = places.cities(0, REGION, 20_000, 20_000, (-9000, -9000, 9000, 9000))
    c = next(c for c in found if places.airport(0, REGION, c))
    dx, dy, _ = places.airport(0, REGION, c)
    field = survey(c.x + dx, c.y + dy, 1000, 700).ground
    assert (field.kind[field.leaf == LEAF["airport"]] == KIND["aircraft"]).sum() > 300
    station = survey(c.x + c.station[0], c.y + c.station[1], 500, 500).ground
    assert (station.kind[station.leaf == LEAF["railway station"]] == KIND["train"]).sum() > 200
    x, y = index.nearest("stadium", c.x, c.y, 0, REGION)
    arena = survey(x, y, 1000, 200).ground
    assert (arena.kind == KIND["track"]).sum() > 300


def test_only_what_stood_early_is_renewed(city):
    """No block stands alone in the fields because it will be built anew one day."""
    b = quarters.plan(town_of(city), -9, -9, 18, 18).blocks
    inside = b.renewed & b.inside
    assert 0.01 < inside.sum() / b.inside.sum() < 0.06
    assert b.far[inside].max() < 0.85


@pytest.mark.parametrize("square", [(0, 0), (1, 2), (-3, 1), (4, -4)])
def test_without_small_things_the_others_are_as_they_were(city, square):
    """So that a tile seen from afar, for which they are not even made, has the same pixels."""
    town = town_of(city)
    village = Town(0, REGION, 0, 0, 200.0, places.VILLAGE, 0.1, 77)
    for settlement, (i, j) in ((town, square), (village, (square[0] % 2, 0))):
        every, large = (precincts.furnish(settlement, i, j, small) for small in (True, False))
        wanted = every.where(every.step > buildings.SMALL)
        assert 0 < len(large.x) < len(every.x)
        for name, a, b in zip(things.Things._fields, wanted, large, strict=True):
            assert a.dtype == b.dtype and (a == b).all(), name

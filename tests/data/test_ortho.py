import warnings

import numpy as np
import pytest
import rasterio
from affine import Affine
from fake_satellite import EAST, HEIGHT, LAT, LON, METRES, UTM, Satellite, terrain, to_map, write_dem, write_rpb
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.rpc import RPC
from rasterio.transform import from_origin

from hierlab.data.grid import Grid, apply, compose, extent
from hierlab.data.ortho import (
    WGS84,
    footprint,
    grid_over,
    locate,
    orthorectify,
    project,
    reach,
    read_rpb,
    rpc_of,
    sample,
    utm,
    write_heights,
    write_orthorectified,
)

_GRID = np.stack(np.meshgrid([-375, -125, 125, 375], [-250, 0, 250]), -1).reshape(-1, 2)
POINTS = _GRID + np.random.default_rng(3).uniform(-35, 35, (12, 2))  # metres east and north of the middle


@pytest.fixture
def ground():
    """Longitude, latitude, height and map coordinates of the points."""
    lon, lat = LON + POINTS[:, 0] / EAST, LAT + POINTS[:, 1] / METRES
    return lon, lat, terrain(lon, lat), *to_map(lon, lat)


@pytest.fixture
def heights(tmp_path):
    bounds = LON - 0.02, LAT - 0.02, LON + 0.02, LAT + 0.02
    write_heights(tmp_path / "heights.tif", [write_dem(tmp_path / "dem.tif")], bounds)
    return tmp_path / "heights.tif"


def write_raw(path, values, rpc=None):
    """An image as it comes from the satellite: no CRS, no place, RPC tags."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        profile = {"driver": "GTiff", "count": len(values), "dtype": values.dtype}
        with rasterio.open(path, "w", **profile, height=values.shape[1], width=values.shape[2]) as file:
            file.write(values)
            if rpc is not None:
                file.rpcs = rpc
    return path


def blobs(satellite, ground):
    """An image, dark but for a soft spot where each point is seen."""
    columns, rows = satellite.see(POINTS[:, 0], POINTS[:, 1], ground[2])
    x, y = np.meshgrid(np.arange(satellite.size) + 0.5, np.arange(satellite.size) + 0.5)
    spots = [np.exp(-((x - c) ** 2 + (y - r) ** 2) / 4.5) for c, r in zip(columns, rows, strict=True)]
    return np.stack([3000 * sum(spots), 1000 * sum(spots)]).astype("uint16")


def distances(image, transform, ground, reach=14):
    """How far (pixels) the spot around each point lies from where the point is; inf where there is no spot."""
    found = []
    for x, y in zip(*ground[3:], strict=True):
        column, row = apply(~transform, x, y)
        top, left = int(row) - reach, int(column) - reach
        part = image[max(top, 0) : top + 2 * reach + 1, max(left, 0) : left + 2 * reach + 1].astype(float)
        yy, xx = np.mgrid[max(top, 0) : max(top, 0) + part.shape[0], max(left, 0) : max(left, 0) + part.shape[1]] + 0.5
        if part.max() < 500:
            found.append(np.inf)
        else:
            found.append(np.hypot((part * xx).sum() / part.sum() - column, (part * yy).sum() / part.sum() - row))
    return np.array(found)


# -- the RPC model ----------------------------------------------------------------------------------------------------


def test_project_is_the_polynomial_of_the_standard():
    rng = np.random.default_rng(0)
    coefficients = [rng.normal(0, 0.1, 20) for _ in range(4)]
    coefficients[1][0] = coefficients[3][0] = 3
    rpc = RPC(
        line_num_coeff=coefficients[0], line_den_coeff=coefficients[1], samp_num_coeff=coefficients[2],
        samp_den_coeff=coefficients[3], line_off=3000, line_scale=3100, samp_off=2500, samp_scale=2600, lat_off=30,
        lat_scale=0.2, long_off=110, long_scale=0.3, height_off=200, height_scale=500,
    )  # fmt: skip
    lon, lat, h = rng.uniform(109.8, 110.2, 5), rng.uniform(29.9, 30.1, 5), rng.uniform(0, 600, 5)

    def cubic(c, L, P, H):
        return (
            c[0] + c[1] * L + c[2] * P + c[3] * H + c[4] * L * P + c[5] * L * H + c[6] * P * H + c[7] * L * L
            + c[8] * P * P + c[9] * H * H + c[10] * P * L * H + c[11] * L**3 + c[12] * L * P * P + c[13] * L * H * H
            + c[14] * L * L * P + c[15] * P**3 + c[16] * P * H * H + c[17] * L * L * H + c[18] * P * P * H
            + c[19] * H**3
        )  # fmt: skip

    columns, rows = project(rpc, lon, lat, h)
    for n in range(5):
        at = (lon[n] - 110) / 0.3, (lat[n] - 30) / 0.2, (h[n] - 200) / 500
        line = cubic(coefficients[0], *at) / cubic(coefficients[1], *at) * 3100 + 3000
        column = cubic(coefficients[2], *at) / cubic(coefficients[3], *at) * 2600 + 2500
        assert columns[n] == pytest.approx(column + 0.5) and rows[n] == pytest.approx(line + 0.5)


def test_project_and_locate_are_the_satellite(ground):
    satellite = Satellite()
    lon, lat, h = ground[:3]
    seen = project(satellite.rpc, lon, lat, h)
    np.testing.assert_allclose(seen, satellite.see(POINTS[:, 0], POINTS[:, 1], h), atol=1e-6)
    back = locate(satellite.rpc, *seen, h)
    np.testing.assert_allclose((back[0] - lon) * EAST, 0, atol=0.01)
    np.testing.assert_allclose((back[1] - lat) * METRES, 0, atol=0.01)


def test_rpb_files(tmp_path):
    rpc = Satellite().rpc
    path = write_rpb(tmp_path / "a.rpb", rpc)
    read = read_rpb(path)
    for name, value in rpc.to_dict().items():
        if not name.startswith("err"):
            assert getattr(read, name) == pytest.approx(value, rel=1e-12), name
    path.write_text(path.read_text()[:1500])
    with pytest.raises(ValueError, match=r"a\.rpb: no RPC, or a part of one: it lacks .*sampDenCoef"):
        read_rpb(path)
    path.write_text("lineOffset = many;")
    with pytest.raises(ValueError, match="lineOffset is no number: 'many'"):
        read_rpb(path)


def test_tags_are_used_where_there_is_no_rpb_file(tmp_path):
    tagged = write_raw(tmp_path / "a.tiff", np.ones((1, 9, 9), "uint16"), Satellite(tilt=3).rpc)
    bare = write_raw(tmp_path / "b.tiff", np.ones((1, 9, 9), "uint16"))
    other = write_rpb(tmp_path / "c.rpb", Satellite(tilt=-9).rpc)
    assert rpc_of(tagged).samp_num_coeff == pytest.approx(Satellite(tilt=3).rpc.samp_num_coeff, rel=1e-6)
    assert rpc_of(tagged, other).samp_num_coeff == pytest.approx(Satellite(tilt=-9).rpc.samp_num_coeff)
    with pytest.raises(ValueError, match=r"b\.tiff has no RPC tags: give the \.rpb file"):
        rpc_of(bare)


def test_a_model_of_another_image_is_noticed():
    rpc = Satellite().rpc
    rpc.samp_num_coeff = rpc.line_num_coeff  # columns and rows say the same: no place on the ground
    with pytest.raises(ValueError, match="cannot be inverted"), np.errstate(all="ignore"):
        locate(rpc, [0.0, 100.0], [0.0, 300.0], 0.0)


# -- heights ----------------------------------------------------------------------------------------------------------


def test_heights_join_tiles_and_count_from_the_ellipsoid(tmp_path, ground):
    tiles = [write_dem(tmp_path / "w.tif", left=LON - 0.06), write_dem(tmp_path / "e.tif", left=LON)]
    geoid = tmp_path / "geoid.tif"
    with rasterio.open(
        geoid, "w", driver="GTiff", width=4, height=4, count=1, dtype="float32", crs="EPSG:4326",
        transform=from_origin(LON - 1, LAT + 1, 0.5, 0.5),
    ) as file:  # fmt: skip
        file.write(np.full((4, 4), -13.5, "float32"), 1)
    bounds = LON - 0.02, LAT - 0.02, LON + 0.02, LAT + 0.02
    write_heights(tmp_path / "h.tif", tiles, bounds)
    np.testing.assert_allclose(sample(tmp_path / "h.tif", *ground[:2]), ground[2], atol=0.6)
    write_heights(tmp_path / "g.tif", tiles, bounds, geoid)
    np.testing.assert_allclose(sample(tmp_path / "g.tif", *ground[:2]), ground[2] - 13.5, atol=0.6)
    with rasterio.open(tmp_path / "h.tif") as file, rasterio.open(tiles[0]) as tile:
        own = file.bounds
        assert own.left <= bounds[0] and own.right >= bounds[2] and own.bottom <= bounds[1] and own.top >= bounds[3]
        column, row = apply(~tile.transform, own.left, own.top)
        assert abs(column - round(column)) < 1e-6 and abs(row - round(row)) < 1e-6  # the tile's own pixels
        at = round(column), round(row)
        np.testing.assert_allclose(
            file.read(1)[:50, :50], tile.read(1)[at[1] : at[1] + 50, at[0] : at[0] + 50], atol=1e-3
        )
    with pytest.raises(ValueError, match="none of the 2 elevation files covers"):
        write_heights(tmp_path / "n.tif", tiles, (10, 10, 10.1, 10.1))
    with pytest.raises(ValueError, match="does not cover"):
        write_heights(tmp_path / "n.tif", tiles, bounds, tiles[0])


# -- grids ------------------------------------------------------------------------------------------------------------


def test_footprint_lies_on_the_terrain(heights):
    satellite = Satellite()
    lon, lat = footprint(satellite.rpc, 400, 400, heights)
    assert lon[0] == lon[-1] and len(lon) == 33
    columns, rows = satellite.see((lon - LON) * EAST, (lat - LAT) * METRES, terrain(lon, lat))
    edge = np.minimum(np.minimum(np.abs(columns), np.abs(columns - 400)), np.minimum(np.abs(rows), np.abs(rows - 400)))
    assert edge.max() < 0.2  # pixels
    flat = footprint(satellite.rpc, 400, 400)
    assert np.hypot((flat[0] - lon) * EAST, (flat[1] - lat) * METRES).max() > 15
    left, bottom, right, top = reach(satellite.rpc, 400, 400, HEIGHT - 100, HEIGHT + 300)
    assert left < lon.min() and right > lon.max() and bottom < lat.min() and top > lat.max()


def test_grids_of_all_sides_share_their_borders():
    lon, lat = footprint(Satellite().rpc, 400, 400)
    crs = utm(lon, lat)
    assert crs == CRS.from_user_input(UTM)
    assert utm(np.array([-70.0]), np.array([-33.0])) == CRS.from_epsg(32719)
    grids = {gsd: grid_over(lon, lat, crs, gsd, snap=20) for gsd in (1, 2, 4, 10)}
    extents = {extent(g.transform, g.height, g.width) for g in grids.values()}
    (box,) = extents
    assert all(side % 20 == 0 for side in box)
    x, y = to_map(lon, lat)
    assert box[0] <= x.min() < box[0] + 20 and box[3] - 20 < y.max() <= box[3]
    moved = grid_over(lon, lat, crs, 4, snap=20, move=Affine.translation(200, -400))
    assert extent(moved.transform, moved.height, moved.width) == (
        box[0] + 200,
        box[1] - 400,
        box[2] + 200,
        box[3] - 400,
    )
    with pytest.raises(ValueError, match="3 m does not fit whole times into 20 m"):
        grid_over(lon, lat, crs, 3, snap=20)


# -- rectification ----------------------------------------------------------------------------------------------------


def grid_here(satellite, heights, gsd=4):
    lon, lat = footprint(satellite.rpc, satellite.size, satellite.size, heights)
    return grid_over(lon, lat, utm(lon, lat), gsd, snap=20)


@pytest.mark.parametrize(("tilt", "turn"), [(20, 11), (-14, 190), (0, 0)])
def test_known_points_land_where_they_are(tmp_path, heights, ground, tilt, turn):
    satellite = Satellite(tilt=tilt, turn=turn)
    raw = write_raw(tmp_path / "raw.tiff", blobs(satellite, ground), satellite.rpc)
    grid = grid_here(satellite, heights)
    write_orthorectified(tmp_path / "out.tif", raw, rpc_of(raw), heights, grid, names=["a", "b"])
    with rasterio.open(tmp_path / "out.tif") as file:
        image = file.read()
        assert file.crs == CRS.from_user_input(UTM) and file.descriptions == ("a", "b") and file.dtypes[0] == "uint16"
    for band in image:
        assert distances(band * (3 if band is image[1] else 1), grid.transform, ground).max() < 0.15
    flat = tmp_path / "flat.tif"
    with rasterio.open(heights) as file, rasterio.open(flat, "w", **file.profile) as level:
        level.write(np.full(file.shape, HEIGHT, "float32"), 1)
    away = [v[0] for _, v in orthorectify(raw, satellite.rpc, flat, grid)]
    missed = distances(away[0], grid.transform, ground, reach=30)
    assert np.median(missed) > 3 if tilt else missed.max() < 0.5  # heights matter, unless one looks straight down


def test_blocks_make_no_seams(tmp_path, heights, ground, monkeypatch):
    satellite = Satellite()
    raw = write_raw(tmp_path / "raw.tiff", blobs(satellite, ground), satellite.rpc)
    grid = grid_here(satellite, heights)
    whole = next(values for _, values in orthorectify(raw, satellite.rpc, heights, grid, bands=[2]))
    monkeypatch.setattr("hierlab.data.ortho.BLOCK", 150)
    pieced = np.zeros_like(whole)
    for window, values in orthorectify(raw, satellite.rpc, heights, grid, bands=[2]):
        pieced[:, *window.toslices()] = values
    assert np.abs(pieced.astype(int) - whole).max() <= 1


def test_a_correction_moves_the_ground(tmp_path, heights, ground):
    """An image whose RPC model is 60 m and 30 m off: the correction brings the points home."""
    wrong = Satellite(error=(60.0, -30.0), tilt=0)  # straight down, so that the error does not slide it over the hill
    raw = write_raw(tmp_path / "raw.tiff", blobs(wrong, ground), wrong.rpc)
    grid = grid_here(wrong, heights)
    off = next(v[0] for _, v in orthorectify(raw, wrong.rpc, heights, grid))
    x, y = to_map(LON + POINTS[:, 0] / EAST, LAT + POINTS[:, 1] / METRES)
    x_off, y_off = to_map(LON + (POINTS[:, 0] + 60) / EAST, LAT + (POINTS[:, 1] - 30) / METRES)
    assert distances(off, grid.transform, ground, reach=30).min() > 10
    move = Affine.translation((x - x_off).mean(), (y - y_off).mean())
    home = next(v[0] for _, v in orthorectify(raw, wrong.rpc, heights, grid, move=move))
    assert distances(home, grid.transform, ground).max() < 0.15


def test_a_correction_is_that_of_the_map(tmp_path, heights, ground):
    """With a shift, the values are those of the uncorrected image on a grid shifted the other way."""
    satellite = Satellite()
    raw = write_raw(tmp_path / "raw.tiff", blobs(satellite, ground), satellite.rpc)
    grid = grid_here(satellite, heights)
    there = Grid(grid.crs, compose(Affine.translation(-100, 60), grid.transform), grid.height, grid.width)
    moved = next(v for _, v in orthorectify(raw, satellite.rpc, heights, grid, move=Affine.translation(100, -60)))
    np.testing.assert_array_equal(moved, next(v for _, v in orthorectify(raw, satellite.rpc, heights, there)))


def test_labels_keep_their_codes(tmp_path, heights):
    satellite = Satellite()
    raw = write_raw(
        tmp_path / "raw.tiff", satellite.picture(lambda x, y: (1 + (x // 100 + y // 100) % 3)[None]).astype("uint8")
    )
    grid = grid_here(satellite, heights)
    table = np.array([0, 30, 10, 20], np.uint8)
    write_orthorectified(
        tmp_path / "out.tif",
        raw,
        satellite.rpc,
        heights,
        grid,
        resampling=Resampling.nearest,
        recode=lambda v: table[v],
    )
    with rasterio.open(tmp_path / "out.tif") as file:
        codes = file.read(1)
    assert set(np.unique(codes)) == {0, 10, 20, 30}
    column, row = np.meshgrid(np.arange(grid.width) + 0.5, np.arange(grid.height) + 0.5)
    x, y = apply(grid.transform, column, row)
    truth = table[(1 + (x // 100 + y // 100) % 3).astype(int)]
    assert (codes == truth)[codes > 0].mean() > 0.93  # all but pixels along borders
    assert 0.5 < (codes > 0).mean() < 0.95


def test_a_place_on_the_map_in_the_raw_file_does_not_disturb(tmp_path, heights, ground):
    satellite = Satellite()
    raw = tmp_path / "raw.tiff"
    values = blobs(satellite, ground)
    with rasterio.open(
        raw,
        "w",
        driver="GTiff",
        count=2,
        dtype="uint16",
        height=400,
        width=400,
        crs=UTM,
        transform=from_origin(1, 2, 3, 3),
    ) as file:
        file.write(values)
    grid = grid_here(satellite, heights)
    image = next(v[0] for _, v in orthorectify(raw, satellite.rpc, heights, grid))
    assert distances(image, grid.transform, ground).max() < 0.15


def test_sample_outside_and_in_another_crs(tmp_path, heights):
    assert np.isnan(sample(heights, [10.0, 11.0], [10.0, 11.0])).all()
    grid = Grid(CRS.from_user_input(UTM), from_origin(0, 100, 10, 10), 10, 10)
    with rasterio.open(
        tmp_path / "u.tif",
        "w",
        driver="GTiff",
        count=1,
        dtype="uint8",
        height=10,
        width=10,
        crs=grid.crs,
        transform=grid.transform,
    ):
        pass
    with pytest.raises(ValueError, match="longitude and latitude"):
        sample(tmp_path / "u.tif", [0.0], [0.0])
    assert CRS.from_epsg(4326) == WGS84

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest
from fake_satellite import write_catalog, write_item
from rasterio.crs import CRS
from rasterio.transform import from_origin
from rasterio.warp import transform_bounds

from hierlab.data import download as downloads
from hierlab.data.download import download, multihash
from hierlab.data.grid import Grid
from hierlab.data.stac import RGB, SENTINEL2, Item, assets, bands, cover, dates, fetch, resolve, search

GRID = Grid(CRS.from_epsg(32650), from_origin(240_000, 3_381_000, 20, 20), 100, 100)
BBOX = transform_bounds(GRID.crs, "EPSG:4326", 240_000, 3_379_000, 242_000, 3_381_000)
YEAR = dates("2019-01-01/2019-12-31")


def box(left=0.0, right=1.0):
    """Corners of a part of the grid's box, from one share of its width to another, a little too high and deep."""
    west, south, east, north = BBOX
    a, b = west + left * (east - west), west + right * (east - west)
    return [(a, south - 0.01), (b, south - 0.01), (b, north + 0.01), (a, north + 0.01)]


@pytest.fixture
def catalog(tmp_path):
    folder = tmp_path / "stac"
    band = {"red": ("red.tif", {})}
    home = folder / "sentinel-2-l2a"
    items = [
        write_item(home, "west-cloudy", band, "2019-07-10T03:00:00Z", box(-0.5, 0.6), **{"eo:cloud_cover": 40}),
        write_item(home, "west", band, "2019-08-10T03:00:00.123456Z", box(-0.5, 0.6), **{"eo:cloud_cover": 2.5}),
        write_item(home, "east", band, "2019-09-10T11:00:00+08:00", box(0.4, 1.4), **{"eo:cloud_cover": 7}),
        write_item(home, "winter", band, "2019-12-24T03:00:00Z", box(), **{"eo:cloud_cover": 0}),
        write_item(home, "elsewhere", band, "2019-08-10T03:00:00Z", box(3, 4)),
    ]
    (home / "deep").mkdir()
    deep = {
        "type": "Catalog",
        "links": [{"rel": "item", "href": f"../{items.pop()}"}, {"rel": "parent", "href": "../collection.json"}],
    }
    (home / "deep" / "catalog.json").write_text(json.dumps(deep))
    write_item(folder / "naip", "photo", band, "2019-08-10T03:00:00Z", box(), collection="naip")
    found = write_catalog(folder, {"sentinel-2-l2a": items, "naip": ["photo.json"]})
    content = json.loads((home / "collection.json").read_text())
    content["links"] += [{"rel": "child", "href": "deep/catalog.json"}, {"rel": "child", "href": "./collection.json"}]
    (home / "collection.json").write_text(json.dumps(content))
    return found


def names(items):
    return [item.id for item in items]


def test_dates():
    start, end = dates("2019-07-01/2019-10-31")
    assert start.isoformat() == "2019-07-01T00:00:00+00:00" and end.isoformat() == "2019-10-31T23:59:59.999999+00:00"
    assert dates("2019-12")[1].isoformat().startswith("2019-12-31T23:59:59")
    assert dates("2016-02-28") == (dates("2016-02-28/2016-02-28"))
    for wrong in ("2019", "July", "2019-13-01", ""):
        with pytest.raises(ValueError, match="dates are given as YYYY-MM-DD, YYYY-MM or START/END"):
            dates(wrong)
    with pytest.raises(ValueError, match="end before they begin"):
        dates("2019-07-01/2018-07-01")


def test_a_static_catalogue_on_disk(catalog):
    found = search(catalog, "sentinel-2-l2a", BBOX, *dates("2019-07-01/2019-10-31"))
    assert names(found) == ["west-cloudy", "west", "east"]
    assert [item.cloud for item in found] == [40, 2.5, 7]
    assert found[2].start.isoformat() == "2019-09-10T03:00:00+00:00"
    assert found[0].address("red") == str(catalog.parent / "sentinel-2-l2a" / "red.tif")
    assert names(search(catalog.parent, "naip", BBOX, *YEAR)) == ["photo"]  # the folder will do
    assert names(search(catalog.parent / "naip" / "collection.json", "naip", BBOX, *YEAR)) == ["photo"]
    assert names(search(catalog, "sentinel-2-l2a", BBOX, *dates("2019-12"))) == ["winter"]
    assert search(catalog, "sentinel-2-l2a", (10, 10, 11, 11), *YEAR) == []
    with pytest.raises(ValueError, match="has no collection 'landsat': it has naip, sentinel-2-l2a"):
        search(catalog, "landsat", BBOX, *YEAR)


def test_what_is_no_catalogue(tmp_path, catalog):
    with pytest.raises(FileNotFoundError, match="no such document"):
        search(tmp_path / "none.json", "a", BBOX, *YEAR)
    (tmp_path / "bad.json").write_text("<html>")
    with pytest.raises(ValueError, match=r"bad\.json: no STAC document"):
        search(tmp_path / "bad.json", "a", BBOX, *YEAR)
    path = catalog.parent / "sentinel-2-l2a" / "east.json"
    content = json.loads(path.read_text())
    del content["properties"]["datetime"]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"east\.json: no STAC item \(KeyError: 'start_datetime'\)"):
        search(catalog, "sentinel-2-l2a", BBOX, *YEAR)


def test_the_clearest_items_that_cover(catalog):
    items = search(catalog, "sentinel-2-l2a", BBOX, *dates("2019-07-01/2019-10-31"))
    chosen, open_ = cover(items, GRID)
    assert names(chosen) == ["west", "east"] and open_ == 0
    chosen, open_ = cover(items[:2], GRID)
    assert names(chosen) == ["west"] and open_ == pytest.approx(0.4, abs=0.02)
    assert cover([], GRID) == ([], 1.0)


# -- bands ------------------------------------------------------------------------------------------------------------


def item(assets, **properties):
    return Item.from_dict(
        {
            "id": "i", "collection": "c", "properties": {"datetime": "2020-01-01T00:00:00Z"} | properties,
            "bbox": [0, 0, 0, 1, 1, 9], "geometry": {}, "assets": assets,
        },
        "/data/i.json",
    )  # fmt: skip


EARTH_SEARCH = ("blue", "green", "red", "rededge1", "rededge2", "rededge3", "nir", "nir08", "swir16", "swir22")
COPERNICUS = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")


@pytest.mark.parametrize("keys", [EARTH_SEARCH, COPERNICUS])
def test_the_ten_bands_whatever_their_keys(keys):
    made = {key: {"href": f"{key}.tif"} for key in (*reversed(keys), "visual", "scl", "blue-jp2")}
    made["visual"]["eo:bands"] = [{"name": name, "common_name": name} for name in ("red", "green", "blue")]
    one = item(made)
    assert one.bbox == (0, 0, 1, 1)
    assert assets(one, SENTINEL2) == list(keys)
    layer = bands(one, SENTINEL2, {key: f"/files/{key}.tif" for key in made})
    assert [band.path for band in layer] == [f"/files/{key}.tif" for key in keys]
    assert {(band.number, band.scale, band.offset, band.nodata) for band in layer} == {(1, 1, 0, None)}


def test_bands_inside_one_file_and_missing_ones():
    four = [{"name": n, "common_name": n.lower()} for n in ("Blue", "Green", "Red", "NIR")]
    photo = item(
        {
            "thumbnail": {"href": "t.png", "roles": ["thumbnail"], "eo:bands": four},
            "image": {"href": "i.tif", "eo:bands": four},
        }
    )
    assert [photo.band(names) for names in RGB.values()] == [("image", 3), ("image", 2), ("image", 1)]
    assert assets(photo, RGB) == ["image"]
    newer = item({"data": {"href": "i.tif", "bands": [{"name": "x"}, {"name": "y", "eo:common_name": "red"}]}})
    assert newer.band(RGB["red"]) == ("data", 2)
    with pytest.raises(ValueError, match=r"no band B5 or B05 or rededge1 among the assets thumbnail, image"):
        assets(photo, {"B5": SENTINEL2["B5"]})


def reflectance(stored, **properties):
    """What 10 000 times the reflectance is, by what an item says of its red band."""
    about = {"href": "r.tif", **properties.pop("asset", {})}
    (band,) = bands(item({"red": about}, **properties), {"B4": SENTINEL2["B4"]}, {"red": "r.tif"}, factor=10_000)
    return stored * band.scale + band.offset


def test_the_offset_of_sentinel_2_is_taken_out_once():
    said = {"raster:bands": [{"scale": 0.0001, "offset": -0.1, "nodata": 0}]}
    assert reflectance(3000, asset=said) == pytest.approx(2000)
    assert reflectance(3000, asset={"raster:bands": [{"scale": 0.0001, "offset": 0}]}) == pytest.approx(3000)
    assert reflectance(3000, asset={"bands": [{"raster:scale": 0.0001, "raster:offset": -0.1}]}) == pytest.approx(2000)
    assert reflectance(3000, asset=said, **{"earthsearch:boa_offset_applied": True}) == pytest.approx(3000)
    assert reflectance(3000) == 3000
    assert reflectance(3000, **{"s2:processing_baseline": "02.12"}) == 3000
    assert reflectance(3000, **{"s2:processing_baseline": "05.00"}) == pytest.approx(2000)
    (band,) = bands(item({"red": {"href": "r", **said}}), {"B4": ("red",)}, {"red": "r"}, factor=10_000)
    assert band.nodata == 0


# -- addresses and files ----------------------------------------------------------------------------------------------


def test_addresses():
    assert resolve("/data/a/item.json", "./b.tif") == "/data/a/b.tif"
    assert resolve("/data/a/item.json", "../c/b.tif") == "/data/c/b.tif"
    assert resolve("/data/a/item.json", "file:///other/b%20c.tif") == "/other/b c.tif"
    assert resolve("https://host/a/item.json", "b.tif?x=1") == "https://host/a/b.tif?x=1"
    assert resolve("/data/item.json", "https://host/b.tif") == "https://host/b.tif"
    with pytest.raises(ValueError, match="points at a file on this disk"):
        resolve("https://host/item.json", "file:///etc/passwd")
    with pytest.raises(ValueError, match=r"s3://bucket/b\.tif is neither http\(s\) nor a file"):
        resolve("https://host/item.json", "s3://bucket/b.tif")


def test_files_on_disk_are_checked(tmp_path):
    content = b"pixels"
    (tmp_path / "r.tif").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    home = str(tmp_path / "i.json")

    def one(**about):
        made = item({"red": {"href": "r.tif"} | about})
        return fetch(Item(**{**made.__dict__, "home": home}), "red", tmp_path / "cache")

    assert one() == tmp_path / "r.tif"
    assert one(**{"file:size": 6, "file:checksum": "1220" + digest}) == tmp_path / "r.tif"
    assert one(**{"file:checksum": "f00d"}) == tmp_path / "r.tif"  # a kind that is not known here
    with pytest.raises(ValueError, match="has 6 bytes, its publisher says 7"):
        one(**{"file:size": 7})
    with pytest.raises(ValueError, match="its sha256 is"):
        one(**{"file:checksum": "1220" + "0" * 64})
    with pytest.raises(FileNotFoundError, match=r"which .* names as its asset red"):
        one(href="none.tif")
    assert multihash("d50110" + "A" * 32) == ("md5", "a" * 32)
    assert multihash("1114" + "0" * 40) == ("sha1", "0" * 40) and multihash("1220" + "0" * 40) is None


CONTENT = bytes(range(256)) * 4000


class Server(BaseHTTPRequestHandler):
    """A STAC API with pages, and a file that can be had in parts; some answers fail or break off."""

    log: list = []  # noqa: RUF012
    fail: dict = {}  # noqa: RUF012
    items: list = []  # noqa: RUF012

    def log_message(self, *_):
        pass

    def answer(self, content, status=200, length=None, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self):
        parts = urlsplit(self.path)
        self.log.append((parts.path, self.headers.get("Range")))
        if self.fail.get(parts.path):
            return self.answer(b"", self.fail[parts.path].pop())
        if parts.path == "/":
            return self.answer(json.dumps({"links": [{"rel": "search", "href": "/search"}]}).encode())
        if parts.path == "/search":
            asked = parse_qs(parts.query)
            self.log.append({key: value[0] for key, value in asked.items()})
            link = {"rel": "next", "href": "/search", "method": "POST", "merge": True, "body": {"token": "2"}}
            return self.answer(json.dumps({"features": self.items[:2], "links": [link]}).encode())
        if parts.path == "/file.tif":
            start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
            if start >= len(CONTENT):
                return self.answer(b"", 416)
            if start == 0:  # break off in the middle
                return self.answer(CONTENT[:300_000], length=len(CONTENT))
            return self.answer(CONTENT[start:], 206)
        if parts.path == "/whole.tif":  # knows of no parts
            return self.answer(CONTENT)
        return self.answer(b"", 404)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.log.append(body)
        self.answer(json.dumps({"features": self.items[2:], "links": []}).encode())


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(downloads.time, "sleep", lambda _: None)
    monkeypatch.setattr(Server, "log", [])
    monkeypatch.setattr(Server, "fail", {})
    running = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    running.server_close()


def test_an_api_is_asked_page_by_page(server, catalog, monkeypatch):
    home = catalog.parent / "sentinel-2-l2a"
    made = [json.loads((home / f"{n}.json").read_text()) for n in ("east", "west", "elsewhere", "west-cloudy")]
    monkeypatch.setattr(Server, "items", made)
    Server.fail["/"] = [503]
    found = search(f"{server}/", "sentinel-2-l2a", BBOX, *dates("2019-08-01/2019-10-31"))
    assert names(found) == ["west", "east"]  # the server's own choice is checked
    _, _, _, asked, posted = Server.log
    assert asked["collections"] == "sentinel-2-l2a" and asked["datetime"] == "2019-08-01T00:00:00Z/2019-10-31T23:59:59Z"
    assert [float(v) for v in asked["bbox"].split(",")] == pytest.approx(BBOX)
    assert posted["token"] == "2" and posted["collections"] == ["sentinel-2-l2a"]


def test_downloads_go_on_where_they_broke_off(server, tmp_path):
    digest = hashlib.sha256(CONTENT).hexdigest()
    path = download(f"{server}/file.tif", tmp_path, len(CONTENT), ("sha256", digest))
    assert path.read_bytes() == CONTENT and path.name.endswith("_file.tif")
    assert [part for _, part in Server.log] == [None, "bytes=300000-"]
    assert download(f"{server}/file.tif", tmp_path) == path and len(Server.log) == 2  # there already
    whole = download(f"{server}/whole.tif", tmp_path)
    assert whole.read_bytes() == CONTENT and whole != path
    part = whole.with_name(whole.name + ".download")
    whole.rename(part)
    part.write_bytes(CONTENT[:5])
    assert download(f"{server}/whole.tif", tmp_path).read_bytes() == CONTENT  # from the start again
    path.rename(path.with_name(path.name + ".download"))
    assert download(f"{server}/file.tif", tmp_path).read_bytes() == CONTENT  # all of it was there


def test_downloads_that_fail(server, tmp_path):
    with pytest.raises(ValueError, match="its sha256 is"):
        download(f"{server}/whole.tif", tmp_path, None, ("sha256", "0" * 64))
    assert not list(tmp_path.iterdir())
    with pytest.raises(OSError, match=r"none\.tif: the server answers 404"):
        download(f"{server}/none.tif", tmp_path)
    Server.fail["/whole.tif"] = [500] * 9
    with pytest.raises(OSError, match="answers 500"):
        download(f"{server}/whole.tif", tmp_path)
    assert len(Server.fail["/whole.tif"]) == 9 - downloads.TRIES
    with pytest.raises(OSError, match="cannot be reached"):
        download("http://127.0.0.1:9/x.tif", tmp_path)

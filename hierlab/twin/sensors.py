"""The sensors: bands, resolution, point spread, noise, numbers and times of flight."""

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Sensor:
    """A sensor. Wavelengths in nm (centre, full width at half maximum); GSD in metres; psf in pixels (one sigma).

    A digital number is ``offset`` + ``gain`` × signal ** ``gamma``. The signal is a reflectance: that of the ground,
    dimmed by the air, and ``air`` times the light that the hazy air itself adds. ``bits`` is the depth: 8 and less
    makes uint8, more uint16. ``noise`` is its standard deviation in digital numbers, for all bands or for each.
    ``oversample`` is the number of samples across a pixel.

    A flight covers ``scene`` × ``scene`` tiles on one of the ``days`` (first and last day of the year), between the
    ``hours`` (from local noon), and each flight's gains differ by up to ``spread``. A series has ``dates`` instead
    (days of the year), one flight a date, under ``clouds`` (mean share of the sky).
    """

    name: str
    title: str
    bands: tuple[str, ...]
    wavelengths: tuple[float, ...]
    widths: tuple[float, ...]
    gsd: float
    bits: int
    offset: tuple[float, ...]
    gain: tuple[float, ...]
    gamma: float = 1.0
    psf: float = 0.5
    noise: float | tuple[float, ...] = 2.0
    oversample: int = 1
    air: float = 1.0
    scene: int = 12
    days: tuple[int, int] = (110, 290)
    hours: tuple[float, float] = (-1.9, -1.0)
    spread: float = 0.06
    dates: tuple[int, ...] = ()
    clouds: float = 0.0

    def __post_init__(self) -> None:
        n = len(self.bands)
        for name in ("wavelengths", "widths", "offset", "gain"):
            if len(getattr(self, name)) != n:
                raise ValueError(f"sensor {self.name}: {n} bands, but {len(getattr(self, name))} values of {name}.")
        if isinstance(self.noise, tuple) and len(self.noise) != n:
            raise ValueError(f"sensor {self.name}: {n} bands, but {len(self.noise)} values of noise.")
        if abs(self.gsd * 1000 - self.step_mm) > 1e-6 or self.step_mm < 1 or self.step_mm % self.oversample:
            raise ValueError(
                f"sensor {self.name}: gsd {self.gsd} m and oversample {self.oversample}: expected whole millimetres "
                "from sample to sample."
            )

    @property
    def step_mm(self) -> int:
        """The GSD in whole millimetres."""
        return round(self.gsd * 1000)

    @property
    def dtype(self) -> str:
        """Type of the digital numbers, "uint8" or "uint16"."""
        return "uint8" if self.bits <= 8 else "uint16"


_RGB = {"bands": ("red", "green", "blue"), "wavelengths": (640.0, 550.0, 465.0), "widths": (75.0, 75.0, 70.0)}
_RGBN = {
    "bands": ("red", "green", "blue", "near infrared"),
    "wavelengths": (635.0, 555.0, 465.0, 850.0),
    "widths": (60.0, 60.0, 64.0, 90.0),
}
_SENTINEL2 = {
    "bands": ("B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B11", "B12"),
    "wavelengths": (492.4, 559.8, 664.6, 704.1, 740.5, 782.8, 832.8, 864.7, 1613.7, 2202.4),
    "widths": (66.0, 36.0, 31.0, 15.0, 15.0, 20.0, 106.0, 21.0, 91.0, 175.0),
    "gsd": 10.0,
    "bits": 14,
    "offset": (40.0, 40.0, 30.0, 30.0, 30.0, 30.0, 30.0, 30.0, 10.0, 10.0),
    "gain": (10_000.0,) * 10,
    "psf": 0.55,
    "noise": (22.0, 22.0, 24.0, 26.0, 28.0, 30.0, 30.0, 30.0, 26.0, 24.0),
    "oversample": 4,
    "air": 0.3,
    "hours": (-1.6, -1.3),
    "spread": 0.03,
}
_LANDSAT8 = {
    "bands": ("B1", "B2", "B3", "B4", "B5", "B6", "B7"),
    "wavelengths": (443.0, 482.0, 561.4, 654.6, 864.7, 1608.9, 2200.7),
    "widths": (16.0, 60.0, 57.0, 37.0, 28.0, 85.0, 187.0),
    "gsd": 30.0,
    "bits": 16,
    "offset": (8300.0, 7300.0, 6300.0, 5800.0, 5400.0, 5100.0, 5000.0),
    "gain": (37_000.0, 39_500.0, 42_500.0, 45_000.0, 47_500.0, 48_500.0, 48_000.0),
    "psf": 0.5,
    "noise": (45.0, 45.0, 50.0, 50.0, 60.0, 50.0, 45.0),
    "oversample": 4,
    "air": 0.8,
    "hours": (-1.9, -1.5),
    "spread": 0.03,
}
_HYPERSPECTRAL = tuple(float(w) for w in np.round(np.linspace(391, 984, 249), 2))
_AERORIT = tuple(float(w) for w in np.round(np.linspace(397, 1003, 51), 2))


def _edges(wavelengths: tuple[float, ...], low: float, high: float) -> tuple[float, ...]:
    """Noise of a silicon detector: ``low`` amid its range, ``high`` at its ends."""
    far = np.abs(np.array(wavelengths) - 680) / 310
    return tuple(float(n) for n in np.round(low + (high - low) * far**4, 2))


GAOFEN2 = Sensor(
    name="gaofen2",
    title="GaoFen-2-like multispectral, 4 m",
    bands=("blue", "green", "red", "near infrared"),
    wavelengths=(485.0, 555.0, 660.0, 830.0),
    widths=(70.0, 70.0, 60.0, 120.0),
    gsd=4.0,
    bits=10,
    offset=(306.0, 198.0, 126.0, 45.0),
    gain=(880.0, 840.0, 830.0, 800.0),
    psf=0.55,
    noise=2.2,
    scene=56,
    days=(95, 300),
)
_ALL = (
    GAOFEN2,
    Sensor(
        name="google-1m",
        title="Google-Earth-like true colour, 1 m",
        **_RGB,
        gsd=1.0,
        bits=8,
        offset=(-10.0, -16.0, -14.0),
        gain=(460.0, 470.0, 480.0),
        gamma=0.6,
        psf=0.6,
        noise=2.2,
        scene=16,
        spread=0.1,
    ),
    Sensor(name="sentinel2", title="Sentinel-2-like, 10 m", **_SENTINEL2, scene=78, days=(100, 290)),
    Sensor(
        name="sentinel2-series",
        title="Sentinel-2-like, 10 m, 31 dates of a year",
        **_SENTINEL2,
        dates=tuple(int(d) for d in np.round(np.linspace(5, 361, 31))),
        clouds=0.42,
    ),
    Sensor(name="landsat8", title="Landsat-8-like, 30 m", **_LANDSAT8, scene=48, days=(120, 280)),
    Sensor(
        name="landsat8-series",
        title="Landsat-8-like, 30 m, 23 dates of a year",
        **_LANDSAT8,
        dates=tuple(range(8, 366, 16)),
        clouds=0.42,
    ),
    Sensor(
        name="naip",
        title="NAIP-like aerial imagery, 1 m",
        **_RGBN,
        gsd=1.0,
        bits=8,
        offset=(10.0, 23.0, 55.0, -23.0),
        gain=(430.0, 440.0, 330.0, 440.0),
        gamma=0.7,
        psf=0.55,
        noise=2.4,
        air=0.6,
        scene=12,
        days=(140, 265),
        hours=(-2.5, 1.5),
        spread=0.1,
    ),
    Sensor(
        name="hyperspectral-1m",
        title="airborne hyperspectral, 249 bands, 1 m",
        bands=tuple(f"{w:.2f} nm" for w in _HYPERSPECTRAL),
        wavelengths=_HYPERSPECTRAL,
        widths=(4.0,) * 249,
        gsd=1.0,
        bits=14,
        offset=(0.0,) * 249,
        gain=(10_000.0,) * 249,
        psf=0.55,
        noise=_edges(_HYPERSPECTRAL, 28, 80),
        air=0.25,
        scene=6,
        days=(150, 260),
        hours=(-2.0, 1.0),
        spread=0.04,
    ),
    Sensor(
        name="aerorit",
        title="AeroRIT-like airborne hyperspectral, 51 bands, 0.4 m",
        bands=tuple(f"{w:.2f} nm" for w in _AERORIT),
        wavelengths=_AERORIT,
        widths=(10.0,) * 51,
        gsd=0.4,
        bits=14,
        offset=(0.0,) * 51,
        gain=(10_000.0,) * 51,
        psf=0.55,
        noise=_edges(_AERORIT, 30, 90),
        air=0.3,
        scene=8,
        days=(170, 260),
        hours=(-2.0, 1.0),
        spread=0.04,
    ),
    Sensor(
        name="aerial-25cm",
        title="aerial true colour, 25 cm",
        **_RGB,
        gsd=0.25,
        bits=8,
        offset=(-6.0, 0.0, 2.0),
        gain=(430.0, 425.0, 430.0),
        gamma=0.65,
        psf=0.5,
        noise=2.5,
        air=0.5,
        scene=16,
        days=(100, 270),
        hours=(-2.5, 2.0),
        spread=0.08,
    ),
    Sensor(
        name="aerial-50cm",
        title="aerial or satellite true colour, 50 cm",
        **_RGB,
        gsd=0.5,
        bits=8,
        offset=(-6.0, 0.0, 2.0),
        gain=(430.0, 425.0, 430.0),
        gamma=0.65,
        psf=0.55,
        noise=2.5,
        air=0.7,
        scene=12,
        days=(90, 300),
        hours=(-2.0, 0.5),
        spread=0.1,
    ),
    Sensor(
        name="ortho-5cm",
        title="orthophoto, 5 cm",
        **_RGBN,
        gsd=0.05,
        bits=8,
        offset=(-6.0, 0.0, 2.0, -4.0),
        gain=(430.0, 430.0, 435.0, 270.0),
        gamma=0.65,
        psf=0.55,
        noise=2.5,
        air=0.3,
        scene=64,
        days=(100, 250),
        hours=(-2.5, 2.0),
    ),
    Sensor(
        name="ortho-9cm",
        title="colour infrared orthophoto, 9 cm",
        bands=("near infrared", "red", "green"),
        wavelengths=(840.0, 635.0, 555.0),
        widths=(90.0, 60.0, 60.0),
        gsd=0.09,
        bits=8,
        offset=(-4.0, -6.0, 0.0),
        gain=(270.0, 430.0, 430.0),
        gamma=0.65,
        psf=0.55,
        noise=2.5,
        air=0.3,
        scene=48,
        days=(150, 250),
        hours=(-2.5, 2.0),
    ),
)
SENSORS: dict[str, Sensor] = {sensor.name: sensor for sensor in _ALL}

_BANDS13 = {  # all of Sentinel-2's, with those for aerosol, water vapour and cirrus
    "bands": ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12"),
    "wavelengths": (
        *(442.7, 492.4, 559.8, 664.6, 704.1, 740.5, 782.8, 832.8, 864.7),
        *(945.1, 1373.5, 1613.7, 2202.4),
    ),
    "widths": (21.0, 66.0, 36.0, 31.0, 15.0, 15.0, 20.0, 106.0, 21.0, 20.0, 31.0, 91.0, 175.0),
    "offset": (100.0, 90.0, 70.0, 50.0, 40.0, 40.0, 30.0, 30.0, 30.0, 20.0, 10.0, 10.0, 10.0),
    "gain": (10_000.0,) * 13,
    "noise": (20.0, 22.0, 22.0, 24.0, 26.0, 28.0, 30.0, 30.0, 30.0, 30.0, 20.0, 26.0, 24.0),
}
_GOOGLE, _AERIAL, _SERIES = SENSORS["google-1m"], SENSORS["aerial-25cm"], SENSORS["sentinel2-series"]
VARIANTS: dict[str, Sensor] = {  # that some of the data sets have
    v.name: v
    for v in (
        replace(
            _GOOGLE,
            name="google-2m",
            title="Google-Earth-like true colour, halved to 2 m",
            gsd=2.0,
            noise=_GOOGLE.noise / 2,  # the mean of four pixels
            scene=_GOOGLE.scene // 2,
        ),
        replace(_AERIAL, name="aerial-30cm", title="aerial true colour, 30 cm", gsd=0.3),
        replace(
            _SERIES,
            name="sentinel2-12-dates",
            title="Sentinel-2-like, 13 bands, 12 dates of a year",
            dates=tuple(range(15, 366, 30)),
            **_BANDS13,
        ),
    )
}


def lookup(sensor: str | Sensor) -> Sensor:
    """The sensor of that name, one of the data sets' own included; a ``Sensor`` is returned as it is.

    ValueError if there is none.
    """
    if isinstance(sensor, Sensor):
        return sensor
    if sensor not in SENSORS and sensor not in VARIANTS:
        raise ValueError(f"no sensor {sensor!r} in the twin: choose one of {', '.join([*SENSORS, *VARIANTS])}.")
    return SENSORS.get(sensor) or VARIANTS[sensor]

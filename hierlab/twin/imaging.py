"""How one canonical tile becomes an image: flights, materials mixed and lit, air, noise and digital numbers.

A tile is made in two steps. First every sample's materials are mixed, lit and blurred, in as few numbers as describe
all spectra to 10⁻⁴ (the bands themselves if they are few). Then strips of ``STRIP`` rows are expanded to bands and
get their air, noise and rounding, so that hundreds of bands are never held for a whole tile.
"""

from dataclasses import fields, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from hierlab.twin import optics, series, world
from hierlab.twin.arrays import Array, empty, integers, like, matmul, numbers, of, put, whole
from hierlab.twin.fields import Grid
from hierlab.twin.ground import Ground
from hierlab.twin.hashing import derive, key, scalar, unit
from hierlab.twin.optics import Sun
from hierlab.twin.regions import style
from hierlab.twin.sensors import Sensor
from hierlab.twin.spectra import (
    GROUPS,
    KIND,
    KINDS,
    MATERIAL,
    MATERIALS,
    MODES,
    PHASES,
    SOILS,
    endmembers,
    mixtures,
    ripeness,
    season,
)
from hierlab.twin.world import YEAR

STRIP = 32  # rows; divides every tile
_TOGETHER = 8  # bands that NumPy takes at a time: fewer calls, and all still fits in the cache
_FEW = 16  # bands: up to these they stand for themselves
_ERROR = 1e-4  # reflectance: what the basis of many bands may miss
_ROWS = 1 + MODES  # of a material among the endmembers
_CLOSE = 2.5  # metres between samples up to which plants are mottled; farther apart, a sample sees the mean of it
_MOTTLE = {"crops": 2.0, "grasses": 3.0, "trees": 5.0}  # deviations of brightness in the visible


class Flight(NamedTuple):
    """The circumstances of one flight: day of the year, the sun, haze (0–1), the optical depth of the aerosol, gains.

    ``tilt`` is how much brighter the light's side of the flight is than its middle (a share of the signal).
    """

    day: int
    sun: Sun
    haze: float
    aerosol: float
    gains: tuple[float, ...]
    tilt: float


@lru_cache(maxsize=4096)
def flight(
    sensor: Sensor, seed: int, region: int, column: int = 0, row: int = 0, year: int = YEAR, day: int | None = None
) -> Flight:
    """The flight over place (column, row) of a sensor's grid of flights; of a series, that of the date ``day``."""
    where = (day,) if sensor.dates else (column, row)
    k = key(seed, region, sensor.name, "flight", year, *where)
    land = style(seed, region)
    if day is None:
        day = int(scalar(k, 0, *sensor.days))
    light = optics.sun(34 + 0.4 * land.season, day, scalar(k, 1, *sensor.hours))
    haze = scalar(k, 2)
    gains = tuple(scalar(k, 10 + n, 1 - sensor.spread, 1 + sensor.spread) for n in range(len(sensor.bands)))
    if len(gains) > _FEW:  # a spectrometer's gains are smooth along the spectrum
        knots = np.interp(sensor.wavelengths, np.linspace(380, 1020, 6), gains[:6])
        gains = tuple(float(g) for g in knots)
    common = scalar(k, 3, 1 - sensor.spread, 1 + sensor.spread)
    aerosol = land.aerosol * (0.3 + 1.4 * haze)
    tilt = 0.0 if sensor.dates else scalar(k, 4, -sensor.spread, sensor.spread)
    return Flight(day, light, haze, aerosol, tuple(g * common for g in gains), tilt)


class _Optics(NamedTuple):
    """Endmembers in few numbers, under direct light and skylight (M · _ROWS, 2 R), and back to bands (R, C)."""

    table: torch.Tensor  # on the host
    basis: np.ndarray


@lru_cache(maxsize=64)
def _optics(sensor: Sensor, seed: int, region: int, haze: float) -> _Optics:
    """``_Optics`` for a hazy flight; materials differ a little from region to region, along their modes."""
    spectra = endmembers(sensor.wavelengths, sensor.widths)
    k = key(seed, region, "materials")
    own = unit(derive(np.arange(len(MATERIALS) * MODES, dtype=np.uint32) ^ k, 3)).reshape(-1, MODES) - np.float32(0.5)
    spectra[:, 0] += (np.float32(0.9) * own[..., None] * spectra[:, 1:]).sum(1)
    share = optics.diffuse(sensor.wavelengths, haze).astype(np.float32)
    flat = spectra.reshape(-1, spectra.shape[-1])
    both = np.stack([(1 - share) * flat, share * flat])
    if len(sensor.bands) <= _FEW:
        return _Optics(torch.from_numpy(np.concatenate(list(both), 1)), np.eye(len(sensor.bands), dtype=np.float32))
    _, strength, shapes = np.linalg.svd(both.reshape(-1, both.shape[-1]).astype(np.float64), full_matrices=False)
    for rank in range(4, len(strength) + 1):
        basis = shapes[:rank]
        if np.abs((both @ basis.T) @ basis - both).max() < _ERROR:
            break
    codes = (both @ basis.T).astype(np.float32)
    return _Optics(torch.from_numpy(np.concatenate(list(codes), 1)), basis.astype(np.float32))


@lru_cache(maxsize=32)
def _variety(seed: int, region: int) -> np.ndarray:
    """How objects differ: (PHASES, MODES) float32 of mean 0 and variance 1, by an object's hash."""
    n = np.arange(PHASES * MODES * 3, dtype=np.uint32)
    return (2 * unit(derive(n ^ key(seed, region, "variety"), 7)).reshape(PHASES, MODES, 3) - 1).sum(2)


@lru_cache(maxsize=1)
def _mottled() -> np.ndarray:
    """How much the visible brightness of every kind changes within some metres: (K,) float32."""
    out = np.zeros(len(KINDS), np.float32)
    for group, much in _MOTTLE.items():
        out[[KIND[kind] for kind in GROUPS[group]]] = much
    return out


class _Mixture:
    """What the samples of a scene are made of, as weights on the endmembers, on any day of the year."""

    def __init__(self, scene: world.Scene, part: tuple):
        """``part`` is the index of the samples (H, W) that matter."""
        grid = scene.grid
        g = Ground(*(whole(getattr(scene.ground, f.name)[part]) for f in fields(Ground)))
        kind, phase = integers(g.kind.ravel()), g.phase.ravel()
        self._ground: Ground = g
        self._when = kind * PHASES + phase
        top, under, third = (like(m.astype(np.int32), kind)[kind] for m in mixtures())
        under += (under == MATERIAL["dark soil"]) * integers(g.soil.ravel() % SOILS)
        self.numbers = empty((len(kind), 2 * _ROWS), "int32", kind)
        for n in range(_ROWS):
            self.numbers[:, n] = top * _ROWS + n
        for n in range(_ROWS - 2):
            self.numbers[:, _ROWS + n] = under * _ROWS + n
        self.numbers[:, -2] = third * _ROWS
        self.numbers[:, -1] = third * _ROWS + 3
        objects = like(_variety(grid.seed, grid.region), kind)[integers(phase + 37 * g.kind.ravel())]
        grid = replace(grid, x=grid.x[part[1]], y=grid.y[part[0]])
        within = [grid.noise(f"variety {n}", 70, 2, 0.7).ravel() for n in range(2)]
        self._modes = [whole(objects[:, n]) for n in range(MODES)]
        for n in range(2):
            mode = self._modes[n]
            mode *= 0.8
            mode += 0.5 * within[n]
            mode[mode < 0] *= 0.7  # absorption saturates
        for n in (2, 3):  # what the visible alone tells wrongly: dust, bloom, wetness, in patches of 200 m and less
            self._modes[n] += 1.1 * grid.noise(f"variety {n}", 200, 3, 0.7).ravel()
        if grid.step <= _CLOSE:  # lit and dry foliage, tufts and weeds
            mottle = of(kind).exp(0.6 * grid.noise("mottle", 3, 2, 0.6).ravel())
            self._modes[2] += like(_mottled(), kind)[kind] * (mottle - float(np.exp(0.18)))

    def weights(self, day: float) -> Array:
        """Weights (N, 2 · _ROWS) float32 of the endmembers ``numbers`` on a day of the year."""
        g, xp = self._ground, of(self.numbers)
        green, straw = (like(a, self.numbers)[self._when] for a in season(day))
        first = green
        first *= g.cover.ravel()
        xp.clip(first, 0, 1, out=first)
        rest = 1 - first
        straw += g.dirt.ravel()
        last = xp.clip(straw, 0, 1, out=straw)
        last *= rest
        rest -= last
        bright = g.bright.ravel()
        for share in (first, rest, last):
            share *= bright
        out = empty(tuple(self.numbers.shape), "float32", self.numbers)
        ripe = self._modes[0] + like(ripeness(day), self.numbers)[self._when]
        out[:, 0], out[:, _ROWS], out[:, -2] = first, rest, last
        for n, mode in enumerate((ripe, *self._modes[1:]), 1):
            xp.multiply(first, mode, out=out[:, n])
        for n in (1, 2):
            xp.multiply(rest, self._modes[n - 1], out=out[:, _ROWS + n])
        xp.multiply(last, self._modes[2], out=out[:, -1])
        return out

    def mixed(self, table: torch.Tensor, day: float) -> Array:
        """Every sample's endmembers of a ``table`` (M, D), summed by their weights on a day: (N, D) float32."""
        numbers, weights, host = self.numbers, self.weights(day), of(self.numbers) is np
        if host:
            numbers, weights = torch.from_numpy(numbers), torch.from_numpy(weights)
        found = torch.nn.functional.embedding_bag(
            numbers, table.to(numbers.device), per_sample_weights=weights, mode="sum"
        )
        return found.numpy() if host else found


@lru_cache(maxsize=2)
def _scene(
    seed: int, region: int, column: int, row: int, step_mm: int, oversample: int, year: int, device: torch.device | None
) -> world.Scene:
    """``world.tile`` on a device."""
    scene = world.tile(seed, region, column, row, step_mm, oversample, year)
    if device is None:
        return scene
    ground = Ground(*(put(getattr(scene.ground, f.name), device) for f in fields(Ground)))
    return world.Scene(ground, put(scene.relief, device), scene.grid.on(device))


@lru_cache(maxsize=2)
def _mixture(
    seed: int, region: int, column: int, row: int, step_mm: int, oversample: int, year: int, device: torch.device | None
) -> _Mixture:
    scene = _scene(seed, region, column, row, step_mm, oversample, year, device)
    return _Mixture(scene, _needed(step_mm, oversample))


def _needed(step_mm: int, oversample: int) -> tuple[slice, slice]:
    """The samples of a tile with its margin that its pixels see: its own, and those of the point spread."""
    first = (world.halo(step_mm) - optics.SPREAD) * oversample
    return np.s_[first:-first, first:-first]


def _codes(
    sensor: Sensor,
    seed: int,
    region: int,
    column: int,
    row: int,
    year: int,
    sun: Flight,
    device: torch.device | None,
) -> Array:
    """The lit and blurred ground of one tile, without air: (R, size, size) float32."""
    step, n = sensor.step_mm, sensor.oversample
    scene = _scene(seed, region, column, row, step, n, year, device)
    mixture = _mixture(seed, region, column, row, step, n, year, device)
    table = _optics(sensor, seed, region, round(sun.haze, 1)).table
    mixed = mixture.mixed(table, (sun.day - style(seed, region).season - 1) % 365 + 1)
    part, rank = _needed(step, n), table.shape[1] // 2
    direct, sky = (whole(a[part])[..., None] for a in optics.lit(scene, sun.sun))
    rows, columns = direct.shape[:2]
    mixed = mixed.reshape(rows, columns, 2 * rank)
    out = mixed[..., :rank] * direct
    out += mixed[..., rank:] * sky
    if n > 1:
        out = sum(out[k::n] for k in range(1, n)) + out[::n]
        out = (sum(out[:, k::n] for k in range(1, n)) + out[:, ::n]) * (1 / n**2)
    out = optics.blur(out, sensor.psf)
    return whole(of(out).moveaxis(out, -1, 0))


class Tile(NamedTuple):
    """One tile before its bands: ``codes`` (R + 3, size, size), ``bands`` (C, R + 3) and, of a series, ``valid``.

    The last three codes belong to haze, clouds and to light that is always there.
    """

    codes: Array
    bands: Array
    valid: np.ndarray | None


@lru_cache(maxsize=6)
def tile(
    sensor: Sensor,
    seed: int,
    region: int,
    column: int,
    row: int,
    year: int,
    day: int | None,
    device: torch.device | None = None,
) -> tuple[Tile, ...]:
    """A tile of the sensor, date by date (of a single image: one), made by NumPy or on a torch device."""
    out = []
    size = world.tile_size(sensor.step_mm)
    pixels = Grid.of(seed, region, column * size, row * size, size, sensor.step_mm, year).on(device)
    nm = np.array(sensor.wavelengths)
    for date in sensor.dates or (day,):
        f = flight(sensor, seed, region, column // sensor.scene, row // sensor.scene, year, date)
        ground = _codes(sensor, seed, region, column, row, year, f, device)
        codes = empty((len(ground) + 3, size, size), "float32", ground)
        codes[:-3], codes[-2], codes[-1] = ground, 0, 1
        depth = sensor.air * f.aerosol
        codes[-3] = depth * (1 + 0.45 * pixels.noise(f"haze {sensor.name} {date}", 4000, 4, 0.7))
        valid = None
        if sensor.dates:
            above = series.sky(pixels, sensor.name, date, f.sun, sensor.clouds)
            codes[-3] += 0.25 * above.haze
            codes[:-3] *= (1 - above.opacity) * (1 - above.shade)
            codes[-3] *= 1 - above.opacity
            codes[-2] = above.opacity
            valid = above.valid if device is None else above.valid.cpu().numpy()
        codes[:-3] *= 1 - 0.35 * codes[-3]
        if f.tilt:
            across = (np.arange(size, dtype=np.float32) + np.float32(column % sensor.scene * size)) / np.float32(
                sensor.scene * size
            )
            codes[:-3] *= like(1 + np.float32(2 * f.tilt) * (across - np.float32(0.5)), codes)
        signal = np.array(f.gains) if sensor.gamma != 1 else np.array(f.gains) * np.array(sensor.gain)
        base = np.zeros(len(nm)) if sensor.gamma != 1 else np.array(sensor.offset) * np.array(f.gains) ** 0.5
        basis = _optics(sensor, seed, region, round(f.haze, 1)).basis
        air = 0.16 * (nm / 550) ** -1.3
        bright = 0.72 - 0.1 * np.clip((nm - 1000) / 1200, 0, 1)
        bands = np.concatenate([basis.T, air[:, None], bright[:, None]], 1) * signal[:, None]
        bands = np.concatenate([bands, base[:, None]], 1).astype(np.float32)
        out.append(Tile(codes, like(bands, codes), valid))
    return tuple(out)


def strip(sensor: Sensor, made: Tile, k: np.uint32, first: int, out: np.ndarray, rows: slice, columns: slice) -> None:
    """Write digital numbers of the strip of rows from ``first`` on to ``out`` (C, H, W).

    ``rows`` and ``columns`` are those of the strip that are asked for; ``k`` is the key of the tile's noise. NumPy
    takes a few bands at a time, which stay in the processor's cache, a device all of them.
    """
    codes, xp = made.codes[:, first : first + STRIP], of(made.codes)
    signal = matmul(made.bands, codes.reshape(len(codes), -1)).reshape(-1, *codes.shape[1:])
    sigma = np.broadcast_to(sensor.noise, len(signal))
    gain, offset = (np.array(a, np.float32)[:, None, None] for a in (sensor.gain, sensor.offset))
    step = _TOGETHER if xp is np else len(signal)
    for n in range(0, len(signal), step):
        some, bands = slice(n, n + step), signal[n : n + step]
        if sensor.gamma != 1:
            xp.clip(bands, 1e-4, None, out=bands)
            bands **= sensor.gamma
            bands *= like(gain[some], bands)
            bands += like(offset[some], bands)
        optics.add_noise(bands, k, first, n, sigma[some])
        xp.round(bands, out=bands)
        xp.clip(bands, 1, 2**sensor.bits - 1, out=bands)
        out[some] = numbers(bands[:, rows, columns], sensor.dtype)

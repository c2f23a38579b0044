import numpy as np
import pytest
from affine import Affine
from fake_satellite import texture
from rasterio.transform import from_origin

from hierlab.data.coregister import (
    Matches,
    chessboard,
    coarse_shift,
    fit,
    in_map,
    measure,
    phase_shift,
    residuals,
)
from hierlab.data.grid import apply

SIDE = 4.0  # metres a pixel


def ground(rows, columns, seed=0):
    """A picture of the ground where pixels of 4 m look: (…) from their places in pixels."""
    return texture(5e5 + SIDE * columns, 3.37e6 - SIDE * rows, seed)


def pixels(height, width):
    return np.meshgrid(np.arange(height) + 0.5, np.arange(width) + 0.5, indexing="ij")


def pair(height=400, width=460, down=0.0, right=0.0, matrix=None, noise=0.1):
    """A reference, and an image that shows everything further down and right (or where ``matrix`` takes it), as another
    sensor on another day would: darker, with other contrast, and noisy."""
    rows, columns = pixels(height, width)
    there = apply(matrix, columns, rows) if matrix else (columns - right, rows - down)
    rng = np.random.default_rng(7)
    image = 300 + 40 * ground(there[1], there[0]) + 40 * noise * rng.normal(size=rows.shape)
    return ground(rows, columns) + noise * rng.normal(size=rows.shape), image


@pytest.mark.parametrize(("down", "right"), [(0, 0), (3.25, -7.4), (-0.5, 0.3), (20.7, 11.1)])
def test_windows_are_compared_to_a_tenth_of_a_pixel(down, right):
    reference, image = pair(128, 128, down, right)
    near = 0.1 + 0.01 * max(abs(down), abs(right))  # what the windows do not share pulls towards 0
    assert phase_shift(reference, image) == pytest.approx((down, right), abs=near)
    assert phase_shift(image, reference) == pytest.approx((-down, -right), abs=near)


def test_a_coarse_reference_will_do():
    """A reference whose pixels are 10 m: the fine detail of the image is not in it."""
    _, image = pair(256, 256, 2.6, -1.7)
    rows, columns = pixels(256, 256)
    coarse = sum(
        ground(rows + dr, columns + dc) for dr in np.arange(-1, 1.1, 0.5) for dc in np.arange(-1, 1.1, 0.5)
    ) / 25  # fmt: skip
    assert phase_shift(coarse, image) == pytest.approx((2.6, -1.7), abs=0.15)


def test_a_large_shift_is_found_first():
    reference, image = pair(600, 640, 90.3, -130.6)
    valid = np.ones(image.shape, bool)
    assert coarse_shift(reference, image, valid, side=300) == pytest.approx((90, -130), abs=3)
    matches = measure(reference, image, window=128)
    assert len(matches) >= 4
    assert np.median(matches.down) == pytest.approx(90.3, abs=0.1)
    assert np.median(matches.right) == pytest.approx(-130.6, abs=0.1)
    assert coarse_shift(reference, np.random.default_rng(0).normal(size=image.shape), valid) == (0, 0)


def test_the_correction_of_a_turned_and_stretched_image():
    truth = Affine(1.0012, 0.0008, -6.3, -0.0007, 0.9991, 4.1)  # from the image to the reference
    reference, image = pair(640, 700, matrix=truth)
    matches = measure(reference, image, window=128)
    assert len(matches) == matches.tried == 25
    before = residuals(matches, SIDE)
    assert before["median_px"] > 4 and before["median_m"] == pytest.approx(4 * before["median_px"], abs=0.01)
    fitted, agree = fit(matches)
    assert agree.sum() >= 24
    corners = np.array([[0, 0, 700, 700], [0, 640, 0, 640]])
    np.testing.assert_allclose(apply(fitted, *corners), apply(truth, *corners), atol=0.15)
    rows, columns = pixels(640, 700)
    inverse = apply(~fitted, columns, rows)
    corrected = 300 + 40 * ground(*apply(truth, *inverse)[::-1])  # what the image shows there
    after = residuals(measure(reference, corrected, window=128), SIDE)
    assert after["median_px"] < 0.1 and after["within_1.5_px"] == 1 and after["rmse_m"] < 0.6


def test_windows_that_disagree_are_outvoted():
    rng = np.random.default_rng(1)
    rows, columns = (
        v.ravel() for v in np.meshgrid(np.arange(64, 1000, 128.0), np.arange(64, 1000, 128.0), indexing="ij")
    )
    truth = Affine(1.0005, 0.0003, -8, -0.0004, 1.0002, 5)
    shown = apply(~truth, columns, rows)
    right, down = shown[0] - columns + rng.normal(0, 0.1, 64), shown[1] - rows + rng.normal(0, 0.1, 64)
    wild = rng.permutation(64)[:26]  # two in five
    right[wild] += rng.uniform(-60, 60, 26)
    down[wild] += rng.uniform(-60, 60, 26)
    fitted, agree = fit(Matches(rows, columns, down, right, np.ones(64), 64))
    assert agree.sum() >= 36 and agree[wild].sum() <= 2
    np.testing.assert_allclose(apply(fitted, columns, rows), apply(truth, columns, rows), atol=0.2)


def test_few_windows_give_a_shift_and_none_an_error():
    at = np.array([10.0, 200.0, 400.0, 300.0])
    matches = Matches(at, at[::-1], np.array([2.0, 2.1, 1.9, 30]), np.array([-3.0, -3.1, -2.9, 8]), np.ones(4), 9)
    fitted, agree = fit(matches)
    assert tuple(fitted)[:6] == pytest.approx((1, 0, 3, 0, 1, -2), abs=1e-9)
    assert agree.tolist() == [True, True, True, False]
    with pytest.raises(ValueError, match=r"only 2 of 2 windows could be matched.*three are needed"):
        fit(matches.where(np.array([True, True, False, False])))
    wild = Matches(at, at, np.array([0.0, 50, -80, 20]), np.array([0.0, -40, 10, 90]), np.ones(4), 4)
    with pytest.raises(ValueError, match="agree on no displacement: at most 1 of them do"):
        fit(wild)


def test_water_cloud_and_nodata_are_not_matched():
    reference, image = pair(384, 384, 4.0, 2.0)
    image[:, :128] = np.random.default_rng(0).normal(size=(384, 128))  # another picture
    image[128:256, 128:256] = 300  # flat
    valid = np.ones(image.shape, bool)
    valid[:128, 256:] = False
    reference[300:384, 128:300] = np.nan
    matches = measure(reference, image, valid, window=128, guess=(0, 0))
    assert matches.tried == 6
    assert sorted(zip(matches.rows, matches.columns, strict=True)) == [(64, 192), (192, 320)]
    np.testing.assert_allclose([matches.down, matches.right], [[4, 4], [2, 2]], atol=0.3)
    nothing = measure(reference, image, np.zeros(image.shape, bool))
    assert len(nothing) == 0 and residuals(nothing, 4)["median_px"] is None and residuals(nothing, 4)["windows"] == 0
    with pytest.raises(ValueError, match="images on one grid"):
        measure(reference, image[:-1])
    with pytest.raises(ValueError, match="windows of one size"):
        phase_shift(reference, image[:-1])


def test_a_correction_in_map_coordinates():
    transform = from_origin(500_000, 4_000_000, SIDE, SIDE)
    matrix = Affine(1.001, 0.002, -6, -0.001, 0.999, 5)
    x, y = apply(transform, 100.0, 50.0)
    there = apply(transform, *apply(matrix, 100.0, 50.0))
    assert apply(in_map(matrix, transform), x, y) == pytest.approx(there)


def test_half_of_the_windows_check_the_other_half():
    rows, columns = (v.ravel() for v in np.meshgrid(np.arange(5) * 256 + 128.0, np.arange(4) * 256 + 128.0))
    white = chessboard(Matches(rows, columns, rows, rows, rows, 20))
    assert white.sum() == 10
    for r, c, w in zip(rows, columns, white, strict=True):
        assert all(not white[(rows == r + d) & (columns == c + e)].any() for d, e in ((256, 0), (0, 256))) or not w

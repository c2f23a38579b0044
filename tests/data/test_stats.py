import numpy as np
import pytest

from hierlab.data import LabelledScene, Scene, blocked_split, statistics


def test_equals_numpy_on_all_valid_pixels(write, noise):
    array = noise(3, 300, 280, dtype="float32")
    array[0] += 1e6  # a large offset costs no precision
    array[1, :40] = np.nan
    array[2] = 7  # constant
    scene = Scene.open(write("a.tif", array))
    seen = array[:, 40:].reshape(3, -1).astype(float)
    found = statistics([scene], pixels=10**9)
    assert found.windows == found.windows_in_all == 4
    assert found.pixels == 260 * 280
    assert found.mean == pytest.approx(seen.mean(axis=1), rel=1e-12)
    assert found.std[:2] == pytest.approx(seen.std(axis=1)[:2], rel=1e-9)
    assert found.std[2] == 1
    assert "from" in str(found) and f"{found.pixels:,}" in str(found)


def test_small_scenes_are_used_whole(write, noise):
    array = noise(2, 100, 120)
    found = statistics([Scene.open(write("a.tif", array))])
    assert found.pixels == 100 * 120
    assert found.mean == pytest.approx(array.reshape(2, -1).mean(axis=1), rel=1e-12)
    assert found.std == pytest.approx(array.reshape(2, -1).std(axis=1), rel=1e-12)


def test_seeded_sample_and_several_scenes(write, noise):
    a, b = (Scene.open(write(f"{i}.tif", noise(1, 700, 700, seed=i) + 100 * i)) for i in range(2))
    one, same, other = (statistics([a, b], pixels=50_000, seed=s) for s in (0, 0, 1))
    assert one == same and one != other
    assert 50_000 <= one.pixels < 50_000 + 2**14 and one.windows < one.windows_in_all
    whole = np.concatenate([a.read().ravel(), b.read().ravel()])
    assert statistics([a, b], pixels=10**9).mean[0] == pytest.approx(whole.mean(), rel=0.01)


def test_only_the_part_counts(write, noise):
    label = np.zeros((200, 200), np.uint8)
    split = blocked_split(label, 25, 0.3, 0)
    array = np.where(split.mask("train"), 5, 1000).astype("uint16")
    pair = (LabelledScene(Scene.open(write("a.tif", array)), label), split)
    found = statistics([pair])
    assert found.mean == (5,) and found.std == (1,) and found.pixels == split.mask("train").sum()
    with pytest.raises(ValueError, match="test part holds not one valid pixel"):
        statistics([pair], part="test")

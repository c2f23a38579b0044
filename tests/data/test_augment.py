import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hierlab.data import Augment, augment

STILL = {"horizontal": 0.0, "vertical": 0.0, "quarter_turns": False, "scale": None, "max_share": None}


def patchy(b=3, c=2, size=24, classes=5, cell=6, seed=0):
    """A batch whose image is the label in every band, in cells, with an invalid corner."""
    g = torch.Generator().manual_seed(seed)
    label = torch.randint(0, classes, (b, size // cell, size // cell), generator=g)
    label = label.repeat_interleave(cell, 1).repeat_interleave(cell, 2)
    valid = torch.ones(b, size, size, dtype=torch.bool)
    valid[:, : cell - 2, : cell - 1] = False
    label[~valid] = 255
    image = label.float().masked_fill(~valid, 0)[:, None].repeat(1, c, 1, 1)
    return {"image": image, "label": label, "valid": valid}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def interior(label):
    """Pixels whose eight neighbours, all inside, have their label: there a bilinear image equals the label."""
    padded = torch.nn.functional.pad(label[:, None].float(), (1, 1, 1, 1), value=-1)
    high = torch.nn.functional.max_pool2d(padded, 3, 1)
    low = -torch.nn.functional.max_pool2d(-padded, 3, 1)
    return (high == low)[:, 0]


def aligned(batch, exact):
    where = batch["label"] != 255
    assert torch.equal(where, batch["valid"])
    if not exact:
        where = where & interior(batch["label"])
    assert where.any()
    for band in batch["image"].unbind(1):
        torch.testing.assert_close(band[where], batch["label"][where].float(), rtol=0, atol=0 if exact else 1e-5)
    assert (batch["image"].permute(0, 2, 3, 1)[~batch["valid"]] == 0).all()


@given(
    st.integers(0, 10**6), st.booleans(), st.booleans(), st.booleans(),
    st.sampled_from([None, (0.5, 2.0), (0.5, 0.5), (2.0, 2.0), (1.0, 1.0)]), st.sampled_from([None, 16, 24, 40]),
)  # fmt: skip
def test_image_label_and_valid_stay_together(seed, horizontal, vertical, turns, scale, crop):
    settings = Augment(float(horizontal), float(vertical), turns, scale, crop)
    out = augment(patchy(seed=seed), settings, generator(seed))
    size = crop or 24
    assert out["image"].shape == (3, 2, size, size) and out["label"].shape == (3, size, size)
    aligned(out, exact=scale in (None, (1.0, 1.0)) and crop in (None, 24))


def test_nothing_asked_nothing_done():
    batch = patchy()
    out = augment(batch, Augment(**STILL), generator())
    assert all(torch.equal(out[k], batch[k]) for k in batch)
    out = augment(batch, Augment(**(STILL | {"scale": (1.0, 1.0)})), generator())
    assert all(torch.equal(out[k], batch[k]) for k in batch)


def test_flips_and_turns_are_the_eight_symmetries():
    ramp = torch.arange(16.0).view(1, 1, 4, 4).repeat(400, 1, 1, 1)
    batch = {"image": ramp, "label": ramp[:, 0].long()}
    out = augment(batch, Augment(**(STILL | {"horizontal": 0.5, "vertical": 0.5, "quarter_turns": True})), generator())
    expected = {tuple(torch.rot90(s, k).flatten().tolist()) for k in range(4) for s in (ramp[0, 0], ramp[0, 0].T)}
    found = [tuple(x.flatten().tolist()) for x in out["image"]]
    assert set(found) == expected and len(expected) == 8
    assert min(found.count(e) for e in expected) > 25
    for changes, shape in (
        ({"horizontal": 1.0}, ramp[0, 0].flip(1)),
        ({"vertical": 1.0}, ramp[0, 0].flip(0)),
    ):
        out = augment(batch, Augment(**(STILL | changes)), generator())
        assert (out["image"] == shape).all()
    turned = augment(batch, Augment(**(STILL | {"quarter_turns": True})), generator())
    assert {tuple(x.flatten().tolist()) for x in turned["image"]} == {
        tuple(torch.rot90(ramp[0, 0], k).flatten().tolist()) for k in range(4)
    }


def test_reduced_samples_hang_over_and_are_marked():
    batch = patchy()
    del batch["valid"]
    batch["label"][:] = 1
    batch["image"][:] = 7.5
    out = augment(batch, Augment(**(STILL | {"scale": (0.5, 0.5)})), generator())
    for i in range(3):
        assert out["valid"][i].sum() == 12 * 12
        rows, columns = torch.nonzero(out["valid"][i], as_tuple=True)
        assert rows.max() - rows.min() == columns.max() - columns.min() == 11
    assert (out["label"][out["valid"]] == 1).all() and (out["label"][~out["valid"]] == 255).all()
    assert (out["image"][:, 0][out["valid"]] == 7.5).all() and (out["image"][:, 0][~out["valid"]] == 0).all()


def test_enlarged_samples_agree_with_torch():
    batch = patchy(size=24)
    batch["image"] = torch.rand(3, 2, 24, 24, generator=generator(1))
    batch["valid"][:] = True
    whole = torch.nn.functional.interpolate(batch["image"], scale_factor=2, mode="bilinear", align_corners=False)
    out = augment(batch, Augment(**(STILL | {"scale": (2.0, 2.0), "crop": 24})), generator())
    assert (out["image"].amin() >= batch["image"].amin()) and (out["image"].amax() <= batch["image"].amax())
    full = augment(batch, Augment(**(STILL | {"scale": (2.0, 2.0), "crop": 48})), generator())
    torch.testing.assert_close(full["image"], whole, rtol=0, atol=1e-6)
    nearest = batch["label"].repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.equal(full["label"], nearest)


def test_invalid_pixels_do_not_bleed():
    batch = patchy()
    batch["image"][:] = 1000.0
    batch["image"].permute(0, 2, 3, 1)[~batch["valid"]] = float("nan")
    out = augment(batch, Augment(), generator())
    seen = out["image"][:, 0][out["valid"]]
    torch.testing.assert_close(seen, torch.full_like(seen, 1000.0))
    assert torch.isfinite(out["image"]).all()


def test_crops_avoid_one_class():
    """Left three quarters one class, the rest another: a free crop rarely sees enough of the second."""
    label = torch.zeros(64, 64, 64, dtype=torch.long)
    label[:, :, 48:] = 1
    batch = {"image": label[:, None].float(), "label": label}
    asked = STILL | {"scale": (2.5, 2.5), "tries": 20}
    share = lambda out: torch.stack([(out["label"] == k).float().mean((1, 2)) for k in (0, 1)]).amax(0)  # noqa: E731
    free = share(augment(batch, Augment(**asked), generator()))
    kept = share(augment(batch, Augment(**(asked | {"max_share": 0.75})), generator()))
    assert (free > 0.75).float().mean() > 0.6
    assert (kept > 0.75).float().mean() < 0.1
    label[:] = 255  # nothing labelled: the last try is taken
    augment(batch, Augment(), generator())


def test_the_generator_decides_alone():
    batch = patchy()
    one, same, other = (augment(batch, Augment(brightness=0.2, contrast=0.2), generator(s)) for s in (1, 1, 2))
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert not torch.equal(one["image"], other["image"])
    before = {k: v.clone() for k, v in batch.items()}
    augment(batch, Augment(), generator())
    assert all(torch.equal(before[k], batch[k]) for k in batch)  # the batch given is left alone


def test_radiometry():
    batch = patchy(c=3, b=50)
    batch["image"] = (torch.rand(50, 3, 24, 24, generator=generator()) * 100 + 500) * batch["valid"][:, None]
    out = augment(batch, Augment(**(STILL | {"brightness": 0.5, "contrast": 0.3})), generator())
    where = batch["valid"][:, None].expand_as(batch["image"])
    for i in range(5):
        for band in range(3):
            x, y = (t["image"][i, band][where[i, band]].double() for t in (batch, out))
            slope = y.std() / x.std()
            assert 0.7 <= slope <= 1.3
            assert abs(y.mean() - x.mean()) <= 0.51 * x.std()
            torch.testing.assert_close(y, (x - x.mean()) * slope + y.mean(), rtol=1e-4, atol=1e-2)
    assert (out["image"][~where] == 0).all() and torch.equal(out["label"], batch["label"])


def test_other_tensors_go_along_or_are_refused():
    batch = patchy(size=24)
    ramp = torch.rand(3, 24, 24, generator=generator())
    batch |= {
        "series": ramp[:, None, None].repeat(1, 4, 2, 1, 1),
        "label_lr": batch["label"].to(torch.uint8),
        "edges": (batch["label"] == 1),
        "year": torch.arange(3),
        "name": ["a", "b", "c"],
    }
    out = augment(batch, Augment(scale=(0.5, 0.9)), generator())
    assert out["series"].shape == (3, 4, 2, 24, 24)
    assert torch.equal(out["label_lr"].long(), out["label"]) and out["label_lr"].dtype == torch.uint8
    assert torch.equal(out["edges"], out["label"] == 1)
    assert torch.equal(out["year"], batch["year"]) and out["name"] == ["a", "b", "c"]
    batch["label_lr"] = torch.zeros(3, 8, 8)
    with pytest.raises(ValueError, match=r"'label_lr' has shape \(3, 8, 8\) and the image 24×24"):
        augment(batch, Augment(), generator())


def test_shapes_and_settings_that_cannot_be():
    batch = patchy()
    wide = {k: v[..., :12] for k, v in batch.items()}
    with pytest.raises(ValueError, match="not square"):
        augment(wide, Augment(), generator())
    assert augment(wide, Augment(quarter_turns=False), generator())["image"].shape == (3, 2, 24, 12)
    for wrong in (
        {"horizontal": 1.5}, {"scale": (2.0, 0.5)}, {"scale": (0.0, 1.0)}, {"max_share": 0.0}, {"tries": 0},
        {"contrast": 1.0}, {"brightness": -1.0}, {"crop": 0},
    ):  # fmt: skip
        with pytest.raises(ValueError):
            Augment(**wrong)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_takes_the_same_decisions():
    batch = patchy(b=8, size=48)
    on_gpu = {k: v.cuda() for k, v in batch.items()}
    for seed in range(5):
        settings = Augment(brightness=0.2, contrast=0.2)
        cpu, gpu = augment(batch, settings, generator(seed)), augment(on_gpu, settings, generator(seed))
        assert all(v.is_cuda for v in gpu.values())
        assert torch.equal(cpu["label"], gpu["label"].cpu()) and torch.equal(cpu["valid"], gpu["valid"].cpu())
        torch.testing.assert_close(cpu["image"], gpu["image"].cpu(), rtol=1e-4, atol=1e-4)

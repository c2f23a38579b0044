"""STSNet: its parts against loops written from the equations, what a cloud may not do, grids, sizes, the contract."""

import os
import subprocess
import sys

import pytest
import torch
from contract import ModelContract
from rasterio import Affine
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from hierlab import stsnet
from hierlab.hierars import hierarchical
from hierlab.networks import describe
from hierlab.stsnet import (
    ConvLSTM,
    CrossResolutionFusion,
    CrossScale,
    Decoder,
    PatchMean,
    SpatialSpectralEncoder,
    SpatioTemporalEncoder,
    SpectralConvolution,
    SpectralGate,
    STSNet,
    STSNetTemporal,
    WindowAttention3d,
    build,
    grid_between,
    resolution_ratio,
    sample,
)
from hierlab.tree import ClassTree

MM5B = ClassTree.load("mm5b")
SMALL = {"widths": (4, 8, 12), "heads": 2, "window": (2, 2, 2)}


def randomised(module):
    """Random values everywhere, so that no term hides behind a zero or a one."""
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=random) + 0.05)
    return module


def small(classes=5, bands=4, series_bands=3, dates=6, **options):
    options = {"channels": (6, 8, 8, 10), "width": 6, "temporal": SMALL} | options
    return STSNet(bands, classes, series_bands, dates=dates, **options)


def batch_of(count=2, bands=4, height=64, width=64, series_bands=3, dates=6, ratio=4, classes=5):
    """Noise with clouds: a date fully clouded in the first sample, single pixels everywhere."""
    random = torch.Generator().manual_seed(7)
    h, w = -(-height // ratio), -(-width // ratio)
    label = torch.randint(classes, (count, height, width), generator=random)
    label[:, :, -1] = 255
    valid = torch.rand(count, dates, h, w, generator=random) > 0.3
    valid[0, 1] = False
    return {
        "image": torch.randn(count, bands, height, width, generator=random),
        "series": torch.randn(count, dates, series_bands, h, w, generator=random),
        "series_valid": valid,
        "label": label,
    }


# ---------------------------------------------------------------- the contract, flat and with three levels


class Contract(ModelContract):
    dates = 4
    side = 36
    odd = (37, 18)

    def example(self, batch, bands, height, width):
        classes = self.sizes[-1]
        return batch_of(batch, bands, height, width, dates=self.dates, classes=classes)


class TestSTSNet(Contract):
    def make(self, bands, classes):
        return small(classes, bands, dates=self.dates)


class TestSTSNetSpectral(ModelContract):
    def make(self, bands, classes):
        return build("stsnet-spectral", bands, classes, width=0.03, depth=0.67)


class TestSTSNetTemporal(Contract):
    def example(self, batch, bands, height, width):
        """The series has the bands; of the image only the size counts."""
        made = batch_of(batch, 1, height, width, bands, self.dates, classes=self.sizes[-1])
        return made | {"series_days": torch.tensor([[300, 20, 77, 140]]).expand(batch, -1)}

    def make(self, bands, classes):
        return STSNetTemporal(bands, classes, dates=self.dates, **SMALL)


class Levels:
    classes = 18
    sizes = (4, 9, 18)
    band_counts = (3,)

    def make(self, bands, classes):
        return hierarchical(super().make(bands, classes), MM5B)


class TestHierarchicalSTSNet(Levels, TestSTSNet):
    pass


class TestHierarchicalSTSNetSpectral(Levels, TestSTSNetSpectral):
    pass


class TestHierarchicalSTSNetTemporal(Levels, TestSTSNetTemporal):
    pass


def test_the_head_takes_the_place_of_the_classifier():
    for name in stsnet.NETWORKS:
        model = hierarchical(build(name, 3, 18, width=0.03), MM5B)
        assert model.layer == "classifier"


# ---------------------------------------------------------------- parameters and cost of the published networks


def millions(module):
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


@pytest.mark.parametrize(
    ("channels", "printed", "tolerance"),
    [
        ((32, 32, 64, 128), 0.72, 0.05),
        ((64, 64, 128, 256), 2.84, 0.05),
        ((249, 300, 512, 512), 22.81, 0.03),
    ],
)
def test_the_spatial_spectral_network_has_the_printed_parameters(channels, printed, tolerance):
    with torch.device("meta"):
        network = build("stsnet-spectral", 249, 8, channels=channels)
    assert millions(network) == pytest.approx(printed, rel=tolerance)


def test_the_last_row_of_table_5_contradicts_three_layers_a_block():
    blocks = 3 * 9 * sum(c * c for c in (249, 512, 512, 1024)) / 1e6
    assert blocks > 43.71  # the convolutions of the four blocks alone


def test_the_other_networks_have_the_printed_parameters():
    with torch.device("meta"):
        assert millions(build("stsnet-temporal", 10, 8)) == pytest.approx(6.33, rel=0.05)
        assert millions(CrossResolutionFusion(512)) == pytest.approx(6.82, rel=0.01)
        whole = build("stsnet", 249, 8)
    assert millions(whole) == pytest.approx(28.71, rel=0.05)
    assert whole.spectral.channels == (249, 300, 512, 512)
    assert millions(whole) - millions(whole.fusion) == pytest.approx(21.89, rel=0.05)  # Table 9, Direct


def test_describe_counts_image_and_series():
    with torch.device("meta"):
        network = build("stsnet", 249, 8)
        alone = describe(network, 249, 8, 300)
        counted = describe(network, 249, 8, example=network.example())
    assert counted["outputs"] == [[1, 8, 300, 300]] and counted["input"]["series"] == [1, 31, 10, 30, 30]
    shapes = {stage["name"]: stage["shape"] for stage in counted["stages"]}
    maps = [shapes[f"spectral {i}"] for i in (1, 2, 3, 4)]
    assert maps == [[249, 75, 75], [300, 38, 38], [512, 19, 19], [512, 10, 10]]
    assert shapes["temporal"] == [16 * 31, 30, 30] and shapes["fusion"] == [512, 10, 10]
    assert counted["gmac"] > alone["gmac"] > 10


# ---------------------------------------------------------------- memory: a step at published size in under 8 GB

STEP = """
import resource, torch
from hierlab.stsnet import build
torch.set_num_threads(1)
model = build("stsnet", 249, 8).train()
optimiser = torch.optim.Adam(model.parameters(), 1e-3)
batch = {"image": torch.randn(1, 249, 300, 300), "series": torch.randn(1, 31, 10, 30, 30)}
before = model.classifier.weight.detach().clone()
loss = torch.nn.functional.cross_entropy(model(batch)["logits"][0], torch.randint(8, (1, 300, 300)))
loss.backward()
optimiser.step()
assert not torch.equal(before, model.classifier.weight)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def available():
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read as Linux reports it")
@pytest.mark.skipif(available() < 8e9, reason="needs 8 GB of free memory")
def test_a_training_step_at_published_size_takes_less_than_8_gb():
    done = subprocess.run([sys.executable, "-c", STEP], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 8e9


def test_what_a_training_step_keeps_fits_into_8_gb():
    """Counted on the meta device: everything held for the backward pass, and weights, gradients and Adam's moments."""
    held = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        held[storage._cdata] = storage
        return tensor

    with torch.device("meta"):
        model = build("stsnet", 249, 8).train()
        batch = model.example() | {"series_valid": torch.ones(1, 31, 30, 30, dtype=torch.bool)}
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(batch)
    kept = sum(storage.nbytes() for storage in held.values())
    assert kept > 0.1e9 and kept + 16e6 * millions(model) < 8e9


# ---------------------------------------------------------------- spatial-spectral encoder (Section 2.1)


def test_spectral_gate_is_equations_1_to_4():
    gate, x = randomised(SpectralGate(20, reduction=4)), torch.randn(2, 20, 5, 7)
    assert gate.mlp[0].out_features == 5
    (a, p), (b, q) = ((layer.weight, layer.bias) for layer in (gate.mlp[0], gate.mlp[2]))
    for n in range(2):
        weights = 0
        for pooled in (x[n].flatten(1).sum(1) / 35, x[n].flatten(1).max(1)[0]):
            weights = weights + 1 / (1 + torch.exp(-(b @ (a @ pooled + p).clamp(min=0) + q)))
        expected = x[n] * weights[:, None, None]
        torch.testing.assert_close(gate(x)[n], expected)


def test_coarse_maps_land_where_strided_convolutions_took_them_from():
    x = torch.arange(19.0).view(1, 1, 19, 1).expand(1, 1, 19, 38) * 4
    enlarged = stsnet._enlarge(x, (75, 150), 4)
    assert enlarged.shape == (1, 1, 75, 150)
    torch.testing.assert_close(enlarged[0, 0, :73, 0], torch.arange(73.0))
    torch.testing.assert_close(enlarged[0, 0, 73:, 0], torch.full((2,), 72.0))


def test_an_exchange_adds_every_coarser_branch():
    exchange = CrossScale((3, 4, 5)).eval()
    with torch.no_grad():
        for bring in exchange.bring.values():
            nn.init.normal_(bring[0].weight)
    maps = [torch.randn(1, 3, 9, 8), torch.randn(1, 4, 5, 4), torch.randn(1, 5, 3, 2)]
    mixed = exchange(maps)
    for i in range(3):
        for row, column in ((0, 0), (4, 4), (8, 4)):
            row, column = row >> i, column >> i
            expected = maps[i][0, :, row, column].clone()
            for j in range(i + 1, 3):
                step = 2 ** (j - i)
                if row % step or column % step:
                    break
                weight = exchange.bring[f"{j}_{i}"][0].weight[:, :, 0, 0] / (1 + 1e-5) ** 0.5
                expected += weight @ maps[j][0, :, row // step, column // step]
            else:
                torch.testing.assert_close(mixed[i][0, :, row, column], expected)
    assert torch.equal(mixed[2], maps[2])


def test_exchanges_stand_at_the_start_and_at_the_end():
    assert list(SpatialSpectralEncoder(3, (4, 4, 4, 4)).exchange) == ["0", "3"]
    assert list(SpatialSpectralEncoder(3, (4, 4, 4, 4), exchanges=range(4)).exchange) == ["0", "1", "2", "3"]
    image = torch.randn(1, 3, 64, 64)
    alone = SpatialSpectralEncoder(3, (4, 4, 4, 4), exchanges=()).eval()
    joined = SpatialSpectralEncoder(3, (4, 4, 4, 4)).eval()
    joined.load_state_dict(alone.state_dict(), strict=False)
    assert torch.equal(alone(image)[3], joined(image)[3]) and not torch.equal(alone(image)[0], joined(image)[0])
    with pytest.raises(ValueError, match="four branches"):
        SpatialSpectralEncoder(3, (4, 4, 4))
    with pytest.raises(ValueError, match="after 0 to 3"):
        SpatialSpectralEncoder(3, (4, 4, 4, 4), exchanges=(0, 4))


def test_the_decoder_is_the_sum_of_maps_brought_to_the_highest_resolution():
    decoder = randomised(Decoder((3, 4, 5), 6))
    maps = [torch.randn(1, 3, 9, 8), torch.randn(1, 4, 5, 4), torch.randn(1, 5, 3, 2)]
    summed = decoder(maps)
    zeros = decoder([torch.zeros_like(m) for m in maps])  # the biases
    parts = [decoder([m if i == j else torch.zeros_like(m) for j, m in enumerate(maps)]) - zeros for i in range(3)]
    torch.testing.assert_close(summed, zeros + sum(parts), rtol=1e-4, atol=1e-4)
    kernel, map_ = decoder.up[1].weight, decoder.laterals[1](maps[1])  # fractional convolution against a loop
    by_hand = torch.zeros(6, 9 + 2, 8 + 2)
    for i in range(5):
        for j in range(4):
            by_hand[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3] += torch.einsum("c,cdkl->dkl", map_[0, :, i, j], kernel)
    by_hand = by_hand[:, 1:10, 1:9] + decoder.up[1].bias[:, None, None]
    torch.testing.assert_close(decoder.up[1](map_, output_size=(9, 8))[0], by_hand, rtol=1e-4, atol=1e-4)


def test_settings_of_tables_4_and_5_are_arguments():
    with torch.device("meta"):
        sizes = {
            (gate, dsc): millions(build("stsnet-spectral", 249, 8, gate=gate, separable=dsc))
            for gate in (True, False)
            for dsc in (True, False)
        }
    assert sizes[True, True] > sizes[False, True] and sizes[True, False] > sizes[True, True] + 1
    network = build("stsnet-spectral", 3, 2, channels=(4, 4, 6, 6), gate=False, separable=False).eval()
    assert network({"image": torch.randn(1, 3, 33, 40)})["logits"][0].shape == (1, 2, 33, 40)


# ---------------------------------------------------------------- spatio-temporal encoder (Section 2.2)


@pytest.mark.parametrize("clouds", [False, True])
def test_convlstm_is_equations_5_to_9(clouds):
    d = 3
    lstm, x = randomised(ConvLSTM(d)), torch.randn(2, 5, d, 6, 4)
    valid = torch.rand(2, 5, 6, 4) > 0.4 if clouds else torch.ones(2, 5, 6, 4, dtype=torch.bool)
    z_ii, z_if, z_ig, z_io = lstm.z_x.weight.split(d)
    z_hi, z_hf, z_hg, z_ho = lstm.z_h.weight.split(d)

    def conv(z, at):
        return F.conv2d(at, z, padding=1)

    h = c = torch.zeros(2, d, 6, 4)
    for t in range(5):
        seen = valid[:, t, None]
        x_t = torch.where(seen, x[:, t], 0)
        i = torch.sigmoid(conv(z_ii, x_t) + conv(z_hi, h))  # eq. 5
        f = torch.sigmoid(conv(z_if, x_t) + conv(z_hf, h))  # eq. 6
        c_new = f * c + i * torch.tanh(conv(z_ig, x_t) + conv(z_hg, h))  # eq. 7
        o = torch.sigmoid(conv(z_io, x_t) + conv(z_ho, h))  # eq. 8
        h_new = o * torch.tanh(c_new)  # eq. 9
        c, h = torch.where(seen, c_new, c), torch.where(seen, h_new, h)
        torch.testing.assert_close(lstm(x, valid)[:, t], h)


def test_window_attention_is_equation_10():
    """Against a loop over windows, heads and tokens, with an invalid token and with windows that do not divide."""
    attention = randomised(WindowAttention3d(6, 2, (2, 2, 3), shifted=False))
    x, valid = torch.randn(1, 4, 3, 4, 6), torch.ones(1, 4, 3, 4, dtype=torch.bool)
    valid[0, 1, 0, 2] = False
    q, k, v = (
        F.linear(x, w, b) for w, b in zip(attention.qkv.weight.split(6), attention.qkv.bias.split(6), strict=True)
    )
    ours = attention(x, valid)
    for place in [(0, 0, 0), (1, 1, 2), (3, 2, 1), (2, 2, 3), (0, 0, 3)]:
        window = [
            range(at // w * w, min(at // w * w + w, n)) for at, w, n in zip(place, (2, 2, 3), (4, 3, 4), strict=True)
        ]
        keys = [(t, i, j) for t in window[0] for i in window[1] for j in window[2] if valid[0, t, i, j]]
        joined = []
        for head in range(2):
            own = slice(3 * head, 3 * head + 3)
            scores = []
            for key in keys:
                bias = attention.bias[head, *(a - b + w - 1 for a, b, w in zip(place, key, (2, 2, 3), strict=True))]
                scores.append((q[0, *place, own] @ k[0, *key, own]) / 3**0.5 + bias)
            weights = torch.stack(scores).softmax(0)
            joined.append(sum(weight * v[0, *key, own] for weight, key in zip(weights, keys, strict=True)))
        torch.testing.assert_close(ours[0, *place], attention.out(torch.cat(joined)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sides", [(8, 8, 8), (7, 6, 9)])
def test_shifted_windows_join_neighbours_and_not_the_ends(sides):
    attention = randomised(WindowAttention3d(4, 1, (4, 4, 4), shifted=True))
    x = torch.randn(1, *sides, 4, requires_grad=True)
    valid = torch.ones(1, *sides, dtype=torch.bool)
    y = attention(x, valid)

    def heard(place):
        (slope,) = torch.autograd.grad(y[0, *place].square().sum(), x, retain_graph=True)
        return slope[0].abs().sum(-1) > 0

    def window(at, side):  # of the shifted windows [-2, 2), [2, 6), [6, 10)
        low = (at + 2) // 4 * 4 - 2
        return range(max(0, low), min(side, low + 4))

    ends = [side - 1 for side in sides]
    for place in [(0, 0, 0), ends, (3, 4, 1), (0, ends[1], 3)]:
        expected = torch.zeros(sides, dtype=torch.bool)
        t, i, j = (window(at, side) for at, side in zip(place, sides, strict=True))
        expected[t.start : t.stop, i.start : i.stop, j.start : j.stop] = True
        assert torch.equal(heard(place), expected)


def test_a_patch_is_the_mean_of_what_is_valid_in_it():
    patch = randomised(PatchMean(2, 3))
    x, valid = torch.randn(1, 2, 2, 4, 2), torch.zeros(1, 2, 2, 4, dtype=torch.bool)
    valid[0, 1, 0, 1] = valid[0, 0, 1, 0] = True
    y, seen = patch(x, valid)
    assert seen.tolist() == [[[[True, False]]]] and (y[0, 0, 0, 1] == 0).all()
    weight = patch.project.weight.view(3, 2, 2, 2, 2)  # out, then date, row, column, band of the patch
    expected = (weight[:, 1, 0, 1] @ x[0, 1, 0, 1] + weight[:, 0, 1, 0] @ x[0, 0, 1, 0]) * 8 / 2
    torch.testing.assert_close(y[0, 0, 0, 0], expected + patch.project.bias)


def test_spectral_convolution_looks_along_the_bands_of_one_pixel():
    spectral = randomised(SpectralConvolution(7, 4))
    x = torch.randn(1, 7, 3, 3, requires_grad=True)
    (slope,) = torch.autograd.grad(spectral(x)[0, :, 1, 1].square().sum(), x)
    heard = slope[0].abs().sum(0) > 0
    assert heard.sum() == 1 and heard[1, 1] and (slope[0, :, 1, 1] != 0).all()
    torch.testing.assert_close(SpectralConvolution(7, 4, enabled=False)(x).shape, torch.Size((1, 4, 3, 3)))


@pytest.fixture(scope="module")
def encoder():
    return randomised(SpatioTemporalEncoder(3, dates=6, **SMALL)).eval()


def attentive(**options):
    """The whole network with parameters that let the series be heard; as built, α and small weights mute it."""
    network = small(**options).eval()
    for part in (network.temporal, network.project, network.fusion):
        randomised(part)
    return network


def networks_on_series():
    """Whatever reads a series, as a function of (series, valid, days) alone."""
    temporal, whole = randomised(STSNetTemporal(3, 5, dates=6, **SMALL)).eval(), attentive()
    image = batch_of(2)["image"]

    def run(network, series, valid, days=None):
        batch = {"image": image, "series": series, "series_valid": valid}
        with torch.no_grad():
            return network(batch if days is None else batch | {"series_days": days})["logits"][0]

    return [pytest.param(lambda *a, n=n: run(n, *a), id=n.name) for n in (temporal, whole)]


@pytest.mark.parametrize("network", networks_on_series())
class TestClouds:
    days = torch.tensor([[12, 75, 130, 191, 250, 333], [5, 60, 121, 200, 280, 364]])

    def test_a_fully_clouded_date_changes_nothing(self, network):
        batch = batch_of(2)
        series, valid = batch["series"], batch["series_valid"]
        valid[:, 4] = False
        before = network(series, valid)
        for value in (0.0, 1e4, float("nan"), float("inf")):
            clouded = series.clone()
            clouded[:, 4] = value
            assert torch.equal(network(clouded, valid), before)
        by_date = torch.tensor([True, True, True, True, False, True]).expand(2, -1)
        everywhere = torch.ones_like(valid)
        everywhere[:, 4] = False
        assert torch.equal(network(clouded, by_date), network(series, everywhere))
        seen = valid.clone()
        seen[:, 4] = True
        assert not torch.allclose(network(series, seen), before, atol=1e-4)

    def test_a_clouded_pixel_changes_nothing(self, network):
        batch = batch_of(2)
        series, valid = batch["series"], batch["series_valid"]
        noise = torch.where(valid[:, :, None], series, 100 * torch.randn_like(series))
        assert torch.equal(network(noise, valid), network(series, valid))
        dark = torch.where(valid[:, :, None], series, 0)  # a valid zero is dark soil, not a cloud
        assert not torch.allclose(network(dark, torch.ones_like(valid)), network(series, valid), atol=1e-4)

    def test_permuting_two_invalid_dates_changes_nothing(self, network):
        batch = batch_of(2)
        series, valid = batch["series"], batch["series_valid"]
        valid[:, [1, 4]] = False
        order = [0, 4, 2, 3, 1, 5]
        assert torch.equal(network(series[:, order], valid[:, order]), network(series, valid))
        assert torch.equal(
            network(series[:, order], valid[:, order], self.days[:, order]), network(series, valid, self.days)
        )
        order = [0, 2, 1, 3, 4, 5]  # one of these is valid
        assert not torch.allclose(network(series[:, order], valid[:, order]), network(series, valid), atol=1e-4)

    def test_with_days_a_clouded_date_might_not_have_been_taken(self, network):
        batch = batch_of(2)
        series, valid = batch["series"], batch["series_valid"]
        valid[:, 2] = False
        kept = [0, 1, 3, 4, 5]
        without = network(series[:, kept], valid[:, kept], self.days[:, kept])
        assert torch.equal(network(series, valid, self.days), without)
        shuffled = [kept[i] for i in (3, 0, 4, 1, 2)]  # the days give the order
        assert torch.equal(network(series[:, shuffled], valid[:, shuffled], self.days[:, shuffled]), without)
        later = network(series[:, kept], valid[:, kept], self.days[:, kept] + 40)
        assert not torch.allclose(later, without, atol=1e-4)

    def test_places_at_the_end_that_no_date_takes_are_as_clouded(self, network):
        batch = batch_of(2)
        series, valid = batch["series"], batch["series_valid"]
        valid[:, 4:] = False
        assert torch.equal(network(series[:, :4], valid[:, :4]), network(series, valid))

    def test_a_series_without_a_valid_pixel_is_finite(self, network):
        batch = batch_of(2)
        nothing = network(batch["series"], torch.zeros_like(batch["series_valid"]))
        assert nothing.isfinite().all()


def test_invalid_tokens_are_zero_after_every_step(encoder):
    batch, checked = batch_of(2), []

    def check(_module, inputs, output):
        tokens, valid = output if isinstance(output, tuple) else (output, inputs[1])
        checked.append(bool((tokens[~valid] == 0).all() and (~valid).any() and (tokens[valid] != 0).any()))

    valid = batch["series_valid"]
    valid[:, 4:, :8] = False
    valid[1, :, 8:, 4:] = False  # whole tokens of both stages
    parts = (encoder.embed, encoder.first, encoder.merge, encoder.second)
    hooks = [part.register_forward_hook(check) for part in parts]
    encoder(batch["series"], valid)
    for hook in hooks:
        hook.remove()
    assert checked == [True] * 4


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (16, 7)])
def test_the_encoder_takes_any_size_and_fewer_dates(encoder, size):
    assert encoder(torch.randn(1, 4, 3, *size)).shape == (1, 4 * 6, *size)


def test_settings_of_table_8_are_arguments():
    def count(**options):
        return millions(SpatioTemporalEncoder(3, dates=4, **SMALL, **options))

    full = count()
    for part in ("spectral", "convlstm", "attention"):
        assert count(**{part: False}) < full
    bare = SpatioTemporalEncoder(3, dates=4, spectral=False, convlstm=False, attention=False, **SMALL)
    assert bare(torch.randn(1, 4, 3, 8, 8)).shape == (1, 16, 8, 8)
    kinds = {type(module) for module in bare.modules()}
    assert not kinds & {ConvLSTM, WindowAttention3d, nn.Conv3d}


@pytest.mark.parametrize(
    ("series", "options", "message"),
    [
        (torch.randn(1, 6, 4, 8, 8), {}, "for its bands and dates"),
        (torch.randn(1, 7, 3, 8, 8), {}, "at most 6 dates"),
        (torch.randn(1, 6, 3, 8), {}, "The series is"),
        (torch.randn(1, 6, 3, 8, 8), {"valid": torch.ones(1, 6, 8, 8)}, "float32"),
        (torch.randn(1, 6, 3, 8, 8), {"valid": torch.ones(1, 5, dtype=torch.bool)}, "series_valid is bool"),
        (torch.randn(1, 6, 3, 8, 8), {"days": torch.arange(6)}, "series_days is"),
    ],
)
def test_the_encoder_says_what_does_not_fit(encoder, series, options, message):
    with pytest.raises(ValueError, match=message):
        encoder(series, **options)


# ---------------------------------------------------------------- cross-resolution fusion (Section 2.3)


def test_fusion_is_equations_11_and_12():
    fusion, alpha = randomised(CrossResolutionFusion(4)), torch.tensor([0.01, 0.3])
    f_ss, f_st = torch.randn(2, 4, 3, 5), torch.randn(2, 4, 3, 5)
    ours = fusion(f_ss, f_st, alpha)

    def phi(x):
        x = (fusion.phi[0].weight[:, :, 0, 0] @ x + fusion.phi[0].bias).clamp(min=0)
        return fusion.phi[2].weight[:, :, 0, 0] @ x + fusion.phi[2].bias

    for n in range(2):
        described = []
        for x in (f_ss[n], f_st[n]):
            sigma = (1 / (1 + torch.exp(-x))).flatten(1)
            described += [phi(sigma.sum(1) / 15), phi(sigma.max(1)[0])]
        hidden = (fusion.mlp[0].weight @ torch.cat(described) + fusion.mlp[0].bias).clamp(min=0)
        w = (fusion.mlp[2].weight @ hidden + fusion.mlp[2].bias)[:, None, None]
        expected = f_ss[n] + alpha[n] * (f_ss[n] * w[:4] + f_st[n] * w[4:])  # eq. 11
        torch.testing.assert_close(ours[n], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("fine", "coarse"), [(1, 10), (1, 30), (0.4, 10)])
def test_alpha_is_the_ratio_of_the_pixels(fine, coarse):
    """WHU-H²SR-MT, the same with Landsat, AeroRIT's pixels: read from georeferencing far from the origin."""
    east, north = 543_210.7, 4_571_234.3
    image = Affine(fine, 0, east, 0, -fine, north)
    series = Affine(coarse, 0, east - 3.5 * coarse, 0, -coarse, north + 2.25 * coarse)
    grid = grid_between(image, series)
    expected = torch.tensor([fine / coarse, 0, 3.5, 0, fine / coarse, 2.25])
    torch.testing.assert_close(grid, expected, rtol=1e-5, atol=1e-5)
    assert resolution_ratio(grid[None]).item() == pytest.approx((fine / coarse) ** 2, rel=1e-5)
    assert resolution_ratio(grid[None], "length").item() == pytest.approx(fine / coarse, rel=1e-5)
    turned = Affine.translation(east, north) @ Affine.rotation(30) @ Affine.scale(fine)
    assert resolution_ratio(grid_between(turned, series)[None]).item() == pytest.approx((fine / coarse) ** 2, rel=1e-4)


def test_the_network_takes_alpha_from_the_grids_of_its_batch():
    seen = []
    for ratio, size in [("area", 4), ("length", 4), ("area", 8)]:
        network = small(ratio=ratio).eval()
        network.fusion.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[2]))
        batch = batch_of(2, ratio=size)
        network(batch)
        network(batch | {"series_grid": torch.tensor([0.1, 0, 3, 0, 0.2, 0])})
    expected = [1 / 16, 0.02, 1 / 4, 0.02**0.5, 1 / 64, 0.02]
    for alpha, value in zip(seen, expected, strict=True):
        torch.testing.assert_close(alpha, torch.full((2,), value))


def test_no_transform_without_area():
    with pytest.raises(ValueError, match="gives pixels no area"):
        grid_between(Affine(1, 0, 0, 0, 0, 0), Affine(10, 0, 0, 0, -10, 0))
    with pytest.raises(ValueError, match="series_grid is"):
        small().eval()(batch_of(2) | {"series_grid": torch.eye(3)})
    with pytest.raises(ValueError, match="ratio is"):
        small(ratio="pixels")


def places(transform, columns, rows):
    """Coordinates (east, north) of pixels by a transform."""
    a, b, c, d, e, f = tuple(transform)[:6]
    return a * columns + b * rows + c, d * columns + e * rows + f


def test_sampling_follows_the_georeferencing():
    """Maps that hold their own coordinates, sampled onto another grid, hold that grid's."""
    series = Affine(10, 0, 1000, 0, -10, 5000)
    rows, columns = torch.meshgrid(torch.arange(12) + 0.5, torch.arange(14) + 0.5, indexing="ij")
    east, north = places(series, columns, rows)
    world = torch.stack([east, north])[None]
    image = Affine(0.75, 0, 1021.3, 0, -0.75, 4985.2)
    grid = grid_between(image, series)[None]
    got = sample(world, (40, 50), grid)
    i, j = torch.meshgrid(torch.arange(40) + 0.5, torch.arange(50) + 0.5, indexing="ij")
    for channel, expected in enumerate(places(image, j, i)):
        torch.testing.assert_close(got[0, channel], expected, rtol=0, atol=2e-3)
    deep = sample(world, (3, 4), grid, stride=16, points=4)  # as for the map of a network with this stride
    i, j = torch.meshgrid(16 * torch.arange(3) + 0.5, 16 * torch.arange(4) + 0.5, indexing="ij")
    for channel, expected in enumerate(places(image, j, i)):
        torch.testing.assert_close(deep[0, channel, 1:, 1:], expected[1:, 1:], rtol=0, atol=2e-3)


def test_sampling_counts_only_what_is_seen():
    x, seen = torch.full((1, 2, 6, 6), 3.0), torch.ones(1, 1, 6, 6, dtype=torch.bool)
    seen[..., :3, :] = False
    x = torch.where(seen, x, 1e6)
    same = torch.tensor([[1.0, 0, 0, 0, 1, 0]])
    got = sample(x, (6, 8), same, seen=seen)  # two columns lie beyond the series
    expected = torch.zeros(6, 8)
    expected[3:, :6] = 3
    torch.testing.assert_close(got, expected.expand(1, 2, -1, -1))
    assert torch.equal(sample(torch.full((1, 1, 2, 2), 7.0), (5, 5), same), torch.full((1, 1, 5, 5), 7.0))


def test_where_nothing_is_seen_the_series_adds_nothing():
    network, batch, given = attentive(), batch_of(2), []
    network.fusion.register_forward_pre_hook(lambda _module, inputs: given.append(inputs[1]))
    batch["series_valid"][0] = False
    network(batch)
    assert (given[0][0] == 0).all() and (given[0][1] != 0).any()
    network(batch | {"series_grid": torch.tensor([0.25, 0, 8, 0, 0.25, 0])})  # the image's right half beyond the series
    assert (given[1][1, :, :, 0] != 0).any()
    network(batch | {"series_grid": torch.tensor([0.25, 0, 100, 0, 0.25, 0])})
    assert (given[2] == 0).all()


def test_the_default_grid_covers_the_same_ground():
    network = attentive()
    batch = batch_of(2)
    given = batch | {"series_grid": grid_between(Affine.identity(), Affine.scale(4)).expand(2, 6)}
    torch.testing.assert_close(network(batch)["logits"][0], network(given)["logits"][0])
    moved = batch | {"series_grid": torch.tensor([0.25, 0, 5, 0, 0.25, 3])}
    assert not torch.allclose(network(batch)["logits"][0], network(moved)["logits"][0], atol=1e-6)


# ---------------------------------------------------------------- the networks


def test_without_a_series_the_image_alone_is_decoded_but_not_trained():
    network, batch = attentive(), batch_of(2)
    image = {"image": batch["image"]}
    maps = network.spectral(batch["image"])
    alone = network(image)["logits"][0]
    torch.testing.assert_close(alone[..., ::4, ::4], network.classifier(network.decoder(maps)))
    assert not torch.allclose(alone, network(batch)["logits"][0], atol=1e-6)
    with pytest.raises(ValueError, match="trains on batch"):
        network.train()(image)


def test_a_stack_of_dates_is_a_series():
    network, batch = STSNetTemporal(3, 5, dates=6, **SMALL).eval(), batch_of(2)
    series, valid = batch["series"], torch.rand(2, 16, 16) > 0.2
    stacked = network({"image": series.flatten(1, 2), "valid": valid})["logits"][0]
    apart = network({"series": series, "series_valid": valid[:, None].expand(-1, 6, -1, -1)})["logits"][0]
    assert stacked.shape == (2, 5, 16, 16) and torch.equal(stacked, apart)
    assert network({"image": series[:, 0]})["logits"][0].shape == (2, 5, 16, 16)
    with pytest.raises(ValueError, match="stacks the dates"):
        network({"image": torch.randn(2, 10, 16, 16)})
    assert build("stsnet-temporal", 15, 4, series_bands=3, dates=5, width=0.2).bands == 3


def test_the_logits_of_the_series_come_to_the_images_grid():
    network, batch = STSNetTemporal(3, 5, dates=6, **SMALL).eval(), batch_of(2)
    own = {key: value for key, value in batch.items() if key != "image"}
    expected = F.interpolate(network(own)["logits"][0], size=(64, 64), mode="bilinear", align_corners=False)
    torch.testing.assert_close(network(batch)["logits"][0], expected, rtol=1e-4, atol=1e-5)


def test_the_fused_network_learns_what_only_the_series_tells():
    """Two classes that differ in the order of two dates and in nothing else; half of all pixel-dates are clouded."""
    random = torch.Generator().manual_seed(0)
    label = torch.arange(2).repeat(4)
    series = torch.zeros(8, 4, 3, 4, 4)
    series[label == 0, 0], series[label == 1, 3] = 1.0, 1.0
    valid = torch.rand(8, 4, 4, 4, generator=random) > 0.5
    batch = {"image": torch.zeros(8, 4, 16, 16), "series": series, "series_valid": valid}
    target = label[:, None, None].expand(-1, 16, 16)
    torch.manual_seed(1)
    network = small(2, dates=4, ratio="length").train()
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(40):
        loss = F.cross_entropy(network(batch)["logits"][0], target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.05


def test_weights_come_from_a_file(tmp_path):
    network = build("stsnet", 3, 2, width=0.03, dates=4).eval()
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    again = build("stsnet", 3, 2, tmp_path / "w.safetensors", width=0.03, dates=4).eval()
    batch = batch_of(1, 3, series_bands=10, dates=4)
    assert torch.equal(network(batch)["logits"][0], again(batch)["logits"][0])
    with pytest.raises(ValueError, match="not those of stsnet"):
        build("stsnet", 4, 2, tmp_path / "w.safetensors", width=0.03)
    with pytest.raises(OSError, match="no weights file"):
        build("stsnet", 3, 2, "imagenet", width=0.03)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("stsnet-fusion", {}, "choose one of stsnet"),
        ("stsnet", {"wdth": 3}, "cannot be built"),
        ("stsnet", {"width": 0}, "positive width"),
        ("stsnet-temporal", {"widths": (3, 4, 6)}, "an even D2"),
        ("stsnet-temporal", {"heads": 7}, "do not divide"),
    ],
)
def test_build_says_what_is_wrong(name, options, message):
    with pytest.raises(ValueError, match=message):
        build(name, 3, 2, **options)


def test_images_of_other_bands_are_refused():
    with pytest.raises(ValueError, match=r"bands=7"):
        small().eval()({"image": torch.randn(1, 7, 32, 32)})

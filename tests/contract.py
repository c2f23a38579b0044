"""What every model of hierlab keeps, as one class of tests to inherit.

    class TestMine(ModelContract):
        def make(self, bands, classes):
            return MyModel(bands, classes)

A model with several levels of output says how many classes each has in ``sizes``; one that takes more than an image
gives its own ``example``; one with its own loss gives ``loss``. Models should be as small as their design allows:
each is built a few times.
"""

import copy

import pytest
import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.nn import functional as F

from hierlab.tree import IGNORE


class ModelContract:
    bands = 4
    classes = 5
    side = 64  # the height and width of most tests
    odd = (67, 45)
    band_counts = (1, 3, 10)
    compiled = False  # torch.compile takes 10-15 s, so few models need to show it

    def make(self, bands: int, classes: int) -> nn.Module:
        raise NotImplementedError

    @property
    def sizes(self) -> list[int]:
        """Classes of each level of the output, coarse to fine."""
        return [self.classes]

    def example(self, batch: int, bands: int, height: int, width: int) -> dict[str, Tensor]:
        """A batch of noise; the last column of labels is to be ignored."""
        random = torch.Generator().manual_seed(7)
        label = torch.randint(self.sizes[-1], (batch, height, width), generator=random)
        label[:, :, -1] = IGNORE
        return {"image": torch.randn(batch, bands, height, width, generator=random), "label": label}

    def loss(self, outputs: dict, batch: dict[str, Tensor]) -> Tensor:
        """Cross entropy of every level against some label that it could have, averaged over the valid pixels."""
        label = batch["label"]
        valid = label != IGNORE
        total = 0
        for logits in outputs["logits"]:
            target = torch.where(valid, label % logits.shape[1], IGNORE)
            entropy = F.cross_entropy(logits.float(), target, ignore_index=IGNORE, reduction="sum")
            total = total + entropy / valid.sum().clamp(min=1)
        return total

    @pytest.fixture(scope="class")
    @classmethod
    def built(cls) -> nn.Module:
        torch.manual_seed(0)
        return cls().make(cls.bands, cls.classes)

    @pytest.fixture
    def model(self, built: nn.Module) -> nn.Module:
        """A fresh copy in evaluation mode."""
        return copy.deepcopy(built).eval()

    def batch(self, count: int = 2, height: int | None = None, width: int | None = None) -> dict[str, Tensor]:
        return self.example(count, self.bands, height or self.side, width or self.side)

    def run(self, model: nn.Module, batch: dict[str, Tensor]) -> list[Tensor]:
        with torch.no_grad():
            return model(batch)["logits"]

    def check_shapes(self, logits: object, batch: dict[str, Tensor]) -> None:
        assert isinstance(logits, list), f"logits is a {type(logits).__name__}, not a list"
        count, height, width = batch["label"].shape
        shapes = [tuple(level.shape) for level in logits]
        assert shapes == [(count, size, height, width) for size in self.sizes]
        assert all(level.isfinite().all() for level in logits), "logits are not finite"

    def check_gradients(self, model: nn.Module) -> None:
        trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        without = [name for name, grad in trained.items() if grad is None]
        assert not without, f"{len(without)} parameters get no gradient: {without[:5]}"
        infinite = [name for name, grad in trained.items() if not grad.isfinite().all()]
        assert not infinite, f"{len(infinite)} parameters get gradients that are not finite: {infinite[:5]}"

    def test_trains(self, model):
        batch = self.batch()
        outputs = model.train()(batch)
        self.check_shapes(outputs["logits"], batch)
        loss = self.loss(outputs, batch)
        assert loss.isfinite() and loss > 0
        loss.backward()
        self.check_gradients(model)

    def test_trains_on_one_small_image(self, model):
        batch = self.batch(1, 16, 16)
        outputs = model.train()(batch)
        self.check_shapes(outputs["logits"], batch)
        self.loss(outputs, batch).backward()
        self.check_gradients(model)

    def test_takes_any_size(self, model):
        batch = self.batch(1, *self.odd)
        self.check_shapes(self.run(model, batch), batch)

    def test_takes_any_number_of_bands(self):
        for bands in self.band_counts:
            batch = self.example(1, bands, 32, 32)
            self.check_shapes(self.run(self.make(bands, self.classes).eval(), batch), batch)

    def test_evaluates_the_same_twice(self, model):
        batch = self.batch()
        for first, second in zip(self.run(model, batch), self.run(model, batch), strict=True):
            assert torch.equal(first, second)

    def test_saves_and_loads(self, model, tmp_path):
        save_model(model, str(tmp_path / "model.safetensors"))
        torch.manual_seed(1)
        other = self.make(self.bands, self.classes).eval()
        load_model(other, str(tmp_path / "model.safetensors"))
        batch = self.batch()
        for saved, loaded in zip(self.run(model, batch), self.run(other, batch), strict=True):
            assert torch.equal(saved, loaded)

    def test_copies(self, model):
        other = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(1)
        batch = self.batch(1)
        before = self.run(model, batch)
        assert all(torch.equal(a, b) for a, b in zip(before, self.run(model, batch), strict=True))
        ours, theirs = dict(model.named_parameters()), dict(other.named_parameters())
        shared = [name for name in ours if ours[name].data_ptr() == theirs[name].data_ptr()]
        assert not shared, f"a copy shares {shared[:5]}"

    def test_trains_in_bfloat16(self, model):
        batch = self.batch()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = model.train()(batch)
        self.check_shapes(outputs["logits"], batch)
        self.loss(outputs, batch).backward()
        self.check_gradients(model)

    def test_takes_channels_last(self, model):
        batch = self.batch()
        expected = self.run(model, batch)
        moved = batch | {"image": batch["image"].to(memory_format=torch.channels_last)}
        given = self.run(model.to(memory_format=torch.channels_last), moved)
        for a, b in zip(expected, given, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)

    def test_all_ignored_is_zero_loss(self, model):
        batch = self.batch()
        batch["label"].fill_(IGNORE)
        loss = self.loss(model.train()(batch), batch)
        assert loss == 0
        loss.backward()
        self.check_gradients(model)

    def test_exports(self, model):
        batch = self.batch(1)
        program = torch.export.export(model, (batch,), strict=False).module()
        for ours, theirs in zip(self.run(model, batch), self.run(program, batch), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)

    def test_compiles(self, model):
        if not self.compiled:
            pytest.skip("compiled = False")
        batch = self.batch(1)
        for ours, theirs in zip(self.run(model, batch), self.run(torch.compile(model), batch), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    def test_agrees_on_the_gpu(self, model):
        batch = self.batch()
        expected = self.run(model, batch)
        given = self.run(model.cuda(), {key: value.cuda() for key, value in batch.items()})
        for a, b in zip(expected, given, strict=True):
            torch.testing.assert_close(a, b.cpu(), rtol=1e-2, atol=1e-3)

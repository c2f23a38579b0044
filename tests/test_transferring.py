"""Tables V, VI, VIII and IX of HieraRS: their rows and claims, stage I trained once and kept, stage II by row."""

import dataclasses
import json

import pytest
import torch

from hierlab import twin
from hierlab._training import seed_everything
from hierlab.checkpoints import CONFIG, read_weights
from hierlab.experiments import jobs, overrides, record, report, transferring
from hierlab.experiments.catalog import find
from hierlab.experiments.hierars_transfer import EXPERIMENTS, TABLE_05, TABLE_08, TABLE_09, TransferRow
from hierlab.experiments.run import JobsFailed, prepare, run
from hierlab.profiles import PROFILES
from hierlab.recipes import CONVNEXT_DEIT, TRANSLU
from hierlab.tree import ClassTree

SMOKE = {"profile": "smoke", "device": "cpu", "progress": False}
TINY = TABLE_08.setting("smoke")


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Function that gives stage I another, empty place to be kept in; the twin's patches stay where they are."""

    def move(name: str):
        monkeypatch.setattr(twin, "cache_dir", lambda: tmp_path / name)
        return tmp_path / name / "stage-one"

    move("first")
    return move


@pytest.fixture
def trainings(monkeypatch):
    """The trees that something was trained on, as it happens."""
    seen = []
    fit = transferring.fit

    def watched(model, loss, train, *rest, **options):
        seen.append(train.tree.name)
        return fit(model, loss, train, *rest, **options)

    monkeypatch.setattr(transferring, "fit", watched)
    return seen


def planned(experiment, setting=None, profile="smoke", rows=None):
    """The jobs of seed 0 by row."""
    found = jobs.plan(experiment, rows, [0], profile, setting or experiment.setting(profile), device="cpu")
    return {job.row.name: job for job in found}


# ---------------------------------------------------------------- the tables as data


@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=EXPERIMENTS.keys())
def test_rows_measures_and_claims_are_the_printed_tables(experiment):
    assert find(experiment.key) is experiment and set(experiment.settings) == set(PROFILES)
    printed = experiment.published_table()
    assert [row.name for row in experiment.rows] == list(printed.index)
    scores = experiment.published_scores()
    assert scores.notna().to_numpy().all() and len({row.label for row in experiment.rows}) == len(experiment.rows)
    names = ClassTree.load(twin.PRESETS[experiment.dataset].tree).classes[-1]
    assert {measure.path[-1] for measure in experiment.measures} <= {"mIoU", "mAcc", *names}
    for claim, (gain, _) in zip(experiment.claims, report.gains(experiment, []), strict=True):
        assert gain > 0, claim
    for row in experiment.rows:
        about = printed.loc[row.name]
        if "CDKS" in about:
            assert row.cdks == (about["CDKS"] == "Yes")
        if "CDSA" in about:
            assert row.cdsa == (about["CDSA"] == "Yes")
        if "Method" in about:
            assert (row.head, row.cdks, row.cdsa) == (
                ("flat", False, False) if about["Method"] == "baseline" else ("translu", True, True)
            )
        if "Branch1 Pre." in about:
            assert row.start == ("imagenet" if about["Branch1 Pre."].startswith("ImageNet") else "source")
        assert row.network.startswith(row.name.partition("-")[0])


def test_the_claims_of_the_text_are_the_printed_differences():
    gains = {claim.text: gain for claim, (gain, _) in zip(TABLE_08.claims, report.gains(TABLE_08, []), strict=True)}
    assert gains["MM-5B's weights over ImageNet's, ConvNeXt-B: mIoU"] == 0.43
    assert gains["CDKS over the baseline, DeiT III-B: mAcc"] == 0.69
    gains = {claim.text: gain for claim, (gain, _) in zip(TABLE_05.claims, report.gains(TABLE_05, []), strict=True)}
    assert gains["TransLU over the baseline, ConvNeXt-B: Others"] == 5.82


def test_rows_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="flat, so it has no second branch"):
        TransferRow("r", "r", head="flat", cdks=True)
    with pytest.raises(ValueError, match="one of imagenet, source"):
        TransferRow("r", "r", start="random")
    with pytest.raises(ValueError, match="source_steps is 0"):
        dataclasses.replace(TINY, source_steps=0)


# ---------------------------------------------------------------- what decides a job


@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=EXPERIMENTS.keys())
def test_inputs_tell_all_that_decides_a_job(experiment):
    found = planned(experiment)
    assert len({job.hash for job in found.values()}) == len(experiment.rows)
    for job in found.values():
        assert json.loads(json.dumps(job.inputs)) == job.inputs
        stage_one = job.inputs["parameters"]["stage I"]
        if job.row.head == "flat" and job.row.start == "imagenet":
            assert stage_one is None and job.inputs["parameters"]["weights"] is None  # random, on this profile
        else:
            assert stage_one["seed"] == 0 and stage_one["recipe"]["steps"] == 2 and stage_one["weights"] is None
        assert job.inputs["data"]["source"]["fingerprint"] != job.inputs["data"]["fingerprint"]


def test_a_change_of_stage_one_is_another_job_for_the_rows_that_have_one():
    before = planned(TABLE_08)
    after = planned(TABLE_08, overrides.apply(TABLE_08, "smoke", {"source_steps": "3"})[0])
    changed = {name for name in before if before[name].hash != after[name].hash}
    assert changed == {row.name for row in TABLE_08.rows if row.start == "source"}


def test_the_same_run_in_two_tables_has_the_same_inputs():
    assert planned(TABLE_08)["convnext-mm5b-cdks"].inputs == planned(TABLE_09)["convnext-b-cdks"].inputs
    assert planned(TABLE_08)["deit3-imagenet"].inputs == planned(TABLE_05)["deit3-baseline"].inputs
    assert planned(TABLE_09)["deit3-b-cdks-cdsa"].inputs == planned(TABLE_05)["deit3-translu"].inputs


def test_full_size_networks_start_from_imagenet():
    inputs = planned(TABLE_08, profile="gpu")["convnext-imagenet"].inputs["parameters"]
    assert inputs["weights"] == "imagenet" and inputs["width"] == 1.0
    assert planned(TABLE_08, profile="gpu")["convnext-mm5b"].inputs["parameters"]["stage I"]["weights"] == "imagenet"


def test_what_does_not_go_together_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(ValueError, match=r"folder that holds them prepared \(data_root\), with mm5b-sentinel2"):
        planned(TABLE_08, profile="paper")
    with pytest.raises(ValueError, match=r"only 16 patches of mm5b-sentinel2"):
        planned(TABLE_08, dataclasses.replace(TINY, batch=17))
    with pytest.raises(ValueError, match="mm5b-gaofen2 has 4 bands and crop10m 10"):
        planned(dataclasses.replace(TABLE_08, source="mm5b-gaofen2"))
    with pytest.raises(ValueError, match="mm5b-sentinel2 holds no images"):
        planned(TABLE_08, dataclasses.replace(TINY, data_root=str(tmp_path)))


def test_prepared_files_stand_in_for_the_twin_with_the_papers_recipe(tmp_path):
    from hierlab.twin.export import export, sets

    for name in ("mm5b-sentinel2", "crop10m"):
        export(sets(name, ("train", "val"), "smoke", count=1), tmp_path / name)
    setting = dataclasses.replace(TABLE_08.setting("paper"), data_root=str(tmp_path), batch=1)
    found = planned(TABLE_08, setting, "paper", ["deit3-mm5b-cdks"])["deit3-mm5b-cdks"].inputs
    recipe = found["parameters"]["recipe"]
    assert recipe == TRANSLU.replace(batch_size=1, patch=64).to_dict()
    assert found["parameters"]["stage I"]["recipe"] == CONVNEXT_DEIT.replace(batch_size=1, patch=64).to_dict()
    assert found["data"]["train"] == 1 and str(tmp_path) not in json.dumps(found)
    (tmp_path / "mm5b-sentinel2" / "twin.json").unlink()
    with pytest.raises(ValueError, match="only one of them is the twin's"):
        planned(TABLE_08, setting, "paper")


# ---------------------------------------------------------------- running


def test_every_kind_of_row_runs_on_one_stage_one(kept, trainings):
    made = run(TABLE_08, rows=["convnext-imagenet", "convnext-mm5b", "convnext-mm5b-cdks"], **SMOKE)
    (other,) = run(TABLE_08, rows=["convnext-mm5b"], seeds=[1], **SMOKE)
    assert trainings == ["crop10m", "mm5b", "crop10m", "crop10m", "crop10m"]
    assert other["losses"] != made[1]["losses"] and other["metrics"]["source"] == made[1]["metrics"]["source"]
    for entry in made:
        record.validate(entry)
        leaves = entry["metrics"]["levels"][-1]
        assert entry["data"]["twin"] and set(leaves["IoU"]) == {"other", "rice", "corn", "soybean"}
    assert "source" not in made[0]["metrics"] and made[0]["cost"]["stage_one_seconds"] is None
    sources = [entry["metrics"]["source"] for entry in made[1:]]
    assert [len(level["IoU"]) for level in sources[0]["levels"]] == [4, 9, 18] and sources.count(sources[0]) == 2
    assert made[1]["cost"]["params"] == made[0]["cost"]["params"] < made[2]["cost"]["params"]
    losses = [set(entry["losses"]) for entry in made]
    assert losses[0] == losses[1] and "path_consistency" in losses[2] - losses[1]
    told = report.table(TABLE_08, made)
    assert told["n"].tolist().count(1) == 2 * 3


def test_six_classes_of_cover_from_three_bands(kept):
    (made,) = run(find("hierars/table-06"), rows=["convnext-b-translu"], **SMOKE)
    assert len(made["metrics"]["levels"][-1]["IoU"]) == 6 and made["data"]["name"] == "whdld"


def test_stage_one_from_the_cache_is_the_one_trained_again_bit_for_bit(kept, trainings):
    row, weights, made, shares = TABLE_09.row("convnext-b-cdks-cdsa"), [], [], []
    for place in ("one", "two"):
        folder = kept(place)
        if place == "two":
            transferring.source_model(TABLE_09, row, "smoke", TINY, "cpu")
            assert trainings == ["mm5b", "crop10m", "mm5b"]
        made.append(transferring.work(TABLE_09, row, 1, "smoke", TINY, "cpu", shares.append))
        (found,) = folder.iterdir()
        weights.append(read_weights(found)[0])
    assert trainings == ["mm5b", "crop10m", "mm5b", "crop10m"]  # the second time, stage I came from the cache
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert made[0]["metrics"] == made[1]["metrics"] and made[0]["losses"] == made[1]["losses"]
    assert [told["share"] for told in shares] == [0.2, 0.4, 0.6, 0.8, 0.6, 0.8]  # two steps a stage


def test_stage_one_is_another_when_anything_that_decides_it_is(kept, monkeypatch):
    def folder(experiment=TABLE_09, row="convnext-b-cdks", setting=TINY):
        return transferring.source_folder(experiment, experiment.row(row), "smoke", setting, "cpu").name

    first = folder()
    assert first == folder() == folder(TABLE_08, "convnext-mm5b") == folder(row="convnext-b-cdks-cdsa")
    assert first == folder(setting=dataclasses.replace(TINY, steps=9, seeds=7))
    others = [folder(row="deit3-b-cdks"), folder(find("hierars/table-06"), "convnext-b-translu")]
    changes = {"source_steps": 3, "width": 0.125, "depth": 0.2, "batch": 4, "lr": 0.5, "precision": "bf16-mixed"}
    others += [folder(setting=dataclasses.replace(TINY, **{name: value})) for name, value in changes.items()]
    monkeypatch.setattr(transferring, "versions", lambda: {"torch": "another"})
    others.append(folder())
    monkeypatch.undo()
    monkeypatch.setattr(transferring, "_code", lambda: "another")
    others.append(folder())
    monkeypatch.undo()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    others.append(folder())
    assert len({first, *others}) == 1 + len(others)


def test_a_broken_stage_one_is_said_to_be(kept):
    row = TABLE_09.row("convnext-b-cdks")
    folder = transferring.source_folder(TABLE_09, row, "smoke", TINY, "cpu")
    folder.mkdir(parents=True)
    (folder / CONFIG).write_text("{}")
    with pytest.raises(ValueError, match="does not describe a model"):
        transferring.source_model(TABLE_09, row, "smoke", TINY, "cpu")


def test_rows_start_from_where_they_say(kept):
    source, _ = transferring.source_model(TABLE_08, TABLE_08.row("convnext-mm5b"), "smoke", TINY, "cpu")
    train = twin.dataset("crop10m", "train", "smoke")

    def start(row, experiment=TABLE_08):
        seed_everything(3)
        return transferring._network_of(experiment, experiment.row(row), "smoke", TINY, source, train)

    theirs, scratch = source.network.state_dict(), start("convnext-imagenet").state_dict()
    carried, two = start("convnext-mm5b").state_dict(), start("convnext-b-cdks-cdsa", TABLE_09)
    body = [name for name in scratch if not name.startswith("classifier.")]
    assert all(torch.equal(carried[name], theirs[name]) for name in body)
    assert carried["classifier.weight"].shape[0] == 4
    assert torch.equal(carried["classifier.weight"], scratch["classifier.weight"])
    weight = "encoder.model.stem_0.weight"
    assert not torch.equal(scratch[weight], theirs[weight])
    for branch in (two.branch1, two.branch2):
        assert torch.equal(branch.network.state_dict()[weight], theirs[weight])
    assert two.cdks is not None and two.cdsa is not None and start("convnext-mm5b-cdks").cdsa is None


def test_a_run_that_stands_in_two_tables_is_made_once(kept, tmp_path, monkeypatch):
    (made,) = run(TABLE_08, rows=["convnext-mm5b-cdks"], out=tmp_path / "table-08.smoke.jsonl", **SMOKE)
    monkeypatch.setattr(transferring, "work", None)  # whoever works now fails
    out = tmp_path / "table-09.smoke.jsonl"
    (same,) = run(TABLE_09, rows=["convnext-b-cdks"], out=out, **SMOKE)
    assert same["metrics"] == made["metrics"] and same["same_run"] == "hierars/table-08, convnext-mm5b-cdks"
    assert (same["experiment"], same["row"]) == (TABLE_09.key, "convnext-b-cdks") and same["hash"] != made["hash"]
    assert record.read(out) == [same]
    assert prepare(TABLE_09, ["convnext-b-cdks"], profile="smoke", device="cpu", out=out).told() == (
        "1 jobs, 1 of them done before"
    )
    other = prepare(TABLE_09, ["convnext-b-cdks"], [1], "smoke", "cpu", out)
    assert not other.adopted and len(other.todo) == 1  # another seed is another run
    copy = prepare(TABLE_09, ["convnext-b-cdks"], profile="smoke", device="cpu", out=tmp_path / "copy.jsonl")
    assert [entry["same_run"] for entry in copy.adopted] == ["hierars/table-08, convnext-mm5b-cdks"]  # not its own
    with pytest.raises(JobsFailed):
        run(TABLE_09, rows=["convnext-b-cdks"], out=tmp_path / "apart" / "t.jsonl", **SMOKE)

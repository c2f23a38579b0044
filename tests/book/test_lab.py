"""The labs: their student versions give nothing away, and points fall where they should.

The solved notebooks and the empty ones go through nbgrader itself, as a class's would. Wrong answers are graded by
running the same cells here, which needs no kernel.
"""

import os
import re
import shutil
import sys
from pathlib import Path

import nbformat
import pytest
from nbgrader.api import Gradebook
from nbgrader.converters import Autograde, GenerateAssignment
from nbgrader.coursedir import CourseDirectory
from nbgrader.nbgraderformat import SCHEMA_VERSION, MetadataValidator
from nbgrader.utils import is_grade, is_locked, is_solution
from traitlets.config.loader import PyFileConfigLoader

LABS = Path(__file__).resolve().parents[2] / "book" / "labs"
REGION = re.compile(r"^ *### BEGIN (SOLUTION|HIDDEN TESTS)\n(.*?)^ *### END \1$", re.MULTILINE | re.DOTALL)


class Lab:
    """A lab's notebook: its cells that nbgrader knows, their code, and the points of its checks and of its texts."""

    def __init__(self, name):
        self.name = name
        self.source = nbformat.read(LABS / "source" / name / f"{name}.ipynb", as_version=4)
        self.cells = {c.metadata.nbgrader.grade_id: c for c in self.source.cells if "nbgrader" in c.metadata}
        self.code = {key: cell.source for key, cell in self.cells.items() if cell.cell_type == "code"}
        graded = {key: cell for key, cell in self.cells.items() if is_grade(cell)}
        self.checks = {key: c.metadata.nbgrader.points for key, c in graded.items() if not is_solution(c)}
        self.written = {key: c.metadata.nbgrader.points for key, c in graded.items() if is_solution(c)}
        self.slow = {}  # results of functions that the lab gives, take no argument and cost seconds

    def run(self, key, names, code=None):
        """Execute a cell that is no check, in the namespace ``names``; or other ``code`` in its place."""
        exec(compile(code or self.code[key], key, "exec"), names)
        if key == "observe":
            observe = names["observe"]
            names["observe"] = lambda: self.slow[key] if key in self.slow else self.slow.setdefault(key, observe())


ALL = {name: Lab(name) for name in ("hierarchy", "transfer")}
every_lab = pytest.mark.parametrize("lab", ALL.values(), ids=ALL)


def test_every_lab_is_tested():
    assert {path.parent.name for path in (LABS / "source").glob("*/*.ipynb")} == set(ALL)


# ---------------------------------------------------------------- the notebook


@every_lab
def test_metadata_is_what_nbgrader_expects(lab):
    nbformat.validate(lab.source)
    MetadataValidator().validate_nb(lab.source)  # among others: every grade_id once
    assert {cell.metadata.nbgrader.schema_version for cell in lab.cells.values()} == {SCHEMA_VERSION}
    for key, cell in lab.cells.items():
        kinds = {name for name, _ in REGION.findall(cell.source)}
        assert kinds <= {"SOLUTION" if is_solution(cell) else "HIDDEN TESTS" if is_grade(cell) else ""}, key
        assert is_solution(cell) != is_locked(cell), f"{key}: students fill solutions and nothing else"
    for cell in lab.source.cells:
        assert "nbgrader" in cell.metadata or not REGION.search(cell.source)
    assert sum(lab.checks.values()) == 20
    assert sum(lab.written.values()) == 4


# ---------------------------------------------------------------- through nbgrader


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """The folder of a course that holds the labs, with the student versions made."""
    root = tmp_path_factory.mktemp("course")
    shutil.copytree(LABS / "source", root / "source")
    with pytest.MonkeyPatch.context() as patch:
        # nbgrader calls alembic by its bare name
        patch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
        for name in ALL:
            convert(GenerateAssignment, root, name)
        yield root


def convert(converter, root, name, student="*"):
    """Run one step of nbgrader with the labs' own settings; returns the address of the gradebook."""
    config = PyFileConfigLoader("nbgrader_config.py", path=str(LABS)).load_config()
    config.CourseDirectory.update(root=str(root), assignment_id=name, student_id=student)
    folder = CourseDirectory(config=config)
    converter(coursedir=folder, config=config).start()
    return folder.db_url


@every_lab
def test_student_version_gives_nothing_away(course, lab):
    released = nbformat.read(course / "release" / lab.name / f"{lab.name}.ipynb", as_version=4)
    nbformat.validate(released)
    assert len(released.cells) == len(lab.source.cells)
    text = "\n".join(cell.source for cell in released.cells)
    assert not re.search(r"(BEGIN|END) (SOLUTION|HIDDEN)", text)
    assert not any(cell.get("outputs") for cell in released.cells)

    visible = REGION.sub("", "\n".join(lab.code.values()))
    hidden = "\n".join(match.group(2) for code in lab.code.values() for match in REGION.finditer(code))
    secret = [line.strip() for line in hidden.splitlines() if len(line.strip()) > 8 and line.strip() not in visible]
    assert len(secret) > 60
    assert [line for line in secret if line in text] == []

    for before, after in zip(lab.source.cells, released.cells, strict=True):
        if not is_solution(before):
            expected = REGION.sub("", before.source).rstrip("\n") if is_grade(before) else before.source
            assert after.source.rstrip("\n") == expected
        elif before.cell_type == "code":
            assert after.source == REGION.sub(_stub, before.source)
        else:
            assert after.source == "YOUR ANSWER HERE"


def _stub(match):
    indent = re.match(" *", match.group()).group()
    return f"{indent}# YOUR CODE HERE\n{indent}raise NotImplementedError()"


@pytest.mark.filterwarnings("ignore:Object of type <Submitted:sqlalchemy.exc.SAWarning")  # nbgrader's own affair
@pytest.mark.parametrize("student", ["solved", "empty"])
@every_lab
def test_solution_has_full_marks_and_empty_version_none(course, lab, student):
    original = course / {"solved": "source", "empty": "release"}[student] / lab.name
    shutil.copytree(original, course / "submitted" / student / lab.name)
    with Gradebook(convert(Autograde, course, lab.name, student)) as gradebook:
        submission = gradebook.find_submission(lab.name, student)
        scores = {grade.name: grade.auto_score for grade in submission.notebooks[0].grades}
        assert submission.max_score == sum(lab.checks.values()) + sum(lab.written.values())
        assert submission.needs_manual_grade == (student == "solved"), "an answer in words waits for the teacher"
    if student == "solved":
        assert scores == lab.checks | dict.fromkeys(lab.written)
    else:
        assert scores == dict.fromkeys(lab.checks | lab.written, 0)


# ---------------------------------------------------------------- wrong answers


def passes(code, names):
    """Whether a check cell runs through."""
    try:
        exec(compile(code, "check", "exec"), names)
    except Exception:
        return False
    return True


def grade(lab, answers):
    """The checks that fail when some cells hold other ``answers`` ({grade_id: code})."""
    names, failed = {"__name__": "lab"}, set()
    for key, code in (lab.code | answers).items():
        if key in lab.checks:
            failed |= set() if passes(code, names) else {key}
        else:
            lab.run(key, names, code)
    return failed


def function(signature, *body):
    return "\n    ".join([f"def {signature}:", *body])


SINGLE_CHILD_FORGOTTEN = ALL["hierarchy"].code["coarsen"].replace("== 1:", "== 0:")
HIERARCHY_MISTAKES = {
    "none": ({}, set()),
    "leaves for paths": ({"paths": function("number_of_paths(tree)", "return tree.num_leaves")}, {"check-paths"}),
    "the finest class of that name": (
        {"inner": function("inner_label(tree, level, name)", "return tree.label_of(name)")},
        {"check-inner"},
    ),
    "only leaves coarsened": (
        {
            "coarsen": function(
                "coarsen(label, level, parents)",
                "table = np.full(256, 255)",
                "table[: len(parents[-1])] = np.arange(len(parents[-1]))",
                "for step in range(len(parents) - 1, level, -1):",
                "    table[: len(parents[-1])] = parents[step][table[: len(parents[-1])]]",
                "return table[label]",
            )
        },
        {"check-coarsen-inner", "check-coarsen-only-child"},
    ),
    "only children forgotten": ({"coarsen": SINGLE_CHILD_FORGOTTEN}, {"check-coarsen-only-child"}),
    "log-softmax for sigmoid": (
        {
            "path-scores": function(
                "path_scores(logits, paths)",
                "logits = [z - np.log(np.exp(z).sum(0)) for z in logits]",
                "return sum(z[paths[:, level]] for level, z in enumerate(logits))",
            )
        },
        {"check-path-scores", "check-jsps"},
    ),
    "best of each level for the best path": (
        {"jsps": function("jsps(logits, paths)", "return np.stack([z.argmax(0) for z in logits])")},
        {"check-jsps"},
    ),
    "best leaf for the best path": (
        {
            "jsps": function(
                "jsps(logits, paths)",
                "first = np.unique(paths[:, -1], return_index=True)[1]",
                "return np.moveaxis(paths[first[logits[-1].argmax(0)]], -1, 0)",
            )
        },
        {"check-jsps"},
    ),
    "each level by itself is consistent": (
        {
            "consistency": function(
                "consistency_rate(pred, paths)",
                "return np.mean([np.isin(p, column) for p, column in zip(pred, paths.T, strict=True)])",
            )
        },
        {"check-consistency"},
    ),
    "parent and child agree, in pairs": (  # enough where a class has one parent
        {
            "consistency": function(
                "consistency_rate(pred, paths)",
                "pairs = [set(map(tuple, paths[:, i : i + 2].tolist())) for i in range(paths.shape[1] - 1)]",
                "columns = pred.reshape(len(pred), -1).T.tolist()",
                "return np.mean([all(tuple(c[i : i + 2]) in p for i, p in enumerate(pairs)) for c in columns])",
            )
        },
        set(),
    ),
    "logits on which the rules agree": (
        {"my-logits": "my_logits = [[2.0, 1.0], [2.0, -4.0, 0.0], [2.0, -4.0, -4.0, 0.5]]"},
        {"check-my-logits"},
    ),
    "rules the wrong way round": (
        {"disagree": ALL["hierarchy"].code["disagree"].replace("disagree(a, b, sizes)", "disagree(b, a, sizes)")},
        {"check-disagree"},
    ),
    "one pair of paths only": (
        {"disagree": function("disagree(a, b, sizes)", "return [np.array(level) for level in my_logits]")},
        {"check-disagree"},
    ),
}


TRANSFER = ALL["transfer"].code
TRANSFER_MISTAKES = {
    "none": ({}, set()),
    "all artificial surface for built-up": (
        {"mapping": TRANSFER["mapping"].replace("[L2/residence, L2/transportation]", "L1/artificial surface")},
        {"check-mapping"},
    ),
    "homes and traffic swapped": (
        {
            "mapping": TRANSFER["mapping"]
            .replace("homes: L2/residence", "homes: L2/transportation")
            .replace("traffic: L2/transportation", "traffic: L2/residence")
        },
        {"check-mapping"},
    ),
    "the coarsest ancestor": (
        {"ancestor": TRANSFER["ancestor"].replace("on_path[-1]", "on_path[0]")},
        {"check-ancestor"},
    ),
    "the rest forgotten": (
        {"orphans": TRANSFER["orphans"].replace("set(mapped) | set(rest)", "set(mapped)")},
        {"check-orphans"},
    ),
    "mean for sum": (
        {"soft-mask": TRANSFER["soft-mask"].replace("].sum(axis=0)", "].mean(axis=0)")},
        {"check-soft-mask"},
    ),
    "overflow": (
        {
            "soft-mask": function(
                "soft_mask(logits, classes)",
                "with np.errstate(all='ignore'):",
                "    return np.exp(logits)[list(classes)].sum(0) / np.exp(logits).sum(0)",
            )
        },
        {"check-soft-mask"},
    ),
    "others kept in both readings": (
        {"masked": TRANSFER["masked"].replace('others == "complement"', "False")},
        {"check-masked"},
    ),
    "others by the first mask alone": (
        {"masked": TRANSFER["masked"].replace("sum(masks.values())", "next(iter(masks.values()))")},
        {"check-masked"},
    ),
    "masked in place": (
        {"masked": TRANSFER["masked"].replace("return z * factors", "z *= factors\n    return z")},
        {"check-masked"},
    ),
    "equation 8 on the old features": (
        {"interact": TRANSFER["interact"].replace("refine(updated)", "refine(f1)")},
        {"check-interact"},
    ),
    "rice on the lake": (
        {"fuse": TRANSFER["fuse"].replace("(old[level] == index) & ", "")},
        {"check-fuse"},
    ),
    "cropland always": ({"fuse": TRANSFER["fuse"].replace("old[level] == index", "old[1] == 0")}, {"check-fuse"}),
    "counted from the wrong leaf": ({"fuse": TRANSFER["fuse"].replace(" - 1\n", "\n")}, {"check-fuse"}),
    "attention learns at once": (
        {"predicted": TRANSFER["predicted"].replace('learns at once": False', 'learns at once": True')},
        {"check-predicted"},
    ),
    "all True": ({"predicted": TRANSFER["predicted"].replace("False", "True")}, {"check-predicted"}),
}
MISTAKES = {("hierarchy", name): case for name, case in HIERARCHY_MISTAKES.items()}
MISTAKES |= {("transfer", name): case for name, case in TRANSFER_MISTAKES.items()}


@pytest.mark.parametrize(("name", "mistake"), MISTAKES)
def test_a_mistake_costs_its_points_and_no_others(name, mistake):
    answers, lost = MISTAKES[name, mistake]
    assert all(code != ALL[name].code[key] for key, code in answers.items())
    assert grade(ALL[name], answers) == lost


ONE_ANSWER = {"check-my-logits", "check-mapping", "check-predicted"}  # one answer is what is asked for there


@pytest.mark.parametrize(("name", "check"), [(name, check) for name, lab in ALL.items() for check in lab.checks])
def test_answers_by_heart_do_not_pass(name, check):
    """Neither one constant answer, nor the right answers to the visible checks, whatever is asked after these."""
    lab, names = ALL[name], {"__name__": "lab"}
    for key in lab.code:
        if key not in lab.checks:
            lab.run(key, names)
    answers = "\n".join(lab.code[key] for key in lab.code if is_solution(lab.cells[key]))
    called = [one for one in re.findall(r"^def (\w+)", answers, re.M) if re.search(rf"\b{one}\(", lab.code[check])]
    if check in ONE_ANSWER:
        assert called == []
        return
    (name,) = called
    right, given = names[name], []

    def recorded(*arguments):
        given.append(right(*arguments))
        return given[-1]

    assert passes(REGION.sub("", lab.code[check]), names | {name: recorded})
    by_heart = list(given)
    assert passes(lab.code[check], names | {name: recorded})
    for answer in [*given[:: max(1, len(given) // 12)], None, 0, 1.0]:
        assert not passes(lab.code[check], names | {name: lambda *_, answer=answer: answer})
    left = iter(by_heart)
    assert not passes(lab.code[check], names | {name: lambda *_: next(left, by_heart[-1])})

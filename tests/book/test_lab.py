"""The lab `hierarchy`: its student version gives nothing away, and points fall where they should.

The solved notebook and the empty one go through nbgrader itself, as a class's would. Wrong answers are graded by
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
NAME = "hierarchy"
REGION = re.compile(r"^ *### BEGIN (SOLUTION|HIDDEN TESTS)\n(.*?)^ *### END \1$", re.MULTILINE | re.DOTALL)
SOURCE = nbformat.read(LABS / "source" / NAME / f"{NAME}.ipynb", as_version=4)
CELLS = {cell.metadata.nbgrader.grade_id: cell for cell in SOURCE.cells if "nbgrader" in cell.metadata}
CODE = {key: cell.source for key, cell in CELLS.items() if cell.cell_type == "code"}
CHECKS = {key: cell.metadata.nbgrader.points for key, cell in CELLS.items() if is_grade(cell) and not is_solution(cell)}
WRITTEN = {key: cell.metadata.nbgrader.points for key, cell in CELLS.items() if is_grade(cell) and is_solution(cell)}


# ---------------------------------------------------------------- the notebook


def test_metadata_is_what_nbgrader_expects():
    nbformat.validate(SOURCE)
    MetadataValidator().validate_nb(SOURCE)  # among others: every grade_id once
    assert {cell.metadata.nbgrader.schema_version for cell in CELLS.values()} == {SCHEMA_VERSION}
    for key, cell in CELLS.items():
        kinds = {name for name, _ in REGION.findall(cell.source)}
        assert kinds <= {"SOLUTION" if is_solution(cell) else "HIDDEN TESTS" if is_grade(cell) else ""}, key
        assert is_solution(cell) != is_locked(cell), f"{key}: students fill solutions and nothing else"
    for cell in SOURCE.cells:
        assert "nbgrader" in cell.metadata or not REGION.search(cell.source)
    assert sum(CHECKS.values()) == 20
    assert sum(WRITTEN.values()) == 4


# ---------------------------------------------------------------- through nbgrader


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """The folder of a course that holds the labs, with the student versions made."""
    root = tmp_path_factory.mktemp("course")
    shutil.copytree(LABS / "source", root / "source")
    with pytest.MonkeyPatch.context() as patch:
        # nbgrader calls alembic by its bare name
        patch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
        convert(GenerateAssignment, root)
        yield root


def convert(converter, root, student="*"):
    """Run one step of nbgrader with the labs' own settings; returns the address of the gradebook."""
    config = PyFileConfigLoader("nbgrader_config.py", path=str(LABS)).load_config()
    config.CourseDirectory.update(root=str(root), assignment_id=NAME, student_id=student)
    folder = CourseDirectory(config=config)
    converter(coursedir=folder, config=config).start()
    return folder.db_url


@pytest.fixture(scope="module")
def released(course):
    return nbformat.read(course / "release" / NAME / f"{NAME}.ipynb", as_version=4)


def test_student_version_gives_nothing_away(released):
    nbformat.validate(released)
    assert len(released.cells) == len(SOURCE.cells)
    text = "\n".join(cell.source for cell in released.cells)
    assert not re.search(r"(BEGIN|END) (SOLUTION|HIDDEN)", text)
    assert not any(cell.get("outputs") for cell in released.cells)

    visible = REGION.sub("", "\n".join(CODE.values()))
    hidden = "\n".join(match.group(2) for code in CODE.values() for match in REGION.finditer(code))
    secret = [line.strip() for line in hidden.splitlines() if len(line.strip()) > 8 and line.strip() not in visible]
    assert len(secret) > 60
    assert [line for line in secret if line in text] == []

    for before, after in zip(SOURCE.cells, released.cells, strict=True):
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
def test_solution_has_full_marks_and_empty_version_none(course, student):
    original = course / {"solved": "source", "empty": "release"}[student] / NAME
    shutil.copytree(original, course / "submitted" / student / NAME)
    with Gradebook(convert(Autograde, course, student)) as gradebook:
        submission = gradebook.find_submission(NAME, student)
        scores = {grade.name: grade.auto_score for grade in submission.notebooks[0].grades}
        assert submission.max_score == sum(CHECKS.values()) + sum(WRITTEN.values())
        assert submission.needs_manual_grade == (student == "solved"), "an answer in words waits for the teacher"
    if student == "solved":
        assert scores == CHECKS | dict.fromkeys(WRITTEN)
    else:
        assert scores == dict.fromkeys(CHECKS | WRITTEN, 0)


# ---------------------------------------------------------------- wrong answers


def passes(code, names):
    """Whether a check cell runs through."""
    try:
        exec(compile(code, "check", "exec"), names)
    except Exception:
        return False
    return True


def grade(answers):
    """The checks that fail when some cells hold other ``answers`` ({grade_id: code})."""
    names, failed = {"__name__": "lab"}, set()
    for key, code in (CODE | answers).items():
        if key in CHECKS:
            failed |= set() if passes(code, names) else {key}
        else:
            exec(compile(code, key, "exec"), names)
    return failed


def function(signature, *body):
    return "\n    ".join([f"def {signature}:", *body])


SINGLE_CHILD_FORGOTTEN = CODE["coarsen"].replace("== 1:", "== 0:")
MISTAKES = {
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
        {"disagree": CODE["disagree"].replace("disagree(a, b, sizes)", "disagree(b, a, sizes)")},
        {"check-disagree"},
    ),
    "one pair of paths only": (
        {"disagree": function("disagree(a, b, sizes)", "return [np.array(level) for level in my_logits]")},
        {"check-disagree"},
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_costs_its_points_and_no_others(mistake):
    answers, lost = MISTAKES[mistake]
    assert all(code != CODE[key] for key, code in answers.items())
    assert grade(answers) == lost


@pytest.mark.parametrize("check", CHECKS)
def test_answers_by_heart_do_not_pass(check):
    """Neither one constant answer, nor the right answers to the visible checks, whatever is asked after these."""
    names = {"__name__": "lab"}
    for key, code in CODE.items():
        if key not in CHECKS:
            exec(compile(code, key, "exec"), names)
    solved = [name for key, code in CODE.items() if key not in CHECKS for name in re.findall(r"^def (\w+)", code, re.M)]
    called = [name for name in solved if re.search(rf"\b{name}\(", CODE[check])]
    if check == "check-my-logits":  # one answer is what is asked for there
        assert called == []
        return
    (name,) = called
    right, given = names[name], []

    def recorded(*arguments):
        given.append(right(*arguments))
        return given[-1]

    assert passes(REGION.sub("", CODE[check]), names | {name: recorded})
    by_heart = list(given)
    assert passes(CODE[check], names | {name: recorded})
    for answer in [*given[:: max(1, len(given) // 12)], None, 0, 1.0]:
        assert not passes(CODE[check], names | {name: lambda *_, answer=answer: answer})
    left = iter(by_heart)
    assert not passes(CODE[check], names | {name: lambda *_: next(left, by_heart[-1])})

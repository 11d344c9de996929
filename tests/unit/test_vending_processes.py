"""Goal: no process of the book is forgotten: each of its steps is one that a test lets it die at.

Method: what vending asks of itself goes by `step` (services/vending/application/process.py), by
a name that its source says. The names are read from the source, and must be those of the table in
docs/reliability.md, whose tests must be there and kill at every half step. Then: what becomes of
one that fails.
"""

import ast
import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.common.kernel.errors import Bug
from services.vending.application.process import FORGOTTEN_AFTER_S, Failing, each

ROOT = Path(__file__).parents[2]
VENDING = ROOT / "services/vending"
PAGE = ROOT / "docs/reliability.md"
NAME_AT = 3
"""Where the name stands in what `step` is given."""
OF_A_TODO = {"todo.kind": {"join", "leave"}}
"""What names that are not written out may be."""
KILLERS = ("at_every_step(", "MortalStore", "Mortal(", "asking(")
Calls = dict[str, int]
"""Functions that make a request of a step → where its name stands in what they are given."""


def nodes(tree: ast.AST, kind: type[ast.AST]) -> Iterator[ast.AST]:
    return (node for node in ast.walk(tree) if isinstance(node, kind))


def called(node: ast.AST, makers: Calls) -> Iterator[ast.expr]:
    """Yield what is given as the name wherever one of the makers is called."""
    for call in nodes(node, ast.Call):
        assert isinstance(call, ast.Call)
        name = call.func.attr if isinstance(call.func, ast.Attribute) else None
        name = call.func.id if isinstance(call.func, ast.Name) else name
        at = makers.get(name or "", len(call.args))
        if at < len(call.args):
            yield call.args[at]


def passing(tree: ast.AST, makers: Calls) -> Calls:
    """Return the functions that pass on a name that they are given themselves."""
    found: Calls = {}
    for function in (*nodes(tree, ast.FunctionDef), *nodes(tree, ast.AsyncFunctionDef)):
        assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        given = [arg.arg for arg in function.args.args if arg.arg != "self"]
        if function.args.vararg:
            given.append(function.args.vararg.arg)
        for name in called(function, makers):
            inner = name.value if isinstance(name, ast.Starred) else name
            if isinstance(inner, ast.Name) and inner.id in given:
                found[function.name] = given.index(inner.id)
    return found


def steps_of(source: str) -> set[str]:
    """Return the names of the steps that a module asks for."""
    tree = ast.parse(source)
    passed_on = passing(tree, {"step": NAME_AT})
    names: set[str] = set()
    for name in called(tree, {"step": NAME_AT, **passed_on}):
        if isinstance(name, ast.Constant):
            names.add(str(name.value))
        elif (text := ast.unparse(name)) in OF_A_TODO:
            names |= OF_A_TODO[text]
        else:
            # A name that the function was given: its callers say it.
            assert text.lstrip("*") in ("name", "self"), f"write the name of {text} out"
    return names


def table() -> dict[str, tuple[set[str], list[tuple[str, str]]]]:
    """Return process → (its steps, the tests that let it die)."""
    _, _, section = PAGE.read_text().partition("## Processes of the book\n")
    section, _, _ = section.partition("\n## ")
    rows = re.findall(r"^\| ([^|`]+) \|([^|]*)\| ([^|]*) \|$", section, re.MULTILINE)
    found = {}
    assert len(rows) == section.count("\n| "), "a row is not read"
    for process, steps, tests in rows[1:]:
        named = re.findall(r"`(tests/\w+/\w+\.py)::(\w+)`", tests)
        found[process] = (set(re.findall(r"`([a-z-]+)`", steps)), named)
    return found


def test_every_step_of_every_process_stands_in_the_table_and_no_other() -> None:
    asked: set[str] = set()
    for path in (*VENDING.glob("application/*.py"), *VENDING.glob("adapters/*.py")):
        asked |= steps_of(path.read_text())
    listed = {step for steps, _ in table().values() for step in steps}
    assert len(asked) > 10
    assert listed == asked, "a new process: a test with at_every_step, and a row of the table"


@pytest.mark.parametrize("process", table())
def test_every_process_has_a_test_in_which_it_dies_at_every_step(process: str) -> None:
    _, tests = table()[process]
    assert tests
    for path, name in tests:
        found = [
            node
            for node in ast.walk(ast.parse((ROOT / path).read_text()))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name
        ]
        assert found, f"{path} has no {name}"
        body = ast.unparse(found[0])
        assert any(killer in body for killer in KILLERS), f"{name} lets nothing die at every step"


def test_every_test_in_which_a_process_dies_at_every_step_stands_in_the_table() -> None:
    listed = {test for _, tests in table().values() for test in tests}
    for path in sorted(ROOT.glob("tests/unit/test_vending_*.py")):
        for test in nodes(ast.parse(path.read_text()), ast.AsyncFunctionDef):
            assert isinstance(test, ast.AsyncFunctionDef)
            if test.name.startswith("test_") and "await at_every_step(" in ast.unparse(test):
                assert (f"tests/unit/{path.name}", test.name) in listed


async def test_a_step_that_is_stuck_is_logged_ever_more_seldom_and_measured() -> None:
    failing = Failing()
    logged = [at_s for at_s in range(200) if failing.failed("payment", "p-1", at_s)]
    assert logged == [0, 10, 20, 40, 80, 160]
    assert failing.failed("payment", "p-2", 150)
    assert failing.stuck(200) == {"payment": (2, 200)}
    failing.succeeded("payment", "p-1")
    assert failing.stuck(200) == {"payment": (1, 50)}
    assert failing.stuck(150 + FORGOTTEN_AFTER_S) == {}


async def test_one_that_fails_keeps_none_behind_it_waiting_and_is_forgotten_when_it_is_done() -> (
    None
):
    failing, broken = Failing(), {"b"}
    seen: list[str] = []

    async def do(id_: str) -> None:
        seen.append(id_)
        if id_ in broken:
            raise Bug("not today")

    assert await each(failing, "closing", ["a", "b", "c"], do) == 2
    assert seen == ["a", "b", "c"]
    ((process, (count, _)),) = failing.stuck(asyncio.get_running_loop().time()).items()
    assert (process, count) == ("closing", 1)
    broken.clear()
    assert await each(failing, "closing", ["b"], do) == 1
    assert failing.stuck(asyncio.get_running_loop().time()) == {}

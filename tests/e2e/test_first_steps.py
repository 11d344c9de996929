"""What docs/operations/first-steps.md tells an operator to type works, in its order.

Method: a stack of its own (free ports, a directory of its own); every command of the page is
executed as it stands there. Then what an operator would do wrong: each mistake gets one error.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tools.stack.ports import Ports, setting

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "operations" / "first-steps.md"
EXIT_REFUSED = 1
WAIT_S = 30


class Operator:
    """Types commands; `make up` and its like act on the test's own directory and ports."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        ports = Ports.free()
        self.environment = {
            **os.environ,
            **{setting(name): str(port) for name, port in ports.items()},
            "WATTVEND_VENDING_ADDR": f"127.0.0.1:{ports.vending_grpc}",
            "WATTVEND_REPORTING_ADDR": f"127.0.0.1:{ports.reporting_grpc}",
            "WATTVEND_CALLER": "test-operator",
        }

    def types(self, command: str) -> subprocess.CompletedProcess[str]:
        words = shlex.split(command, comments=True)
        if words[0] == "make":
            directory = f"--directory {self.directory}"
            words = [*words, f"ARGS={directory}"]
        elif words[0] == "wattvend":
            words = [sys.executable, "-m", "tools.cli", *words[1:]]
            words = [word.replace("build/local", str(self.directory)) for word in words]
        return subprocess.run(
            words,
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=180,
            stdin=subprocess.DEVNULL,
            check=False,
        )

    def wattvend(self, command: str) -> dict[str, Any]:
        done = self.types(f"wattvend --json {command}")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def is_refused(self, command: str) -> dict[str, Any]:
        done = self.types(f"wattvend --json {command}")
        assert done.returncode == EXIT_REFUSED, done.stdout + done.stderr
        return json.loads(done.stderr)

    def wait_until_read(self, *meters: str) -> None:
        def are_read() -> bool:
            fleet = self.wattvend("fleet --site mall-1")["meters"]
            return set(meters) <= {
                m["meter"].removeprefix("meters/") for m in fleet if "register_milli" in m
            }

        self.wait_until(are_read, f"{meters} are read")

    def relay(self, meter: str) -> tuple[str, str]:
        """Return the position that is wanted and the one that was reported."""
        fleet = self.wattvend("fleet --site mall-1")["meters"]
        (found,) = (m for m in fleet if m["meter"] == f"meters/{meter}")
        return found.get("wanted", ""), found.get("reported", "")

    def told_by_control(self, account: str) -> set[str]:
        """Return the results of every step that was taken for the account's newest cut-off."""
        done = self.types(f"wattvend --json explain {account}")
        if done.returncode != 0:
            return set()
        intents = json.loads(done.stdout).get("intents", [])
        return {step["result"] for intent in intents for step in intent.get("attempts", [])}

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < deadline, f"not within {WAIT_S} s: {what}"
            time.sleep(0.2)


@pytest.fixture(scope="module")
def operator() -> Iterator[Operator]:
    directory = ROOT / "build" / f"test-first-steps-{os.getpid()}"
    someone = Operator(directory)
    yield someone
    someone.types("make down")
    subprocess.run(
        [sys.executable, "-m", "tools.stack", "down", "--wipe", "--directory", str(directory)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )


def commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


@pytest.mark.timeout(240)
def test_every_command_of_the_page_works_in_its_order(operator: Operator) -> None:
    typed = commands()
    assert typed[0] == "make up"
    assert typed[-1] == "make down"
    for command in typed[:-1]:
        if command.startswith("wattvend account open"):
            operator.wait_until_read("meter-001")
        done = operator.types(command)
        expected = EXIT_REFUSED if "NO_CUTOFF" in command else 0
        assert done.returncode == expected, f"{command}\n{done.stdout}\n{done.stderr}"


@pytest.mark.timeout(120)
def test_mistakes_get_one_clear_error_each_and_change_nothing(operator: Operator) -> None:
    sale = "00000000-0000-4000-8000-000000000001"
    before = operator.wattvend("account show shop-001")["account"]["credited_nano"]
    first = operator.wattvend(f"sell shop-001 10 --request-id {sale}")
    assert operator.wattvend(f"sell shop-001 10 --request-id {sale}") == first
    refusals = {
        f"sell shop-001 11 --request-id {sale}": "REQUEST_ID_REUSED",
        "sell shop-001 -- -5": "AMOUNT_NOT_POSITIVE",
        "sell shop-001 0": "AMOUNT_NOT_POSITIVE",
        "sell shop-001 99999999999999": "AMOUNT_TOO_LARGE",
        "sell nobody 5": "ACCOUNT_NOT_FOUND",
        "sell shop-001 5 --request-id not-a-uuid": "REQUEST_ID_INVALID",
        "account open shop-001 --site mall-1 --tariff shops --policy shops": "ALREADY_EXISTS",
        "account open shop-x --site nowhere --tariff shops --policy shops": "SITE_NOT_FOUND",
        "account close shop-001": "ACCOUNT_HAS_METERS",
        "meter assign meter-999 shop-001": "METER_NOT_FOUND",
    }
    for command, reason in refusals.items():
        refusal = operator.is_refused(command)
        assert refusal["error"] == reason, f"{command}: {refusal}"
        assert refusal["message"]
    after = operator.wattvend("account show shop-001")["account"]["credited_nano"]
    assert int(after) - int(before) == 10 * 10**9


@pytest.mark.timeout(120)
def test_a_meter_has_one_account_and_an_empty_account_closes(operator: Operator) -> None:
    operator.wait_until_read("meter-002")
    opening = "--site mall-1 --tariff shops --policy shops"
    operator.wattvend(f"account open shop-002 {opening} --meter meter-002")
    operator.wattvend(f"account open shop-003 {opening}")
    refusal = operator.is_refused("meter assign meter-002 shop-003")
    assert refusal["error"] == "METER_ALREADY_ASSIGNED"
    assert operator.wattvend("account close shop-003")["status"] == "closed"
    assert operator.is_refused("sell shop-003 5")["error"] == "ACCOUNT_NOT_OPEN"


@pytest.mark.timeout(150)
def test_a_held_site_cuts_nobody_until_it_is_released(operator: Operator) -> None:
    operator.wait_until_read("meter-003")
    operator.wattvend("site hold-cuts mall-1 --reason 'a price looks wrong'")
    operator.wattvend(
        "account open shop-004 --site mall-1 --tariff shops --policy shops --sale 0.50 "
        "--meter meter-003"
    )
    operator.wait_until(lambda: "held" in operator.told_by_control("shop-004"), "the cut is held")
    operator.wait_until(lambda: operator.relay("meter-003") == ("open", "closed"), "it waits")
    assert "sent" not in operator.told_by_control("shop-004")
    operator.wattvend("site release-cuts mall-1 --reason 'the price is right'")
    operator.wait_until(lambda: operator.relay("meter-003") == ("open", "open"), "it is cut")
    operator.wattvend("sell shop-004 5000")
    operator.wait_until(
        lambda: operator.relay("meter-003") == ("closed", "closed"), "power is back"
    )


@pytest.mark.timeout(150)
def test_what_stood_before_make_down_stands_after_the_next_make_up(operator: Operator) -> None:
    def book() -> dict[str, Any]:
        # Its version may rise: what it used is posted once a day.
        account = operator.wattvend("account show shop-001")["account"]
        return {name: account[name] for name in account.keys() - {"version"}}

    def decisions() -> list[str]:
        alarms = operator.wattvend("alarms --account shop-004")["alarms"]
        return [alarm["kind"] for alarm in reversed(alarms)]

    cut_and_restored = ["alarm-2", "cut", "restored"]
    operator.wait_until(lambda: decisions() == cut_and_restored, "the restored account is told")
    before = book()
    assert operator.types("make down").returncode == 0
    done = operator.types("make up")
    assert done.returncode == 0, done.stdout + done.stderr
    assert operator.types("make status").returncode == 0
    assert book() == before
    assert decisions() == cut_and_restored
    sold = operator.wattvend("sell shop-001 1")
    assert sold["sale"]["account"] == "accounts/shop-001"
    operator.wait_until_read("meter-001", "meter-003")


@pytest.mark.timeout(60)
def test_without_a_stack_the_command_line_says_what_to_do() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tools.cli", "--vending", "127.0.0.1:9", "account", "show", "a"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == EXIT_REFUSED
    assert "make status" in done.stderr

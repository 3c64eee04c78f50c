"""The table that a person reads, and the quantities in it."""

from __future__ import annotations

from decimal import Decimal

import pytest

from steps.preflight.finding import error, errors, note, ok, table, warning
from steps.preflight.quantity import amount, asked_by, lacking, show
from steps.preflight.question import Answer, Question, unread

FOUND = [ok("api", "Kubernetes v1.32"), warning("quota", "no room now", "wait"), error("claim", "none", "make it")]


def test_errors_come_first_each_with_its_fix_below_and_the_counts_last() -> None:
    assert table(FOUND).splitlines() == [
        "error    claim  none",
        "                → make it",
        "warning  quota  no room now",
        "                → wait",
        "ok       api    Kubernetes v1.32",
        "1 error, 1 warning, 1 ok",
    ]


def test_long_findings_are_wrapped_below_themselves_and_commands_stay_whole() -> None:
    command = f"kubectl-{'x' * 130}"
    lines = table([error("nodes", "word " * 60, f"run {command}")]).splitlines()
    assert all(line.startswith(" " * 16) for line in lines[1:-1])
    assert max(len(line) for line in lines if command not in line) <= 120
    assert command in " ".join(lines)


def test_notes_come_after_warnings_and_are_counted_only_where_there_are_some() -> None:
    lines = table([*FOUND, note("names", "not known", "look")]).splitlines()
    assert lines[4:6] == ["note     names  not known", "                → look"]
    assert lines[-1] == "1 error, 1 warning, 1 note, 1 ok"


def test_only_errors_forbid_to_start() -> None:
    assert [item.check for item in errors(FOUND)] == ["claim"]


def test_no_finding_at_all_is_still_a_table() -> None:
    assert table([]) == "0 errors, 0 warnings, 0 ok"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *(("16", "16"), ("127610m", "127.61"), ("460Gi", str(460 * 2**30)), ("1.5G", "1500000000"), ("2k", "2000")),
        *(("1e3", "1000"), ("12E", "12000000000000000000"), ("1Ei", str(2**60)), (4, "4"), ("100n", "0.0000001")),
    ],
)
def test_quantities_are_read_as_kubernetes_writes_them(text: object, number: str) -> None:
    assert amount(text) == Decimal(number)


@pytest.mark.parametrize("text", ["", "much", "12 Gi", "1ki", "--1"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no quantity"):
        amount(text)


def test_a_pod_asks_for_its_containers_together_or_for_its_largest_init_container() -> None:
    def container(**requests: str) -> dict[str, object]:
        return {"resources": {"requests": requests}}

    spec = {
        "containers": [container(cpu="1", memory="1Gi"), container(cpu="500m")],
        "initContainers": [container(cpu="4"), container(memory="1Mi")],
    }
    assert asked_by(spec) == {"cpu": Decimal(4), "memory": Decimal(2**30)}


def test_a_limit_without_a_request_is_a_request() -> None:
    assert asked_by({"containers": [{"resources": {"limits": {"a/b": "2"}}}, {}]}) == {"a/b": Decimal(2)}


def test_what_is_lacking_is_told_with_what_is_there() -> None:
    wanted, there = (
        {"cpu": Decimal(4), "memory": Decimal(2**31), "x/y": Decimal(1)},
        {"cpu": Decimal(8), "memory": Decimal(2**30)},
    )
    assert lacking(wanted, there) == ["memory 2Gi of 1Gi", "x/y 1 of 0"]
    assert show("requests.memory", Decimal(2**30)) == "requests.memory 1Gi"


def test_an_unread_thing_names_verb_resource_and_rule() -> None:
    found = unread("claim", Question("/x", "get", "things", "g.io"), Answer(403, {"message": "no"}), "it")
    assert found.message == "this account may not get things: it is not checked"
    assert '{apiGroups: ["g.io"], resources: [things], verbs: [get]}' in found.fix


def test_a_servers_words_are_one_line_and_cut() -> None:
    assert Answer(500, {"message": "a\n  b" * 1000}).message.startswith("a b")
    assert len(Answer(500, {"message": "x" * 5000}).message) == 600
    assert Answer(502).message == "status 502"

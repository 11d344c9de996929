"""Filters: what is written means what AIP-160 says, and what cannot be read is told where.

Random trees are written as text and read back; by hand stands what the grammar decides.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.kernel import filters, names
from services.common.kernel.errors import InvalidInput
from services.common.kernel.filters import All, AnyOf, Filter, Match, Not

FIELDS = {
    "status": filters.choice("open", "closed"),
    "account": filters.name(names.ACCOUNT),
    "legal_entity": filters.name(names.LEGAL_ENTITY),
    "available_minor": filters.whole(),
    "online": filters.flag(),
    "profile": filters.text(),
}
OPEN, CLOSED = Match("status", "=", "open"), Match("status", "=", "closed")
ONLINE, LOW = Match("online", "=", True), Match("available_minor", "<", -5)

TEXTS = st.text(st.characters(exclude_categories=["C"]), max_size=20)
MATCHES = st.one_of(
    st.builds(Match, st.just("status"), st.sampled_from(["=", "!="]), st.just("open")),
    st.builds(Match, st.just("profile"), st.sampled_from(["=", "!="]), TEXTS),
    st.builds(Match, st.just("online"), st.just("="), st.booleans()),
    st.builds(
        Match,
        st.just("available_minor"),
        st.sampled_from(sorted(filters.OPERATORS)),
        st.integers(-(2**63), 2**63 - 1),
    ),
)


def _groups(parts: st.SearchStrategy[Filter]) -> st.SearchStrategy[Filter]:
    several = st.lists(parts, min_size=2, max_size=3).map(tuple)
    return st.one_of(st.builds(All, several), st.builds(AnyOf, several), st.builds(Not, parts))


TREES: st.SearchStrategy[Filter] = st.recursive(MATCHES, _groups, max_leaves=8)


def written(of: Filter) -> str:
    match of:
        case Match(field, sign, value):
            if isinstance(value, str):
                escaped = value.replace("\\", "\\\\").replace('"', '\\"')
                return f'{field}{sign}"{escaped}"'
            return f"{field} {sign} {str(value).lower()}"
        case All(parts):
            return f"({' AND '.join(map(written, parts))})"
        case AnyOf(parts):
            return f"({' OR '.join(map(written, parts))})"
        case Not(part):
            return f"(NOT {written(part)})"


@given(TREES)
def test_what_is_written_is_read_back(tree: Filter) -> None:
    assert filters.parse(written(tree), FIELDS) == tree


@given(st.text(max_size=60) | st.text("()=<>!\"'\\ -ANDORNOTstatus", max_size=60))
def test_whatever_is_written_is_read_or_refused_as_a_filter(said: str) -> None:
    try:
        filters.parse(said, FIELDS)
    except InvalidInput as refused:
        assert refused.field == "filter"  # noqa: PT017 - it may be read as well


@pytest.mark.parametrize(
    ("said", "means"),
    [
        ("", All(())),
        ("  \n", All(())),
        ("status = open", OPEN),
        ("status=open", OPEN),
        ("((status = 'open'))", OPEN),
        # OR binds closer than AND; what stands side by side is an AND.
        (
            "online = true AND status = open OR status = closed",
            All((ONLINE, AnyOf((OPEN, CLOSED)))),
        ),
        ("online = true status = open", All((ONLINE, OPEN))),
        ("NOT status = open online = true", All((Not(OPEN), ONLINE))),
        ("-status = open", Not(OPEN)),
        ("NOT (status = open OR available_minor < -5)", Not(AnyOf((OPEN, LOW)))),
        ("account = accounts/A1", Match("account", "=", "A1")),
        ('legal_entity = "legalEntities/万达 A%2FS"', Match("legal_entity", "=", "万达 A/S")),
        (r'profile = "a \"b\" \\"', Match("profile", "=", 'a "b" \\')),
        ("profile = OR", Match("profile", "=", "OR")),
    ],
)
def test_the_grammar_is_that_of_aip_160(said: str, means: Filter) -> None:
    assert filters.parse(said, FIELDS) == means


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("state = open", "no field 'state'; known are account, available_minor, legal_entity"),
        ("status", "at its end (character 7) there should be one of = != after status"),
        ("status < open", "at '<' (character 8) there should be one of = !="),
        ("status = ", "what status is compared with, one of open, closed"),
        ("status = shut", "status is one of open, closed, not 'shut'"),
        ("available_minor > 1.5", "a whole number, not '1.5'"),
        ("available_minor > 9223372036854775808", "a whole number"),
        ("online = yes", "true or false"),
        ("account = A1", "a name, accounts/{account}, not 'A1'"),
        ("status = open AND", "at its end (character 18) there should be a field"),
        ("status = open OR AND status = open", "at 'AND' (character 18)"),
        ("(status = open", 'there should be ")"'),
        ("status = open)", "there should be AND, OR or the end"),
        ('profile = "a', "quotes have to be closed"),
        ("status ! open", "!= is written in one"),
        ('profile = "a\0"', "cannot be printed"),
        ('NOT profile = "\x1b[2K"', "cannot be printed"),
        ("(" * 17 + "status = open" + ")" * 17, "more than 16 parentheses"),
        (" " * 4001, "at most 4000"),
    ],
)
def test_what_cannot_be_read_is_told_where(said: str, told: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        filters.parse(said, FIELDS)
    assert told in refused.value.message


def test_a_filter_holds_or_does_not() -> None:
    values: dict[str, filters.Value] = {"status": "open", "online": True, "available_minor": -6}
    for said, is_so in {
        "": True,
        "status = open available_minor < -5": True,
        "status = closed OR online = true": True,
        "NOT status = open": False,
        "available_minor >= -5 OR online != true": False,
    }.items():
        assert filters.holds(filters.parse(said, FIELDS), values) is is_so, said
    found = filters.matches_in(filters.parse("NOT (status = open OR online = true)", FIELDS))
    assert [match.field for match in found] == ["status", "online"]

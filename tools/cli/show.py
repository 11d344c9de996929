"""What a person reads: answers of the services as tables and trees."""

import json
from datetime import datetime
from typing import Any
from urllib.parse import unquote

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from services.common.kernel.units import CURRENCIES, Currency, format_nano, format_scaled
from services.common.policies.rules import read as read_rules
from services.common.tariffs import plan
from tools.cli import plans, policies
from wattvend.reporting.v1 import reporting_pb2 as r
from wattvend.vending.v1 import accounts_pb2 as a
from wattvend.vending.v1 import vending_pb2 as v

COUNTED = {"keep-power": "days", "batch": "targets", "export": "meters"}
"""Actions whose size is no money → in what it is told."""
UNITS = {"electricity": "kWh", "water": "m³", "gas": "m³"}
LEVELS = {"normal": "green", "alarm-1": "yellow", "alarm-2": "dark_orange", "cut": "red"}
KINDS = {
    "cut": "red",
    "restored": "green",
    "frozen": "magenta",
    "thawed": "green",
    "alarm-1": "yellow",
}


def currency_of(code: str, minor_decimals: int = 2) -> Currency:
    """Return a currency of the catalogue; an unknown one has the decimals of most."""
    return CURRENCIES.get(code) or Currency(code, minor_decimals, 9)


def money(nano: int, code: str, *, exact: bool = False) -> str:
    """Return an amount; two decimals unless `exact`."""
    currency = currency_of(code)
    return format_nano(nano, currency, decimals=None if exact else currency.minor_decimals)


def price(price_micro: int, code: str, commodity: str = "") -> str:
    """Return a price, exact, e.g. `0.85 CNY a kWh`."""
    currency = currency_of(code)
    amount = format_scaled(price_micro, currency.price_decimals)
    whole, _, decimals = amount.partition(".")
    kept = decimals.rstrip("0").ljust(currency.minor_decimals, "0")
    unit = UNITS.get(commodity, "unit")
    return f"{f'{whole}.{kept}' if kept else whole} {code} a {unit}"


def moment(ms: int) -> str:
    """Return a moment in this terminal's zone; "-" for none."""
    if not ms:
        return "-"
    return datetime.fromtimestamp(ms // 1000).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def id_of(name: str) -> str:
    """Return the id in a resource name, as people type it; "" where there is none."""
    return unquote(name.rpartition("/")[2])


def level(name: str) -> str:
    """Return a level in its colour."""
    return f"[{LEVELS.get(name, 'white')}]{name}[/]" if name else "-"


def fields(title: str, rows: list[tuple[str, str]]) -> Table:
    """Show what a thing is, a line each."""
    table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim")
    table.add_column()
    for name, value in rows:
        table.add_row(name, value)
    return table


def page(table: Table, answer: Any, nothing: str = "nothing") -> RenderableType:
    """Return what a list says on one page, and how to see the next one."""
    if answer.next_page_token:
        table.caption = f"more: --page {answer.next_page_token}"
    return table if table.row_count else f"[green]{nothing}[/]"


def account(answer: v.Account, balance: r.Balance | None = None) -> RenderableType:
    """Show an account as the book has it, and its balance as metering has it."""
    rows = [
        ("status", answer.status),
        ("site", id_of(answer.site)),
        ("person", answer.subject_id or "-"),
        ("tariff, policy", f"{id_of(answer.tariff)}, {id_of(answer.policy)}"),
        ("credited in all", money(answer.credited_nano, answer.currency)),
    ]
    decimals = answer.minor_decimals
    if answer.emergency_minor:
        rows.append(("emergency credit owed", format_scaled(answer.emergency_minor, decimals)))
    if answer.debt_minor:
        owed = format_scaled(answer.debt_minor, decimals)
        share = format_scaled(answer.debt_share_ppm, 4)
        rows.append(("debt owed", f"{owed}, {share} % of each sale goes to it"))
    if answer.HasField("keep_power_until_ms"):
        rows.append(("keeps power until", moment(answer.keep_power_until_ms)))
    if answer.HasField("promise_until_ms"):
        rows.append(("promised until", moment(answer.promise_until_ms)))
    if answer.notice_id:
        rows.append(("last notice", f"{answer.notice_outcome}, {answer.notice_id}"))
    if balance is not None:
        rows += [
            ("used in all", money(balance.charged_nano, answer.currency, exact=True)),
            ("available", money(balance.available_nano, answer.currency, exact=True)),
            ("level", level(balance.level) + (" [magenta]frozen[/]" if balance.frozen else "")),
            ("as of", f"sequence {balance.account_sequence}, {moment(balance.as_of_ms)}"),
        ]
    for m in answer.meters:
        opened = format_scaled(m.opening_register_milli, 3, 2)
        rows.append((f"meter {id_of(m.meter)}", f"since register {opened} (epoch {m.epoch})"))
    return fields(f"[bold]account {escape(id_of(answer.name))}[/]", rows)


def policy(answer: v.Policy) -> RenderableType:
    """Show a version of a policy as it was published."""
    currency = currency_of(answer.currency)
    amounts = [
        ("first warning at", answer.alarm_1_minor),
        ("second warning at", answer.alarm_2_minor),
        ("cut at", -answer.overdraft_minor),
        ("power again from", answer.restore_minor),
    ]
    rows = [
        ("version", str(answer.policy_version)),
        ("legal entity", escape(id_of(answer.legal_entity)) or "none: any may use it"),
    ]
    for name, minor in amounts:
        text = f"{format_scaled(minor, currency.minor_decimals)} {currency.code}"
        rows.append((name, text))
    if answer.ceiling_minor:
        ceiling = format_scaled(answer.ceiling_minor, currency.minor_decimals)
        rows.append(("at hand at most", f"{ceiling} {currency.code}"))
    if answer.fee_ppm or answer.fee_minor:
        rows.append(("service fee", policies.fee(answer.fee_ppm, answer.fee_minor, currency)))
    rows.append(("a closing is rounded", answer.rounding))
    if answer.HasField("rules"):
        rows += policies.said(read_rules(answer.rules), currency)
    return fields(f"[bold]policy {escape(id_of(answer.name))}[/]", rows)


def tariff(answer: v.Tariff) -> RenderableType:
    """Show a version of a tariff as it was published."""
    decimals = currency_of(answer.currency).price_decimals
    flat = price(answer.price_micro, answer.currency, answer.commodity)
    rows = [
        ("version", str(answer.tariff_version)),
        ("sells", f"{answer.commodity}, {escape(id_of(answer.legal_entity))}"),
        ("in force from", moment(answer.effective_at_ms) if answer.effective_at_ms else "at once"),
        ("charges", "a plan" if answer.HasField("plan") else flat),
    ]
    told = fields(f"[bold]tariff {escape(id_of(answer.name))}[/]", rows)
    if not answer.HasField("plan"):
        return told
    return Group(told, plans.show(plan.read(answer.plan), decimals))


def receipt(answer: v.SellResponse, *, is_copy: bool = False) -> RenderableType:
    """Show a receipt; a copy of later does not say what was credited in all."""
    paid = answer.sale
    currency = currency_of(paid.currency)

    def told(amount_minor: int) -> str:
        return f"{format_scaled(amount_minor, currency.minor_decimals)} {paid.currency}"

    rows = [
        ("receipt", id_of(paid.receipt)),
        ("account", id_of(paid.account)),
        ("amount", f"[bold]{told(paid.amount_minor)}[/] ({paid.method})"),
    ]
    if paid.energy_milli:
        energy = format_scaled(paid.energy_milli, 3, 2)
        rows.append(("for", f"{energy} units at {price(paid.price_micro, paid.currency)}"))
    if paid.fee_minor:
        rows.append(("of it service fee", told(paid.fee_minor)))
    for what, recovered_minor, left_minor in (
        ("emergency credit", paid.recovered_emergency_minor, paid.emergency_left_minor),
        ("debt", paid.recovered_debt_minor, paid.debt_left_minor),
    ):
        if recovered_minor or left_minor:
            rows.append((f"of it to {what}", f"{told(recovered_minor)} (left: {told(left_minor)})"))
    rows += [
        ("credited", told(paid.credit_minor)),
        ("sold by", escape(id_of(paid.legal_entity))),
        ("at", moment(paid.sold_at_ms)),
    ]
    if not is_copy:
        rows.append(("credited in all", money(answer.credited_nano, paid.currency)))
    return fields("[bold]receipt[/]", rows)


def refund(answer: v.RefundCreditResponse) -> RenderableType:
    """Show what was paid out."""
    paid = answer.refund
    currency = currency_of(paid.currency)
    amount = format_scaled(paid.amount_minor, currency.minor_decimals)
    rows = [
        ("refund", id_of(paid.receipt)),
        ("account", id_of(paid.account)),
        ("to be paid out", f"[bold]{amount} {paid.currency}[/] ({paid.method})"),
        ("reason", escape(paid.reason)),
        ("used in all", money(paid.charged_nano, paid.currency, exact=True)),
        ("at", moment(paid.refunded_at_ms)),
    ]
    return fields("[bold]refund 退电[/]", rows)


def transfer(answer: a.TransferCreditResponse) -> RenderableType:
    """Show what has gone over."""
    decimals = currency_of(answer.currency).minor_decimals
    amount = format_scaled(answer.amount_minor, decimals)
    rows = [
        ("from", id_of(answer.account)),
        ("to", id_of(answer.to_account)),
        ("amount", f"[bold]{amount} {answer.currency}[/]"),
    ]
    return fields("[bold]transfer 转账[/]", rows)


def numbered(answer: v.Receipt) -> RenderableType:
    """Show a receipt, or a reversal, with its number."""
    if answer.HasField("sale"):
        paper = receipt(v.SellResponse(sale=answer.sale), is_copy=True)
        other = f", reversed by {answer.other_number}" if answer.other_number else ""
    elif answer.HasField("refund"):
        paper, other = refund(v.RefundCreditResponse(refund=answer.refund)), ""
    else:
        paper = reversal(v.ReverseSaleResponse(reversal=answer.reversal), is_copy=True)
        other = f", of {answer.other_number}"
    return Group(f"[bold]number {answer.number}[/]{other}", paper)


def quoted(answer: v.QuoteSaleResponse) -> RenderableType:
    """Show what energy costs."""
    currency = currency_of(answer.currency)
    amount = format_scaled(answer.amount_minor, currency.minor_decimals)
    rows = [
        ("energy", f"{format_scaled(answer.energy_milli, 3, 2)} units"),
        ("price", f"{price(answer.price_micro, answer.currency)}, taxes included"),
        ("costs", f"[bold]{amount} {answer.currency}[/]"),
    ]
    if answer.fee_minor:
        fee = format_scaled(answer.fee_minor, currency.minor_decimals)
        rows.append(("of it service fee", f"{fee} {answer.currency}"))
    return fields("[bold]quote[/]", rows)


def reversal(answer: v.ReverseSaleResponse, *, is_copy: bool = False) -> RenderableType:
    """Show what was taken back; a copy of later does not say what is credited in all."""
    back = answer.reversal
    currency = currency_of(back.currency)

    def told(amount_minor: int) -> str:
        return f"{format_scaled(amount_minor, currency.minor_decimals)} {back.currency}"

    rows = [
        ("reversal", id_of(back.receipt)),
        ("of receipt", id_of(back.reversed_receipt)),
        ("account", id_of(back.account)),
        ("to be paid back", f"[bold]{told(back.amount_minor)}[/] ({back.method})"),
        ("reason", escape(back.reason)),
        ("credit taken back", told(back.credit_minor)),
    ]
    if back.fee_minor:
        rows.append(("service fee that goes back", told(back.fee_minor)))
    for what, returned_minor, left_minor in (
        ("emergency credit", back.returned_emergency_minor, back.emergency_left_minor),
        ("debt", back.returned_debt_minor, back.debt_left_minor),
    ):
        if returned_minor:
            rows.append((f"{what} owed again", f"{told(returned_minor)} (now: {told(left_minor)})"))
    if back.given_up_debt_minor:
        rows.append(("ended debt, written off", told(back.given_up_debt_minor)))
    rows.append(("at", moment(back.reversed_at_ms)))
    if not is_copy:
        rows.append(("credited in all", money(answer.credited_nano, back.currency)))
    return fields("[bold]reversal 冲正[/]", rows)


def meter(answer: v.Meter) -> RenderableType:
    """Show a meter as the book has it."""
    opening = answer.opening_register_milli
    has_opening = answer.HasField("opening_register_milli")
    return fields(
        f"[bold]meter {escape(id_of(answer.name))}[/]",
        [
            ("serial", escape(answer.serial)),
            ("account", id_of(answer.account) or "the house's"),
            ("since register", format_scaled(opening, 3, 2) if has_opening else "first reading"),
            ("epoch", str(answer.epoch)),
            ("ratio", str(answer.ratio)),
            ("power at most", f"{answer.max_power_w} W" if answer.max_power_w else "-"),
            ("relay", f"forced {answer.forced}" if answer.forced else "as the balance says"),
        ],
    )


def site(answer: v.Site) -> RenderableType:
    """Show a site and its brakes."""
    held = "[red]held[/]" if answer.cuts_held else "[green]sent[/]"
    return fields(
        f"[bold]site {escape(id_of(answer.name))}[/]",
        [
            ("cuts", f"{held}, at most {answer.cuts_per_minute} a minute"),
            ("lies within", escape(id_of(answer.parent)) or "no other"),
        ],
    )


def authority(answer: v.Authority) -> RenderableType:
    """Show what one person may do alone."""
    decimals = currency_of(answer.currency).minor_decimals
    rows = [("version", str(answer.authority_version))]
    for action, above in json.loads(answer.rules).items():
        if above is None:
            alone = "[yellow]one person is enough[/]"
        elif not above:
            alone = "always a second person"
        elif action in COUNTED:
            alone = f"a second person above {above} {COUNTED[action]}"
        else:
            alone = f"a second person above {format_scaled(above, decimals)} {answer.currency}"
        rows.append((action, alone))
    rows.append(("a proposal waits", f"{answer.proposals_last_ms // 3_600_000} h"))
    return fields(f"[bold]{escape(id_of(answer.name.removesuffix('/authority')))}[/]", rows)


def approval(answer: v.Approval) -> RenderableType:
    """Show what was proposed, and what became of it."""
    rows = [
        ("status", f"[bold]{answer.status}[/]"),
        ("would happen to", escape(answer.target)),
        ("command", f"{answer.command} {escape(answer.content)}"),
        ("proposed", f"{moment(answer.proposed_at_ms)} by {escape(answer.proposed_by)}"),
        ("waits until", moment(answer.expires_at_ms)),
    ]
    if answer.decided_by:
        rows.append(("decided by", f"{escape(answer.decided_by)}: {escape(answer.reason)}"))
    if answer.failure_reason:
        failure = f"{answer.failure_reason} {escape(answer.failure_message)}"
        rows.append(("refused then", f"[red]{failure}[/]"))
    return fields(f"[bold]{answer.action} {id_of(answer.name)}[/]", rows)


def approvals(answer: v.ListApprovalsResponse) -> RenderableType:
    """Show what waits for a second person, the oldest first."""
    table = Table(header_style="bold")
    for name in ("since", "action", "to", "by", "until", "id"):
        table.add_column(name)
    for each in answer.approvals:
        table.add_row(
            moment(each.proposed_at_ms),
            each.action,
            escape(each.target),
            escape(each.proposed_by),
            moment(each.expires_at_ms),
            id_of(each.name),
        )
    return page(table, answer, "nothing waits for a second person")


def alarms(answer: r.ListAlarmsResponse) -> RenderableType:
    """Show decisions, newest first."""
    table = Table(header_style="bold")
    for name in ("when", "account", "decision", "reason", "available", "threshold", "id"):
        table.add_column(name)
    for alarm in answer.alarms:
        threshold = alarm.threshold_nano if alarm.HasField("threshold_nano") else None
        table.add_row(
            moment(alarm.decided_at_ms),
            id_of(alarm.account),
            f"[{KINDS.get(alarm.kind, 'white')}]{alarm.kind}[/]",
            alarm.reason,
            money(alarm.available_nano, alarm.currency),
            "-" if threshold is None else money(threshold, alarm.currency),
            f"[dim]{id_of(alarm.name)}[/]",
        )
    return page(table, answer, "no alarms")


def exceptions(answer: r.ListExceptionsResponse) -> RenderableType:
    """Show what a person has to look at, newest first."""
    table = Table(header_style="bold")
    for name in ("since", "account", "meter", "what", "evidence", "ended"):
        table.add_column(name)
    for each in answer.exceptions:
        ended = f"{moment(each.ended_at_ms)} {each.ended_by}"
        table.add_row(
            moment(each.since_ms),
            id_of(each.account),
            id_of(each.meter) or "-",
            f"[yellow]{each.kind}[/]: {each.reason}",
            _evidence(each),
            ended if each.HasField("ended_at_ms") else "[red]no[/]",
        )
    return page(table, answer, "nothing to look at")


def _evidence(each: r.ExceptionState) -> str:
    """Return the figures of an exception in words, as many as it has."""
    if not each.HasField("register_milli"):
        if each.HasField("silent_since_ms"):
            return f"silent since {moment(each.silent_since_ms)}"
        if each.HasField("threshold_nano"):
            return f"available {money(each.available_nano, each.currency)}"
        return "-"
    parts = [f"{format_scaled(each.register_milli, 3, 2)} at {moment(each.device_time_ms)}"]
    if each.HasField("last_register_milli"):
        parts.append(f"stood at {format_scaled(each.last_register_milli, 3, 2)}")
    if each.HasField("last_time_ms"):
        parts.append(f"since {moment(each.last_time_ms)}")
    if each.HasField("bound_milli"):
        parts.append(f"at most {format_scaled(each.bound_milli, 3, 2)} more")
    if each.kind != "meter-flagged":  # by its id a person judges it; a flag is not judged
        parts[-1] += f" [dim]{each.reading_id}[/]"
    return ", ".join(parts)


def meters(answer: r.ListMetersResponse) -> RenderableType:
    """Show the fleet."""
    table = Table(header_style="bold")
    for name in ("meter", "account", "status", "register", "level", "relay wanted", "reported"):
        table.add_column(name, justify="right" if name == "register" else "left")
    for m in answer.meters:
        colour = {"online": "green", "offline": "red"}.get(m.status, "yellow")
        same = not m.wanted or m.wanted == m.reported
        table.add_row(
            id_of(m.meter),
            id_of(m.account) or "[dim]house[/]",
            f"[{colour}]{m.status}[/]",
            format_scaled(m.register_milli, 3, 2) if m.HasField("register_milli") else "-",
            level(m.level),
            m.wanted or "-",
            (m.reported or "-") if same else f"[red]{m.reported or '-'}[/]",
        )
    online = sum(1 for m in answer.meters if m.status == "online")
    differ = sum(1 for m in answer.meters if m.wanted and m.wanted != m.reported)
    return Group(table, f"{len(answer.meters)} meters, {online} online, {differ} relays differ")


def lost(answer: r.ListLostMetersResponse) -> RenderableType:
    """Show what is offline, quarantined or unknown."""
    table = Table(header_style="bold")
    for name in ("device", "status", "reason", "since", "last seen", "set aside"):
        table.add_column(name)
    for device in answer.devices:
        table.add_row(
            escape(device.name),
            f"[red]{device.status}[/]",
            device.reason,
            moment(device.since_ms),
            moment(device.last_seen_ms),
            str(device.quarantined_readings),
        )
    return table if answer.devices else "[green]nothing is lost[/]"

"""Explanations for a person: what a charge, a balance or a cut-off followed from; previews."""

from collections.abc import Iterable

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from services.common.kernel.units import format_scaled
from services.common.tariffs import plan
from tools.cli import plans
from tools.cli.show import UNITS, currency_of, id_of, moment, money, price
from wattvend.reporting.v1 import reporting_pb2 as r

FIRST_MONTH = 12_000
"""Periods are years, or months as 12 x year + month - 1."""
NOTES = {1: "split by time", 2: "by the meter's registers of rates", 4: "its period was closed"}
"""What the bits of a line's basis say."""
FEE = "fee"


def charge(answer: r.ChargeExplanation) -> RenderableType:
    """Show what a charge was computed from."""
    told = answer.charge
    is_fee = told.kind == FEE
    what = f"charge {escape(id_of(told.meter))} #{told.sequence} of epoch {told.epoch}"
    if is_fee:
        what = f"fees #{told.sequence} of {escape(id_of(told.account))}"
    tree = Tree(
        f"[bold]{what}[/] [dim]({told.kind}, account {escape(id_of(told.account))}, "
        f"shard {told.shard} at {told.log_offset})[/]"
    )
    if is_fee:
        first_ms, last_ms = told.from_reading.device_time_ms, told.to_reading.device_time_ms
        tree.add(f"due from {moment(first_ms)} to {moment(last_ms)}")
    else:
        _add_readings(tree, told)
    if answer.HasField("until_reading"):
        text = _reading(answer.until_reading, told)
        tree.add(f"corrects #{answer.corrects_sequence}: up to {text} it is split again")
    _add_charge(tree, told)
    _add_tariffs(tree, answer.tariffs, told.currency)
    if answer.HasField("policy"):
        _add_policy(tree, answer.policy, told.currency)
    return tree


def balance(answer: r.BalanceExplanation) -> RenderableType:
    """Show what a balance consists of."""
    code = answer.currency
    lines: list[RenderableType] = [
        f"[bold]balance of {escape(id_of(answer.account))}[/] [dim](as of {_as_of(answer)})[/]",
        f"credited {money(answer.credited_nano, code)}",
        _credits(answer.credits, code),
        f"charged {money(answer.charged_nano, code, exact=True)}",
        _charged(answer.charged, code),
    ]
    if answer.charged_before_nano:
        before = money(answer.charged_before_nano, code, exact=True)
        lines.append(f"of it {before} by charges that are kept no longer")
    if answer.HasField("held_nano"):
        lines.append(f"held {money(answer.held_nano, code, exact=True)}")
        available = money(answer.available_nano, code, exact=True)
        lines.append(f"available [bold]{available}[/], level {answer.level}")
    return Group(*lines)


def cutoff(answer: r.CutoffExplanation) -> RenderableType:
    """Show the chain of a cut-off, from the readings to the read-back."""
    code, decision = answer.currency, answer.decision
    tree = Tree(
        f"[bold]why {escape(id_of(decision.account))} was {_decided(decision)}[/] "
        f"[dim]({moment(decision.decided_at_ms)}, decision {id_of(decision.name)})[/]"
    )
    if answer.HasField("charge"):
        _add_readings(tree, answer.charge)
        _add_charge(tree, answer.charge)
    tariff = [answer.tariff] if answer.HasField("tariff") else []
    _add_tariffs(tree, answer.tariffs or tariff, code)
    tree.add(
        f"threshold {money(answer.threshold_nano, code)}: available was "
        f"[bold]{money(answer.available_nano, code, exact=True)}[/]"
    )
    if answer.HasField("policy"):
        _add_policy(tree, answer.policy, code)
    _add_orders(tree, answer)
    for intent in answer.intents:
        lease = f", to be sent before {moment(intent.send_before_ms)}"
        branch = tree.add(
            f"intent for {id_of(intent.meter)}: {intent.wanted} ({intent.mode}, {intent.cause}), "
            f"version ({intent.epoch}, {intent.version_offset})"
            f"{lease if intent.HasField('send_before_ms') else ''}"
        )
        for attempt in intent.attempts:
            text = f"attempt {attempt.attempt}: {attempt.result} {escape(attempt.detail)}".rstrip()
            if attempt.read_back_position:
                text += f" — read back [bold]{attempt.read_back_position}[/]"
            branch.add(text)
    return tree


def _decided(decision: r.Alarm) -> str:
    return f"not cut off: {decision.reason}" if decision.kind == "not-cut" else "cut off"


def _add_orders(tree: Tree, answer: r.CutoffExplanation) -> None:
    """Add what kept the cut off, or let it be: orders, the notice, refusals before it."""
    for order in answer.orders:
        until = f" until {moment(order.until_ms)}" if order.HasField("until_ms") else ""
        what = f"{order.type} {id_of(order.meter)} {order.position}{until} {order.outcome}".split()
        tree.add(f"order: {' '.join(what)} [dim](revision {order.revision}, {order.event_id})[/]")
    if answer.HasField("notice"):
        notice, outcome = answer.notice, answer.decision.notice_outcome or "not known yet"
        tree.add(
            f"notice at {moment(notice.decided_at_ms)}, no cut before "
            f"{moment(notice.cut_not_before_ms)}, outcome: {outcome} [dim]{notice.notice_id}[/]"
        )
    if answer.decision.HasField("arrears_since_ms"):
        tree.add(f"in arrears since {moment(answer.decision.arrears_since_ms)}")
    if answer.decision.HasField("reading_began_at_ms"):
        was_pushed = answer.decision.reading_began_at_ms >= answer.decision.reading_received_at_ms
        by = "pushed by its device" if was_pushed else "read by us"
        tree.add(f"the reading was {by}; received {moment(answer.decision.reading_received_at_ms)}")
    if answer.HasField("silent_since_ms"):
        since = moment(answer.silent_since_ms)
        tree.add(f"its meter was silent since {since} [dim]{id_of(answer.silent_alarm)}[/]")
    for refusal in answer.refusals:
        tree.add(f"not cut at {moment(refusal.decided_at_ms)}: {refusal.reason}")


def preview(answer: r.TariffPreview) -> RenderableType:
    """Show what a draft would have charged, account by account and in all."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("account")
    unit, code = UNITS.get(answer.commodity, "units"), answer.currency
    for name in (unit, f"charged, {code}", f"draft, {code}", "difference", "%"):
        table.add_column(name, justify="right")
    for account in answer.accounts:
        table.add_row(id_of(account.account), *_previewed(account, code))
    table.add_section()
    table.add_row("[bold]in all[/]", *_previewed(answer.total, code))
    return Group(table, f"{len(answer.accounts)} accounts, {answer.charges} charges")


def _previewed(account: r.PreviewedAccount, code: str) -> list[str]:
    charged, draft = int(account.charged_nano), int(account.draft_nano)
    difference = int(account.difference_nano)
    percent = format_scaled(difference * 1000 // charged, 1) if charged else "-"
    colour = "red" if difference > 0 else "green"
    shown = [money(nano, code).removesuffix(f" {code}") for nano in (charged, draft, difference)]
    if difference:
        shown[2] = f"[{colour}]{shown[2]}[/]"
    return [format_scaled(int(account.energy_milli), 3, 1), *shown, percent]


def _as_of(answer: r.BalanceExplanation) -> str:
    return f"sequence {answer.account_sequence}, revision {answer.account_revision}"


def _add_readings(tree: Tree, told: r.ChargeLine) -> None:
    readings = tree.add("readings")
    readings.add(f"from {_reading(told.from_reading, told)}")
    readings.add(f"to {_reading(told.to_reading, told)}")


def _reading(reading: r.Reading, told: r.ChargeLine) -> str:
    register = format_scaled(reading.register_milli, 3, 2)
    return (
        f"{register} {_unit(told)} [dim]at {moment(reading.device_time_ms)}, quality "
        f"{reading.quality}, {reading.reading_id or 'assigned'}[/]"
    )


def _add_charge(tree: Tree, told: r.ChargeLine) -> None:
    code = told.currency
    if told.kind == FEE:
        charged = tree.add(f"fees: {money(told.amount_nano, code, exact=True)}")
        for line in told.lines:
            charged.add(_fee_line(line, told))
        _add_totals(tree, told)
        return
    at = f"at {price(told.price_micro, code, told.commodity)} "
    ratio = f" (ratio {told.ratio})" if told.ratio != 1 else ""
    charged = tree.add(
        f"charge {id_of(told.meter)} #{told.sequence} of epoch {told.epoch}: "
        f"{format_scaled(told.energy_milli, 3)} {_unit(told)}{ratio} "
        f"{'' if told.lines else at}= {money(told.amount_nano, code, exact=True)}"
    )
    for line in told.lines:
        charged.add(_price_line(line, told))
    _add_totals(tree, told)


def _add_totals(tree: Tree, told: r.ChargeLine) -> None:
    code = told.currency
    total = money(told.account_charged_total_nano, code, exact=True)
    paid = money(told.account_credited_total_nano, code)
    tree.add(
        f"totals after it: used {total} of {paid} [dim](sequence {told.account_sequence}, "
        f"revision {told.account_revision})[/]"
    )


def _fee_line(line: r.PriceLine, told: r.ChargeLine) -> str:
    """Return a line of fees in words: how many whole days or months, or which share of one."""
    periods = f"{line.days} of {line.days_of} days" if line.days_of > 1 else f"{line.days} whole"
    amount = f"[bold]{_figure(line.rate_nano + line.tax_nano, told)}[/]"
    tax = f"; tax {_figure(line.tax_nano, told)} of it" if line.tax_nano else ""
    return f"{line.rate}, version {line.version}: {amount} [dim]({periods}{tax})[/]"


def _price_line(line: r.PriceLine, told: r.ChargeLine) -> str:
    """Return a line in words; what is 0 in it is left out."""
    amounts = {
        "rate": line.rate_nano,
        "surcharges": line.surcharge_nano,
        "ladder": line.ladder_nano,
        "tax": line.tax_nano,
    }
    parts = [f"{name} {_figure(nano, told)}" for name, nano in amounts.items() if nano]
    notes = [", ".join(parts) or "nothing"]
    if line.days_of:
        share = f", {line.days} of {line.days_of} days" if line.days < line.days_of else ""
        notes.append(f"{format_scaled(line.total_milli, 3)} in {_period(line.period)}{share}")
    notes += [note for bit, note in NOTES.items() if line.basis & bit]
    energy = f"{format_scaled(line.energy_milli, 3)} {_unit(told)}"
    amount = f"[bold]{_figure(sum(amounts.values()), told)}[/]"
    return f"{line.rate}, version {line.version}: {energy} = {amount} [dim]({'; '.join(notes)})[/]"


def _figure(nano: int, told: r.ChargeLine) -> str:
    return money(nano, told.currency, exact=True).removesuffix(f" {told.currency}")


def _add_tariffs(tree: Tree, tariffs: Iterable[r.TariffVersion], code: str) -> None:
    decimals = currency_of(code).price_decimals
    for tariff in tariffs:
        has_plan = tariff.HasField("plan")
        flat = price(tariff.price_micro, code, tariff.commodity)
        since = moment(tariff.effective_at_ms) if tariff.effective_at_ms else "the beginning"
        branch = tree.add(
            f"tariff {id_of(tariff.tariff)} version {tariff.version}, from {since} on: "
            f"{'a plan' if has_plan else flat}"
        )
        if has_plan:
            branch.add(plans.show(plan.read(tariff.plan), decimals))


def _add_policy(tree: Tree, policy: r.PolicyVersion, code: str) -> None:
    tree.add(
        f"policy {id_of(policy.policy)} version {policy.version}: alarms at "
        f"{money(policy.alarm_1_nano, code)} and {money(policy.alarm_2_nano, code)}, cut at "
        f"{money(-policy.overdraft_nano, code)}, power again from "
        f"{money(policy.restore_nano, code)}"
        f"{f'; rules {escape(policy.rules)}' if policy.HasField('rules') else ''}"
    )


def _credits(found: Iterable[r.Credit], code: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("when", "what", "revision", "receipt"):
        table.add_column(name)
    for name in ("added", "in all"):
        table.add_column(name, justify="right")
    for credit in found:
        amounts = (money(nano, code) for nano in (credit.added_nano, credit.credited_nano))
        revision = f"{credit.book_epoch}.{credit.revision}"
        when = moment(credit.occurred_at_ms)
        table.add_row(when, credit.type, revision, f"[dim]{id_of(credit.receipt)}[/]", *amounts)
    return table


def _charged(found: Iterable[r.ChargedSpan], code: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("meter")
    for name in ("epoch", "charges", "account's sequence", "energy", "amount"):
        table.add_column(name, justify="right")
    for span in found:
        table.add_row(
            id_of(span.meter) or "fees",
            str(span.epoch),
            f"{span.first_sequence}..{span.last_sequence}",
            f"{span.first_account_sequence}..{span.last_account_sequence}",
            format_scaled(span.energy_milli, 3),
            money(span.amount_nano, code, exact=True),
        )
    return table


def _period(number: int) -> str:
    """Return a ladder's period for a person: a month, a year, or nothing."""
    if number >= FIRST_MONTH:
        return f"{number // 12}-{number % 12 + 1:02}"
    return str(number or "")


def _unit(told: r.ChargeLine) -> str:
    return UNITS.get(told.commodity, "units")

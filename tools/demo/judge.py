"""The judgement at the end: what the services say against what the fleet and the receipts say."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from services.common.kernel import names
from tools import mall
from tools.client import Clients
from tools.demo import plan
from tools.demo.fleet import TrueMeter
from tools.demo.plan import DemoMeter
from wattvend.reporting.v1 import reporting_pb2 as r
from wattvend.vending.v1 import vending_pb2 as v

PAGE = 1000


@dataclass(frozen=True, slots=True)
class MeterVerdict:
    """One meter: the truth, what the services say, in nano-currency; and its relay, three times."""

    meter: DemoMeter
    true_steps: int
    true_cost_nano: int
    charged_nano: int
    receipts_nano: int
    credited_nano: int
    book_credited_nano: int
    available_nano: int
    relay_true: str
    relay_wanted: str
    relay_reported: str

    @property
    def faults(self) -> list[str]:
        """What does not add up."""
        return [
            name
            for name, holds in (
                ("charged", self.charged_nano == self.true_cost_nano),
                ("credited", self.credited_nano == self.receipts_nano),
                ("book", self.book_credited_nano == self.receipts_nano),
                ("balance", self.available_nano == self.receipts_nano - self.true_cost_nano),
                ("relay", self.relay_true == self.relay_wanted == self.relay_reported),
            )
            if not holds
        ]


async def verdicts(
    clients: Clients,
    meters: Sequence[DemoMeter],
    before: Mapping[str, TrueMeter],
    after: Mapping[str, TrueMeter],
    receipts: Iterable[v.Sale],
) -> list[MeterVerdict]:
    """Compare every meter with the fleet's truth `before` the load began and `after` it ended."""
    paid: Counter[str] = Counter()
    for receipt in receipts:
        paid[names.ACCOUNT.id("account", receipt.account)] += receipt.amount_minor * plan.MINOR_NANO
    statuses: r.ListMetersResponse = await clients.reporting(
        "ListMeters",
        r.ListMetersRequest(filter=f"site = {names.SITE.name(mall.SITE)}", page_size=PAGE),
    )
    by_id = {names.METER.id("meter", status.meter): status for status in statuses.meters}
    found = []
    for meter in meters:
        account = meter.account_id
        balance: r.Balance = await clients.reporting(
            "GetBalance", r.GetBalanceRequest(name=names.BALANCE.name(account))
        )
        consumption: r.Consumption = await clients.reporting(
            "GetConsumption",
            r.GetConsumptionRequest(meter=names.METER.name(meter.meter_id), from_ms=0, to_ms=2**62),
        )
        book: v.Account = await clients.vending(
            "GetAccount", v.GetAccountRequest(name=names.ACCOUNT.name(account))
        )
        steps = after[meter.meter_id].register_lsb - before[meter.meter_id].register_lsb
        status = by_id[meter.meter_id]
        found.append(
            MeterVerdict(
                meter,
                steps,
                plan.cost_nano(steps, meter),
                consumption.amount_nano,
                paid[account],
                balance.credited_nano,
                book.credited_nano,
                balance.available_nano,
                after[meter.meter_id].position,
                status.wanted,
                status.reported,
            )
        )
    return found

"""What may need a second person, and needs nothing beside its own stream to be judged."""

from services.vending.application.approvals import Guarded
from services.vending.domain import (
    account_commands,
    authority,
    batching,
    closings,
    corrections,
    lending,
    orders,
    policy,
    settling,
    tariff,
)
from services.vending.domain.account import Account
from services.vending.domain.authority import Authority
from services.vending.domain.batch import Batch
from services.vending.domain.policy import Policy
from services.vending.domain.tariff import Tariff

OF_A_DRAFT = ("document_id", "base_version")
GUARDED = {
    "publish-authority": Guarded(
        authority.PublishAuthority, Authority, "legal_entity", authority.decide
    ),
    "publish-tariff": Guarded(
        tariff.PublishTariff,
        Tariff,
        "tariff_id",
        tariff.decide,
        said=OF_A_DRAFT,
    ),
    "keep-power": Guarded(orders.KeepPower, Account, "account_id", account_commands.decide),
    "promise-payment": Guarded(
        orders.PromisePayment, Account, "account_id", account_commands.decide
    ),
    "thaw-account": Guarded(orders.ThawAccount, Account, "account_id", account_commands.decide),
    "publish-policy": Guarded(
        policy.PublishPolicy,
        Policy,
        "policy_id",
        policy.decide,
        said=(*OF_A_DRAFT, "effective_at_ms"),
    ),
    "set-debt": Guarded(lending.SetDebt, Account, "account_id", account_commands.decide),
    "adjust-credit": Guarded(corrections.AdjustCredit, Account, "account_id", corrections.decide),
    "submit-batch": Guarded(batching.SubmitBatch, Batch, "batch_id", batching.decide),
    "settle-account": Guarded(settling.SettleAccount, Account, "account_id", closings.decide),
    "write-off": Guarded(corrections.WriteOff, Account, "account_id", corrections.decide),
}
"""What may need a second person, by the names that stand in proposals for good."""

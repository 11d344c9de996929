"""The dashboard of a site, as code: balances, alarms, relays, consumption, sales.

`make gen` writes dashboards/site.json beside this file; Grafana reads that. The queries read the
tables and views of reporting's schema. They use of Grafana's variables only `${site:sqlstring}`
(quoted by Grafana), `$__from`, `$__to` (ms UTC) and `$__interval_ms`, so bounds on `*_ms` columns
stay bounds that an index serves. Money is shown in the site's currency: ledger units are divided
as `numeric`, exactly.
"""

from collections.abc import Mapping
from pathlib import Path

from grafana_foundation_sdk.builders import stat, table, timeseries
from grafana_foundation_sdk.builders.common import (
    ReduceDataOptions,
    StackingConfig,
    VizLegendOptions,
)
from grafana_foundation_sdk.builders.dashboard import Dashboard, QueryVariable, ThresholdsConfig
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.variants import Dataquery
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    BigValueTextMode,
    GraphDrawStyle,
    LegendDisplayMode,
    StackingMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DataSourceRef,
    DynamicConfigValue,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMappingResult,
    VariableHide,
    VariableModel,
    VariableRefresh,
)

PATH = Path(__file__).parent / "dashboards" / "site.json"
UID = "wattvend-site"
TYPE = "grafana-postgresql-datasource"
SOURCE = DataSourceRef(TYPE, "wattvend-reporting")
"""The data source of provisioning/datasources: PostgreSQL as the role `grafana`."""

COLORS = {
    "normal": "green",
    "alarm-1": "yellow",
    "alarm-2": "orange",
    "cut": "red",
    "restored": "green",
    "cleared": "green",
    "not-cut": "orange",
    "not-restored": "orange",
    "frozen": "purple",
    "thawed": "green",
    "reading-held": "purple",
    "not-cut-ended": "text",
    "meter-flagged": "orange",
    "meter-silent": "orange",
    "meter-cleared": "green",
    "meter-left": "text",
    "hold-resolved": "green",
    "resolution-refused": "orange",
    "period-closed": "orange",
    "fact-late": "orange",
    "as wanted": "green",
    "not as wanted": "red",
    "not reported": "red",
    "open": "orange",
    "closed": "text",
    "mixed": "red",
    "online": "text",
    "offline": "red",
    "quarantined": "red",
    "unknown": "red",
}
"""Word in a table → colour of its cell."""

COLORED = {"type": "color-text"}
Columns = Mapping[str, list[DynamicConfigValue]]
"""Column of a table → how it differs from the others."""

FULL, HALF, QUARTER = 24, 12, 6
STAT_HEIGHT, TABLE_HEIGHT, GRAPH_HEIGHT = 4, 10, 8

SITES = """\
SELECT display_name AS __text, site_id AS __value
FROM reporting.sites
ORDER BY display_name, site_id"""

CURRENCY = """\
SELECT currency FROM reporting.sites WHERE site_id = ${site:sqlstring}"""

LEVELS = """\
SELECT count(*) FILTER (WHERE level = 'cut') AS "cut off",
       count(*) FILTER (WHERE level = 'alarm-2') AS "alarm 2",
       count(*) FILTER (WHERE level = 'alarm-1') AS "alarm 1",
       count(*) FILTER (WHERE level = 'normal') AS "enough credit"
FROM reporting.account_balances
WHERE site_id = ${site:sqlstring}"""

RELAYS_APART = """\
SELECT count(*) AS "relays"
FROM reporting.meters m
JOIN reporting.relay_intents i ON i.meter_id = m.meter_id
LEFT JOIN reporting.relay_states s ON s.meter_id = m.meter_id
WHERE m.site_id = ${site:sqlstring} AND s.position IS DISTINCT FROM i.wanted"""

LOST = """\
SELECT count(*) FILTER (WHERE kind = 'meter') AS "meters",
       count(*) FILTER (WHERE kind = 'gateway') AS "gateways"
FROM reporting.lost_devices
WHERE site_id = ${site:sqlstring}"""

SOLD = """\
SELECT coalesce(sum(r.amount_nano), 0) / power(10::numeric, s.ledger_decimals) AS "sold",
       count(r.receipt_id) AS "sales"
FROM reporting.sites s
LEFT JOIN reporting.accounts a ON a.site_id = s.site_id
LEFT JOIN reporting.receipts r
  ON r.account_id = a.account_id AND r.sold_at_ms BETWEEN $__from AND $__to
WHERE s.site_id = ${site:sqlstring}
GROUP BY s.site_id"""

BALANCES = """\
SELECT b.account_id AS "account", b.level,
       b.available_nano / power(10::numeric, s.ledger_decimals) AS "available",
       b.credited_nano / power(10::numeric, s.ledger_decimals) AS "credited",
       b.charged_nano / power(10::numeric, s.ledger_decimals) AS "charged",
       b.held_nano / power(10::numeric, s.ledger_decimals) AS "held",
       b.frozen, to_timestamp(b.as_of_ms / 1000.0) AS "as of"
FROM reporting.account_balances b
JOIN reporting.sites s ON s.site_id = b.site_id
WHERE b.site_id = ${site:sqlstring}
ORDER BY b.available_nano, b.account_id
LIMIT 500"""

RELAYS = """\
SELECT m.meter_id AS "meter",
       CASE WHEN m.is_house THEN '' ELSE m.account_id END AS "account",
       i.wanted, s.position AS "reported",
       CASE WHEN i.wanted IS NULL THEN 'nothing wanted'
            WHEN s.position IS NULL THEN 'not reported'
            WHEN s.position = i.wanted THEN 'as wanted'
            ELSE 'not as wanted' END AS "relay",
       i.cause, to_timestamp(i.decided_at_ms / 1000.0) AS "wanted since",
       to_timestamp(s.began_at_ms / 1000.0) AS "read at",
       coalesce(d.status, 'unknown') AS "meter is"
FROM reporting.meters m
LEFT JOIN reporting.relay_intents i ON i.meter_id = m.meter_id
LEFT JOIN reporting.relay_states s ON s.meter_id = m.meter_id
LEFT JOIN reporting.device_status d ON d.device_id = 'meters/' || m.meter_id
WHERE m.site_id = ${site:sqlstring}
ORDER BY i.wanted IS NULL OR i.wanted IS NOT DISTINCT FROM s.position, m.meter_id
LIMIT 500"""

ALARMS = """\
SELECT to_timestamp(a.decided_at_ms / 1000.0) AS "decided", a.kind,
       a.account_id AS "account", a.meter_id AS "meter",
       a.available_nano / power(10::numeric, s.ledger_decimals) AS "available",
       a.threshold_nano / power(10::numeric, s.ledger_decimals) AS "threshold",
       a.reason
FROM reporting.alarms a
JOIN reporting.sites s ON s.site_id = a.site_id
WHERE a.site_id = ${site:sqlstring} AND a.decided_at_ms BETWEEN $__from AND $__to
ORDER BY a.decided_at_ms DESC, a.alarm_id
LIMIT 500"""

EXCEPTIONS = """\
SELECT to_timestamp(e.since_ms / 1000.0) AS "since", e.kind, e.reason,
       e.account_id AS "account", e.meter_id AS "meter", e.reading_id::text AS "reading",
       e.register_milli / 1000.0 AS "register", e.last_register_milli / 1000.0 AS "stood at",
       e.bound_milli / 1000.0 AS "at most more"
FROM reporting.lasting_exceptions e
WHERE e.site_id = ${site:sqlstring}
ORDER BY e.since_ms DESC, e.exception_id
LIMIT 500"""

CONSUMPTION = """\
SELECT to_timestamp(c.to_time_ms / $__interval_ms * $__interval_ms / 1000.0) AS "time",
       m.commodity || CASE m.commodity WHEN 'electricity' THEN ', kWh' ELSE ', m³' END AS "metric",
       sum(c.energy_milli) / 1000.0 AS "used"
FROM reporting.charges c
JOIN reporting.meters m ON m.meter_key = c.meter_key
WHERE m.site_id = ${site:sqlstring} AND c.to_time_ms BETWEEN $__from AND $__to
GROUP BY 1, 2
ORDER BY 1, 2"""

SALES = """\
SELECT to_timestamp(r.sold_at_ms / $__interval_ms * $__interval_ms / 1000.0) AS "time",
       r.method AS "metric",
       sum(r.amount_nano) / power(10::numeric, s.ledger_decimals) AS "sold"
FROM reporting.receipts r
JOIN reporting.accounts a ON a.account_id = r.account_id
JOIN reporting.sites s ON s.site_id = a.site_id
WHERE a.site_id = ${site:sqlstring} AND r.sold_at_ms BETWEEN $__from AND $__to
GROUP BY 1, 2, s.ledger_decimals
ORDER BY 1, 2"""

RECEIPTS = """\
SELECT to_timestamp(r.sold_at_ms / 1000.0) AS "sold at", r.account_id AS "account",
       r.amount_nano / power(10::numeric, s.ledger_decimals) AS "amount",
       r.method, r.caller AS "sold by", r.receipt_id::text AS "receipt"
FROM reporting.receipts r
JOIN reporting.accounts a ON a.account_id = r.account_id
JOIN reporting.sites s ON s.site_id = a.site_id
WHERE a.site_id = ${site:sqlstring} AND r.sold_at_ms BETWEEN $__from AND $__to
ORDER BY r.sold_at_ms DESC, r.receipt_id
LIMIT 500"""


class Sql(Dataquery, Builder[Dataquery]):
    """A query of Grafana's PostgreSQL data source, for which the library has no builder."""

    def __init__(self, sql: str, shape: str) -> None:
        """`shape`: `table` or `time_series` (columns time, metric and one figure)."""
        self.ref_id = "A"
        self.hide = False
        self._sql = sql
        self._shape = shape

    def build(self) -> Dataquery:
        """Return itself: there is nothing to choose."""
        return self

    def to_json(self) -> dict[str, object]:
        """Return the query as Grafana keeps it."""
        return {
            "refId": self.ref_id,
            "datasource": SOURCE,
            "editorMode": "code",
            "format": self._shape,
            "rawQuery": True,
            "rawSql": self._sql,
        }


def colored(*columns: str) -> Columns:
    """Return the settings of columns whose words are shown in their colours."""
    return {name: [DynamicConfigValue("custom.cellOptions", COLORED)] for name in columns}


def money(*columns: str) -> Columns:
    """Return the settings of columns that hold money."""
    return {name: [DynamicConfigValue("decimals", 2)] for name in columns}


def listing(title: str, sql: str, columns: Columns, *, span: int) -> table.Panel:
    """Return a table of a query's rows, in the query's order."""
    words = ValueMap(
        {
            word: ValueMappingResult(text=word, color=color, index=index)
            for index, (word, color) in enumerate(COLORS.items())
        }
    )
    panel = (
        table.Panel()
        .title(title)
        .datasource(SOURCE)
        .with_target(Sql(sql, "table"))
        .height(TABLE_HEIGHT)
        .span(span)
        .filterable(filterable=True)
        .mappings([words])
    )
    for name, settings in columns.items():
        panel.override_by_name(name, settings)
    return panel


def figures(title: str, sql: str, colors: dict[str, str]) -> stat.Panel:
    """Return the figures of a query's one row, side by side.

    `colors`: column → its colour where it is above 0; a column that is not named has none.
    """
    panel = (
        stat.Panel()
        .title(title)
        .datasource(SOURCE)
        .with_target(Sql(sql, "table"))
        .height(STAT_HEIGHT)
        .span(QUARTER)
        .color_mode(BigValueColorMode.VALUE)
        .graph_mode(BigValueGraphMode.NONE)
        .text_mode(BigValueTextMode.VALUE_AND_NAME)
        .reduce_options(ReduceDataOptions().calcs(["lastNotNull"]))
        .thresholds(steps("text"))
    )
    for name, color in colors.items():
        panel.override_by_name(name, [DynamicConfigValue("thresholds", steps(color).build())])
    return panel


def steps(color: str) -> ThresholdsConfig:
    """Return: plain at 0, coloured from 1."""
    return (
        ThresholdsConfig()
        .mode(ThresholdsMode.ABSOLUTE)
        .steps([Threshold(None, "text"), Threshold(1, color)])
    )


def bars(title: str, sql: str) -> timeseries.Panel:
    """Return stacked bars over time, one colour a metric. A bar spans a minute or more."""
    return (
        timeseries.Panel()
        .title(title)
        .datasource(SOURCE)
        .with_target(Sql(sql, "time_series"))
        .height(GRAPH_HEIGHT)
        .span(HALF)
        .interval("1m")
        .draw_style(GraphDrawStyle.BARS)
        .fill_opacity(60)
        .stacking(StackingConfig().mode(StackingMode.NORMAL))
        .legend(
            VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .show_legend(show_legend=True)
            .calcs(["sum"])
        )
    )


def variables() -> list[Builder[VariableModel]]:
    """Return what a person chooses, the site, and what follows from it, for the titles."""
    return [
        chosen_by("site", SITES).label("Site"),
        chosen_by("currency", CURRENCY).hide(VariableHide.HIDE_VARIABLE),
    ]


def chosen_by(name: str, sql: str) -> QueryVariable:
    """Return a variable whose values are a query's rows."""
    return (
        QueryVariable(name)
        .query(sql)
        .datasource(SOURCE)
        .refresh(VariableRefresh.ON_DASHBOARD_LOAD)
        .allow_custom_value(allow_custom_value=False)
    )


def dashboard() -> Dashboard:
    """Return the dashboard."""
    board = (
        Dashboard("Wattvend site")
        .uid(UID)
        .description("Balances, alarms, relays, consumption and sales of one site.")
        .tags(["wattvend"])
        .readonly()
        .refresh("30s")
        .time("now-24h", "now")
        .timezone("browser")
        .variables(variables())
    )
    for panel in (
        figures("Accounts", LEVELS, {"cut off": "red", "alarm 2": "orange", "alarm 1": "yellow"}),
        figures("Relays that are not as wanted", RELAYS_APART, {"relays": "red"}),
        figures("Devices that are lost", LOST, {"meters": "red", "gateways": "red"}),
        figures("Sold, $currency", SOLD, {}).override_by_name("sold", money("sold")["sold"]),
        listing(
            "Balances, lowest first, $currency",
            BALANCES,
            {**colored("level"), **money("available", "credited", "charged", "held")},
            span=HALF,
        ),
        listing(
            "Relays: wanted and reported, those that differ first",
            RELAYS,
            colored("wanted", "reported", "relay", "meter is"),
            span=HALF,
        ),
        listing(
            "Alarms and decisions, newest first, $currency",
            ALARMS,
            {**colored("kind"), **money("available", "threshold")},
            span=FULL,
        ),
        listing("Exceptions that last, newest first", EXCEPTIONS, colored("kind"), span=FULL),
        bars("Consumption", CONSUMPTION),
        bars("Sales, $currency", SALES),
        listing("Receipts, newest first, $currency", RECEIPTS, money("amount"), span=FULL),
    ):
        board.with_panel(panel)
    return board


def text() -> str:
    """Return the dashboard as Grafana reads it."""
    encoder = JSONEncoder(sort_keys=True, indent=2, ensure_ascii=False)
    return f"{encoder.encode(dashboard().build())}\n"


if __name__ == "__main__":
    PATH.write_text(text(), "utf-8")

"""A receipt as PDF: two languages, the characters that it uses embedded, the same each time."""

from collections.abc import Callable
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

from fpdf import FPDF
from fpdf.fonts import TTFFont

from services.common.kernel.units import CURRENCIES, format_scaled
from services.vending.application.receipts import Paper
from services.vending.domain.events.corrections import SaleReversed
from services.vending.domain.events.refunds import CreditRefunded
from services.vending.domain.events.sales import CreditSold

FONT = files("paperang_p2_fonts_cjk") / "fonts" / "wqy-microhei.ttc"
"""WenQuanYi Micro Hei (Apache License 2.0): Chinese, Latin, Greek, Cyrillic in one file."""
WIDTH_MM, HEIGHT_MM, MARGIN_MM = 105, 148, 8
LABEL_MM, LINE_MM, NAME_LINE_MM = 33, 5.5, 6.5
FAMILY = "cjk"
NEXT: dict[str, Any] = {"new_x": "LMARGIN", "new_y": "NEXT"}
TITLES: dict[type[Any], str] = {
    CreditSold: "收据 Receipt",
    SaleReversed: "冲正单 Reversal",
    CreditRefunded: "退款单 Refund",
}
METHODS = {"cash": "现金 cash", "pos": "刷卡 POS", "transfer": "转账 transfer", "qr": "扫码 QR"}
COMMODITIES = {"electricity": "电 electricity", "water": "水 water", "gas": "气 gas"}
UNITS = {"electricity": "kWh", "water": "m³", "gas": "m³"}


class _Sheet(FPDF):
    """Pages with one font, each with `mark` at its top; "": none."""

    def __init__(self, mark: str) -> None:
        super().__init__(format=(WIDTH_MM, HEIGHT_MM))
        self._mark = mark
        self.set_margin(MARGIN_MM)
        self.set_auto_page_break(auto=True, margin=MARGIN_MM)
        self.add_font(FAMILY, fname=str(FONT))
        font = self.fonts[FAMILY]
        assert isinstance(font, TTFFont), "it is of a file"
        self._known = font.cmap
        self.add_page()

    def header(self) -> None:
        """Draw the mark, wherever a page begins: whoever sees one alone sees it."""
        if self._mark:
            self.set_font(FAMILY, size=14)
            self.cell(0, 1.5 * LINE_MM, self._mark, align="C", border=1, **NEXT)

    def write_line(self, label: str, text: str) -> None:
        """Draw what is said under a label."""
        self.set_font(FAMILY, size=7)
        self.cell(LABEL_MM, LINE_MM, label)
        self.set_font(FAMILY, size=8)
        self.multi_cell(0, LINE_MM, self.legible(text), align="R", **NEXT)

    def write_heading(self, legal_entity: str, title: str) -> None:
        """Draw whose paper it is, and what it is."""
        self.set_font(FAMILY, size=12)
        self.multi_cell(0, NAME_LINE_MM, self.legible(legal_entity), align="C", **NEXT)
        self.set_font(FAMILY, size=14)
        self.cell(0, 2 * LINE_MM, title, align="C", **NEXT)

    def legible(self, text: str) -> str:
        """Return a text with the number of each character that the font has not."""
        return "".join(
            each if ord(each) in self._known else f"[U+{ord(each):04X}]" for each in text
        )


def printed(paper: Paper) -> bytes:
    """Return the PDF of a receipt."""
    event = paper.event
    is_reversed = isinstance(event, CreditSold) and paper.other_number is not None
    sheet = _Sheet(f"已冲正 REVERSED № {paper.other_number:08d}" if is_reversed else "")
    sheet.set_creation_date(datetime.fromtimestamp(event.occurred_at_ms // 1000, UTC))
    sheet.set_title(f"{event.legal_entity} {paper.number}")
    sheet.write_heading(event.legal_entity, TITLES[type(event)])
    for label, text in lines(paper):
        sheet.write_line(label, text)
    return bytes(sheet.output())


def lines(paper: Paper) -> list[tuple[str, str]]:
    """Return label and text of what a receipt says."""
    event = paper.event
    decimals = CURRENCIES[event.currency].minor_decimals

    def money(amount_minor: int) -> str:
        return f"{format_scaled(amount_minor, decimals)} {event.currency}"

    at = datetime.fromtimestamp(event.occurred_at_ms // 1000, paper.zone)
    said = [
        ("号码 Number", f"{paper.number:08d}"),
        ("日期 Date", at.strftime("%Y-%m-%d %H:%M:%S %z")),
        ("账户 Account", event.account_id),
        *([("租户 Tenant", paper.subject_id)] if paper.subject_id else []),
        ("项目 Site", paper.site_id),
        ("品种 Commodity", COMMODITIES[event.commodity]),
        ("方式 Method", METHODS[event.method]),
    ]
    if isinstance(event, CreditSold):
        said.append(("金额 Amount", money(event.amount_minor)))
        said += _sale(event, money)
    else:
        said.append(("退还 Paid back", money(event.amount_minor)))
        if paper.other_number is not None:
            said.append(("原收据 Of receipt", f"{paper.other_number:08d}"))
        said.append(("原因 Reason", event.reason))
    said.append(("经办 By", event.origin.who or event.caller))
    said.append(("编号 Id", event.receipt_id))
    return said


def _sale(event: CreditSold, money: Callable[[int], str]) -> list[tuple[str, str]]:
    """Return what became of the amount of a sale."""
    fee_minor = event.fee_minor or 0
    emergency_minor = event.recovered_emergency_minor or 0
    debt_minor = event.recovered_debt_minor or 0
    said = []
    if event.energy_milli:
        price = format_scaled(event.price_micro or 0, CURRENCIES[event.currency].price_decimals)
        energy = f"{format_scaled(event.energy_milli, 3)} {UNITS[event.commodity]}"
        said.append(("电量 Energy", f"{energy} × {price}"))
    for label, amount_minor in (
        ("服务费 Service fee", fee_minor),
        ("扣还应急 Emergency credit", emergency_minor),
        ("扣还欠费 Debt", debt_minor),
    ):
        if amount_minor:
            said.append((label, money(amount_minor)))
    credit_minor = event.amount_minor - fee_minor - emergency_minor - debt_minor
    said.append(("入账 Credited", money(credit_minor)))
    return said

"""The file of an export of readings: its columns, which reporting writes and a reader checks."""

COLUMNS = (
    *("meter", "time_ms", "register", "quality", "from_register", "energy", "price_micro"),
    *("amount", "currency", "account", "tariff", "tariff_version", "kind", "epoch", "sequence"),
)
HEADER = ",".join(COLUMNS) + "\n"
GZIP_BITS = 31
"""How zlib is told that lines travel in gzip."""

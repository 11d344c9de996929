"""The step boundaries of the services, by name: where a crash must lose and invent nothing."""


def point(name: str) -> None:
    """Do nothing. Recovery tests start a service with this replaced by one that kills it.

    metering, in order: absorbed, outputs-sent, outputs-acknowledged, then for each kind of row
    that the records have, fact-rows-, account-rows- and header-rows-sent and -acknowledged,
    acknowledged.

    vending, a command: decided, written (in SQLite's transaction), committed, answering (a sale);
    telling, before each account that a move of a meter concerns; approved and carried-out, around a
    command that a second person approved; payment-confirmed and payment-sold, around a payment's
    sale; batch-round-begun and batch-round-given, around the commands of a batch's round. Its
    relay, a batch: numbered, linked, ledger-published, shards-published,
    registry-published; a checkpoint: root-kept, checkpointed.

    reporting, a batch: read, positions-written, rows-written (both in PostgreSQL's transaction),
    committed; a rebuild also: filled, swapping (in the transaction that swaps), swapped.

    ingest, an MQTT message: message-received, message-taken, message-acknowledged (to the broker);
    a frame of readings: frame-gathered, frame-sent, frame-acknowledged; a polled line:
    exchange-ended, when a request has its answer, or none in time.

    control, a delivery: decided-sent, told-sent, left-command, decided-acknowledged,
    told-acknowledged, left-read-back, decided-confirmed, told-confirmed; other results likewise.
    """

"""The step boundaries of the services, by name: where a crash must lose and invent nothing."""


def point(name: str) -> None:
    """Do nothing. Recovery tests start a service with this replaced by one that kills it.

    metering, in order: absorbed, outputs-sent, outputs-acknowledged, then for each kind of row
    that the records have, fact-rows-, account-rows- and header-rows-sent and -acknowledged,
    acknowledged.
    """

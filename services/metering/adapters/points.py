"""The step boundaries of the shell, by name."""


def point(name: str) -> None:
    """Do nothing. Recovery tests start the service with this replaced by one that kills it.

    Names, in order: absorbed, outputs-sent, outputs-acknowledged, then for each kind of row that
    the records have, fact-rows-, account-rows- and header-sent and -acknowledged, acknowledged.
    """

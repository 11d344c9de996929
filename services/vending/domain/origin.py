"""Who stands behind a request, from where, and by whose approval: what an auditor asks.

It goes into the metadata of every event that comes of the request. It is no part of the request's
fingerprint: a retry from another machine, or by a colleague, is the same request.
"""

from services.common.kernel.values import value_class


@value_class
class Origin:
    """Each "" where it is not known: events of earlier releases say nothing of it.

    `caller`: the system that asked, in the steps of a process too, which vending asks of itself;
    `actor`: the person behind it, an opaque id, where the caller said so; `peer`: the address that
    the call came from, without its port; `approved_by`: the `who` of the second person.
    """

    caller: str = ""
    actor: str = ""
    peer: str = ""
    approved_by: str = ""

    @property
    def who(self) -> str:
        """The caller and, where it is known, the person behind it, e.g. `counter-3 u-81`."""
        return f"{self.caller} {self.actor}".rstrip()


NOBODY = Origin()

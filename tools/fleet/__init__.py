"""The virtual fleet: meters and gateways that cannot be told from real ones on the wire.

It shares no codec with the product, so that a bug in one is not hidden by the same bug in the
other. What it knows of registers and messages is docs/protocols.md, packed by hand.
"""

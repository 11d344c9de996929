"""How a switch changes the product, in a child process that lives for one test."""

from typing import Any


def patch(owner: Any, **replacements: Any) -> None:
    """Replace functions or constants of a class or module."""
    for name, replacement in replacements.items():
        assert hasattr(owner, name), f"{owner} has no {name} any more"
        setattr(owner, name, replacement)

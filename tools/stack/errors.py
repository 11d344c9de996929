"""Errors of the one-machine stack. Each message says what is wrong and what to do.

StackError
├── StartFailed      a part died or did not get ready; carries the end of its log
├── PortTaken        somebody else listens on a port the stack was told to use
├── DirectoryInUse   another stack holds the directory
├── FetchFailed      Apache Kafka could not be fetched
└── BadSetting       an environment variable has an unusable value
"""


class StackError(Exception):
    """Base of everything the stack tells a person."""


class StartFailed(StackError):
    """A part died before it was ready, or was not ready within its bound."""


class PortTaken(StackError):
    """A port is held by another process."""


class DirectoryInUse(StackError):
    """Another stack runs in this directory."""


class FetchFailed(StackError):
    """The jars could not be fetched or are not the ones that were pinned."""


class BadSetting(StackError):
    """A setting's value cannot be used."""

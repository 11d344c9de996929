"""Errors of the one-machine stack. Each message says what is wrong and what to do.

StackError
├── StartError           a part died or did not get ready; carries the end of its log
├── PortTakenError       somebody else listens on a port the stack was told to use
├── DirectoryInUseError  another stack holds the directory
├── FetchError           Apache Kafka could not be fetched
└── SettingError         an environment variable has an unusable value
"""


class StackError(Exception):
    """Base of everything the stack tells a person."""


class StartError(StackError):
    """A part died before it was ready, or was not ready within its bound."""


class PortTakenError(StackError):
    """A port is held by another process."""


class DirectoryInUseError(StackError):
    """Another stack runs in this directory."""


class FetchError(StackError):
    """The jars could not be fetched or are not the ones that were pinned."""


class SettingError(StackError):
    """A setting's value cannot be used."""

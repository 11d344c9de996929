"""Errors of the virtual fleet. Each message says what is wrong and what to do.

FleetError
├── ConfigError   the configuration or a setting cannot be used
├── ListenError   a gateway or the control API cannot listen where it was told to
└── RefusedError  a request to the control API makes no sense for what it names
"""


class FleetError(Exception):
    """Base of everything the fleet tells a person."""


class ConfigError(FleetError):
    """The configuration cannot be used."""


class ListenError(FleetError):
    """A port cannot be listened on."""


class RefusedError(FleetError):
    """The control API was asked for something that cannot be."""

"""How fast it is, measured from outside on this machine: metering, the whole pipeline, vending."""

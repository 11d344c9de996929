"""Exports of readings: the lines of each meter, kept for some days beside the read models."""

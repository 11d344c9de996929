"""Pure building blocks that every service shares: ids, units, routing, frames, errors."""

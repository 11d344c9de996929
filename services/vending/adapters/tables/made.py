"""`made`: which of the tables that came with a later release know a book from its beginning."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS made(
  name text PRIMARY KEY
);
"""

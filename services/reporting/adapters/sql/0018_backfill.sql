ALTER TABLE alarms ADD COLUMN reading_began_at_ms bigint;

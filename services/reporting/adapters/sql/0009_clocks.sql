ALTER TABLE device_status ADD COLUMN clock_tended_at_ms bigint;
ALTER TABLE device_status ADD COLUMN clock_result text;
ALTER TABLE device_status ADD COLUMN clock_ahead_ms bigint;

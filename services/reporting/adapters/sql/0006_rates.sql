ALTER TABLE charges ADD COLUMN from_rates_milli text;
ALTER TABLE charges ADD COLUMN to_rates_milli   text;
COMMENT ON COLUMN charges.from_rates_milli IS
    'Registers of rates (sharp, peak, flat, valley, deep valley) at the begin, as a JSON array; -1: '
    'absent; null: all are.';
COMMENT ON COLUMN charges.to_rates_milli IS 'The same at the end.';

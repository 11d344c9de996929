ALTER TABLE receipts ADD COLUMN fee_minor bigint NOT NULL DEFAULT 0;
COMMENT ON TABLE receipts IS
    'Every sale of credit; what of amount_minor was recovered, or is service fee, is not in '
    'credited_nano, the total after it. Emergency credit is in ledger (emergency-granted). Source: '
    'ledger, credit-sold (kept for good: complete).';

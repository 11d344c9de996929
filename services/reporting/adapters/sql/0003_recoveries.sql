ALTER TABLE receipts ADD COLUMN recovered_emergency_minor bigint NOT NULL DEFAULT 0;
ALTER TABLE receipts ADD COLUMN recovered_debt_minor bigint NOT NULL DEFAULT 0;
COMMENT ON TABLE receipts IS
    'Every sale of credit; what was recovered of amount_minor is not in credited_nano, the total '
    'after it. Emergency credit is in ledger (emergency-granted). Source: ledger, credit-sold (kept '
    'for good: complete).';

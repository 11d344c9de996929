-- A closing's settlement tells what is left of both too: of emergency credit nothing, and a debt
-- that is paid in full.
CREATE OR REPLACE VIEW account_debts AS
SELECT a.account_id, a.site_id, a.currency, coalesce(g.emergency_minor, 0) AS emergency_minor,
       coalesce(d.debt_minor, 0) AS debt_minor, coalesce(s.share_ppm, 0) AS debt_share_ppm
FROM accounts a
LEFT JOIN LATERAL (
    SELECT (data ->> CASE type WHEN 'emergency-granted' THEN 'amount_minor'
                               ELSE 'emergency_left_minor' END)::bigint AS emergency_minor
    FROM standing_ledger
    WHERE stream = 'account-' || a.account_id
      AND type IN ('credit-sold', 'emergency-granted', 'sale-reversed', 'owed-written-off',
                   'account-settled')
    ORDER BY book_epoch DESC, revision DESC LIMIT 1
) g ON true
LEFT JOIN LATERAL (
    SELECT (data ->> CASE type WHEN 'debt-set' THEN 'debt_minor'
                               ELSE 'debt_left_minor' END)::bigint AS debt_minor
    FROM standing_ledger
    WHERE stream = 'account-' || a.account_id
      AND type IN ('credit-sold', 'debt-set', 'sale-reversed', 'owed-written-off',
                   'account-settled')
    ORDER BY book_epoch DESC, revision DESC LIMIT 1
) d ON true
LEFT JOIN LATERAL (
    SELECT CASE type WHEN 'account-settled' THEN 1000000
                     ELSE (data ->> 'share_ppm')::integer END AS share_ppm
    FROM standing_ledger
    WHERE stream = 'account-' || a.account_id AND type IN ('debt-set', 'account-settled')
    ORDER BY book_epoch DESC, revision DESC LIMIT 1
) s ON true;

CREATE VIEW settlements AS
SELECT event_id AS settlement_id, data ->> 'account_id' AS account_id,
       (data ->> 'closing_id')::uuid AS closing_id,
       (data ->> 'charged_nano')::bigint AS charged_nano,
       (data ->> 'left_nano')::bigint AS left_nano,
       (data ->> 'refund_minor')::bigint AS refund_minor,
       (data ->> 'due_minor')::bigint AS due_minor,
       (data ->> 'dropped_nano')::bigint AS dropped_nano, data ->> 'rounding' AS rounding,
       (data ->> 'recovered_emergency_minor')::bigint AS recovered_emergency_minor,
       (data ->> 'recovered_debt_minor')::bigint AS recovered_debt_minor,
       (data ->> 'debt_left_minor')::bigint AS debt_left_minor,
       data ->> 'currency' AS currency, data ->> 'legal_entity' AS legal_entity,
       occurred_at_ms AS settled_at_ms, book_epoch, revision
FROM standing_ledger
WHERE type = 'account-settled';
COMMENT ON VIEW settlements IS
    'One settlement of an account that was closed with something left or lacking: what was paid '
    'out, what is owed, what rounding dropped (negative: gave). Source: ledger.';

-- The newest event that tells each: sales, and what corrects them, tell what is left of both.
CREATE OR REPLACE VIEW account_debts AS
SELECT a.account_id, a.site_id, a.currency, coalesce(g.emergency_minor, 0) AS emergency_minor,
       coalesce(d.debt_minor, 0) AS debt_minor, coalesce(s.share_ppm, 0) AS debt_share_ppm
FROM accounts a
LEFT JOIN LATERAL (
    SELECT (data ->> CASE type WHEN 'emergency-granted' THEN 'amount_minor'
                               ELSE 'emergency_left_minor' END)::bigint AS emergency_minor
    FROM standing_ledger
    WHERE stream = 'account-' || a.account_id
      AND type IN ('credit-sold', 'emergency-granted', 'sale-reversed', 'owed-written-off')
    ORDER BY book_epoch DESC, revision DESC LIMIT 1
) g ON true
LEFT JOIN LATERAL (
    SELECT (data ->> CASE type WHEN 'debt-set' THEN 'debt_minor'
                               ELSE 'debt_left_minor' END)::bigint AS debt_minor
    FROM standing_ledger
    WHERE stream = 'account-' || a.account_id
      AND type IN ('credit-sold', 'debt-set', 'sale-reversed', 'owed-written-off')
    ORDER BY book_epoch DESC, revision DESC LIMIT 1
) d ON true
LEFT JOIN LATERAL (
    SELECT (data ->> 'share_ppm')::integer AS share_ppm
    FROM standing_ledger
    WHERE stream = 'account-' || a.account_id AND type = 'debt-set'
    ORDER BY book_epoch DESC, revision DESC LIMIT 1
) s ON true;

CREATE VIEW corrections AS
SELECT event_id AS correction_id, type AS kind, data ->> 'account_id' AS account_id,
       (data ->> 'amount_minor')::bigint AS amount_minor,
       (data ->> 'credited_nano')::bigint AS credited_nano,
       (data ->> 'receipt_id')::uuid AS receipt_id,
       (data ->> 'reversed_receipt_id')::uuid AS reversed_receipt_id,
       data ->> 'method' AS method, data ->> 'kind' AS of_what, data ->> 'reason' AS reason,
       data ->> 'currency' AS currency, data ->> 'legal_entity' AS legal_entity,
       caller, request_id, occurred_at_ms AS corrected_at_ms, book_epoch, revision
FROM standing_ledger
WHERE type IN ('sale-reversed', 'credit-adjusted', 'owed-written-off');
COMMENT ON VIEW corrections IS
    'One correction of an account: a sale that was reversed (amount_minor goes back to who paid), '
    'credit that was adjusted, what was owed and given up. Source: ledger.';

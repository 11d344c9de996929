CREATE VIEW standing_ledger AS
SELECT l.*
FROM ledger l
WHERE NOT EXISTS (
    SELECT FROM ledger n
    WHERE n.stream = l.stream AND n.book_epoch > l.book_epoch AND n.revision <= l.revision
);
COMMENT ON VIEW standing_ledger IS
    'What the book stands on: without the events that a store restored to an earlier point has '
    'forgotten.';

CREATE VIEW grants AS
SELECT event_id AS grant_id, data ->> 'account_id' AS account_id,
       (data ->> 'amount_minor')::bigint AS amount_minor,
       (data ->> 'amount_nano')::bigint AS amount_nano,
       data ->> 'policy_id' AS policy_id, (data ->> 'policy_version')::integer AS policy_version,
       data ->> 'currency' AS currency, data ->> 'legal_entity' AS legal_entity,
       caller, request_id, occurred_at_ms AS granted_at_ms, book_epoch, revision
FROM standing_ledger
WHERE type = 'emergency-granted';
COMMENT ON VIEW grants IS 'One grant of emergency credit. Source: ledger.';

-- The newest event that tells each: a sale tells what is left of both.
CREATE VIEW account_debts AS
SELECT a.account_id, a.site_id, a.currency, coalesce(g.emergency_minor, 0) AS emergency_minor,
       coalesce(d.debt_minor, 0) AS debt_minor, coalesce(s.share_ppm, 0) AS debt_share_ppm
FROM accounts a
LEFT JOIN LATERAL (
    SELECT (data ->> CASE type WHEN 'credit-sold' THEN 'emergency_left_minor'
                               ELSE 'amount_minor' END)::bigint AS emergency_minor
    FROM standing_ledger
    WHERE stream = 'account-' || a.account_id AND type IN ('credit-sold', 'emergency-granted')
    ORDER BY book_epoch DESC, revision DESC LIMIT 1
) g ON true
LEFT JOIN LATERAL (
    SELECT (data ->> CASE type WHEN 'credit-sold' THEN 'debt_left_minor'
                               ELSE 'debt_minor' END)::bigint AS debt_minor
    FROM standing_ledger
    WHERE stream = 'account-' || a.account_id AND type IN ('credit-sold', 'debt-set')
    ORDER BY book_epoch DESC, revision DESC LIMIT 1
) d ON true
LEFT JOIN LATERAL (
    SELECT (data ->> 'share_ppm')::integer AS share_ppm
    FROM standing_ledger
    WHERE stream = 'account-' || a.account_id AND type = 'debt-set'
    ORDER BY book_epoch DESC, revision DESC LIMIT 1
) s ON true;
COMMENT ON VIEW account_debts IS
    'What each account owes beside its use: emergency credit that was granted and not recovered, '
    'its debt, and the share of each sale that goes there. Source: ledger.';

CREATE VIEW account_terms AS
SELECT data ->> 'account_id' AS account_id, data ->> 'tariff_id' AS tariff_id,
       data ->> 'policy_id' AS policy_id, occurred_at_ms AS since_ms,
       lead(occurred_at_ms) OVER following AS until_ms, data ->> 'reason' AS reason,
       book_epoch, revision
FROM standing_ledger
WHERE type IN ('account-opened', 'account-terms-changed')
WINDOW following AS (PARTITION BY stream ORDER BY book_epoch, revision);
COMMENT ON VIEW account_terms IS
    'From when to when an account was under a tariff and a policy; until_ms null: it is. '
    'Source: ledger.';

CREATE VIEW account_tenants AS
SELECT data ->> 'account_id' AS account_id, data ->> 'subject_id' AS subject_id,
       occurred_at_ms AS since_ms, lead(occurred_at_ms) OVER following AS until_ms,
       data ->> 'reason' AS reason, book_epoch, revision
FROM standing_ledger
WHERE type IN ('account-opened', 'account-tenant-changed')
WINDOW following AS (PARTITION BY stream ORDER BY book_epoch, revision);
COMMENT ON VIEW account_tenants IS
    'From when to when an account was whose (an opaque id); until_ms null: it is. Source: ledger.';

CREATE VIEW transfers AS
SELECT data ->> 'hold_id' AS transfer_id, type AS kind, data ->> 'account_id' AS account_id,
       coalesce(data ->> 'to_account_id', data ->> 'from_account_id') AS other_account_id,
       (data ->> 'amount_minor')::bigint AS amount_minor,
       (data ->> 'credited_nano')::bigint AS credited_nano, data ->> 'reason' AS reason,
       data ->> 'currency' AS currency, data ->> 'legal_entity' AS legal_entity,
       caller, request_id, occurred_at_ms AS moved_at_ms, book_epoch, revision
FROM standing_ledger
WHERE type IN ('credit-transferred', 'transfer-received', 'transfer-returned');
COMMENT ON VIEW transfers IS
    'Credit that left an account for another, came in there, or came back. Source: ledger.';

CREATE OR REPLACE VIEW corrections AS
SELECT event_id AS correction_id, type AS kind, data ->> 'account_id' AS account_id,
       (data ->> 'amount_minor')::bigint AS amount_minor,
       (data ->> 'credited_nano')::bigint AS credited_nano,
       (data ->> 'receipt_id')::uuid AS receipt_id,
       (data ->> 'reversed_receipt_id')::uuid AS reversed_receipt_id,
       data ->> 'method' AS method, data ->> 'kind' AS of_what, data ->> 'reason' AS reason,
       data ->> 'currency' AS currency, data ->> 'legal_entity' AS legal_entity,
       caller, request_id, occurred_at_ms AS corrected_at_ms, book_epoch, revision
FROM standing_ledger
WHERE type IN ('sale-reversed', 'credit-refunded', 'credit-adjusted', 'owed-written-off');
COMMENT ON VIEW corrections IS
    'One correction of an account: a sale that was reversed, or credit that was refunded '
    '(amount_minor goes out), credit that was adjusted, what was owed and given up. Source: ledger.';

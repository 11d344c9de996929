-- As before, and what an order of a person ends: frozen.
CREATE OR REPLACE VIEW exceptions AS
SELECT a.alarm_id AS exception_id, a.kind, a.reason, a.account_id, a.site_id, a.meter_id,
       a.decided_at_ms AS since_ms, a.to_reading_id AS reading_id, a.register_milli,
       a.device_time_ms, a.last_register_milli, a.last_time_ms, a.bound_milli,
       a.available_nano, a.threshold_nano, a.currency, e.ended_at_ms, e.ended_by,
       a.silent_since_ms
FROM alarms a
LEFT JOIN LATERAL (
    SELECT ended_at_ms, ended_by FROM (
        (SELECT b.decided_at_ms AS ended_at_ms, b.kind AS ended_by
        FROM alarms b
        WHERE b.account_id = a.account_id
          AND ROW(b.log_offset, b.account_sequence) > ROW(a.log_offset, a.account_sequence)
          AND CASE
              WHEN a.kind IN ('reading-held', 'meter-flagged', 'meter-silent') THEN
                  b.meter_id = a.meter_id
                  AND (b.kind IN (a.kind, 'meter-cleared') AND b.reason = a.reason
                       OR b.kind = 'hold-resolved' AND b.to_reading_id = a.to_reading_id
                          AND a.kind = 'reading-held' AND a.reason NOT IN
                              ('other-serial', 'absurd', 'ratio-mismatch', 'clock', 'conflict')
                       OR b.kind = 'meter-left')
              WHEN a.kind = 'resolution-refused' THEN
                  b.meter_id = a.meter_id
                  AND (b.kind IN (a.kind, 'hold-resolved') AND b.to_reading_id = a.to_reading_id
                       OR b.kind = 'meter-left')
              WHEN a.kind = 'not-cut' THEN
                  b.kind IN ('not-cut', 'not-cut-ended', 'cut', 'cleared', 'restored')
              WHEN a.kind = 'not-restored' THEN b.kind = 'cut'
              WHEN a.kind = 'frozen' THEN b.kind = 'thawed'
              ELSE false
          END
        ORDER BY b.log_offset, b.account_sequence LIMIT 1)
        UNION ALL
        (SELECT c.to_time_ms, 'meter-left'
        FROM meters m
        JOIN charges c ON c.meter_key = m.meter_key AND c.kind = 'closing'
        JOIN accounts o ON o.account_key = c.account_key
        WHERE a.meter_epoch IS NULL AND m.meter_id = a.meter_id AND o.account_id = a.account_id
          AND c.log_offset > a.log_offset
          AND a.kind IN ('reading-held', 'meter-flagged', 'meter-silent', 'resolution-refused')
        ORDER BY c.log_offset LIMIT 1)
        UNION ALL  -- one that was never read leaves without a charge
        (SELECT min(l.occurred_at_ms), 'meter-left'
        FROM ledger l
        WHERE a.meter_epoch IS NULL
          AND l.stream = 'meter-' || a.meter_id AND l.occurred_at_ms > a.decided_at_ms
          AND l.type IN ('meter-assigned', 'meter-replaced', 'meter-ratio-changed')
          AND a.kind IN ('reading-held', 'meter-flagged', 'meter-silent', 'resolution-refused'))
        UNION ALL
        SELECT t.as_of_ms, 'credit'
        FROM account_levels l
        JOIN account_totals t ON t.account_key = l.account_key
        WHERE a.kind = 'not-cut' AND a.arrears_since_ms IS NULL
          AND l.account_id = a.account_id AND t.log_offset > a.log_offset
          AND t.credited_nano::numeric - t.charged_nano - l.held_nano > a.threshold_nano
    ) ends WHERE ended_at_ms IS NOT NULL ORDER BY ended_at_ms LIMIT 1
) e ON true
WHERE a.kind IN ('reading-held', 'meter-flagged', 'meter-silent', 'resolution-refused',
                 'not-cut', 'not-restored', 'frozen', 'period-closed', 'fact-late');
COMMENT ON VIEW exceptions IS
    'What a person has to look at, with its evidence; ended_at_ms null: still so. Ended by a later '
    'alarm (its kind; meter-left: the meter left the account, or its epoch). Nothing ends '
    'period-closed and fact-late. Source: alarms (400 days); of alarms without meter_epoch also '
    'charges and ledger, without arrears_since_ms balances (credit).';

ALTER TABLE meters ADD COLUMN register_max_milli bigint;
ALTER TABLE meters ADD COLUMN forced text;
ALTER TABLE meters ADD COLUMN resolves_reading_id text;
ALTER TABLE meters ADD COLUMN resolution text;
ALTER TABLE accounts ADD COLUMN keep_power_until_ms bigint;
ALTER TABLE accounts ADD COLUMN promise_until_ms bigint;
ALTER TABLE accounts ADD COLUMN notice_id text;
ALTER TABLE accounts ADD COLUMN notice_outcome text;

ALTER TABLE alarms ADD COLUMN register_milli bigint;
ALTER TABLE alarms ADD COLUMN device_time_ms bigint;
ALTER TABLE alarms ADD COLUMN last_register_milli bigint;
ALTER TABLE alarms ADD COLUMN last_time_ms bigint;
ALTER TABLE alarms ADD COLUMN bound_milli bigint;
ALTER TABLE alarms ADD COLUMN notice_id text;
ALTER TABLE alarms ADD COLUMN notice_outcome text;
ALTER TABLE relay_intents ADD COLUMN notice_id text;
ALTER TABLE relay_intents ADD COLUMN notice_outcome text;
ALTER TABLE policy_versions ADD COLUMN emergency_nano bigint;
ALTER TABLE policy_versions ADD COLUMN rules text;
COMMENT ON COLUMN policy_versions.rules IS
    'JSON of what must hold before arrears cut; null: thresholds alone.';

CREATE TABLE notices (
    notice_id              uuid    PRIMARY KEY,
    kind                   text    NOT NULL,
    account_id             text    NOT NULL,
    site_id                text    NOT NULL,
    available_nano         bigint  NOT NULL,
    threshold_nano         bigint  NOT NULL,
    cut_not_before_ms      bigint  NOT NULL,
    account_sequence       bigint  NOT NULL,
    account_revision       bigint  NOT NULL,
    book_epoch             integer NOT NULL,
    policy_id              text,
    policy_version         integer,
    tariff_id              text,
    tariff_version         integer,
    charge_epoch           integer,
    charge_sequence        bigint,
    from_reading_id        uuid,
    to_reading_id          uuid,
    reading_received_at_ms bigint,
    currency               text    NOT NULL,
    legal_entity           text    NOT NULL,
    commodity              text    NOT NULL,
    decided_at_ms          bigint  NOT NULL,
    log_offset             bigint  NOT NULL
);
CREATE INDEX notices_of_account ON notices (account_id, decided_at_ms);
COMMENT ON TABLE notices IS
    'What a person was to be told, and from when on a cut may follow. What became of it: ledger, '
    'notice-recorded. Source: notices (400 days).';

CREATE INDEX alarms_of_exceptions ON alarms (decided_at_ms, alarm_id)
    WHERE kind IN ('reading-held', 'meter-flagged', 'meter-silent', 'resolution-refused',
                   'not-cut', 'not-restored', 'frozen', 'period-closed', 'fact-late');
CREATE INDEX alarms_in_order ON alarms (account_id, log_offset, account_sequence);
CREATE INDEX charges_closing ON charges (meter_key, log_offset) WHERE kind = 'closing';

-- What happened later, within one record too: its alarms come with ascending account sequences.
-- Each way to end is one look into an index.
CREATE VIEW exceptions AS
SELECT a.alarm_id AS exception_id, a.kind, a.reason, a.account_id, a.site_id, a.meter_id,
       a.decided_at_ms AS since_ms, a.to_reading_id AS reading_id, a.register_milli,
       a.device_time_ms, a.last_register_milli, a.last_time_ms, a.bound_milli,
       a.available_nano, a.threshold_nano, a.currency, e.ended_at_ms, e.ended_by
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
                       OR b.kind = 'hold-resolved' AND b.to_reading_id = a.to_reading_id)
              WHEN a.kind = 'resolution-refused' THEN
                  b.kind = 'hold-resolved' AND b.to_reading_id = a.to_reading_id
              WHEN a.kind = 'not-cut' THEN b.kind IN ('not-cut', 'cut', 'cleared', 'restored')
              WHEN a.kind = 'not-restored' THEN b.kind = 'cut'
              ELSE false
          END
        ORDER BY b.log_offset, b.account_sequence LIMIT 1)
        UNION ALL
        (SELECT c.to_time_ms, 'meter-left'
        FROM meters m
        JOIN charges c ON c.meter_key = m.meter_key AND c.kind = 'closing'
        JOIN accounts o ON o.account_key = c.account_key
        WHERE m.meter_id = a.meter_id AND o.account_id = a.account_id
          AND c.log_offset > a.log_offset
          AND a.kind IN ('reading-held', 'meter-flagged', 'meter-silent', 'resolution-refused')
        ORDER BY c.log_offset LIMIT 1)
        UNION ALL  -- one that was never read leaves without a charge
        (SELECT min(l.occurred_at_ms), 'meter-left'
        FROM ledger l
        WHERE l.stream = 'meter-' || a.meter_id AND l.occurred_at_ms > a.decided_at_ms
          AND l.type IN ('meter-assigned', 'meter-replaced', 'meter-ratio-changed')
          AND a.kind IN ('reading-held', 'meter-flagged', 'meter-silent', 'resolution-refused'))
        UNION ALL
        SELECT b.as_of_ms, 'credit'
        FROM account_balances b
        WHERE a.kind = 'not-cut' AND b.account_id = a.account_id
          AND b.available_nano > a.threshold_nano
    ) ends WHERE ended_at_ms IS NOT NULL ORDER BY ended_at_ms LIMIT 1
) e ON true
WHERE a.kind IN ('reading-held', 'meter-flagged', 'meter-silent', 'resolution-refused',
                 'not-cut', 'not-restored', 'frozen', 'period-closed', 'fact-late');
COMMENT ON VIEW exceptions IS
    'What a person has to look at, with its evidence; ended_at_ms null: still so. Ended by a later '
    'alarm (its kind), by the meter leaving the account or its epoch, by credit. Nothing ends '
    'frozen, period-closed and fact-late. Source: alarms, charges (400 days), balances, ledger.';

-- Of one kind and reason only the newest can last: the others need no look.
CREATE VIEW lasting_exceptions AS
SELECT e.*
FROM (
    SELECT DISTINCT ON (site_id, account_id, meter_id, kind, reason,
                        CASE WHEN kind IN ('frozen', 'period-closed', 'fact-late')
                             THEN alarm_id END)
           site_id, account_id, meter_id, alarm_id
    FROM alarms
    WHERE kind IN ('reading-held', 'meter-flagged', 'meter-silent', 'resolution-refused',
                   'not-cut', 'not-restored', 'frozen', 'period-closed', 'fact-late')
    ORDER BY site_id, account_id, meter_id, kind, reason,
             CASE WHEN kind IN ('frozen', 'period-closed', 'fact-late') THEN alarm_id END,
             log_offset DESC, account_sequence DESC
) newest
CROSS JOIN LATERAL (  -- OFFSET: looked up for each, whatever the planner thinks of their number
    SELECT * FROM exceptions x
    WHERE x.exception_id = newest.alarm_id AND x.ended_at_ms IS NULL OFFSET 0
) e;
COMMENT ON VIEW lasting_exceptions IS 'The exceptions that nothing has ended yet.';

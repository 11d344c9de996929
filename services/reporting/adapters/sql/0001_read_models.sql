-- The read models. Names that are not qualified belong to the schema the migration runs in.
-- Every table says which topics it comes from and how far back it reaches (COMMENT ON).
-- *_nano, *_micro, *_milli and *_ms: the units of services/common/kernel/units.py. sum(bigint) is
-- numeric, so no sum overflows.

CREATE TABLE positions (
    topic        text    NOT NULL,
    partition    integer NOT NULL,
    first_offset bigint  NOT NULL,
    next_offset  bigint  NOT NULL CHECK (next_offset >= first_offset),
    PRIMARY KEY (topic, partition)
);
COMMENT ON TABLE positions IS
    'What the tables hold of each partition: records first_offset <= offset < next_offset. '
    'Written in the transaction that writes their rows.';

CREATE TABLE sites (
    site_id         text PRIMARY KEY,
    display_name    text    NOT NULL,
    zone            text    NOT NULL,
    currency        text    NOT NULL,
    ledger_decimals integer NOT NULL,
    minor_decimals  integer NOT NULL,
    legal_entity    text    NOT NULL,
    cuts_held       boolean NOT NULL,
    cuts_per_minute integer NOT NULL,
    book_epoch      integer NOT NULL,
    revision        bigint  NOT NULL
);
COMMENT ON TABLE sites IS
    'Newest fact of each site. Source: registry (compacted: newest only, all sites).';

CREATE TABLE gateways (
    gateway_id text PRIMARY KEY,
    site_id    text    NOT NULL,
    line_id    text    NOT NULL,
    protocol   text    NOT NULL,
    address    text    NOT NULL,
    book_epoch integer NOT NULL,
    revision   bigint  NOT NULL
);
COMMENT ON TABLE gateways IS
    'Newest fact of each gateway. Source: registry (compacted: newest only, all gateways).';

CREATE TABLE meters (
    meter_id               text PRIMARY KEY,
    meter_key              bigint  NOT NULL,
    serial                 text    NOT NULL,
    site_id                text    NOT NULL,
    gateway_id             text    NOT NULL,
    line_id                text    NOT NULL,
    unit                   integer NOT NULL,
    profile                text    NOT NULL,
    commodity              text    NOT NULL,
    ratio                  integer NOT NULL,
    max_power_w            bigint,
    epoch                  integer NOT NULL,
    account_id             text    NOT NULL,
    account_key            bigint  NOT NULL,
    is_house               boolean NOT NULL,
    shard                  integer NOT NULL,
    currency               text    NOT NULL,
    legal_entity           text    NOT NULL,
    opening_register_milli bigint,
    book_epoch             integer NOT NULL,
    revision               bigint  NOT NULL
);
CREATE INDEX meters_by_key ON meters (meter_key);
CREATE INDEX meters_by_site ON meters (site_id, meter_id);
CREATE INDEX meters_by_serial ON meters (serial);
COMMENT ON TABLE meters IS
    'Newest fact of each meter: what it is, where it hangs, whose it is. Source: registry '
    '(compacted: newest only, all meters).';

CREATE TABLE accounts (
    account_id    text PRIMARY KEY,
    account_key   bigint  NOT NULL,
    shard         integer NOT NULL,
    site_id       text    NOT NULL,
    subject_id    text,
    status        text    NOT NULL,
    currency      text    NOT NULL,
    legal_entity  text    NOT NULL,
    commodity     text    NOT NULL,
    tariff_id     text    NOT NULL,
    policy_id     text    NOT NULL,
    credited_nano bigint  NOT NULL,
    held_nano     bigint  NOT NULL,
    book_epoch    integer NOT NULL,
    revision      bigint  NOT NULL
);
CREATE INDEX accounts_by_key ON accounts (account_key);
COMMENT ON TABLE accounts IS
    'Newest fact of each account as the book has it. House accounts are not in it. Source: '
    'registry (compacted: newest only, all accounts).';

CREATE TABLE tariff_versions (
    tariff_id       text    NOT NULL,
    version         integer NOT NULL,
    kind            text    NOT NULL,
    commodity       text    NOT NULL,
    currency        text    NOT NULL,
    legal_entity    text    NOT NULL,
    price_micro     bigint  NOT NULL,
    effective_at_ms bigint  NOT NULL,
    published_at_ms bigint  NOT NULL,
    book_epoch      integer NOT NULL,
    revision        bigint  NOT NULL,
    PRIMARY KEY (tariff_id, version)
);
COMMENT ON TABLE tariff_versions IS
    'Every version of every tariff. Source: ledger, tariff-published (kept for good: complete).';

CREATE TABLE policy_versions (
    policy_id           text    NOT NULL,
    version             integer NOT NULL,
    currency            text    NOT NULL,
    alarm_1_nano        bigint  NOT NULL,
    alarm_2_nano        bigint  NOT NULL,
    overdraft_nano      bigint  NOT NULL,
    restore_nano        bigint  NOT NULL,
    lease_ms            bigint  NOT NULL,
    max_evidence_age_ms bigint  NOT NULL,
    published_at_ms     bigint  NOT NULL,
    book_epoch          integer NOT NULL,
    revision            bigint  NOT NULL,
    PRIMARY KEY (policy_id, version)
);
COMMENT ON TABLE policy_versions IS
    'Every version of every policy of thresholds. Source: ledger, policy-published (kept for '
    'good: complete).';

CREATE TABLE charges (
    meter_key                   bigint  NOT NULL,
    epoch                       integer NOT NULL,
    sequence                    bigint  NOT NULL,
    account_key                 bigint  NOT NULL,
    account_sequence            bigint  NOT NULL,
    account_revision            bigint  NOT NULL,
    book_epoch                  integer NOT NULL,
    kind                        text    NOT NULL,
    from_reading_id             uuid,
    from_time_ms                bigint  NOT NULL,
    from_register_milli         bigint  NOT NULL,
    from_quality                text    NOT NULL,
    to_reading_id               uuid,
    to_time_ms                  bigint  NOT NULL,
    to_received_at_ms           bigint  NOT NULL,
    to_register_milli           bigint  NOT NULL,
    to_quality                  text    NOT NULL,
    ratio                       integer NOT NULL,
    energy_milli                bigint  NOT NULL,
    price_micro                 bigint  NOT NULL,
    amount_nano                 bigint  NOT NULL,
    meter_energy_total_milli    bigint  NOT NULL,
    account_charged_total_nano  bigint  NOT NULL,
    account_credited_total_nano bigint  NOT NULL,
    tariff_id                   text    NOT NULL,
    tariff_version              integer NOT NULL,
    policy_id                   text    NOT NULL,
    policy_version              integer NOT NULL,
    legal_entity                text    NOT NULL,
    currency                    text    NOT NULL,
    commodity                   text    NOT NULL,
    shard                       integer NOT NULL,
    log_offset                  bigint  NOT NULL,
    PRIMARY KEY (meter_key, epoch, sequence)
);
CREATE INDEX charges_of_account ON charges (account_key, to_time_ms);
CREATE INDEX charges_of_meter ON charges (meter_key, to_time_ms);
COMMENT ON TABLE charges IS
    'One row a charge, with both its readings (id null: the register came with an assignment), '
    'price, versions and the totals after it. account_revision -1: a house account. Source: '
    'charges (400 days).';

CREATE TABLE account_totals (
    account_key      bigint PRIMARY KEY,
    credited_nano    bigint NOT NULL,
    charged_nano     bigint NOT NULL,
    account_sequence bigint NOT NULL,
    log_offset       bigint NOT NULL,
    as_of_ms         bigint NOT NULL
);
COMMENT ON TABLE account_totals IS
    'Lifetime totals of each account as of its newest sequence. Source: charges (400 days) and '
    'balances (compacted: newest only, all accounts), whichever knows more.';

CREATE TABLE account_levels (
    account_id       text PRIMARY KEY,
    account_key      bigint  NOT NULL,
    shard            integer NOT NULL,
    site_id          text    NOT NULL,
    currency         text    NOT NULL,
    legal_entity     text    NOT NULL,
    commodity        text    NOT NULL,
    held_nano        bigint  NOT NULL,
    level            text    NOT NULL,
    frozen           boolean NOT NULL,
    account_revision bigint  NOT NULL,
    book_epoch       integer NOT NULL,
    as_of_ms         bigint  NOT NULL,
    log_offset       bigint  NOT NULL
);
CREATE INDEX account_levels_by_key ON account_levels (account_key);
COMMENT ON TABLE account_levels IS
    'Level, holds and book revision of each account. Source: balances (compacted: newest only, '
    'all accounts).';

CREATE TABLE alarms (
    alarm_id               uuid PRIMARY KEY,
    kind                   text    NOT NULL,
    reason                 text    NOT NULL,
    account_id             text    NOT NULL,
    site_id                text    NOT NULL,
    meter_id               text,
    available_nano         bigint  NOT NULL,
    threshold_nano         bigint,
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
    level_before           text    NOT NULL,
    level_after            text    NOT NULL,
    currency               text    NOT NULL,
    legal_entity           text    NOT NULL,
    commodity              text    NOT NULL,
    intent_epoch           integer,
    intent_offset          bigint,
    decided_at_ms          bigint  NOT NULL,
    log_offset             bigint  NOT NULL
);
CREATE INDEX alarms_newest ON alarms (decided_at_ms, alarm_id);
CREATE INDEX alarms_of_account ON alarms (account_id, decided_at_ms, alarm_id);
CREATE INDEX alarms_of_site ON alarms (site_id, decided_at_ms, alarm_id);
COMMENT ON TABLE alarms IS 'Every decision of metering with its cause. Source: alarms (400 days).';

CREATE TABLE relay_intents (
    meter_id               text PRIMARY KEY,
    meter_key              bigint  NOT NULL,
    line_id                text    NOT NULL,
    epoch                  integer NOT NULL,
    version_offset         bigint  NOT NULL,
    shard                  integer NOT NULL,
    wanted                 text    NOT NULL,
    mode                   text    NOT NULL,
    cause                  text    NOT NULL,
    send_before_ms         bigint,
    account_id             text    NOT NULL,
    site_id                text    NOT NULL,
    cause_meter_id         text,
    available_nano         bigint  NOT NULL,
    threshold_nano         bigint,
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
    decided_at_ms          bigint  NOT NULL
);
CREATE INDEX relay_intents_of_account ON relay_intents (account_id);
COMMENT ON TABLE relay_intents IS
    'The position metering wants each relay in, newest version. Source: relay-intents '
    '(compacted: newest only, all meters). What was wanted before: command_outcomes and alarms.';

CREATE TABLE relay_states (
    meter_id       text PRIMARY KEY,
    meter_key      bigint  NOT NULL,
    site_id        text    NOT NULL,
    line_id        text    NOT NULL,
    epoch          integer NOT NULL,
    position       text    NOT NULL,
    closed_mask    integer NOT NULL,
    began_at_ms    bigint  NOT NULL,
    received_at_ms bigint  NOT NULL,
    device_time_ms bigint,
    reported_by    text    NOT NULL,
    request_id     text,
    worker         text    NOT NULL,
    topic_offset   bigint  NOT NULL
);
COMMENT ON TABLE relay_states IS
    'What each device last reported of its relay. Source: relay-states (compacted: newest only,'
    ' all meters).';

CREATE TABLE command_outcomes (
    outcome_id            uuid PRIMARY KEY,
    meter_id              text    NOT NULL,
    site_id               text    NOT NULL,
    account_id            text    NOT NULL,
    line_id               text    NOT NULL,
    intent_epoch          integer NOT NULL,
    intent_offset         bigint  NOT NULL,
    wanted                text    NOT NULL,
    mode                  text    NOT NULL,
    cause                 text    NOT NULL,
    send_before_ms        bigint,
    intent_decided_at_ms  bigint  NOT NULL,
    attempt               integer NOT NULL,
    result                text    NOT NULL,
    detail                text    NOT NULL,
    request_id            text,
    commanded_at_ms       bigint,
    completed_at_ms       bigint,
    read_back_position    text,
    read_back_began_at_ms bigint,
    decided_at_ms         bigint  NOT NULL,
    worker                text    NOT NULL
);
CREATE INDEX command_outcomes_of_account ON command_outcomes (account_id, intent_offset);
CREATE INDEX command_outcomes_of_meter ON command_outcomes (meter_id, intent_epoch, intent_offset);
COMMENT ON TABLE command_outcomes IS
    'Every step of the delivery of every intent, with its read-back. Source: command-outcomes '
    '(400 days).';

CREATE TABLE device_status (
    device_id            text PRIMARY KEY,
    kind                 text   NOT NULL,
    site_id              text,
    line_id              text,
    status               text   NOT NULL,
    reason               text   NOT NULL,
    since_ms             bigint NOT NULL,
    last_seen_ms         bigint,
    quarantined_readings bigint NOT NULL,
    worker               text   NOT NULL,
    topic_offset         bigint NOT NULL
);
CREATE INDEX device_status_lost ON device_status (device_id) WHERE status <> 'online';
COMMENT ON TABLE device_status IS
    'What ingest sees of each device. Source: device-status (compacted: newest only, all '
    'devices).';

CREATE TABLE ledger (
    stream         text    NOT NULL,
    book_epoch     integer NOT NULL,
    revision       bigint  NOT NULL,
    store_position bigint  NOT NULL,
    event_id       uuid    NOT NULL,
    type           text    NOT NULL,
    data           jsonb   NOT NULL,
    occurred_at_ms bigint  NOT NULL,
    caller         text    NOT NULL,
    request_id     text    NOT NULL,
    PRIMARY KEY (stream, book_epoch, revision)
);
CREATE INDEX ledger_by_type ON ledger (type, occurred_at_ms);
COMMENT ON TABLE ledger IS
    'Every business event in the order of its stream; bytes in data are hexadecimal. Source: '
    'ledger (kept for good: complete).';

CREATE TABLE receipts (
    receipt_id    uuid PRIMARY KEY,
    account_id    text    NOT NULL,
    amount_minor  bigint  NOT NULL,
    amount_nano   bigint  NOT NULL,
    credited_nano bigint  NOT NULL,
    method        text    NOT NULL,
    currency      text    NOT NULL,
    legal_entity  text    NOT NULL,
    caller        text    NOT NULL,
    request_id    text    NOT NULL,
    sold_at_ms    bigint  NOT NULL,
    book_epoch    integer NOT NULL,
    revision      bigint  NOT NULL
);
CREATE INDEX receipts_of_account ON receipts (account_id, sold_at_ms);
COMMENT ON TABLE receipts IS
    'Every sale of credit. Source: ledger, credit-sold (kept for good: complete).';

-- Views: what people and dashboards ask for, with names instead of keys. -------------------------

CREATE VIEW account_balances AS
SELECT l.account_id, l.site_id, l.currency, l.legal_entity, l.commodity,
       t.credited_nano, t.charged_nano, l.held_nano,
       t.credited_nano::numeric - t.charged_nano - l.held_nano AS available_nano,
       l.level, l.frozen, t.account_sequence, l.account_revision, l.book_epoch,
       greatest(t.as_of_ms, l.as_of_ms) AS as_of_ms
FROM account_levels l
JOIN account_totals t ON t.account_key = l.account_key;
COMMENT ON VIEW account_balances IS
    'The balance of each account: totals as of account_sequence; level, holds and revision as '
    'last published.';

CREATE VIEW charge_lines AS
SELECT coalesce(m.meter_id, 'key:' || c.meter_key) AS meter_id,
       coalesce(a.account_id,
                CASE WHEN c.account_revision = -1 THEN 'house:' || m.meter_id END,
                'key:' || c.account_key) AS account_id,
       m.site_id, c.*
FROM charges c
LEFT JOIN meters m ON m.meter_key = c.meter_key
LEFT JOIN accounts a ON a.account_key = c.account_key;
COMMENT ON VIEW charge_lines IS 'Charges with the names of meter and account.';

CREATE VIEW meter_status AS
SELECT m.meter_id, m.serial, m.site_id, m.gateway_id, m.is_house,
       CASE WHEN m.is_house THEN '' ELSE m.account_id END AS account_id,
       coalesce(d.status, 'unknown') AS status, d.last_seen_ms,
       r.to_register_milli AS register_milli,
       i.wanted, s.position AS reported, s.began_at_ms AS reported_at_ms, l.level
FROM meters m
LEFT JOIN device_status d ON d.device_id = 'meters/' || m.meter_id
LEFT JOIN relay_intents i ON i.meter_id = m.meter_id
LEFT JOIN relay_states s ON s.meter_id = m.meter_id
LEFT JOIN account_levels l ON l.account_id = m.account_id
LEFT JOIN LATERAL (
    SELECT to_register_milli FROM charges c
    WHERE c.meter_key = m.meter_key
    ORDER BY c.epoch DESC, c.sequence DESC LIMIT 1
) r ON true;
COMMENT ON VIEW meter_status IS
    'Each meter: seen, charged up to, wanted and reported relay position, level of its account.';

CREATE VIEW lost_devices AS
SELECT d.device_id, d.kind, coalesce(d.site_id, m.site_id, g.site_id) AS site_id,
       d.status, d.reason, d.since_ms, d.last_seen_ms, d.quarantined_readings
FROM device_status d
LEFT JOIN meters m ON d.device_id = 'meters/' || m.meter_id
LEFT JOIN gateways g ON d.device_id = 'gateways/' || g.gateway_id
WHERE d.status <> 'online' AND d.reason <> 'registered';  -- that one is a meter's or gateway's now
COMMENT ON VIEW lost_devices IS 'Devices that do not answer, and devices nobody registered.';

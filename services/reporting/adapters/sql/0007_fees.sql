CREATE OR REPLACE VIEW charge_lines AS
SELECT CASE WHEN c.kind = 'fee' THEN ''
            ELSE coalesce(m.meter_id, 'key:' || c.meter_key) END AS meter_id,
       coalesce(a.account_id,
                CASE WHEN c.account_revision = -1 THEN 'house:' || m.meter_id END,
                'key:' || c.account_key) AS account_id,
       coalesce(m.site_id, a.site_id) AS site_id, c.*
FROM charges c
LEFT JOIN meters m ON m.meter_key = c.meter_key
LEFT JOIN accounts a ON a.account_key = c.account_key;
COMMENT ON VIEW charge_lines IS
    'Charges with the names of meter and account; fees are of an account and of no meter ('''').';
COMMENT ON TABLE price_lines IS
    'What a charge consists of, where one price does not tell it: energy and amounts by tariff '
    'version, rate and period (12 x year + month - 1, or year; 0 without ladder). basis: 1 the '
    'interval was split by time, 2 the meter''s registers of rates tell it, 4 its period was '
    'closed. rate fee-1: the plan''s first fee, for '
    'days / days_of of its periods from period on (a month, or a day after 1970-01-01). Source: '
    'charges (400 days).';

ALTER TABLE tariff_versions ADD COLUMN plan text;
COMMENT ON COLUMN tariff_versions.plan IS
    'JSON of rates, calendars, ladder, surcharges and taxes; null: the flat price_micro.';

CREATE TABLE price_lines (
    meter_key      bigint   NOT NULL,
    epoch          integer  NOT NULL,
    sequence       bigint   NOT NULL,
    line           integer  NOT NULL,
    version        integer  NOT NULL,
    rate           text     NOT NULL,
    basis          integer  NOT NULL,
    period         integer  NOT NULL,
    energy_milli   bigint   NOT NULL,
    total_milli    bigint   NOT NULL,
    rate_nano      bigint   NOT NULL,
    surcharge_nano bigint   NOT NULL,
    ladder_nano    bigint   NOT NULL,
    tax_nano       bigint   NOT NULL,
    base_milli     bigint   NOT NULL,
    days           integer  NOT NULL,
    days_of        integer  NOT NULL,
    PRIMARY KEY (meter_key, epoch, sequence, line)
);
COMMENT ON TABLE price_lines IS
    'What a charge consists of, where one price does not tell it: energy and amounts by tariff '
    'version, rate and period (12 x year + month - 1, or year; 0 without ladder). basis: 1 the '
    'interval was split by time, 2 the meter''s registers of rates tell it, 4 its period was '
    'closed. Source: charges (400 days).';

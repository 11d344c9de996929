CREATE TABLE chunks (
    export_id     text   NOT NULL,
    meter_id      text   NOT NULL,
    from_ms       bigint NOT NULL,
    to_ms         bigint NOT NULL,
    rows_count    bigint NOT NULL,
    size_bytes    bigint NOT NULL,
    sha256        bytea  NOT NULL,
    as_of_ms      bigint NOT NULL,
    written_at_ms bigint NOT NULL,
    content       bytea  NOT NULL,
    PRIMARY KEY (export_id, meter_id)
);
ALTER TABLE chunks ALTER COLUMN content SET STORAGE EXTERNAL;
COMMENT ON TABLE chunks IS
    'What was charged of a meter in [from, to), as lines of CSV in gzip, for a batch of kind export '
    '(export_id). Digest and size are those of the lines. as_of_ms: what was written to the log '
    'until then is in it. No read model: not made anew by a rebuild, removed by its age.';

CREATE TABLE site_places (
    site_id        text PRIMARY KEY,
    parent_site_id text,
    book_epoch     integer NOT NULL,
    revision       bigint  NOT NULL
);
CREATE INDEX site_places_of_parent ON site_places (parent_site_id, site_id);
COMMENT ON TABLE site_places IS
    'Within which other site a site lies, as it was placed last. Source: ledger, site-placed (kept '
    'for good: complete).';
CREATE INDEX accounts_by_site ON accounts (site_id, account_id);
CREATE INDEX meters_by_account ON meters (account_id);

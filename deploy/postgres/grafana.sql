-- The role that Grafana's data source connects as. It may read what reporting shows, and nothing
-- else. Run by psql, as one who may create roles, in the database of the read models; again changes
-- nothing. Its password comes from the environment: GRAFANA_POSTGRES_PASSWORD. The role that
-- reporting connects as is `reporting`; another one is named with `--set owner=<role>`.
--
-- The privileges are default privileges of that role: a rebuild makes the tables in a new schema
-- and swaps it in, and what was granted on the old one would be gone. Exports of readings stand in a
-- schema beside them, which takes these privileges back when it is made: they are for who downloads.
\set ON_ERROR_STOP on
\if :{?owner} \else \set owner reporting \endif
\getenv password GRAFANA_POSTGRES_PASSWORD
BEGIN;

SELECT 'CREATE ROLE grafana' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'grafana') \gexec
ALTER ROLE grafana LOGIN PASSWORD :'password' CONNECTION LIMIT 10;
ALTER ROLE grafana SET default_transaction_read_only = on;
ALTER ROLE grafana SET statement_timeout = '30s';

ALTER DEFAULT PRIVILEGES FOR ROLE :"owner" GRANT USAGE ON SCHEMAS TO grafana;
ALTER DEFAULT PRIVILEGES FOR ROLE :"owner" GRANT SELECT ON TABLES TO grafana;

-- What is there already.
SELECT format('GRANT USAGE ON SCHEMA %I TO grafana; GRANT SELECT ON ALL TABLES IN SCHEMA %I TO grafana',
              nspname, nspname)
FROM pg_namespace
WHERE nspowner = :'owner'::regrole AND nspname !~ '^(pg_|information_schema$)|_exports$' \gexec

COMMIT;

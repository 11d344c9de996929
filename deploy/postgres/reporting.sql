-- The role that reporting connects as: it owns the database of the read models and is nothing
-- beyond it. Run by psql, as one who may create roles, in that database; again changes nothing.
-- Its password comes from the environment: REPORTING_POSTGRES_PASSWORD.
\set ON_ERROR_STOP on
\getenv password REPORTING_POSTGRES_PASSWORD
BEGIN;

SELECT 'CREATE ROLE reporting' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'reporting') \gexec
ALTER ROLE reporting LOGIN PASSWORD :'password';
ALTER DATABASE :"DBNAME" OWNER TO reporting;

COMMIT;

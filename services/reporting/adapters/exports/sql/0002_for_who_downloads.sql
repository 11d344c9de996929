-- Roles that read what reporting shows have its schemas by default privileges (Grafana's, say). Not
-- this one: an export is read by who may download it. Whatever is granted later stays.
DO $$
DECLARE
    reader text;
BEGIN
    FOR reader IN
        SELECT DISTINCT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END
        FROM pg_namespace AS n, aclexplode(n.nspacl) AS a
        WHERE n.nspname = current_schema() AND a.grantee NOT IN (n.nspowner, current_user::regrole)
    LOOP
        EXECUTE format('REVOKE ALL ON ALL TABLES IN SCHEMA %I FROM %s', current_schema(), reader);
        EXECUTE format('REVOKE ALL ON SCHEMA %I FROM %s', current_schema(), reader);
    END LOOP;
END $$;

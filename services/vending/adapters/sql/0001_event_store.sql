-- The event store: rows are only ever added. There is no counter: a position is the primary key and
-- one more than the last committed one, so of two transactions that would take the same the second
-- waits for the first, and fails where that commits. So positions are dense, in the order of commits,
-- and no reader sees a hole that is filled later.
CREATE TABLE stream (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text COLLATE "C" NOT NULL UNIQUE
);

CREATE TABLE event (
    position bigint PRIMARY KEY,
    stream bigint NOT NULL,
    revision bigint NOT NULL CHECK (revision >= 0),
    id uuid NOT NULL CONSTRAINT event_id UNIQUE,
    type text NOT NULL,
    meta bytea NOT NULL,
    data bytea NOT NULL,
    UNIQUE (stream, revision)
);

CREATE FUNCTION append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'append only' USING ERRCODE = 'restrict_violation';
END;
$$;

CREATE TRIGGER event_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON event
    FOR EACH STATEMENT EXECUTE FUNCTION append_only();
CREATE TRIGGER stream_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON stream
    FOR EACH STATEMENT EXECUTE FUNCTION append_only();

-- Appends to several streams at once: all of them, or none where one of the streams
-- or the store is not where the caller thought. `base`: the last position; names and expected: of a
-- stream each; the rest: of an event each, `nth` the stream that it belongs to, from 1.
CREATE FUNCTION append(
    base bigint, names text[], expected bigint[],
    nths integer[], revisions bigint[], ids uuid[], types text[], metas bytea[], datas bytea[],
    OUT stored boolean, OUT head bigint, OUT actual bigint[]
) LANGUAGE plpgsql AS $$
DECLARE
    streams bigint[];
BEGIN
    SELECT coalesce(max(e.position), 0) INTO head FROM event e;
    SELECT array_agg(s.id ORDER BY a.n), array_agg(coalesce(last.revision, -1) ORDER BY a.n)
        INTO streams, actual
        FROM unnest(names) WITH ORDINALITY a(name, n)
        LEFT JOIN stream s ON s.name = a.name
        LEFT JOIN LATERAL (
            SELECT e.revision FROM event e WHERE e.stream = s.id ORDER BY e.revision DESC LIMIT 1
        ) last ON true;
    stored := head = base AND actual = expected;
    IF NOT stored THEN
        RETURN;
    END IF;
    IF array_position(streams, NULL) IS NOT NULL THEN
        INSERT INTO stream(name)
            SELECT a.name FROM unnest(names, streams) a(name, id) WHERE a.id IS NULL;
        SELECT array_agg(s.id ORDER BY a.n) INTO streams
            FROM unnest(names) WITH ORDINALITY a(name, n) JOIN stream s ON s.name = a.name;
    END IF;
    INSERT INTO event(position, stream, revision, id, type, meta, data)
        SELECT base + e.n, streams[e.nth], e.revision, e.id, e.type, e.meta, e.data
        FROM unnest(nths, revisions, ids, types, metas, datas)
            WITH ORDINALITY e(nth, revision, id, type, meta, data, n);
END;
$$;

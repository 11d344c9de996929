"""A double of EventStoreDB and KurrentDB on the wire: what the client says, answered by the rules.

It speaks the protocol that `kurrentdbclient` ships (Streams: BatchAppend, Read; Gossip: Read), with
TLS and basic authentication, behind a wire that can be cut. The rules are those of the server's
published source (EventStoreDB 24.x): the check of an append with its idempotency is IndexWriter's
CheckCommit, answers and refusals those of the gRPC service Streams, the end of a server whose disk
is full is StorageWriterService's. What only a real server can prove, tests/integration asks one.
"""

import asyncio
import base64
import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from operator import attrgetter
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import grpc
import trustme
from google.protobuf import any_pb2, empty_pb2
from kurrentdbclient.protos.v1 import (
    gossip_pb2,
    gossip_pb2_grpc,
    shared_pb2,
    status_pb2,
    streams_pb2,
    streams_pb2_grpc,
)

USER = "wattvend"
PASSWORD = "s3cret-of-the-store"
NO_STREAM = -1
MAX_APPEND_BYTES = 1 << 20
"""The server's default MaxAppendSize."""
RECORD_BYTES = 76
"""What a record of the log takes beside its texts: positions are not dense."""
APPENDS_PER_STATISTICS = 7
LATE_S = 0.3

ReadResp = streams_pb2.ReadResp
Event = tuple[UUID, str, str, bytes, bytes]
"""Id, type, content type, data, meta."""


class Fault(Enum):
    """What befalls the next append."""

    LOST_BEFORE = auto()  # the connection breaks, nothing is stored
    LOST_AFTER = auto()  # it is stored, then the connection breaks
    LATE = auto()  # the connection breaks, and it is stored a moment later
    SILENT = auto()  # it is stored, and no answer ever comes
    TIMEOUT = auto()  # the server gave up on it, and says so
    BUSY = auto()  # the server does not take it up
    NOT_READY = auto()  # the server is starting
    NOT_LEADER = auto()  # another node is the leader
    DISK_FULL = auto()  # the server's process ends


@dataclass(frozen=True, slots=True)
class Record:
    """An event in the log."""

    position: int
    stream: str
    revision: int
    id: UUID
    type: str
    content_type: str
    data: bytes
    meta: bytes

    def message(self) -> Any:
        """Return it as the server tells it."""
        recorded = ReadResp.ReadEvent.RecordedEvent(
            id=shared_pb2.UUID(string=str(self.id)),
            stream_identifier=shared_pb2.StreamIdentifier(stream_name=self.stream.encode()),
            stream_revision=self.revision,
            prepare_position=self.position,
            commit_position=self.position,
            metadata={
                "type": self.type,
                "content-type": self.content_type,
                "created": "17646624000000000",
            },
            custom_metadata=self.meta,
            data=self.data,
        )
        return ReadResp(event=ReadResp.ReadEvent(event=recorded, commit_position=self.position))


@dataclass
class Log:
    """What the server keeps: it outlives its process."""

    records: list[Record] = field(default_factory=list)
    streams: defaultdict[str, list[Record]] = field(default_factory=lambda: defaultdict(list))
    end: int = 4096
    moved: asyncio.Event = field(default_factory=asyncio.Event)

    def write(self, stream: str, events: Sequence[Event]) -> list[Record]:
        """Write events to the end of a stream, in one transaction."""
        written = []
        for id_, type_, content_type, data, meta in events:
            revision = len(self.streams[stream])
            record = Record(self.end, stream, revision, id_, type_, content_type, data, meta)
            self.end += RECORD_BYTES + len(stream) + len(type_) + len(data) + len(meta)
            self.records.append(record)
            self.streams[stream].append(record)
            written.append(record)
        moved, self.moved = self.moved, asyncio.Event()
        moved.set()
        return written

    def at_and_above(self, position: int) -> list[Record]:
        """Return the records at a position and those that came after."""
        return self.records[bisect_left(self.records, position, key=attrgetter("position")) :]

    def write_of_its_own(self) -> None:
        """Write what a server writes for itself: statistics, a link of a projection."""
        for stream, type_ in (("$stats-127.0.0.1:2113", "$statsCollected"), ("$ce-wattvend", "$>")):
            self.write(stream, [(uuid4(), type_, "application/json", b"{}", b"")])

    def restore(self, records: Sequence[Record], end: int) -> None:
        """Be what it was at an earlier point."""
        self.records, self.end = list(records), end
        self.streams.clear()
        for record in records:
            self.streams[record.stream].append(record)

    def repeated(self, stream: str, expected: int, ids: Sequence[UUID]) -> list[Record] | None:
        """Return the records of this very append, where it was made before (CheckCommit)."""
        there = self.streams[stream][expected + 1 : expected + 1 + len(ids)]
        return there if [record.id for record in there] == list(ids) else None


class Wire:
    """A TCP proxy before the server: it can be cut, and stay cut."""

    def __init__(self) -> None:
        self.away = False
        self._open: set[asyncio.StreamWriter] = set()

    @asynccontextmanager
    async def before(self, port: int) -> AsyncIterator[int]:
        """Lead to a port; yield the port to connect to."""
        self._port = port
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            self.cut()

    def cut(self) -> None:
        """Reset every connection."""
        for writer in self._open:
            writer.transport.abort()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.away:
            writer.transport.abort()
            return
        onward, back = await asyncio.open_connection("127.0.0.1", self._port)
        mine = {writer, back}
        self._open |= mine
        try:
            await asyncio.gather(_copy(reader, back), _copy(onward, writer))
        finally:
            self._open -= mine
            for each in mine:
                each.transport.abort()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.transport.abort()


class KurrentServer:
    """The server and what may befall it. `next_faults` befall the next appends, one each."""

    def __init__(self) -> None:
        self.log = Log()
        self.log.write_of_its_own()
        self.wire = Wire()
        self.next_faults: list[Fault] = []
        self.muted = False
        self.appends = 0
        self.told = 0
        self.port = 0
        self.late: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def running(self, directory: Path) -> AsyncIterator[str]:
        """Serve with TLS; yield the connection string, with its authority in `directory`."""
        authority = trustme.CA()
        certificate = authority.issue_cert("127.0.0.1")
        authority.cert_pem.write_to_path(directory / "kurrent-ca.pem")
        server = grpc.aio.server()
        streams_pb2_grpc.add_StreamsServicer_to_server(_Streams(self), server)
        gossip_pb2_grpc.add_GossipServicer_to_server(_Gossip(self), server)
        chain = b"".join(pem.bytes() for pem in certificate.cert_chain_pems)
        key = certificate.private_key_pem.bytes()
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, chain)]))
        await server.start()
        try:
            async with self.wire.before(port) as self.port:
                yield (
                    f"kurrentdb://{USER}:{PASSWORD}@127.0.0.1:{self.port}/wattvend"
                    f"?tlsCaFile={directory / 'kurrent-ca.pem'}"
                )
        finally:
            await server.stop(None)
            await asyncio.gather(*self.late)

    def die(self) -> None:
        """End as a process does: its connections break, and nobody listens."""
        self.wire.away = True
        self.wire.cut()

    def restart(self) -> None:
        """Begin again: the log is as it was."""
        self.wire.away = False

    def store(self, stream: str, events: Sequence[Event]) -> list[Record]:
        """Store an append, among what the server writes for itself."""
        written = self.log.write(stream, events)
        if self.appends % APPENDS_PER_STATISTICS == 0:
            self.log.write_of_its_own()
        self.appends += 1
        return written


async def _check_caller(context: Any) -> None:
    """Refuse whoever has not the password."""
    told = dict(context.invocation_metadata() or ()).get("authorization", b"")
    told = told if isinstance(told, bytes) else told.encode()
    if told != b"Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()):
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, "")


class _Gossip(gossip_pb2_grpc.GossipServicer):
    def __init__(self, server: KurrentServer) -> None:
        self._server = server

    async def Read(self, _: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        await _check_caller(context)
        leader = gossip_pb2.MemberInfo(
            instance_id=shared_pb2.UUID(string=str(UUID(int=1))),
            state=gossip_pb2.MemberInfo.Leader,
            is_alive=True,
            http_end_point=gossip_pb2.EndPoint(address="127.0.0.1", port=self._server.port),
        )
        return gossip_pb2.ClusterInfo(members=[leader])


class _Streams(streams_pb2_grpc.StreamsServicer):
    def __init__(self, server: KurrentServer) -> None:
        self._server = server

    # --- appends ----------------------------------------------------------------------------------

    async def BatchAppend(self, requests: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        await _check_caller(context)
        async for request in requests:
            answer = await self._append(request, context)
            if answer is not None:
                answer.correlation_id.CopyFrom(request.correlation_id)
                answer.stream_identifier.CopyFrom(request.options.stream_identifier)
                yield answer

    async def _append(self, request: Any, context: Any) -> Any:
        assert request.is_final, "the client sends an append whole"
        assert request.options.HasField("deadline"), "the client says how long it waits"
        server = self._server
        fault = server.next_faults.pop(0) if server.next_faults else None
        if fault in _REFUSALS:
            return await _REFUSALS[fault](server, context)
        if fault is Fault.LATE:
            server.late.add(asyncio.create_task(self._later(request)))
        if fault in (Fault.LOST_BEFORE, Fault.LATE):
            server.wire.cut()
            return None
        answer = self._stored(request)
        if fault is Fault.LOST_AFTER:
            server.wire.cut()
            return None
        if fault is Fault.SILENT:
            await asyncio.Event().wait()
        return answer

    async def _later(self, request: Any) -> None:
        await asyncio.sleep(LATE_S)
        self._stored(request)

    def _stored(self, request: Any) -> Any:
        """Store an append where CheckCommit lets it, and answer."""
        stream = request.options.stream_identifier.stream_name.decode()
        log = self._server.log
        events = [_event(message) for message in request.proposed_messages]
        size = sum(2 * len(type_) + len(data) + len(meta) for _, type_, _, data, meta in events)
        if size > MAX_APPEND_BYTES:
            return _refused(shared_pb2.MaximumAppendSizeExceeded(maxAppendSize=MAX_APPEND_BYTES))
        expected = _expected(request.options)
        actual = len(log.streams[stream]) - 1
        if expected == actual:
            written = self._server.store(stream, events)
        elif repeated := log.repeated(stream, expected, [event[0] for event in events]):
            written = repeated
        else:
            return _refused(_wrong_version(expected, actual))
        last = written[-1]
        position = shared_pb2.AllStreamPosition(
            commit_position=last.position, prepare_position=last.position
        )
        return streams_pb2.BatchAppendResp(
            success=streams_pb2.BatchAppendResp.Success(
                current_revision=last.revision, position=position
            )
        )

    # --- reads ------------------------------------------------------------------------------------

    async def Read(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        await _check_caller(context)
        options = request.options
        if options.WhichOneof("count_option") == "subscription":
            async for response in self._subscription(options, context):
                yield response
            return
        if options.WhichOneof("stream_option") == "stream":
            name = options.stream.stream_identifier.stream_name.decode()
            records = self._server.log.streams.get(name, [])
            if not records:
                yield ReadResp(
                    stream_not_found=ReadResp.StreamNotFound(
                        stream_identifier=options.stream.stream_identifier
                    )
                )
                return
            begin = options.stream.revision if options.stream.HasField("revision") else 0
            found = records[begin:]
        else:
            found = await self._all(options, context)
        if options.read_direction == streams_pb2.ReadReq.Options.Backwards:
            found = found[::-1]
        passes = _filter(options)
        for record in [record for record in found if passes(record)][: options.count]:
            self._server.told += 1
            yield record.message()

    async def _all(self, options: Any, context: Any) -> list[Record]:
        """Return the log from a position on, the record there with it."""
        log = self._server.log
        if options.all.WhichOneof("all_option") != "position":
            return log.records[:]
        position = options.all.position.commit_position
        found = log.at_and_above(position)
        if found and found[0].position != position:
            await context.abort(
                grpc.StatusCode.UNKNOWN, "Unexpected FilteredReadAllResult: InvalidPosition"
            )
        return found

    async def _subscription(self, options: Any, context: Any) -> Any:
        """Yield what is above a position, then that it is caught up, then what comes."""
        assert options.WhichOneof("stream_option") == "all", "vending subscribes to all"
        log = self._server.log
        after = await self._after(options, context)
        yield ReadResp(confirmation=ReadResp.SubscriptionConfirmation(subscription_id=str(uuid4())))
        passes = _filter(options)
        window = options.filter.max * options.filter.checkpointIntervalMultiplier
        told, searched, is_caught_up = after, 0, False
        while True:
            moved = log.moved
            for record in log.at_and_above(told + 1):
                told = record.position
                searched += 1
                if passes(record) and not self._server.muted:
                    yield record.message()
                if window and searched % window == 0:
                    yield ReadResp(
                        checkpoint=ReadResp.Checkpoint(commit_position=told, prepare_position=told)
                    )
            if not is_caught_up:
                is_caught_up = True
                yield ReadResp(caught_up=ReadResp.CaughtUp())
            await moved.wait()

    async def _after(self, options: Any, context: Any) -> int:
        if options.all.WhichOneof("all_option") == "end":
            return self._server.log.end - 1
        if options.all.WhichOneof("all_option") == "start":
            return 0
        await self._all(options, context)
        return int(options.all.position.commit_position)


def _event(message: Any) -> Event:
    return (
        UUID(message.id.string),
        message.metadata["type"],
        message.metadata["content-type"],
        message.data,
        message.custom_metadata,
    )


def _expected(options: Any) -> int:
    """Return the revision at which an append is to be; vending always says one."""
    said = options.WhichOneof("expected_stream_position")
    assert said in ("stream_position", "no_stream"), f"an exact revision, not {said}"
    return int(options.stream_position) if said == "stream_position" else NO_STREAM


def _wrong_version(expected: int, actual: int) -> Any:
    wrong = shared_pb2.WrongExpectedVersion()
    if actual == NO_STREAM:
        wrong.current_no_stream.CopyFrom(empty_pb2.Empty())
    else:
        wrong.current_stream_revision = actual
    if expected == NO_STREAM:
        wrong.expected_no_stream.CopyFrom(empty_pb2.Empty())
    else:
        wrong.expected_stream_position = expected
    return wrong


def _refused(detail: Any, message: str = "") -> Any:
    details = any_pb2.Any()
    details.Pack(detail)
    return streams_pb2.BatchAppendResp(error=status_pb2.Status(message=message, details=details))


async def _time_out(_: KurrentServer, __: Any) -> Any:
    return _refused(shared_pb2.Timeout())


async def _be_busy(_: KurrentServer, __: Any) -> Any:
    return _refused(empty_pb2.Empty(), "Server Is Busy")


async def _not_be_ready(_: KurrentServer, context: Any) -> Any:
    await context.abort(grpc.StatusCode.UNAVAILABLE, "Server Is Not Ready")


async def _follow(server: KurrentServer, context: Any) -> Any:
    assert dict(context.invocation_metadata())["requires-leader"] == "true"
    trailers = (
        ("exception", "not-leader"),
        ("leader-endpoint-host", "127.0.0.1"),
        ("leader-endpoint-port", str(server.port)),
    )
    await context.abort(grpc.StatusCode.NOT_FOUND, "Leader info available", trailers)


async def _die(server: KurrentServer, _: Any) -> Any:
    server.die()


_REFUSALS: dict[Fault | None, Callable[[KurrentServer, Any], Awaitable[Any]]] = {
    Fault.TIMEOUT: _time_out,
    Fault.BUSY: _be_busy,
    Fault.NOT_READY: _not_be_ready,
    Fault.NOT_LEADER: _follow,
    Fault.DISK_FULL: _die,
}


def _filter(options: Any) -> Callable[[Record], bool]:
    """Return whether a record passes the filter that the client sent."""
    if options.WhichOneof("filter_option") != "filter":
        return lambda _: True
    by_stream = options.filter.WhichOneof("filter") == "stream_identifier"
    expression = options.filter.stream_identifier if by_stream else options.filter.event_type
    prefixes = tuple(expression.prefix)
    pattern = re.compile(expression.regex)

    def passes(record: Record) -> bool:
        text = record.stream if by_stream else record.type
        return text.startswith(prefixes) if prefixes else pattern.search(text) is not None

    return passes

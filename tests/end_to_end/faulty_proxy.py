"""A loopback HTTP proxy that spoils what passes through it: lost answers, injected errors, and callers that die.

It stands between worker processes and the servers that play AWS, one listening port for each worker and server. What it
does to a request is decided by a random generator for each worker, seeded, so that the same seed spoils the same
requests in the same ways. Knows HTTP and DynamoDB's error bodies; knows nothing of the worker.
"""

import asyncio
import json
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any
from urllib.parse import urlsplit


class Fault(StrEnum):
    """What can happen to a request."""

    REQUEST_LOST = "request lost"
    ANSWER_LOST = "answer lost"
    DELAYED = "request delayed past its timeout"
    SLOW = "answer slow"
    CONFLICT = "TransactionConflict"
    THROTTLED = "throttled"
    SERVER_ERROR = "InternalServerError"
    REFUSED = "ValidationError"
    KILLED_BEFORE = "killed before the request"
    KILLED_AFTER = "killed after the request"
    KILLED_LATER = "killed a moment after the answer"


# Of all requests, how many meet which fault. An invocation makes dozens: few may kill, or none would come to its end.
RATES: Mapping[Fault, float] = {
    Fault.REQUEST_LOST: 0.02,
    Fault.ANSWER_LOST: 0.03,
    Fault.DELAYED: 0.02,
    Fault.SLOW: 0.02,
    Fault.CONFLICT: 0.05,
    Fault.THROTTLED: 0.02,
    Fault.SERVER_ERROR: 0.02,
    Fault.REFUSED: 0.003,
    Fault.KILLED_BEFORE: 0.0015,
    Fault.KILLED_AFTER: 0.002,
    Fault.KILLED_LATER: 0.0015,
}
# Faults in which the server does not see the request, or not yet.
_NEVER_ARRIVES = frozenset(
    (Fault.REQUEST_LOST, Fault.DELAYED, Fault.THROTTLED, Fault.CONFLICT, Fault.REFUSED, Fault.KILLED_BEFORE)
)
# Faults that only a write to DynamoDB can meet; the answer to a transaction names its actions.
_WRITES_ONLY = frozenset((Fault.CONFLICT, Fault.REFUSED))
_WRITES = frozenset(("UpdateItem", "TransactWriteItems"))
# The calls on which totals depend; what a worker reads when it starts is left alone.
_SPOILT = _WRITES | {"BatchGetItem", "Query", "SendMessageBatch"}
_ALONE = {Fault.CONFLICT: "TransactionConflictException", Fault.REFUSED: "ValidationException"}

Kill = Callable[[int], None]
"""Kills the worker with this number."""


@dataclass(frozen=True, slots=True)
class _Message:
    """An HTTP request or response as it came."""

    head: bytes
    body: bytes

    @property
    def raw(self) -> bytes:
        return self.head + self.body

    @property
    def operation(self) -> str:
        """The name of the API call."""
        return self.header("x-amz-target").rpartition(".")[2]

    def header(self, name: str) -> str:
        """A header's value, or nothing."""
        for line in self.head.split(b"\r\n")[1:]:
            found, _, value = line.partition(b":")
            if found.strip().lower() == name.encode():
                return value.strip().decode("latin-1")
        return ""


@dataclass(slots=True)
class FaultyProxy:
    """The proxy; `running` starts it in a thread of its own.

    Attributes:
        seed: decides about every request, together with the number of the worker and of the request.
        kill: called for the faults that kill.
        fault_factor: how much more often than `RATES` says a request meets a fault.
        injected: how often each fault was injected.
        requests: how many requests came through.
        kind_of: what a request, its operation and body, counts as in `taken`; empty: not at all.
        taken: how many requests of each kind a server has carried out.
        calm: when set, nothing is spoilt any more.
    """

    seed: int
    kill: Kill
    fault_factor: float = 1.0
    injected: Counter[Fault] = field(default_factory=Counter)
    requests: int = 0
    kind_of: Callable[[str, bytes], str] = lambda operation, body: ""
    taken: Counter[str] = field(default_factory=Counter)
    calm: bool = False
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    _chances: dict[int, random.Random] = field(default_factory=dict)
    _later: set[asyncio.Task[None]] = field(default_factory=set)
    _serving: set[asyncio.Task[None]] = field(default_factory=set)
    _servers: list[asyncio.Server] = field(default_factory=list)

    @contextmanager
    def running(self) -> "Iterator[FaultyProxy]":
        """Runs the proxy until the end of the block."""
        thread = threading.Thread(target=self._loop.run_forever, name="faulty-proxy", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join()
            self._loop.close()

    def url(self, worker: int, upstream: str) -> str:
        """Listens for one worker's requests to one server; returns the URL that the worker is to use."""
        return asyncio.run_coroutine_threadsafe(self._listen(worker, upstream), self._loop).result()

    async def _listen(self, worker: int, upstream: str) -> str:
        parts = urlsplit(upstream)
        self._chances.setdefault(worker, random.Random(f"{self.seed}/worker/{worker}"))

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connection = _Upstream(str(parts.hostname), int(parts.port or 80))
            try:
                with suppress(OSError, asyncio.IncompleteReadError):
                    while await self._pass_on(worker, reader, writer, connection):
                        pass
            finally:
                connection.close()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            # Closed by a callback, which runs even if the task is cancelled before it has begun.
            task = self._loop.create_task(serve(reader, writer))
            self._serving.add(task)  # the loop alone would not keep it
            task.add_done_callback(lambda _: writer.transport.abort())
            task.add_done_callback(self._serving.discard)

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        self._servers.append(server)
        return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def _stop(self) -> None:
        for server in self._servers:
            server.close()
        await asyncio.sleep(0.01)  # what was accepted a moment ago has its task then
        current = asyncio.current_task()
        others = [task for task in asyncio.all_tasks() if task is not current]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(0.01)  # closed transports are done with a moment later

    async def _pass_on(
        self, worker: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, upstream: "_Upstream"
    ) -> bool:
        """One request and its answer; says whether the connection goes on."""
        request = await _read(reader)
        self.requests += 1
        chance = self._chances[worker]
        fault = self._decide(chance, request)
        answer: bytes | None = None
        if fault not in _NEVER_ARRIVES and (fault is not Fault.SERVER_ERROR or chance.random() < 0.5):
            answer = await self._send(upstream, request)
        match fault:
            case Fault.SLOW:
                await asyncio.sleep(chance.uniform(0.05, 0.3))
            case Fault.ANSWER_LOST:
                answer = None
            case Fault.DELAYED:
                self._send_later(upstream.another(), request, chance.uniform(0.05, 0.6))
            case Fault.SERVER_ERROR:
                answer = _error(500, "InternalServerError")
            case Fault.THROTTLED:
                answer = _error(400, "ThrottlingException")
            case Fault.CONFLICT | Fault.REFUSED:
                answer = _cancelled(request, fault, chance)
            case Fault.KILLED_BEFORE | Fault.KILLED_AFTER:
                self.kill(worker)
                answer = None
            case Fault.KILLED_LATER:
                self._loop.call_later(chance.uniform(0, 0.02), self.kill, worker)
        if answer is None:
            return False
        writer.write(answer)
        await writer.drain()
        return True

    async def _send(self, upstream: "_Upstream", request: _Message) -> bytes:
        answer = (await upstream.send(request)).raw
        if answer.startswith(b"HTTP/1.1 200") and (kind := self.kind_of(request.operation, request.body)):
            self.taken[kind] += 1
        return answer

    def _decide(self, chance: random.Random, request: _Message) -> Fault | None:
        if self.calm or request.operation not in _SPOILT:
            return None
        draw = chance.random()
        for fault, rate in RATES.items():
            draw -= rate * self.fault_factor
            if draw < 0:
                if fault in _WRITES_ONLY and request.operation not in _WRITES:
                    return None
                self.injected[fault] += 1
                return fault
        return None

    def _send_later(self, upstream: "_Upstream", request: _Message, seconds: float) -> None:
        async def send() -> None:
            await asyncio.sleep(seconds)
            try:
                with suppress(OSError, asyncio.IncompleteReadError):
                    await self._send(upstream, request)
            finally:
                upstream.close()

        task = self._loop.create_task(send())
        self._later.add(task)
        task.add_done_callback(self._later.discard)

    def settled(self) -> None:
        """Waits until every delayed request has arrived."""

        async def gather() -> None:
            await asyncio.gather(*self._later)

        asyncio.run_coroutine_threadsafe(gather(), self._loop).result()


class _Upstream:
    """A connection to a server, opened when it is first needed."""

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    def another(self) -> "_Upstream":
        """A connection of its own to the same server."""
        return _Upstream(*self._address)

    async def send(self, request: _Message) -> _Message:
        """Sends a request; returns its answer."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(*self._address)
        reader, writer = self._streams
        writer.write(request.raw)
        await writer.drain()
        return await _read(reader)

    def close(self) -> None:
        """Closes the connection."""
        if self._streams is not None:
            self._streams[1].close()


async def _read(reader: asyncio.StreamReader) -> _Message:
    head = await reader.readuntil(b"\r\n\r\n")
    message = _Message(head, b"")
    if message.header("transfer-encoding").lower() == "chunked":
        return _Message(head, await _chunks(reader))
    length = int(message.header("content-length") or 0)
    return _Message(head, await reader.readexactly(length))


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    """A chunked body, as it came."""
    body = b""
    while True:
        line = await reader.readuntil(b"\r\n")
        size = int(line.partition(b";")[0], 16)
        body += line + await reader.readexactly(size + 2)
        if size == 0:
            return body


def _error(status: int, code: str, **more: Any) -> bytes:
    body = json.dumps({"__type": f"com.amazonaws.dynamodb.v20120810#{code}", "Message": "injected", **more}).encode()
    return (
        f"HTTP/1.1 {status} Injected\r\nContent-Type: application/x-amz-json-1.0\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body


def _cancelled(request: _Message, fault: Fault, chance: random.Random) -> bytes:
    """A cancelled transaction: some of its actions for this fault, the others for no reason of their own."""
    if request.operation == "UpdateItem":
        return _error(400, _ALONE[fault])
    actions: Sequence[Any] = json.loads(request.body)["TransactItems"]
    chosen = {chance.randrange(len(actions)) for _ in range(chance.randint(1, 3))}
    reasons = [
        {"Code": fault.value, "Message": "injected"} if index in chosen else {"Code": "None"}
        for index in range(len(actions))
    ]
    return _error(400, "TransactionCanceledException", CancellationReasons=reasons)

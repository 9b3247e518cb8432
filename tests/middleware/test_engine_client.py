"""The client of engines over real sockets: what they may do to an answer."""

from __future__ import annotations

import asyncio
import datetime
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from paceline.errors import ConfigError
from paceline.middleware.config import make_config
from paceline.middleware.engine_client import (
    KEEP_SECONDS,
    MAX_HEAD_BYTES,
    MAX_WAITING_BYTES,
    UNUSED_SECONDS,
    Connections,
    HttpUpstream,
)
from paceline.middleware.engine_request import Origin, request_head
from paceline.middleware.upstream import UpstreamError

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
WHOLE = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"
STREAM = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
SILENCE_SECONDS = 0.3


def run(work: Coroutine[Any, Any, None]) -> None:
    """On the loop that serves the proxy."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work)


class Engine:
    """A server whose answers are written by `answer`, one request after the other.

    Attributes:
        heads: of the requests that came.
        num_connections: that were made to it.
        num_closed: of these, how many have ended.
        reads_bodies: whether it reads a request to its end before it answers.
        refuse: take no further connections.
    """

    refuse: Callable[[], None]

    def __init__(self, answer: Script, *, reads_bodies: bool = True) -> None:
        self.heads: list[bytes] = []
        self.num_connections = 0
        self.num_closed = 0
        self.reads_bodies = reads_bodies
        self._answer = answer

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.heads.append(head)
                length = head.partition(b"content-length: ")[2].partition(b"\r\n")[0]
                if self.reads_bodies:
                    await reader.readexactly(int(length or 0))
                await self._answer(reader, writer)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()
            with suppress(ConnectionError, ssl.SSLError):
                await writer.wait_closed()
            self.num_closed += 1


@asynccontextmanager
async def serving(
    answer: Script,
    *,
    silence_seconds: float = 20.0,
    unused_seconds: float = UNUSED_SECONDS,
    reads_bodies: bool = True,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[tuple[HttpUpstream, Engine]]:
    """An engine on a real socket, and the way to it."""
    engine = Engine(answer, reads_bodies=reads_bodies)
    server = await asyncio.start_server(engine.connected, "127.0.0.1", 0, ssl=tls, limit=1 << 16)
    engine.refuse = server.close
    connections = Connections(connect_timeout_seconds=20.0, unused_seconds=unused_seconds)
    port = server.sockets[0].getsockname()[1]
    url = f"http://127.0.0.1:{port}" if tls is None else f"https://localhost:{port}"
    try:
        yield HttpUpstream(connections, url, read_timeout_seconds=silence_seconds), engine
    finally:
        await connections.close()
        server.close()
        await until(lambda: engine.num_closed == engine.num_connections)


async def until(holds: Callable[[], object]) -> None:
    """Wait for what an engine sees of us."""
    while not holds():  # noqa: ASYNC110  it is the other side's, and does not signal
        await asyncio.sleep(0.001)


def writing(*parts: bytes) -> Script:
    """Parts of an answer, each sent on its own."""

    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
            await asyncio.sleep(0)

    return answer


def closing(*parts: bytes) -> Script:
    """The same, and nothing more on that connection."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await writing(*parts)(reader, writer)
        await writer.drain()
        writer.close()
        raise ConnectionResetError

    return answer


async def asked(way: HttpUpstream) -> tuple[int, bytes]:
    """Status and body of an answer."""
    response = await way.send("POST", "/v1/chat/completions", {"x-request-id": "1"}, b"{}")
    return response.status, b"".join([chunk async for chunk in response.chunks()])


def test_a_connection_is_kept_for_the_next_request() -> None:
    """Whole answers and streams leave it fit for another; requests are as they should be."""

    async def work() -> None:
        stream = STREAM + b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"
        answers = iter([WHOLE, stream, WHOLE])

        async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(next(answers))

        async with serving(answer) as (way, engine):
            assert await asked(way) == (200, b"hello")
            assert await asked(way) == (200, b"onetwo")
            assert await asked(way) == (200, b"hello")
            assert engine.num_connections == 1
            first = engine.heads[0].split(b"\r\n")
            assert first[0] == b"POST /v1/chat/completions HTTP/1.1"
            assert sorted(line.split(b":")[0] for line in first[1:-2]) == [
                b"accept",
                b"content-length",
                b"host",
                b"user-agent",
                b"x-request-id",
            ]

    run(work())


def test_an_answer_may_come_in_any_pieces() -> None:
    """Wherever the network cuts it, status, headers and body are the same."""

    async def work() -> None:
        body = bytes(range(256)) * 4
        chunks = b"".join(b"%x\r\n%b\r\n" % (64, body[i : i + 64]) for i in range(0, 1024, 64))
        data = STREAM.replace(b"\r\n\r\n", b"\r\nx-a: 1\r\nx-a: 2\r\n\r\n") + chunks
        data += b"0\r\nx-a: 3\r\n\r\n"
        rng = random.Random(7)  # noqa: S311  the same cuts each time

        async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            cuts = sorted(rng.sample(range(len(data)), rng.randrange(40)))
            for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
                writer.write(data[begin:end])
                await asyncio.sleep(0.0001)

        async with serving(answer) as (way, engine):
            for _ in range(40):
                response = await way.send("POST", "/", {}, b"{}")
                assert [value for name, value in response.headers if name == b"x-a"] == [b"1", b"2"]
                assert b"".join([chunk async for chunk in response.chunks()]) == body
            assert engine.num_connections == 1

    run(work())


def test_an_answer_without_a_length_ends_with_its_connection() -> None:
    """As HTTP/1.0 has it; what is informational before it is no answer."""

    async def work() -> None:
        hints = b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"
        answer = closing(hints, b"HTTP/1.1 200 OK\r\nx-b: 1\r\n\r\nup to ", b"the end")
        async with serving(answer) as (way, engine):
            for number in (1, 2):
                response = await way.send("POST", "/", {}, b"{}")
                assert list(response.headers) == [(b"x-b", b"1")]
                body = b"".join([chunk async for chunk in response.chunks()])
                assert (response.status, body) == (200, b"up to the end")
                assert engine.num_connections == number

    run(work())


@pytest.mark.parametrize(
    "begun",
    [STREAM + b"5\r\nhello\r\n", STREAM + b"9\r\nhello", WHOLE.replace(b"5", b"9")],
    ids=["between two chunks", "in a chunk", "short of its length"],
)
def test_an_answer_that_breaks_off_is_not_taken_for_whole(begun: bytes) -> None:
    """All that came is there, and then an error that says that something had come."""

    async def work() -> None:
        async with serving(closing(begun)) as (way, _):
            response = await way.send("POST", "/", {}, b"{}")
            chunks = response.chunks()
            assert await anext(chunks) == b"hello"
            with pytest.raises(UpstreamError, match="closed the connection") as broken:
                await anext(chunks)
            assert broken.value.answered
            assert broken.value.connected

    run(work())


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (closing(), "it closed the connection"),
        (writing(b"220 mail.example ESMTP\r\n"), "no HTTP"),
        (
            writing(b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"),
            "no HTTP",
        ),
        (writing(b"HTTP/1.1 200 OK\r\nx: " + b"y" * MAX_HEAD_BYTES + b"y"), "is longer than"),
    ],
    ids=["nothing", "another protocol", "an upgrade", "an endless head"],
)
def test_what_is_no_answer_is_an_error(answer: Script, reason: str) -> None:
    """It had not answered, so that another engine can be asked; its connection is closed."""

    async def work() -> None:
        async with serving(answer) as (way, engine):
            with pytest.raises(UpstreamError, match=reason) as failed:
                await way.send("POST", "/", {}, b"{}")
            assert not failed.value.answered
            assert failed.value.connected
            await until(lambda: engine.num_closed == 1)

    run(work())


@pytest.mark.parametrize(
    "more", [b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil", b"\0rubbish"]
)
def test_nothing_behind_an_answer_becomes_the_next_one(more: bytes) -> None:
    """What an engine sends unasked closes its connection; the answer before it is whole."""

    async def work() -> None:
        async with serving(writing(WHOLE + more)) as (way, engine):
            for number in (1, 2):
                assert await asked(way) == (200, b"hello")
                assert engine.num_connections == number

    run(work())


def test_what_comes_unasked_later_closes_the_connection() -> None:
    """It is not taken for the answer to a request that comes afterwards."""

    async def work() -> None:
        async with serving(writing(WHOLE)) as (way, engine):
            assert await asked(way) == (200, b"hello")
            engine._answer = writing(WHOLE.replace(b"hello", b"other"))
            await asyncio.sleep(0.01)
            assert await asked(way) == (200, b"other")

    run(work())


def test_a_request_that_crosses_the_end_of_its_connection_is_sent_again() -> None:
    """Once, on a new connection; an engine that ends this one too has failed."""

    async def work() -> None:
        answers = iter((writing(WHOLE), closing(), writing(WHOLE), closing(), closing()))

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await next(answers)(reader, writer)

        async with serving(answer, unused_seconds=0.0) as (way, engine):
            assert await asked(way) == (200, b"hello")
            assert await asked(way) == (200, b"hello")
            assert (len(engine.heads), engine.num_connections) == (3, 2)
            with pytest.raises(UpstreamError, match="it closed the connection"):
                await asked(way)
            assert (len(engine.heads), engine.num_connections) == (5, 3)

    run(work())


def test_a_connection_that_was_just_used_has_no_reason_to_end() -> None:
    """So that the request may have ended it; nor is one taken for unsent that found nobody."""

    async def work() -> None:
        answers = iter((writing(WHOLE), closing(), writing(WHOLE), closing()))

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await next(answers)(reader, writer)

        async with serving(answer) as (way, engine):
            assert await asked(way) == (200, b"hello")
            with pytest.raises(UpstreamError, match="it closed the connection"):
                await asked(way)
            assert len(engine.heads) == 2
        async with serving(answer, unused_seconds=0.0) as (way, engine):
            assert await asked(way) == (200, b"hello")
            engine.refuse()
            with pytest.raises(UpstreamError, match="it closed the connection") as failed:
                await asked(way)
            assert failed.value.connected
            assert len(engine.heads) == 2

    run(work())


def test_a_new_connection_that_is_ended_is_not_tried_again() -> None:
    """The engine has taken the request, whatever it did with it."""

    async def work() -> None:
        async with serving(closing()) as (way, engine):
            with pytest.raises(UpstreamError, match="it closed the connection"):
                await asked(way)
            assert len(engine.heads) == 1

    run(work())


@pytest.mark.parametrize("how", ["closed", "said so"])
def test_a_connection_that_the_engine_ends_is_not_used_again(how: str) -> None:
    """Whether it announced that, or closed it while nothing was asked."""

    async def work() -> None:
        last = WHOLE.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")
        async with serving(closing(WHOLE) if how == "closed" else writing(last)) as (way, engine):
            for number in range(1, 4):
                assert await asked(way) == (200, b"hello")
                await until(lambda number=number: engine.num_closed == number)
            assert engine.num_connections == engine.num_closed == 3

    run(work())


@pytest.mark.parametrize("begun", [b"", STREAM + b"5\r\nhello\r\n"], ids=["at first", "later"])
def test_silence_ends_an_answer(begun: bytes) -> None:
    """Before its head and in its body; the engine sees its client leave."""

    async def work() -> None:
        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(begun)
            await reader.read()
            raise ConnectionResetError

        async with serving(silent, silence_seconds=SILENCE_SECONDS) as (way, engine):
            with pytest.raises(UpstreamError, match=r"nothing came for 0\.3 s") as failed:
                await asked(way)
            assert failed.value.answered == bool(begun)
            await until(lambda: engine.num_closed == 1)

    run(work())


def test_who_is_given_up_ends_with_the_reason() -> None:
    """Unless something came a moment ago."""

    async def work() -> None:
        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(STREAM + b"5\r\nhello\r\n")
            await reader.read()
            raise ConnectionResetError

        async with serving(silent) as (way, _):
            response = await way.send("POST", "/", {}, b"{}")
            assert not response.give_up("too early", silent_seconds=60.0)
            assert response.give_up("it hangs", silent_seconds=0.0)
            assert not response.give_up("again", silent_seconds=0.0)
            with pytest.raises(UpstreamError, match="it hangs"):
                b"".join([chunk async for chunk in response.chunks()])

    run(work())


def test_an_engine_is_read_no_faster_than_its_client() -> None:
    """What waits is bounded; all of it comes in the end."""

    async def work() -> None:
        total = 64 * 1024 * 1024
        sent = 0

        async def pour(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal sent
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % total)
            while sent < total:
                writer.write(b"z" * 65536)
                sent += 65536
                await writer.drain()

        async with serving(pour) as (way, engine):
            response = await way.send("POST", "/", {}, b"{}")
            before = -1
            while before != sent:  # until neither the network nor we take any more
                before = sent
                await asyncio.sleep(0.1)
            assert sent < total
            sizes = [len(chunk) async for chunk in response.chunks()]
            assert sum(sizes) == total
            assert max(sizes) <= 2 * MAX_WAITING_BYTES
            assert engine.num_connections == 1
            assert await asyncio.wait_for(way.send("POST", "/", {}, b"{}"), 10)
            assert engine.num_connections == 1

    run(work())


def test_a_stream_is_passed_on_where_it_comes_and_waits_where_it_cannot() -> None:
    """What the taker refuses comes from `chunks`, in order; so does the last piece."""

    async def work() -> None:
        go_on = asyncio.Event()

        async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(STREAM)
            for piece in (b"1", b"2", b"3", b"4", b"5"):
                writer.write(b"1\r\n" + piece + b"\r\n")
                await go_on.wait()
                go_on.clear()
            writer.write(b"1\r\n6\r\n0\r\n\r\n")

        taken: list[bytes] = []
        waited: list[bytes] = []

        def take(piece: bytes) -> bool:
            if piece == b"3":
                return False
            taken.append(piece)
            go_on.set()
            return True

        async with serving(answer) as (way, _):
            response = await way.send("POST", "/", {}, b"{}")
            response.pass_to(take)
            async for piece in response.chunks():
                waited.append(piece)
                go_on.set()
        assert b"3" in waited
        assert waited[-1] == b"6"
        assert sorted(taken + waited) == [b"1", b"2", b"3", b"4", b"5", b"6"]
        assert taken == sorted(taken)
        assert {b"4", b"5"} <= set(taken)  # once it waits again, pieces are taken again

    run(work())


def test_what_goes_wrong_where_a_stream_is_passed_on_is_raised_where_it_is_waited_for() -> None:
    """And the connection, whose answer nobody takes any more, is closed by who gives it up."""

    async def work() -> None:
        def take(_piece: bytes) -> bool:
            raise ZeroDivisionError

        async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(STREAM)
            await asyncio.sleep(0.05)
            writer.write(b"1\r\nx\r\n")

        async with serving(answer) as (way, engine):
            response = await way.send("POST", "/", {}, b"{}")
            response.pass_to(take)
            with pytest.raises(ZeroDivisionError):
                await anext(response.chunks())
            response.abort()
            await until(lambda: engine.num_closed == 1)

    run(work())


def test_leaving_closes_the_connection() -> None:
    """Before the head, by a cancelled task, and in the body."""

    async def work() -> None:
        async def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if len(engine.heads) == 2:
                writer.write(STREAM + b"5\r\nhello\r\n")
            await reader.read()
            raise ConnectionResetError

        async with serving(begin) as (way, engine):
            waiting = asyncio.create_task(way.send("POST", "/", {}, b"{}"))
            await until(lambda: engine.heads)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            response = await way.send("POST", "/", {}, b"{}")
            response.abort()
            await until(lambda: engine.num_closed == 2)

    run(work())


def test_an_early_answer_does_not_mix_with_the_rest_of_its_request() -> None:
    """An engine may answer before it has read all of a body; that connection is left then."""

    async def work() -> None:
        async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(WHOLE)
            while await reader.read(1 << 16):
                continue
            raise ConnectionResetError

        async with serving(refuse, reads_bodies=False) as (way, engine):
            for number in (1, 2):
                response = await way.send("POST", "/", {}, b"x" * (32 << 20))
                assert b"".join([chunk async for chunk in response.chunks()]) == b"hello"
                assert len(engine.heads) == engine.num_connections == number

    run(work())


def test_who_cannot_be_reached_was_sent_nothing() -> None:
    """Neither where nobody listens nor where the name is none."""

    async def work() -> None:
        server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        server.close()
        await server.wait_closed()
        connections = Connections(connect_timeout_seconds=5.0)
        for url in (f"http://127.0.0.1:{port}", "http://no-such-host.invalid"):
            with pytest.raises(UpstreamError) as failed:
                await HttpUpstream(connections, url).send("GET", "/health", {}, None)
            assert not failed.value.connected
        await connections.close()

    run(work())


def test_an_engine_behind_tls_shows_who_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One with a certificate that the machine trusts is asked; another one is sent nothing."""
    files = certificate(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*files)

    async def work(*, is_trusted: bool) -> None:
        async with serving(writing(WHOLE), tls=context) as (way, engine):
            if is_trusted:
                assert [await asked(way), await asked(way)] == [(200, b"hello")] * 2
                assert engine.num_connections == 1
            else:
                with pytest.raises(UpstreamError, match="CERTIFICATE_VERIFY_FAILED") as failed:
                    await asked(way)
                assert not failed.value.connected
                assert not engine.heads

    run(work(is_trusted=False))
    monkeypatch.setenv("SSL_CERT_FILE", str(files[0]))
    run(work(is_trusted=True))


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate of ``localhost`` signed by itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    files = folder / "certificate.pem", folder / "key.pem"
    files[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return files


def test_unused_connections_are_closed_after_a_while() -> None:
    """Those used since are kept; the clock is the loop's."""

    async def work() -> None:
        async with serving(writing(WHOLE)) as (way, engine):
            both = await asyncio.gather(asked(way), asked(way))
            assert both == [(200, b"hello")] * 2
            assert engine.num_connections == 2
            connections = way._connections
            for idle in connections._idle.values():
                idle[0].used_at -= KEEP_SECONDS
            connections._close_unused()
            await until(lambda: engine.num_closed == 1)
            assert await asked(way) == (200, b"hello")
            assert engine.num_connections == 2

    run(work())


def test_a_path_and_headers_cannot_say_more_than_they_are() -> None:
    """What a path may not hold is quoted, what a header may not hold is refused."""
    origin = Origin("http://engine:8000")
    head = request_head(origin, "GET", "/v1/models/a b\r\nx: y", {}, None)
    assert head.startswith(b"GET /v1/models/a%20b%0D%0Ax:%20y HTTP/1.1\r\n")
    assert request_head(origin, "GET", "/é?a=%20b", {}, None).startswith(b"GET /%C3%A9?a=%20b ")
    assert head.count(b"\r\n\r\n") == 1
    assert head.endswith(b"\r\n\r\n")
    for value in ("a\r\nx-b: c", "a\nb", "a\0b"):
        with pytest.raises(ValueError, match="line's end"):
            request_head(origin, "GET", "/", {"x-a": value}, None)


@pytest.mark.parametrize(
    ("url", "host", "authorization"),
    [
        ("http://engine", b"engine", None),
        ("http://engine:80", b"engine", None),
        ("http://engine:8000", b"engine:8000", None),
        ("https://engine:443", b"engine", None),
        ("http://[::1]:8000", b"[::1]:8000", None),
        ("http://me:a%20b@engine", b"engine", "Basic bWU6YSBi"),
    ],
)
def test_an_engine_is_told_its_own_name(url: str, host: bytes, authorization: str | None) -> None:
    """Without the port that goes without saying, and without a password."""
    origin = Origin(url)
    assert b"\r\nhost: %b\r\n" % host in request_head(origin, "GET", "/", {}, None)
    assert origin.credentials.get("authorization") == authorization


@pytest.mark.parametrize(
    "url",
    ["http://engine:port", "http://engine:70000", "http://engine:0", "http://:80", "http://a..b"],
)
def test_an_address_that_is_none_is_refused_with_the_configuration(url: str) -> None:
    """Not when the first request comes, nor in a proxy that takes over a changed file."""
    sound = [{"name": "e", "url": "http://[::1]:8000"}]
    make_config(upstreams=sound)
    with pytest.raises(ConfigError, match="names no host, or no port"):
        make_config(upstreams=[{"name": "e", "url": url}])
    with pytest.raises(ConfigError, match="names no host, or no port"):
        make_config(upstreams=sound, dashboard={"url": url})

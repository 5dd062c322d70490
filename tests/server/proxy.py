"""A relay between programs and a server, which may lose answers, hesitate, or be gone."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading


class Proxy:
    """Passes on every connection to a port of this machine, as bytes; `mode` may change at any time.

    `open`: at once. `slow`: each answer comes `delay_s` seconds late. `deaf`: what is asked in the words
    `deaf_to` arrives, and the answer is lost. `gone`: nobody listens, and connections that there are break.
    """

    def __init__(self, port: int, *, delay_s: float = 0.0, deaf_to: bytes = b"") -> None:
        self._target = port
        self._delay_s = delay_s
        self._deaf_to = deaf_to
        self._mode = "open"
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy")

    def __enter__(self) -> Proxy:
        self._thread.start()
        self.mode("open")
        return self

    def __exit__(self, *_: object) -> None:
        self.mode("gone")
        self._do(self._settle())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def mode(self, mode: str) -> None:
        """Behave in another way from now on; see above."""
        self._do(self._become(mode))

    def _do(self, work) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _become(self, mode: str) -> None:
        self._mode = mode
        if mode == "gone" and self._server is not None:
            self._server.close()
            self._server = None
            for writer in self._writers:
                writer.transport.abort()
        elif mode != "gone" and self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def _settle(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            answers, to_server = await asyncio.open_connection("127.0.0.1", self._target)
            self._writers.add(to_server)
            lost = asyncio.Event()
            await asyncio.gather(
                self._ask(reader, to_server, lost), self._answer(answers, writer, lost)
            )
        for each in (writer, to_server):
            self._writers.discard(each)
            each.transport.abort()

    async def _ask(self, source, target, lost: asyncio.Event) -> None:
        while data := await source.read(65536):
            if self._mode == "deaf" and self._deaf_to in data:
                lost.set()
            target.write(data)
            await target.drain()
        target.transport.abort()

    async def _answer(self, source, target, lost: asyncio.Event) -> None:
        while (data := await source.read(65536)) and not lost.is_set():
            if self._mode == "slow":
                await asyncio.sleep(self._delay_s)
            target.write(data)
            await target.drain()
        target.transport.abort()

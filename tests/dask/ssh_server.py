"""An SSH server on this machine's loopback, which lets one key in and runs what it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from pathlib import Path
from typing import Any

import asyncssh


class SshServer:
    """Serves from `with` to its end; what it has started is killed then.

    Args:
        folder: where keys are put.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._host_key = asyncssh.generate_private_key("ssh-ed25519")
        self._key = asyncssh.generate_private_key("ssh-ed25519")
        self._running: list[asyncio.subprocess.Process] = []
        self._serving = threading.Event()
        self._thread = threading.Thread(target=asyncio.run, args=(self._serve(),))
        self.commands: list[str] = []
        """That it was told to run."""

    @property
    def connect_options(self) -> dict[str, Any]:
        """With what a client gets in."""
        return {
            "port": self._port,
            "client_keys": [str(self._folder / "key")],
            "known_hosts": str(self._folder / "known_hosts"),
            "config": None,  # nobody's own
        }

    async def _serve(self) -> None:
        self._key.write_private_key(self._folder / "key")
        self._key.write_public_key(self._folder / "authorized_keys")
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncssh.listen(
            "127.0.0.1",
            0,
            server_host_keys=[self._host_key],
            authorized_client_keys=str(self._folder / "authorized_keys"),
            process_factory=self._run,
            encoding=None,
        )
        async with server:
            self._port = server.get_port()
            known = f"[127.0.0.1]:{self._port} {self._host_key.export_public_key().decode()}"
            (self._folder / "known_hosts").write_text(known)
            self._serving.set()
            await self._over.wait()
        for process in self._running:
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def _run(self, wanted: asyncssh.SSHServerProcess[bytes]) -> None:
        command = wanted.command or ""
        self.commands.append(command)
        process = await asyncio.create_subprocess_shell(
            f"exec {command}",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        self._running.append(process)
        # Not by asyncssh's own redirect: where a command ends quickly, that breaks the connection.
        await asyncio.gather(
            _copy(process.stdout, wanted.stdout), _copy(process.stderr, wanted.stderr)
        )
        wanted.exit(await process.wait())

    def __enter__(self) -> SshServer:
        self._thread.start()
        assert self._serving.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()


async def _copy(source: Any, to: Any) -> None:
    while data := await source.read(1 << 16):
        with contextlib.suppress(BrokenPipeError):  # nobody listens any more
            to.write(data)

"""A TCP proxy that injects network faults: it runs in this process, in front of any server."""

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from time import sleep


@dataclass(frozen=True)
class Fault:
    """What happens to each connection."""

    name: str
    resets_after: int | None = None
    """Bytes from the server after which the connection is reset at both ends."""
    stalls: float = 0
    """Seconds of silence before that reset."""
    orderly: bool = False
    """The connection is closed instead of reset, so that its end may look like the end of the answer."""
    mute: bool = False
    """Instead of that reset nothing comes any more: what the server sends is acknowledged and dropped."""
    delays: float = 0
    """Seconds by which each piece is delayed."""
    piece: int = 65_536
    """The most bytes that a reader gets at once."""
    connections: int | None = None
    """How many connections have the fault, from the first on; by default all."""


@contextmanager
def proxy(host: str, port: int, fault: Fault) -> Iterator[int]:
    """Run a proxy in front of a server and yield its port; its connections end with the block."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ends: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                server = socket.create_connection((host, port))
                ends.extend((client, server))
                spared = fault.connections is not None and len(ends) > 2 * fault.connections
                what = Fault("none") if spared else fault
                for pair in ((client, server, False), (server, client, True)):
                    threading.Thread(target=_forward, args=(*pair, what), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield int(listener.getsockname()[1])
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        for end in ends:
            # Closed alone, an end that a thread waits for would keep its connection open.
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


def _forward(source: socket.socket, target: socket.socket, answers: bool, fault: Fault) -> None:
    passed = 0
    with suppress(OSError):
        while data := source.recv(fault.piece if answers else 65_536):
            if answers and fault.resets_after is not None:
                passed += len(data)
                if passed > fault.resets_after:
                    if fault.mute:
                        continue
                    sleep(fault.stalls)
                    if fault.orderly:
                        target.sendall(data[: len(data) - passed + fault.resets_after])
                        break
                    _reset(source, target)
                    return
            sleep(fault.delays if answers else 0)
            target.sendall(data)
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def _reset(*ends: socket.socket) -> None:
    """RST instead of FIN: closing with a linger of 0 s."""
    for end in ends:
        with suppress(OSError):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            end.shutdown(socket.SHUT_RD)
            end.close()

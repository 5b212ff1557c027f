"""How processes that train together notice within moments that one of them is gone.

Gloo fails when a peer's connection closes; NCCL, and whoever computes alone, would wait for a time
limit. So each process holds a connection to rank 0: however a process ends, the system closes it.
"""

import os
import secrets
import selectors
import socket
import time
from datetime import timedelta
from threading import Event, Thread

from torch.distributed import Store  # type: ignore[attr-defined]

from leanvit.core.console import warn

GRACE = 10.0
"""Seconds for a process to end by itself, as from a failed sum, before it is ended."""
BYE = b"bye\n"


class Lifeline:
    """Connections between rank 0 and all others, watched by a thread.

    gone: the first process that ended without a farewell, once one did. A process that then goes on
    for longer than `GRACE` says so and ends with exit code 1: it waits for what never comes.
    """

    def __init__(self, store: Store, host: str, rank: int, world: int, limit: timedelta):
        self.gone: int | None = None
        self._noticed, self._left, self._rank = Event(), Event(), rank
        seconds = limit.total_seconds()
        connect = _accept if rank == 0 else _call
        self._peers = connect(store, host, rank, world, seconds)
        self._thread = Thread(target=self._watch, name="lifeline", daemon=True)
        self._thread.start()

    def who_is_gone(self, patience: float = 1.0) -> int | None:
        """Return the process that is gone, if one is; news may take a moment."""
        self._noticed.wait(patience)
        return self.gone

    def leave(self, *, farewell: bool) -> None:
        """Let go of the others; without a farewell they take this process for gone."""
        self._left.set()
        for peer in self._peers.values():
            if farewell:
                _tell(peer, BYE)
            _shut(peer)
        self._thread.join()
        for peer in self._peers.values():
            peer.close()

    def _watch(self) -> None:
        with selectors.DefaultSelector() as waiting:
            for rank, peer in self._peers.items():
                waiting.register(peer, selectors.EVENT_READ, rank)
            while waiting.get_map() and self.gone is None and not self._left.is_set():
                for key, _ in waiting.select():
                    word = _hear(self._peers[key.data])
                    if word == BYE:
                        waiting.unregister(key.fileobj)
                    elif self.gone is None and not self._left.is_set():
                        self.gone = int(word or key.data)  # rank 0 says who, or is it itself
        if self.gone is None:
            return
        self._noticed.set()
        for peer in self._peers.values() if self._rank == 0 else ():
            _tell(peer, b"%d\n" % self.gone)
        if not self._left.wait(GRACE):
            warn(f"{gone_text(self.gone)} Rank {self._rank} waited for it and ends too.")
            os._exit(1)


def gone_text(rank: int | None) -> str:
    """Return the sentence about a process that is gone; None is one that nobody can name."""
    who = "" if rank is None else f", rank {rank},"
    return f"Another process{who} is gone or does not answer; its own message says why."


def wait_for_answer(host: str, port: int, limit: float) -> None:
    """Wait until somebody listens at a port; the store of torch would print pages meanwhile.

    Raises OSError if nobody does within `limit` seconds.
    """
    end = time.monotonic() + limit
    while True:
        try:
            socket.create_connection((host, port), 5.0).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
        time.sleep(0.1)


def _accept(
    store: Store, host: str, rank: int, world: int, limit: float
) -> dict[int, socket.socket]:
    """Return the connections of all others to this process, rank 0."""
    token = secrets.token_hex(8)  # strangers do not know it
    family = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][0]
    with socket.create_server(("", 0), family=family, backlog=world) as server:
        server.settimeout(limit)
        store.set("lifeline", f"{server.getsockname()[1]} {token}")
        peers: dict[int, socket.socket] = {}
        while len(peers) < world - 1:
            peer, _ = server.accept()
            peer.settimeout(5.0)
            said = _hear(peer).split()
            if len(said) == 2 and said[0] == token.encode():
                peers[int(said[1])] = _kept(peer)
            else:
                peer.close()
    return peers


def _call(store: Store, host: str, rank: int, world: int, limit: float) -> dict[int, socket.socket]:
    """Return this process's connection to rank 0."""
    port, token = store.get("lifeline").decode().split()
    peer = socket.create_connection((host, int(port)), limit)
    _tell(peer, f"{token} {rank}\n".encode())
    return {0: _kept(peer)}


def _kept(peer: socket.socket) -> socket.socket:
    """Return a connection that the system probes, so that a machine without power is noticed."""
    peer.settimeout(None)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, seconds in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), seconds)
    return peer


def _hear(peer: socket.socket) -> bytes:
    """Return a line; nothing once the other end is gone."""
    line = b""
    try:
        while not line.endswith(b"\n") and len(line) < 64:
            byte = peer.recv(1)
            if not byte:
                return b""
            line += byte
    except OSError:
        return b""
    return line


def _tell(peer: socket.socket, word: bytes) -> None:
    try:
        peer.sendall(word)
    except OSError:
        return  # whom it would tell is gone


def _shut(peer: socket.socket) -> None:
    try:
        peer.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # the other end did

"""`mlxgpt lsp`, whole: the protocol on stdin and stdout, the model on a thread, and an end that leaves nothing."""

import asyncio
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from pygls.io_ import run_async

from mlxgpt.completion.defaults import Defaults, settle
from mlxgpt.completion.service import Service
from mlxgpt.completion.suggest import Suggester
from mlxgpt.completion.watch import Watched
from mlxgpt.errors import Error, UsageError
from mlxgpt.lsp.server import Server, Settings

LOGGER = logging.getLogger("pygls")
HEADER = 1 << 16  # bytes of a line of a message's head


def serve(
    given: Defaults, quantize: str | None = None, multiline: bool = False, debounce: float = 0.3, version: str = ""
) -> None:
    """Answer an editor until it says exit (SystemExit then has the status) or closes stdin. What the options that are
    `given` leave open is the project's: of the working directory, or of the folder that the editor names; `debounce` in
    seconds.

    Raises Error, UsageError, also where the model cannot be loaded.
    """
    settled = settle(given)
    silent = settled == Defaults(context=given.context)  # then the editor may know the project
    watched = None if silent else _watched(settled, quantize)
    folder: Future[Path | None] = Future()
    threshold = 0.0

    def open() -> Suggester:
        nonlocal settled, threshold, watched
        if watched is None:
            settled = settle(given, folder.result())
            watched = _watched(settled, quantize)
        suggester = watched.open()
        threshold = suggester.gate.least(settled.threshold, settled.false_show)
        return suggester

    service = Service(open)
    with _own_stdout() as output:
        opened = service.start()
        server = Server(service, opened, Settings(multiline, lambda: threshold, debounce, version), folder)

        def ready(future: Future) -> None:
            if future.exception() is None and watched is not None:
                watched.start(service)

        opened.add_done_callback(ready)
        try:
            asyncio.run(_talk(server, opened, output))
        finally:
            if not folder.done():
                folder.set_result(None)
            service.close()
            if watched is not None:
                watched.close()
    if opened.done() and (error := opened.exception()) is not None:
        raise error


def _watched(settled: Defaults, quantize: str | None) -> Watched:
    names = settled.names(quantize)
    if names.root is not None and not names.root.is_dir():
        raise UsageError(f"--root {names.root} is no folder")
    return Watched(names)


class Output:
    """Where messages go: what a client does not read any more is dropped, and `ended` told."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.ended: Callable[[], object] = lambda: None

    def write(self, data: bytes) -> None:
        """A message, whole and at once."""
        try:
            self._file.write(data)
            self._file.flush()
        except (OSError, ValueError):  # ValueError: closed here, by an exit that overtook an answer
            self.ended()

    def close(self) -> None:
        """No more are written."""
        with suppress(OSError):
            self._file.close()


@contextmanager
def _own_stdout() -> Iterator[Output]:
    """stdout for the protocol alone: what anything else prints goes to stderr."""
    sys.stdout.flush()
    output = Output(os.fdopen(os.dup(1), "wb"))
    os.dup2(2, 1)
    try:
        yield output
    finally:
        output.close()


async def _talk(server: Server, opened: Future, output: Output) -> None:
    """Read messages to the end of stdin, or until it is known that nothing can be suggested."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(HEADER)

    def opens(future: Future) -> None:
        if future.exception() is not None:
            with suppress(RuntimeError):  # the loop is closed: stdin ended first
                loop.call_soon_threadsafe(reader.feed_eof)

    opened.add_done_callback(opens)
    output.ended = reader.feed_eof
    server.protocol.set_writer(output)
    # Not the loop's own pipes, which take no file; a thread that blocks in `os.read` does not hold up the end.
    threading.Thread(target=_feed, args=(loop, reader), name="stdin", daemon=True).start()
    try:
        await run_async(threading.Event(), reader, server.protocol, LOGGER, server.report_server_error)
    except asyncio.IncompleteReadError:  # the end came within a message
        return
    except (ValueError, OverflowError):
        raise Error("stdin is no Language Server Protocol: `mlxgpt lsp` is for an editor to start") from None


def _feed(loop: asyncio.AbstractEventLoop, reader: asyncio.StreamReader) -> None:
    """Hand stdin on, as it comes."""
    with suppress(OSError, RuntimeError):  # RuntimeError: the loop is closed
        while data := os.read(0, 1 << 16):
            loop.call_soon_threadsafe(_take, reader, data)
        loop.call_soon_threadsafe(reader.feed_eof)


def _take(reader: asyncio.StreamReader, data: bytes) -> None:
    if not reader.at_eof():
        with suppress(AssertionError):  # the end was told meanwhile
            reader.feed_data(data)

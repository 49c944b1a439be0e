"""A model server in a thread, and photos for it."""

import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import httpx
import numpy as np
import uvicorn
from PIL import Image

from pets.serving.app import create_app
from pets.serving.settings import ServeSettings

__all__ = ["Served", "run_server", "write_photo"]


class Served(NamedTuple):
    """A running server: its address, and a client of it."""

    url: str
    client: httpx.Client

    def metric(self, line: str) -> float:
        """Return a metric, given its name with labels."""
        for each in self.client.get("/metrics").text.splitlines():
            if each.startswith(f"{line} "):
                return float(each.rpartition(" ")[2])
        return 0.0


@contextmanager
def run_server(settings: ServeSettings) -> Iterator[Served]:
    """Serve a model on a free port until the end of the block."""
    server = uvicorn.Server(uvicorn.Config(create_app(settings), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with httpx.Client(base_url=url, timeout=60) as client:
        yield Served(url, client)
    server.should_exit = True
    thread.join(60)
    assert not thread.is_alive()


def write_photo(seed: int, width: int = 60, height: int = 40) -> bytes:
    """Return a PNG whose prediction differs from that of other seeds."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (4, 4, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST).save(buffer, "PNG")
    return buffer.getvalue()

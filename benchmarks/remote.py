"""Photos per second of ingest from a slow web server, with read-ahead and without.

    python benchmarks/remote.py [MILLISECONDS per request, 30 by default]

One worker writes the shards of 2,000 generated photos of 500 x 375; the server is another process.
Without read-ahead, a batch of 32 is fetched and checked before the next is fetched. Both run
alternately with empty folders; the best of three rounds is printed. Planning, which requests the
size of each photo, is not measured.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path

from ingest import draw

from pets_core.config.pipeline import PipelineConfig
from pets_core.data.ingest import shards
from pets_core.data.ingest.plan import plan_dataset

NUM_PHOTOS = 2000
ROUNDS = 3


class SlowHandler(SimpleHTTPRequestHandler):
    """Handler that delays each response with a photo."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    seconds = 0.0

    def do_GET(self) -> None:
        """Send the file after the delay."""
        if self.path.endswith(".jpg"):
            time.sleep(self.seconds)
        super().do_GET()

    def log_message(self, *_: object) -> None:
        """Disable the log."""


def serve(folder: str, seconds: float, port: Connection) -> None:
    """Run the server in this process and send its port."""
    SlowHandler.seconds = seconds
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SlowHandler, directory=folder))
    port.send(server.server_port)
    server.serve_forever()


def generate(folder: Path) -> None:
    """Write two class folders of soft pictures with some noise, about 25 kB each."""
    for number in range(NUM_PHOTOS):
        path = folder / "photos" / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(draw(number, (500, 375)))


def measure(url: str) -> float:
    """Return the photos per second of one worker."""
    with tempfile.TemporaryDirectory() as work:
        values = {"store": f"{work}/store", "cache_dir": f"{work}/cache", "source": {"url": url}}
        config = PipelineConfig.model_validate(values)
        plan = plan_dataset(config)
        started = time.perf_counter()
        for shard in plan.pending:
            shards.write_shard(config, plan, shard)
        return NUM_PHOTOS / (time.perf_counter() - started)


def main() -> None:
    """Print both ways, without delay and with it."""
    delay = float(sys.argv[1]) if len(sys.argv) > 1 else 30.0
    ways = {
        "with read-ahead": shards._read_ahead,
        "without": lambda files, paths, _: files.read(paths),
    }
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        sizes = [path.stat().st_size for path in Path(folder).rglob("*.jpg")]
        print(f"{NUM_PHOTOS} photos of {sum(sizes) / len(sizes) / 1000:.0f} kB, photos/s")
        for milliseconds in (0.0, delay):
            receiver, sender = multiprocessing.Pipe()
            arguments = (folder, milliseconds / 1000, sender)
            server = multiprocessing.Process(target=serve, args=arguments, daemon=True)
            server.start()
            url = f"http://127.0.0.1:{receiver.recv()}/photos"
            best = dict.fromkeys(ways, 0.0)
            for way in [*ways] * ROUNDS:
                shards._read_ahead = ways[way]
                best[way] = max(best[way], measure(url))
            print(f"{milliseconds:g} ms: {', '.join(f'{w} {s:.0f}' for w, s in best.items())}")
            server.terminate()


if __name__ == "__main__":
    main()

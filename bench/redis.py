"""Redis as a yardstick: one primary and two replicas, in memory, spoken to in its own protocol."""

import random
import selectors
import shutil
import socket
import statistics
import subprocess
import time

import cluster

HOST, PORTS = "127.11.3.1", (7001, 7002, 7003)
VALUE = b"v" * 100
KEYS = [b"k%015d" % number for number in range(5000)]
SECONDS = 1.5


def is_here():
    return shutil.which("redis-server") is not None


def command(*words):
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


class Redis:
    def __init__(self, folder):
        self.folder, self.processes = folder, []

    def __enter__(self):
        fixed = ["--bind", HOST, "--save", "", "--appendonly", "no", "--protected-mode", "no", "--dir", self.folder]
        for port in PORTS:
            follows = [] if port == PORTS[0] else ["--replicaof", f"{HOST} {PORTS[0]}"]
            started = subprocess.Popen(["redis-server", "--port", str(port), *fixed, *follows], **cluster.QUIET)
            self.processes.append(started)
        self.until(lambda: self.ask(b"WAIT", b"0", b"0").startswith(b":"))
        self.until(lambda: self.ask(b"INFO", b"replication").count(b"state=online") == len(PORTS) - 1)
        self.load(16, lambda key: command(b"SET", key, VALUE), 1)
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.wait()

    def until(self, condition, seconds=30):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                if condition():
                    return
            except OSError:
                pass
            time.sleep(0.02)
        raise SystemExit("the Redis servers are not ready")

    def ask(self, *words):
        with socket.create_connection((HOST, PORTS[0]), timeout=5) as connection:
            connection.sendall(command(*words))
            return connection.recv(1 << 16)

    def get(self, connections):
        """The value's line end comes last, the length's first."""
        return self.load(connections, lambda key: command(b"GET", key), 2)

    def set_and_wait(self, connections):
        """A write that both replicas have."""
        return self.load(connections, lambda key: command(b"SET", key, VALUE) + command(b"WAIT", b"2", b"0"), 2)

    def load(self, connections, request, lines):
        """A closed loop: each connection's next request goes when its answer's `lines` are there."""
        requests = [request(key) for key in KEYS]
        selector, left = selectors.DefaultSelector(), {}
        for _ in range(connections):
            connection = socket.create_connection((HOST, PORTS[0]))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            selector.register(connection, selectors.EVENT_READ)
            left[connection] = lines
            connection.sendall(random.choice(requests))
        done, before, began = 0, sum(map(cluster.cpu_us, self.processes)), time.monotonic()
        while time.monotonic() < began + SECONDS:
            for key, _ in selector.select(1):
                connection = key.fileobj
                left[connection] -= connection.recv(1 << 16).count(b"\r\n")
                if left[connection] <= 0:
                    done += 1
                    left[connection] = lines
                    connection.sendall(random.choice(requests))
        cpu, seconds = sum(map(cluster.cpu_us, self.processes)) - before, time.monotonic() - began
        for connection in left:
            connection.close()
        return {"cpu": cpu / done, "rate": done / seconds}


def measure(redis, connections, rounds):
    for name, what in (("Redis GET", redis.get), ("Redis SET, WAIT 2", redis.set_and_wait)):
        runs = [what(connections) for _ in range(rounds)]
        cpu, rate = (statistics.median(run[of] for run in runs) for of in ("cpu", "rate"))
        print(f"{connections:3} connections  {name:32} {cpu:6.1f} us CPU  {rate:23.0f}/s")

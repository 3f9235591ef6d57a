#!/usr/bin/env python3
"""CPU time that a node takes for a request of some routes, of one build or of two in turn: medians of interleaved rounds.

Requests come many at a time on one connection, so that this is what the program does for each and hardly what the system does.
Needs release builds. Usage: bench/routes.py TARGET_FOLDER [OTHER_TARGET_FOLDER]
"""

import pathlib
import socket
import statistics
import subprocess
import sys

import cluster

TARGETS = [pathlib.Path(folder) for folder in sys.argv[1:3]]
ROUNDS, REQUESTS, AT_ONCE = 15, 8000, 50
PUT = b'PUT %s HTTP/1.1\r\nhost: k\r\ncontent-length: 11\r\n\r\n{"value":1}'
GET = b"GET %s HTTP/1.1\r\nhost: k\r\n\r\n"
ROUTES = {
    "GET of a key": GET % b"/kvs/some-key",
    "PUT of a key": PUT % b"/kvs/some-key",
    "GET /view": GET % b"/view",
    "GET /status": GET % b"/status",
    "GET /health": GET % b"/health",
    "a path that is none": GET % b"/nowhere",
}


def answers(stream, count):
    """Reads so many answers, each by its length."""
    rest = b""
    while count:
        head, found, body = rest.partition(b"\r\n\r\n")
        length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
        if found and len(body) >= length:
            rest, count = body[length:], count - 1
            continue
        piece = stream.recv(1 << 20)
        if not piece:
            sys.exit("the node has closed the connection")
        rest += piece


def cpu_us(node, request):
    host, port = node.address.rsplit(":", 1)
    with socket.create_connection((host, int(port))) as stream:
        stream.sendall(request)
        answers(stream, 1)
        before = cluster.cpu_us(node.process)
        for _ in range(REQUESTS // AT_ONCE):
            stream.sendall(request * AT_ONCE)
            answers(stream, AT_ONCE)
        return (cluster.cpu_us(node.process) - before) / REQUESTS


class Node:
    def __init__(self, target, index):
        self.address = f"127.11.5.{index + 2}:8090"
        env = {"SOCKET_ADDRESS": self.address, "LISTEN_ADDRESS": self.address, "LOG_LEVEL": "warn"}
        self.process = subprocess.Popen([target / "kvnode"], env=env, **cluster.QUIET)


nodes = [Node(target, index) for index, target in enumerate(TARGETS)]
try:
    for node in nodes:
        cluster.wait_ready(node.address)
    for name in ("PUT of a key", "GET of a key"):
        for node in nodes:
            cpu_us(node, ROUTES[name])
    for name, request in ROUTES.items():
        rounds = [[cpu_us(node, request) for node in nodes] for _ in range(ROUNDS)]
        medians = " ".join(f"{statistics.median(each):6.2f}" for each in zip(*rounds))
        ratios = [first / other for first, other in rounds] if len(nodes) == 2 else []
        ratio = f"  x {statistics.median(ratios):.3f} ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else ""
        print(f"{name:22} {medians} us{ratio}")
finally:
    for node in nodes:
        node.process.kill()
        node.process.wait()

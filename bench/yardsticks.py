#!/usr/bin/env python3
"""CPU time of all six nodes per operation against a minimal warp server's, in one run: medians of interleaved rounds.

Beside them Redis, if it is installed.

Needs a release build: cargo build --release && cargo build --release -p kvnode --examples
Usage: bench/yardsticks.py TARGET_FOLDER [mem|interval|always] [ROUNDS]
"""

import pathlib
import statistics
import subprocess
import sys
import tempfile

import cluster
import redis

TARGET, MODE, ROUNDS = pathlib.Path(sys.argv[1]), (sys.argv[2:] or ["mem"])[0], int((sys.argv[3:] or ["7"])[0])
YARDSTICK, ONE_THREAD = "127.11.1.1:8090", "127.11.1.2:8090"
SIX = [f"127.11.2.{i}:8090" for i in range(2, 8)]
# The mock-up, once where every process answers itself, once where each passes everything on.
HERE, PASSED_ON = ([f"127.11.{net}.{i}:8090" for i in range(2, 8)] for net in (3, 4))


def bench(urls, mix, route, connections, *more):
    fixed = ["--keys", 5000, "--duration", "1500ms", "--warmup", "300ms"]
    return cluster.bench(TARGET, urls, "--mix", mix, "--route", route, "--connections", connections, *fixed, *more)


def median(runs, what):
    return statistics.median(run[what] for run in runs)


def measure(nodes, connections):
    kinds = {
        "warp GET": ([YARDSTICK], "1/0", "spread"),
        "warp GET, one thread": ([ONE_THREAD], "1/0", "spread"),
        "warp GET, six processes": (SIX, "1/0", "spread"),
        "GET in the mock-up": (HERE, "1/0", "spread"),
        "GET passed on in the mock-up": (PASSED_ON, "1/0", "spread"),
        "GET at a replica": (nodes, "1/0", "owner"),
        "GET at a node of another shard": (nodes, "1/0", "elsewhere"),
        "warp PUT": ([YARDSTICK], "0/1", "spread"),
        "warp PUT, one thread": ([ONE_THREAD], "0/1", "spread"),
        "warp PUT, six processes": (SIX, "0/1", "spread"),
        "PUT in the mock-up": (HERE, "0/1", "spread"),
        "PUT passed on in the mock-up": (PASSED_ON, "0/1", "spread"),
        "PUT at a replica": (nodes, "0/1", "owner"),
        "PUT at a node of another shard": (nodes, "0/1", "elsewhere"),
    }
    runs = {kind: [] for kind in kinds}
    for _ in range(ROUNDS):
        for kind, (urls, mix, route) in kinds.items():
            runs[kind].append(bench(urls, mix, route, connections))
    for verb in ("GET", "PUT"):
        base = runs[f"warp {verb}"]
        for kind in (kind for kind in runs if verb in kind):
            ratios = [run["cpu"] / other["cpu"] for run, other in zip(runs[kind], base)]
            print(
                f"{connections:3} connections  {kind:32} {median(runs[kind], 'cpu'):6.1f} us CPU"
                f"  x{statistics.median(ratios):4.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
                f"  {median(runs[kind], 'rate'):8.0f}/s  p99 {median(runs[kind], 'p99'):.2f} ms"
            )


def contexts(nodes, connections):
    """The same store with contexts and without: what causality costs in throughput."""
    for mix in ("95/5", "50/50"):
        pairs = []
        for _ in range(ROUNDS):
            on, off = (bench(nodes, mix, "spread", connections, "--causal", state) for state in ("on", "off"))
            pairs.append((on["rate"] / off["rate"], on["cpu"] / off["cpu"]))
        rate, cpu = (statistics.median(pair[at] for pair in pairs) for at in (0, 1))
        print(f"{connections:3} connections  {mix}: with contexts {rate:.3f} of the throughput, {cpu:.3f} of the CPU without")


with tempfile.TemporaryDirectory() as folder, cluster.Cluster(TARGET, folder, MODE) as six:
    warp, mockup = TARGET / "examples/yardstick", TARGET / "examples/mockup"
    yardsticks = [subprocess.Popen([warp, YARDSTICK], **cluster.QUIET)]
    yardsticks += [subprocess.Popen([warp, address, "one-thread"], **cluster.QUIET) for address in [ONE_THREAD, *SIX]]
    for mode, addresses in (("here", HERE), ("elsewhere", PASSED_ON)):
        all_of_them = ",".join(addresses)
        yardsticks += [subprocess.Popen([mockup, mode, str(i), all_of_them], **cluster.QUIET) for i in range(6)]
    try:
        for address in [YARDSTICK, ONE_THREAD, *SIX, *HERE, *PASSED_ON]:
            cluster.wait_ready(address)
        for urls in (six.nodes, [YARDSTICK], [ONE_THREAD], SIX, HERE, PASSED_ON):
            bench(urls, "1/1", "spread", 16, "--prepare")
        for connections in (16, 64):
            measure(six.nodes, connections)
            contexts(six.nodes, connections)
        if redis.is_here():
            with redis.Redis(folder) as servers:
                for connections in (16, 64):
                    redis.measure(servers, connections, ROUNDS)
    finally:
        for process in yardsticks:
            process.kill()
            process.wait()

#!/usr/bin/env python3
"""CPU time of all six nodes per operation against a minimal warp server's, in one run: medians of interleaved rounds.

Needs a release build: cargo build --release && cargo build --release -p kvnode --example yardstick
Usage: examples/yardsticks.py TARGET_FOLDER [mem|interval|always] [ROUNDS]
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

TARGET, MODE, ROUNDS = pathlib.Path(sys.argv[1]), (sys.argv[2:] or ["mem"])[0], int((sys.argv[3:] or ["7"])[0])
NODES = [f"127.11.0.{i}:8090" for i in range(2, 8)]
YARDSTICK = "127.11.1.1:8090"
QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def start_node(folder, index, address):
    env = {"SOCKET_ADDRESS": address, "LISTEN_ADDRESS": address, "VIEW": ",".join(NODES), "SHARD_COUNT": "2"}
    if MODE != "mem":
        env.update(DATA_DIR=f"{folder}/{index}", FSYNC=MODE)
    return subprocess.Popen([TARGET / "kvnode"], env=env, **QUIET)


def wait(url):
    for _ in range(500):
        try:
            urllib.request.urlopen(url).close()
            return
        except OSError:
            pass
        time.sleep(0.02)
    sys.exit(f"{url} does not answer")


def bench(urls, mix, route, connections, *more):
    command = [TARGET / "kvctl", "--output", "json", "bench", "--url", ",".join(urls), "--mix", mix, "--route", route]
    command += ["--connections", str(connections), "--keys", "5000", "--duration", "1500ms", "--warmup", "300ms", *more]
    report = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    if report["errors"]:
        sys.exit(f"errors: {report['errors']}")
    return {
        "cpu": report["cpu"]["servers-us"],
        "rate": report["per-second"],
        "p99": report["latency-us"]["all"]["p99"],
    }


def median(runs, what):
    return statistics.median(run[what] for run in runs)


def measure(connections):
    kinds = {
        "warp GET": ([YARDSTICK], "1/0", "spread"),
        "GET at a replica": (NODES, "1/0", "owner"),
        "GET at one node": (NODES, "1/0", f"one:{NODES[0]}"),
        "warp PUT": ([YARDSTICK], "0/1", "spread"),
        "PUT at a replica": (NODES, "0/1", "owner"),
        "PUT at one node": (NODES, "0/1", f"one:{NODES[0]}"),
    }
    runs = {kind: [] for kind in kinds}
    for _ in range(ROUNDS):
        for kind, (urls, mix, route) in kinds.items():
            runs[kind].append(bench(urls, mix, route, connections))
    # Half of the requests at one node are its own shard's.
    for verb in ("GET", "PUT"):
        own, one = runs[f"{verb} at a replica"], runs[f"{verb} at one node"]
        elsewhere = [{**b, "cpu": 2 * b["cpu"] - a["cpu"]} for a, b in zip(own, one)]
        runs[f"{verb} at a node of another shard"] = elsewhere
        del runs[f"{verb} at one node"]
    for verb in ("GET", "PUT"):
        base = runs[f"warp {verb}"]
        for kind in (kind for kind in runs if verb in kind):
            ratios = [run["cpu"] / other["cpu"] for run, other in zip(runs[kind], base)]
            print(
                f"{connections:3} connections  {kind:32} {median(runs[kind], 'cpu'):6.1f} us CPU"
                f"  x{statistics.median(ratios):4.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
                f"  {median(runs[kind], 'rate'):8.0f}/s  p99 {median(runs[kind], 'p99') / 1000:.2f} ms"
            )


def contexts(connections):
    """The same store with contexts and without: what causality costs in throughput."""
    for mix in ("95/5", "50/50"):
        pairs = []
        for _ in range(ROUNDS):
            on, off = (bench(NODES, mix, "spread", connections, "--causal", state) for state in ("on", "off"))
            pairs.append((on["rate"] / off["rate"], on["cpu"] / off["cpu"]))
        rate, cpu = (statistics.median(pair[at] for pair in pairs) for at in (0, 1))
        print(f"{connections:3} connections  {mix}: with contexts {rate:.3f} of the throughput, {cpu:.3f} of the CPU without")


with tempfile.TemporaryDirectory() as folder:
    processes = [start_node(folder, index, address) for index, address in enumerate(NODES)]
    processes.append(subprocess.Popen([TARGET / "examples/yardstick", YARDSTICK], **QUIET))
    os.environ.pop("KVCTL_NAME", None)
    try:
        for address in [*NODES, YARDSTICK]:
            wait(f"http://{address}/ready")
        for urls in (NODES, [YARDSTICK]):
            bench(urls, "1/1", "spread", 16, "--prepare")
        for connections in (16, 64):
            measure(connections)
            contexts(connections)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()

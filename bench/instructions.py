#!/usr/bin/env python3
"""Instructions per operation of the core, by callgrind: the same on every machine of the kind, however busy.

Needs valgrind. SHA-256 has no hardware there and weighs more than in life. Usage: bench/instructions.py
"""

import json
import re
import subprocess

BUILD = ["cargo", "bench", "-p", "kvnode-core", "--bench", "instructions", "--no-run", "--message-format", "json"]
said = subprocess.run(BUILD, capture_output=True, text=True, check=True).stdout
built = (json.loads(line) for line in said.splitlines())
binary = next(one["executable"] for one in built if one.get("target", {}).get("name") == "instructions" and one.get("executable"))
names = subprocess.run([binary], capture_output=True, text=True, check=True).stdout.splitlines()


def instructions(name, count):
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", binary, name, str(count)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return int(re.search(r"Collected : (\d+)", told).group(1))


for name in names:
    few, many = (2, 12) if "nodes" in name else (200, 1_200)
    each = (instructions(name, many) - instructions(name, few)) / (many - few)
    print(f"{name:45} {each:12.0f} instructions")

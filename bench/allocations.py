#!/usr/bin/env python3
"""Where an operation of the core allocates, and how often: by valgrind's dhat, so exactly.

Needs valgrind. Usage: bench/allocations.py [OPERATION...]; without one: get, put at a majority
"""

import collections
import json
import re
import subprocess
import sys
import tempfile

BUILD = ["cargo", "bench", "-p", "kvnode-core", "--bench", "instructions", "--no-run", "--message-format", "json"]
said = subprocess.run(BUILD, capture_output=True, text=True, check=True).stdout
built = (json.loads(line) for line in said.splitlines())
binary = next(one["executable"] for one in built if one.get("target", {}).get("name") == "instructions" and one.get("executable"))


def name_of(frame):
    """A frame's function without its address, generics and hash."""
    text = re.sub(r"^0x[0-9A-F]+: ", "", frame)
    text = re.sub(r" \(.*\)$", "", text)
    return re.sub(r"::h[0-9a-f]{16}$", "", text)


def is_ours(name):
    return ("kvnode_core::" in name or "kvnode_types::" in name) and not name.startswith(("alloc::", "<alloc::", "core::", "<core::"))


def sites(operation, count):
    """Blocks and bytes by the innermost function of this project, and the one that called it."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = ["valgrind", "--tool=dhat", f"--dhat-out-file={file.name}", binary, operation, str(count)]
        subprocess.run(command, capture_output=True, check=True)
        told = json.load(file)
    found = collections.Counter()
    for place in told["pps"]:
        names = [name_of(told["ftbl"][frame]) for frame in place["fs"]]
        ours = [name for name in names if is_ours(name)] or names[:1]
        found[" < ".join(ours[:2])] += place["tbk"]
    return found


for operation in sys.argv[1:] or ["get", "put at a majority"]:
    few, many = sites(operation, 200), sites(operation, 1_200)
    each = {site: (many[site] - few[site]) / 1_000 for site in many}
    print(f"{operation}: {sum(each.values()):.1f} allocations")
    for site, count in sorted(each.items(), key=lambda one: -one[1]):
        if count >= 0.05:
            print(f"  {count:5.1f}  {site}")

#!/usr/bin/env python3
"""Reads captures that others made: whatever is in them, each is answered in a sentence.

Of every file below DIR it is asked:
  info   `pcap info` ends by itself with 0, 1 (parts are unreadable, each named with its place) or
         2 (this is no capture, and says so), and never with a panic
  count  it finds as many packets as tcpdump does, if tcpdump reads the file to its end
  same   `diff` of the file with itself never finds a difference
usage: others.py SHADOWVM DIR. exit: 0 so it is, 1 it is not, 2 usage or no captures.
"""

import collections
import json
import pathlib
import re
import subprocess
import sys

SUFFIXES = re.compile(r"\.(pcap|pcapng|cap|dmp)(\.gz)?$")
SECONDS_MAX = 60


def run(*command):
    return subprocess.run(command, capture_output=True, text=True, errors="replace",
                          timeout=SECONDS_MAX, check=False)


def tcpdump_count(path):
    """Packets, as tcpdump has them; None if it does not read the whole file."""
    told = run("tcpdump", "--count", "-r", str(path))
    found = re.search(r"^(\d+) packets?$", told.stdout, re.MULTILINE)
    if told.returncode != 0 or found is None or "unsupported" in told.stderr:
        return None
    return int(found.group(1))


def judge(shadowvm, path, counts):
    """What is wrong with the answers about one file."""
    info = run(shadowvm, "pcap", "info", str(path), "-o", "json")
    if info.returncode not in (0, 1, 2) or "panicked" in info.stderr:
        yield f"pcap info ended with {info.returncode}: {info.stderr.strip()}"
        return
    counts[f"info {info.returncode}"] += 1
    if info.returncode == 2:
        if not info.stderr.startswith(str(path)):
            yield f"no sentence about it: {info.stderr.strip()!r}"
    else:
        told = json.loads(info.stdout)
        counts["packets"] += told["packets"]
        if (info.returncode == 1) != (told["unreadable"] > 0):
            yield f"ended with {info.returncode}, but {told['unreadable']} parts are unreadable"
        for trouble in told["troubles"]:
            if not trouble["what"] or trouble["byte"] is None:
                yield f"a part has no name or no place: {trouble}"
        theirs = tcpdump_count(path)
        # A part that is left out before it is a packet may be one to tcpdump.
        if theirs is not None and not told["packets"] <= theirs <= told["packets"] + told["unreadable"]:
            yield f"{told['packets']} packets, but {theirs} to tcpdump"
        counts["counted alike"] += theirs is not None
    same = run(shadowvm, "diff", str(path), str(path))
    if same.returncode not in (0, 2) or "panicked" in same.stderr:
        yield f"diff with itself ended with {same.returncode}: {same.stdout[-300:]}{same.stderr}"
    counts[f"diff {same.returncode}"] += 1


def main():
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    shadowvm, directory = sys.argv[1:]
    paths = sorted(p for p in pathlib.Path(directory).rglob("*") if SUFFIXES.search(p.name))
    if not paths:
        print(f"no captures below {directory}", file=sys.stderr)
        return 2
    counts, wrong = collections.Counter(), 0
    for path in paths:
        for what in judge(shadowvm, path, counts):
            wrong += 1
            print(f"{path}: {what}")
    told = ", ".join(f"{name}: {count}" for name, count in sorted(counts.items()))
    print(f"{len(paths)} captures of others; {told}; {wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

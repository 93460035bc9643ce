#!/usr/bin/env python3
"""Times what is done with a large capture: reading it, beside others' programs that only read it;
comparing it with itself; saying it again to two nginx, as fast as can be, from an address of this
machine and from that of the captured client.

usage: unshare --net speed.py SHADOWVM DIR [MEGABYTES [CONVERSATIONS]] (as root; 1000 and 10000
unless told). Times are the fastest of three runs, memory is the most that was resident.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import large
import live

HERE = pathlib.Path(__file__).parent
RUNS = 3


def timed(*command):
    """Seconds of the fastest run, of its processor time, MiB, and what it said."""
    best = None
    for _ in range(RUNS):
        begin = time.monotonic()
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        said = child.stdout.read()
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        took = time.monotonic() - begin
        if best is None or took < best[0]:
            best = (took, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, said)
    return best


def tell(what, megabytes, took):
    seconds, processor, mebibytes, _ = took
    print(f"{what:28} {seconds:6.2f} s  {processor:6.2f} s of a processor  "
          f"{megabytes / 1000 / processor:5.2f} GB/s/core  {mebibytes:6.0f} MiB")


def main():
    if not 3 <= len(sys.argv) <= 5:
        print(__doc__, file=sys.stderr)
        return 2
    shadowvm, folder = os.path.abspath(sys.argv[1]), pathlib.Path(sys.argv[2]).absolute()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    capture = str(folder / "large.pcap")
    subprocess.run([sys.executable, HERE / "large.py", capture, *sys.argv[3:]], check=True)
    megabytes = os.path.getsize(capture) / 1e6
    # The page cache holds it from here on.
    subprocess.run(["cat", capture], stdout=subprocess.DEVNULL, check=True)
    for what, command in [
        ("tcpdump --count -r", ["tcpdump", "--count", "-r", capture]),
        ("tshark -r", ["tshark", "-n", "-r", capture, "-T", "fields", "-e", "tcp.stream"]),
        ("tcpprep -a client -i", ["tcpprep", "-a", "client", "-i", capture, "-o", "/dev/null"]),
    ]:
        if shutil.which(command[0]):
            tell(what, megabytes, timed(*command))
        else:
            print(f"{what:28} is not installed")
    # It is read twice: for its conversations, and for what was said.
    tell("pcap info", 2 * megabytes, timed(shadowvm, "pcap", "info", capture, "-o", "json"))
    tell("diff", 4 * megabytes, timed(shadowvm, "diff", capture, capture))
    bed = live.Bed(shadowvm, folder)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for address in (live.SAME, live.OTHER):
        subprocess.run(["ip", "address", "add", f"{address}/32", "dev", "lo"], check=True)
    root = folder / "root"
    root.mkdir()
    body = sum(int(n) for n in sys.argv[3:4] or [1000]) * 1_000_000
    (root / "file").write_bytes(b"x" * (body // int((sys.argv[4:] or ["10000"])[0])))
    everything = "rewrite ^ /file break;"
    try:
        for name, address in [("first", live.SAME), ("second", live.OTHER)]:
            bed.nginx(name, [(f"{address}:80", root, "one", everything)])
        command = [shadowvm, "replay", capture, "--primary", f"{live.SAME}:80", "--backup",
                   f"{live.OTHER}:80", "--pace", "max", "--parallel", "256", "-o", "json"]
        inside = bed.beyond([large.CLIENT])
        bad = said_again("replay to two nginx", megabytes, timed(*command))
        bad += said_again("replay --via", megabytes, timed(*inside, *command, "--via", "up1"))
    finally:
        bed.end()
    shutil.rmtree(folder)
    return int(bad > 0)


def said_again(what, megabytes, took):
    """How many conversations were not as they should be."""
    told = json.loads(took[3])
    tell(what, megabytes, took)
    print(f"{told['conversations']} conversations, {told['different']} different, {told['failed']} "
          f"failed, {told['conversations'] / took[0]:.0f} conversations/s, "
          f"{told['compared_bytes'] / took[0] / 1e6:.0f} MB/s of answers compared")
    return told["different"] + told["failed"]


if __name__ == "__main__":
    sys.exit(main())

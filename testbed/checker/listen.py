#!/usr/bin/env python3
"""Captures one interface until SIGINT or until the interface has been deleted, to the last packet:
a mapped ring, as tcpdump has it, loses its last block when the interface goes.
usage: listen.py INTERFACE FILE; ends like tcpdump, with the packets that the kernel dropped."""

import signal
import socket
import struct
import sys

SOL_PACKET, PACKET_STATISTICS, SO_RCVBUFFORCE, SO_TIMESTAMPNS = 263, 6, 33, 35
GONE = (19, 100)  # ENODEV, ENETDOWN
TCP = 6


def is_tcp(frame):
    kind = frame[12:14]
    return kind == b"\x08\x00" and frame[23] == TCP or kind == b"\x86\xdd" and frame[20] == TCP


def main():
    name, path = sys.argv[1:3]
    listener = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    listener.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 256 << 20)
    listener.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    listener.bind((name, 3))
    signal.signal(signal.SIGINT, lambda *_: listener.settimeout(0))
    listener.settimeout(0.2)
    print(f"listening on {name}", file=sys.stderr, flush=True)
    with open(path, "wb", buffering=1 << 20) as file:
        file.write(struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 262144, 1))
        is_gone = False
        while True:
            try:
                frame, ancillary, _, _ = listener.recvmsg(1 << 17, 64)
            except TimeoutError:
                if is_gone:
                    break
                continue
            except BlockingIOError:
                break  # after SIGINT, when nothing is left
            except OSError as error:
                if error.errno not in GONE:
                    raise
                is_gone = True  # what was received before is still to be read
                listener.settimeout(0)
                continue
            if len(frame) < 54 or not is_tcp(frame):
                continue
            seconds, nanos = struct.unpack("qq", ancillary[0][2][:16])
            file.write(struct.pack("<IIII", seconds, nanos, len(frame), len(frame)) + frame)
    _, drops = struct.unpack("II", listener.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
    print(f"{drops} packets dropped by kernel", file=sys.stderr)


if __name__ == "__main__":
    main()

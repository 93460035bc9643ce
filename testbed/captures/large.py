#!/usr/bin/env python3
"""Writes a large capture: downloads over HTTP, many at a time, each segment with its checksums.

usage: large.py OUT [MEGABYTES [CONVERSATIONS]] (1000 and 10000 unless told)
"""

import struct
import sys

MSS = 1448
AT_ONCE = 200
CLIENT = "10.1.0.0"
ETHERNET = bytes.fromhex("020000000002" "020000000001" "0800")


def folded(total):
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def words(data):
    data += b"\0" * (len(data) % 2)
    return folded(sum(struct.unpack(f"!{len(data) // 2}H", data)))


class Writer:
    def __init__(self, out):
        self.out, self.packets, self.bytes = out, 0, 24
        out.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262144, 1))

    def packet(self, src, dst, seq, ack, flags, payload=b"", payload_sum=0):
        (src_ip, src_port), (dst_ip, dst_port) = src, dst
        length = 32 + len(payload)
        ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + length, 0, 0x4000, 64, 6, 0, src_ip, dst_ip)
        ip = ip[:10] + struct.pack("!H", 0xFFFF - words(ip)) + ip[12:]
        ticks = self.packets // 50
        tcp = struct.pack("!HHIIBBHHHBBBBII", src_port, dst_port, seq & 0xFFFFFFFF,
                          ack & 0xFFFFFFFF, 0x80, flags, 5000, 0, 0, 1, 1, 8, 10, ticks, ticks)
        total = words(src_ip + dst_ip + struct.pack("!HH", 6, length) + tcp) + payload_sum
        tcp = tcp[:16] + struct.pack("!H", 0xFFFF - folded(total)) + tcp[18:]
        size = 34 + length
        micros = self.packets * 20
        self.out.write(struct.pack("<IIII", 1_700_000_000 + micros // 1_000_000,
                                   micros % 1_000_000, size, size) + ETHERNET + ip + tcp + payload)
        self.packets += 1
        self.bytes += 16 + size


def talk(writer, number, body):
    """One download, packet by packet."""
    client = (struct.pack("!BBH", 10, 1, number // 20_000), 20_000 + number % 20_000)
    server = (bytes([10, 2, 0, 1]), 80)
    seq, ack = number * 7919, number * 104_729
    writer.packet(client, server, seq, 0, 2)
    writer.packet(server, client, ack, seq + 1, 18)
    seq, ack = seq + 1, ack + 1
    writer.packet(client, server, seq, ack, 16)
    request = f"GET /{number:08} HTTP/1.1\r\nHost: large\r\n\r\n".encode()
    yield
    writer.packet(client, server, seq, ack, 24, request, words(request))
    seq += len(request)
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body) * MSS:010}\r\n\r\n".encode()
    yield
    writer.packet(server, client, ack, seq, 24, head, words(head))
    ack += len(head)
    for at, (piece, piece_sum) in enumerate(body):
        writer.packet(server, client, ack, seq, 16, piece, piece_sum)
        ack += MSS
        if at % 2:
            writer.packet(client, server, seq, ack, 16)
            yield
    writer.packet(server, client, ack, seq, 17)
    writer.packet(client, server, seq, ack + 1, 17)
    writer.packet(server, client, ack + 1, seq + 1, 16)


def main():
    if not 2 <= len(sys.argv) <= 4:
        print(__doc__, file=sys.stderr)
        return 2
    megabytes, count = [int(n) for n in sys.argv[2:]] + [1000, 10_000][len(sys.argv) - 2:]
    pieces = []
    for number in range(64):
        piece = bytes((number * 37 + at * 11) % 251 for at in range(MSS))
        pieces.append((piece, words(piece)))
    # A segment with its headers, and half an acknowledgment.
    each = max(1, megabytes * 1_000_000 // count // (MSS + 82 + 41))
    body = [pieces[at % 64] for at in range(each)]
    with open(sys.argv[1], "wb", buffering=1 << 20) as out:
        writer = Writer(out)
        running, next_one = [], 0
        while running or next_one < count:
            while len(running) < AT_ONCE and next_one < count:
                running.append(talk(writer, next_one, body))
                next_one += 1
            running = [one for one in running if next(one, one) is not one]
        print(f"{writer.packets} packets, {writer.bytes} bytes, {count} conversations")
    return 0


if __name__ == "__main__":
    sys.exit(main())

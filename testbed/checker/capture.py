"""Reads pcap and pcapng captures of Ethernet links and decodes TCP. Python's standard library only;
shares no code with the gateway. Anything that would make a verdict unsafe raises Refused."""

import ipaddress
import re
import struct


class Refused(Exception):
    """The captures cannot carry a verdict."""


class Packet:
    """One TCP packet of a capture. `number` counts from 1, as in Wireshark."""

    __slots__ = ("t_ns", "link", "number", "src", "dst", "seq", "ack", "flags", "window",
                 "mss", "wscale", "sack_ok", "ts", "sack", "payload")

    FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16

    def has(self, flag):
        return bool(self.flags & flag)


def read(path, link):
    """Yields the TCP packets of a capture in the order of the file."""
    with open(path, "rb") as file:
        magic = file.read(4)
        if len(magic) < 4:
            raise Refused(f"{path}: empty, so the link was not captured")
        frames = _pcapng(file, path) if magic == b"\x0a\x0d\x0d\x0a" else _pcap(file, magic, path)
        for number, (t_ns, captured, original) in enumerate(frames, 1):
            if len(captured) < original:
                raise Refused(f"{path}: packet {number} is truncated: "
                              f"{len(captured)} of {original} bytes")
            packet = decode(captured, f"{path}: packet {number}")
            if packet is not None:
                packet.t_ns, packet.link, packet.number = t_ns, link, number
                yield packet


def _pcap(file, magic, path):
    kinds = {b"\xd4\xc3\xb2\xa1": ("<", 1000), b"\xa1\xb2\xc3\xd4": (">", 1000),
             b"\x4d\x3c\xb2\xa1": ("<", 1), b"\xa1\xb2\x3c\x4d": (">", 1)}
    if magic not in kinds:
        raise Refused(f"{path}: neither pcap nor pcapng")
    order, unit = kinds[magic]
    header = file.read(20)
    if len(header) < 20:
        raise Refused(f"{path}: file header cut off")
    linktype = struct.unpack(order + "HHiIII", header)[5] & 0xFFFF
    if linktype != 1:
        raise Refused(f"{path}: link type {linktype}, Ethernet (1) is needed")
    record = struct.Struct(order + "IIII")
    while True:
        head = file.read(16)
        if not head:
            return
        if len(head) < 16:
            raise Refused(f"{path}: cut off inside a packet header")
        seconds, fraction, captured, original = record.unpack(head)
        data = file.read(captured)
        if len(data) < captured:
            raise Refused(f"{path}: cut off inside a packet")
        yield seconds * 1_000_000_000 + fraction * unit, data, original


def _pcapng(file, path):
    file.seek(0)
    order, interfaces = "<", []
    while True:
        head = file.read(8)
        if not head:
            return
        if len(head) < 8:
            raise Refused(f"{path}: cut off inside a block")
        kind, = struct.unpack(order + "I", head[:4])
        if kind == 0x0A0D0D0A:
            mark = file.read(4)
            order = "<" if mark == b"\x4d\x3c\x2b\x1a" else ">"
            file.seek(-4, 1)
            interfaces = []
        length, = struct.unpack(order + "I", head[4:])
        if length < 12 or length % 4:
            raise Refused(f"{path}: a block of {length} bytes")
        body = file.read(length - 8)
        if len(body) < length - 8:
            raise Refused(f"{path}: cut off inside a block")
        body = body[:-4]
        if kind == 1:  # interface description
            linktype, = struct.unpack(order + "H", body[:2])
            if linktype != 1:
                raise Refused(f"{path}: link type {linktype}, Ethernet (1) is needed")
            code = _options(body[8:], order).get(9, b"\x06")[0]
            interfaces.append(2 ** (code & 0x7F) if code & 0x80 else 10 ** code)
        elif kind == 5:  # interface statistics: if_drop, if_osdrop
            for option, name in ((5, "if_drop"), (7, "if_osdrop")):
                value = _options(body[12:], order).get(option)
                if value and struct.unpack(order + "Q", value)[0]:
                    raise Refused(f"{path}: {name} is not 0: the capture lost packets")
        elif kind == 6:  # enhanced packet
            which, high, low, captured, original = struct.unpack(order + "IIIII", body[:20])
            units = (high << 32) | low
            yield units * 1_000_000_000 // interfaces[which], body[20:20 + captured], original
        elif kind in (2, 3):
            raise Refused(f"{path}: packet blocks without a usable time")


def _options(data, order):
    found, at = {}, 0
    while at + 4 <= len(data):
        code, length = struct.unpack(order + "HH", data[at:at + 4])
        if code == 0:
            break
        found[code] = data[at + 4:at + 4 + length]
        at += 4 + (length + 3) // 4 * 4
    return found


def decode(frame, where):
    """The TCP packet in an Ethernet frame, or None. Checksums are not read: on these links they
    may still hold the pseudo-header's sum only."""
    if len(frame) < 14:
        return None
    at, ethertype = 14, frame[12] << 8 | frame[13]
    while ethertype in (0x8100, 0x88A8) and len(frame) >= at + 4:
        ethertype = frame[at + 2] << 8 | frame[at + 3]
        at += 4
    if ethertype == 0x0800:
        ihl, total, protocol = (frame[at] & 15) * 4, *struct.unpack_from(">H5xB", frame, at + 2)
        fragment, = struct.unpack_from(">H", frame, at + 6)
        if protocol != 6:
            return None
        if fragment & 0x3FFF:
            raise Refused(f"{where}: a TCP packet in fragments")
        src = ipaddress.IPv4Address(frame[at + 12:at + 16])
        dst = ipaddress.IPv4Address(frame[at + 16:at + 20])
        end = at + total if total else len(frame)
        at += ihl
    elif ethertype == 0x86DD:
        total, following = struct.unpack_from(">HB", frame, at + 4)
        src = ipaddress.IPv6Address(frame[at + 8:at + 24])
        dst = ipaddress.IPv6Address(frame[at + 24:at + 40])
        at += 40
        end = at + total if total else len(frame)
        while following in (0, 43, 60):
            following, length = frame[at], frame[at + 1]
            at += 8 + length * 8
        if following == 44:
            raise Refused(f"{where}: an IPv6 fragment")
        if following != 6:
            return None
    else:
        return None
    if end > len(frame) or end - at < 20:
        raise Refused(f"{where}: IP length beyond the frame")
    packet = Packet()
    (sport, dport, packet.seq, packet.ack, offset, packet.flags, packet.window) = \
        struct.unpack_from(">HHIIBBH", frame, at)
    header = (offset >> 4) * 4
    if header < 20 or at + header > end:
        raise Refused(f"{where}: TCP header beyond the packet")
    packet.src = f"{src}:{sport}" if src.version == 4 else f"[{src}]:{sport}"
    packet.dst = f"{dst}:{dport}" if dst.version == 4 else f"[{dst}]:{dport}"
    packet.payload = bytes(frame[at + header:end])
    packet.mss = packet.wscale = packet.ts = None
    packet.sack_ok, packet.sack = False, []
    _tcp_options(packet, frame[at + 20:at + header])
    return packet


def _tcp_options(packet, data):
    at = 0
    while at < len(data) and data[at]:
        if data[at] == 1:
            at += 1
            continue
        if at + 1 >= len(data) or data[at + 1] < 2:
            return
        kind, value = data[at], data[at + 2:at + data[at + 1]]
        at += data[at + 1]
        if kind == 2 and len(value) == 2:
            packet.mss = value[0] << 8 | value[1]
        elif kind == 3 and len(value) == 1:
            packet.wscale = min(value[0], 14)
        elif kind == 4:
            packet.sack_ok = True
        elif kind == 5:
            packet.sack = [struct.unpack_from(">II", value, i)
                           for i in range(0, len(value) - 7, 8)]
        elif kind == 8 and len(value) == 8:
            packet.ts = struct.unpack(">II", value)


def refuse_drops(path, captures):
    """`path`: what tcpdump said on ending, for each of `captures` captures."""
    with open(path, encoding="utf-8", errors="replace") as file:
        text = file.read()
    said = re.findall(r"(\d+) packets? dropped by (kernel|interface)", text)
    if sum(1 for _, who in said if who == "kernel") < captures:
        raise Refused(f"{path}: no drop statistics of every capture: tcpdump did not end cleanly")
    for count, who in said:
        if int(count):
            raise Refused(f"{path}: {count} packets dropped by {who}")

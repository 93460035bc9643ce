#!/usr/bin/env python3
"""The checker, checked: a small correct set of captures is accepted; the same set, edited to break
one rule each, is rejected with that rule and the number of the packet; captures that cannot carry
a verdict are refused."""

import contextlib
import io
import json
import os
import struct
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import check  # noqa: E402

CLIENT, SERVICE = "10.9.0.2:40000", "10.9.0.80:80"
ISS_C, ISS_A, ISS_B = 0xFFFFFF80, 7_000, 0xFFFFFFE0
START = 1_700_000_000_000_000_000
FIN, SYN, RST, ACK = 1, 2, 4, 16
RESPONSE = bytes(range(256)) + bytes(range(144))   # 400 bytes
MASK = (20, 28)
PROMOTED_AT = 300                                  # response bytes shown before the failover


class Link:
    """A packet to be written: position in the timeline and fields, to be edited by name."""

    def __init__(self, name, link, to_client, seq, ack, flags=ACK, payload=b"", window=512,
                 ts=None, syn=False):
        self.name, self.link, self.to_client, self.seq, self.ack = name, link, to_client, seq, ack
        self.flags, self.payload, self.window, self.ts, self.syn = flags, payload, window, ts, syn
        self.t_us = None
        self.cut = 0

    def frame(self, port):
        options = b""
        if self.syn:
            options = b"\x02\x04\x05\xb4\x01\x03\x03\x07"
        if self.ts is not None:
            options += b"\x01\x01\x08\x0a" + struct.pack(">II", self.ts, 1)
        client = (b"\x0a\x09\x00\x02", port)
        service = (b"\x0a\x09\x00\x50", 80)
        source, target = (service, client) if self.to_client else (client, service)
        tcp = struct.pack(">HHIIBBHHH", source[1], target[1], self.seq & 0xFFFFFFFF,
                          self.ack & 0xFFFFFFFF, (20 + len(options)) // 4 << 4, self.flags,
                          self.window, 0, 0) + options + self.payload
        ip = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0x4000, 64, 6, 0) \
            + source[0] + target[0]
        return b"\x02" * 6 + b"\x04" * 6 + b"\x08\x00" + ip + tcp


def version(leg):
    """A server's answer: the masked span differs."""
    own = {"a": b"AAAAAAAA", "b": b"BBBBBBBB"}[leg]
    return RESPONSE[:MASK[0]] + own + RESPONSE[MASK[1]:]


def good():
    """The correct timeline: handshake, a request, an answer in different segments, a failover to b
    after 300 bytes, the rest, and b's FIN."""
    a, b = version("a"), version("b")
    p = []

    def client(name, low, high, data=None, **more):
        p.append(Link(name, "client", True, ISS_A + 1 + low, ISS_C + 1 + 100, payload=(data or
                      a)[low:high], **more))

    def leg(name, which, low, high, **more):
        iss, data = {"a": (ISS_A, a), "b": (ISS_B, b)}[which]
        p.append(Link(name, which, True, iss + 1 + low, ISS_C + 1 + 100, payload=data[low:high],
                      **more))

    p.append(Link("syn", "client", False, ISS_C, 0, SYN, syn=True, ts=1))
    for which in "ab":
        p.append(Link(f"syn-{which}", which, False, ISS_C, 0, SYN, syn=True, ts=1))
    p.append(Link("synack-a", "a", True, ISS_A, ISS_C + 1, SYN | ACK, syn=True, ts=500))
    p.append(Link("synack-b", "b", True, ISS_B, ISS_C + 1, SYN | ACK, syn=True, ts=90))
    p.append(Link("synack", "client", True, ISS_A, ISS_C + 1, SYN | ACK, syn=True, ts=500))
    request = b"r" * 100
    p.append(Link("request", "client", False, ISS_C + 1, ISS_A + 1, payload=request, ts=2))
    for which, iss in (("a", ISS_A), ("b", ISS_B)):
        p.append(Link(f"request-{which}", which, False, ISS_C + 1, iss + 1, payload=request, ts=2))
    p.append(Link("acked-a", "a", True, ISS_A + 1, ISS_C + 101, ts=501))
    p.append(Link("acked-b", "b", True, ISS_B + 1, ISS_C + 101, ts=91, window=400))
    p.append(Link("acked", "client", True, ISS_A + 1, ISS_C + 101, ts=501, window=400))
    leg("a-1", "a", 0, 200, ts=510)
    leg("b-1", "b", 0, 24, ts=95)       # ends inside the masked span
    client("early", 0, 20, ts=510, window=400)
    leg("b-2", "b", 24, 150, ts=96, window=400)
    client("shown-1", 20, 150, ts=510, window=400)
    leg("b-3", "b", 150, PROMOTED_AT, ts=97, window=400)
    client("shown-2", 150, 200, ts=510, window=400)
    leg("a-2", "a", 200, PROMOTED_AT, ts=511)
    client("shown-3", 200, PROMOTED_AT, ts=511, window=400)
    p.append(Link("client-ack", "client", False, ISS_C + 101, ISS_A + 301, ts=3))
    p.append(Link("client-ack-b", "b", False, ISS_C + 101, ISS_B + 301, ts=3))
    leg("b-4", "b", 300, 350, ts=98, window=512)
    p.append(Link("promotion", None, True, 0, 0))
    client("after-1", 300, 350, data=b, ts=520, window=512)
    leg("a-late", "a", 300, 400, ts=530)
    leg("b-5", "b", 350, 400, ts=99, flags=FIN | ACK, window=512)
    client("after-2", 350, 400, data=b, ts=521, flags=FIN | ACK, window=512)
    for index, packet in enumerate(p):
        packet.t_us = index * 1000
    return p


class Set:
    """A capture set on disk."""

    def __init__(self, folder, packets, events=None, drops="0 packets dropped by kernel\n" * 3):
        self.folder = folder
        at = {packet.name: START + packet.t_us * 1000 for packet in packets}
        promotion = at.get("promotion", START + 10**10)
        flow = {"client": CLIENT, "server": SERVICE}
        opened = {"seq": ISS_A + 1, "ack": ISS_C + 1, "edge": ISS_C + 1 + 512}
        moved = {"seq": ISS_A + 1 + PROMOTED_AT, "ack": ISS_C + 101, "edge": ISS_C + 501}
        opened, moved = ({k: v & 0xFFFFFFFF for k, v in d.items()} for d in (opened, moved))
        self.events = events if events is not None else [
            {"t_ns": at.get("syn", START) - 1, "event": "flow_opened", "flow": flow},
            {"t_ns": at["synack"] - 1, "event": "flow_changed", "flow": flow, "from": "opening",
             "to": "paired", "leg": "a", "shown": opened},
            {"t_ns": at["b-2"], "event": "mask_hit", "flow": flow, "rule": 0, "at": MASK[0],
             "len": MASK[1] - MASK[0]},
            {"t_ns": promotion, "event": "server_changed", "leg": "a", "from": "up",
             "to": "failed"},
            {"t_ns": promotion, "event": "promoted", "leg": "b", "finding": "h1_carrier"},
            {"t_ns": promotion, "event": "flow_changed", "flow": flow, "from": "paired",
             "to": "solo", "leg": "b", "solo": "server_failed", "shown": moved},
            {"t_ns": promotion + 10**10, "event": "flow_closed", "flow": flow,
             "released_bytes": 400, "verified_bytes": PROMOTED_AT}]
        self.number = {}
        for link in ("client", "a", "b"):
            with open(self.path(link), "wb") as file:
                file.write(struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 262144, 1))
                mine = [q for q in packets if q.link == link]
                for number, packet in enumerate(sorted(mine, key=lambda q: q.t_us), 1):
                    self.number[packet.name] = (link, number)
                    frame = packet.frame(40000)
                    t_ns = START + packet.t_us * 1000
                    kept = frame[:len(frame) - packet.cut]
                    file.write(struct.pack("<IIII", t_ns // 10**9, t_ns % 10**9, len(kept),
                                           len(frame)) + kept)
        with open(self.path("events"), "w", encoding="utf-8") as file:
            file.writelines(json.dumps(event) + "\n" for event in self.events)
        with open(self.path("drops"), "w", encoding="utf-8") as file:
            file.write(drops)

    def path(self, name):
        return os.path.join(self.folder, name)

    def check(self, *more):
        arguments = [f"--{name}={self.path(name)}"
                     for name in ("client", "a", "b", "events", "drops")]
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            code = check.main([*arguments, *more])
        return code, said.getvalue()


class TheChecker(unittest.TestCase):
    def setUp(self):
        self.temporary = tempfile.TemporaryDirectory()
        self.addCleanup(self.temporary.cleanup)
        self.packets = good()

    def __getitem__(self, name):
        return next(packet for packet in self.packets if packet.name == name)

    def written(self, **more):
        return Set(self.temporary.name, self.packets, **more)

    def rejected(self, rule, name, *more):
        """The edited set is rejected for `rule` with the number of packet `name`."""
        made = self.written()
        code, said = made.check(*more)
        link, number = made.number[name]
        self.assertEqual(code, 1, said)
        first = said.splitlines()[0]
        self.assertTrue(first.startswith(f"VIOLATION {rule}: {link} packet {number},"), said)

    def refused(self, reason, **more):
        code, said = self.written(**more).check()
        self.assertEqual(code, 2, said)
        self.assertIn(reason, said)

    def test_accepts_what_is_right(self):
        code, said = self.written().check()
        self.assertEqual(code, 0, said)
        summary = json.loads(said)
        self.assertEqual(summary["connections"], 1)
        self.assertEqual(summary["shown_bytes"], 400)
        self.assertEqual(summary["unverified_bytes"], 100)

    def test_counts_unverified_bytes_with_the_gateway(self):
        made = self.written()
        self.assertEqual(made.check("--unverified=100")[0], 0)
        code, said = made.check("--unverified=99")
        self.assertEqual(code, 1)
        self.assertIn("VIOLATION unverified", said)

    def test_counts_each_flow_to_the_byte(self):
        events = self.written().events
        events[-1] = {**events[-1], "verified_bytes": PROMOTED_AT + 1}
        code, said = self.written(events=events).check()
        self.assertEqual(code, 1, said)
        self.assertIn("counted 99 unverified bytes, the captures say 100", said)

    def test_judges_by_position_not_by_time(self):
        # What was released before the failover is captured after its event.
        events = self.written().events
        early = self["a-2"].t_us * 1000 + START
        events = [{**e, "t_ns": min(e["t_ns"], early)} for e in events]
        code, said = self.written(events=events).check("--unverified=100")
        self.assertEqual(code, 0, said)

    def test_counts_a_segment_ahead_of_a_hole_as_verified(self):
        # 250..300 is shown before 200..250, and the failover comes at 200.
        ahead = self["shown-3"]
        ahead.seq, ahead.payload = ahead.seq + 50, ahead.payload[50:]
        hole = Link("hole", "client", True, ahead.seq - 50, ahead.ack, window=400, ts=520,
                    payload=version("b")[200:250])
        hole.t_us = self["promotion"].t_us + 500
        self.packets.append(hole)
        events = self.written().events
        moved = {**events[5]["shown"], "seq": (ISS_A + 201) & 0xFFFFFFFF}
        events[5] = {**events[5], "shown": moved}
        events[6] = {**events[6], "verified_bytes": 250}
        code, said = self.written(events=events).check("--unverified=150")
        self.assertEqual(code, 0, said)

    # -- one rule broken each ---------------------------------------------------------------------

    def test_a_byte_that_neither_server_said(self):
        self["shown-2"].payload = b"?" + self["shown-2"].payload[1:]
        self.rejected("data", "shown-2")

    def test_bytes_shown_before_the_backup_said_them(self):
        self["shown-2"].t_us = self["b-3"].t_us - 500
        self.rejected("data", "shown-2")

    def test_bytes_shown_before_the_primary_said_them(self):
        self["shown-3"].t_us = self["a-2"].t_us - 500
        self.rejected("data", "shown-3")

    def test_a_late_stamp_is_excused_only_where_it_is_to_be_expected(self):
        self["shown-2"].t_us = self["b-3"].t_us - 500
        self.rejected("data", "shown-2", "--late-us=400")
        self.assertEqual(self.written().check("--late-us=600")[0], 0)

    def test_a_byte_on_which_the_servers_differ(self):
        self["b-3"].payload = self["b-3"].payload[:60] + b"?" + self["b-3"].payload[61:]
        self.rejected("data", "shown-3")

    def test_a_masked_span_that_is_a_mixture(self):
        shown = self["shown-1"]
        shown.payload = b"AAAABBBB" + shown.payload[8:]
        self.rejected("data", "shown-1")

    def test_a_masked_span_split_before_it_was_complete(self):
        self["early"].payload = version("a")[:24]
        self["shown-1"].seq += 4
        self["shown-1"].payload = self["shown-1"].payload[4:]
        self.rejected("data", "early")

    def test_a_difference_that_no_mask_covers(self):
        made = self.written()
        made = self.written(events=[e for e in made.events if e["event"] != "mask_hit"])
        code, said = made.check()
        self.assertEqual(code, 1)
        link, number = made.number["shown-1"]
        self.assertIn(f"VIOLATION data: {link} packet {number},", said)

    def test_an_ack_above_the_backups(self):
        self["acked"].t_us = self["acked-b"].t_us - 500
        self.rejected("ack", "acked")

    def test_an_ack_above_both(self):
        self["shown-2"].ack += 1
        self.rejected("ack", "shown-2")

    def test_a_window_beyond_the_backups(self):
        self["acked"].window = 401
        self.rejected("window", "acked")

    def test_a_timestamp_that_goes_backwards(self):
        self["shown-3"].ts = 509
        self.rejected("tsval", "shown-3")

    def test_a_timestamp_that_goes_backwards_at_the_failover(self):
        self["after-1"].ts = 98
        self.rejected("tsval", "after-1")

    def test_a_synack_before_the_backups(self):
        self["synack"].t_us = self["synack-b"].t_us - 500
        self.rejected("synack", "synack")

    def test_a_second_synack_of_another_number(self):
        again = self["synack"]
        packet = Link("again", "client", True, ISS_B, again.ack, SYN | ACK, syn=True, ts=501)
        packet.t_us = again.t_us + 500
        self.packets.append(packet)
        self.rejected("synack", "again")

    def test_a_fin_of_one_server_only(self):
        self["a-2"].flags |= FIN
        self["shown-3"].flags |= FIN
        self.rejected("fin", "shown-3")

    def test_a_fin_at_another_place(self):
        self["after-2"].payload = self["after-2"].payload[:-1]
        self.rejected("fin", "after-2")

    def reset(self, name, link, after):
        packet = Link(name, link, True, ISS_A + 301, ISS_C + 101, RST | ACK)
        packet.t_us = self[after].t_us + 400
        self.packets.append(packet)

    def test_a_reset_of_one_server_only(self):
        self.reset("rst-a", "a", "shown-3")
        self.reset("rst", "client", "client-ack")
        self.rejected("rst", "rst")

    def test_a_reset_of_a_fenced_server(self):
        self.reset("rst-a", "a", "after-1")
        self.reset("rst", "client", "a-late")
        self.rejected("rst", "rst")

    def test_bytes_of_a_fenced_server(self):
        self["after-2"].t_us = self["b-5"].t_us - 500
        self["after-2"].flags = ACK
        self.rejected("data", "after-2")

    def test_bytes_after_the_failover_that_the_survivor_did_not_say(self):
        self["after-1"].payload = b"?" + self["after-1"].payload[1:]
        self.rejected("data", "after-1")

    def test_the_survivors_bytes_before_the_role_change(self):
        events = self.written().events
        moved = {**events[5]["shown"], "seq": (ISS_A + 301 + 50) & 0xFFFFFFFF}
        events[5] = {**events[5], "shown": moved}
        made = self.written(events=events)
        code, said = made.check()
        self.assertEqual(code, 1, said)
        link, number = made.number["after-1"]
        self.assertTrue(said.startswith(f"VIOLATION data: {link} packet {number},"), said)

    def test_a_flow_that_stays_with_a_fenced_server(self):
        events = [e for e in self.written().events if e.get("solo") is None]
        code, said = self.written(events=events).check()
        self.assertEqual(code, 1, said)
        self.assertTrue(said.startswith("VIOLATION fence: a packet 0,"), said)

    def test_bytes_that_a_server_said_after_it_was_fenced(self):
        late = self["a-2"]
        late.t_us = self["promotion"].t_us + 200_000
        self["shown-3"].t_us = late.t_us + 1000
        for name in ("after-1", "after-2"):
            self[name].t_us = late.t_us + 2000
        self["shown-3"].ts = 520
        self.rejected("data", "shown-3")

    def test_an_ack_beyond_what_a_server_has_sent(self):
        self["client-ack-b"].ack += 51
        self.rejected("leg-ack", "client-ack-b")

    def test_an_answer_that_no_client_asked_for(self):
        probe = Link("probe", "client", True, 5, 6, SYN | ACK, syn=True)
        probe.t_us = 0
        for packet in self.packets:
            packet.t_us += 100
        self.packets.append(probe)
        self.rejected("unasked", "probe")

    # -- captures that cannot carry a verdict -----------------------------------------------------

    def test_refuses_kernel_drops(self):
        self.refused("dropped by kernel", drops="0 packets dropped by kernel\n" * 2
                     + "7 packets dropped by kernel\n")

    def test_refuses_missing_drop_statistics(self):
        self.refused("no drop statistics", drops="0 packets dropped by kernel\n" * 2)

    def test_refuses_truncated_packets(self):
        self["shown-1"].cut = 10
        self.refused("truncated")

    def test_refuses_a_missing_handshake(self):
        self.packets = [p for p in self.packets if not p.name.startswith("syn")]
        made = self.events_of_good()
        self.refused("handshake is not in the capture", events=made)

    def events_of_good(self):
        packets, self.packets = self.packets, good()
        events = self.written().events
        self.packets = packets
        return events

    def test_refuses_a_lagging_flow_under_strict(self):
        flow = {"client": CLIENT, "server": SERVICE}
        self.refused("strict", events=[{"t_ns": START, "event": "flow_changed", "flow": flow,
                                        "from": "paired", "to": "lagging", "leg": "a"}])

    def test_refuses_drops_noted_in_a_pcapng(self):
        made = self.written()

        def block(kind, body):
            size = struct.pack("<I", len(body) + 12)
            return struct.pack("<I", kind) + size + body + size

        with open(made.path("a"), "wb") as file:
            file.write(block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1)))
            file.write(block(1, struct.pack("<HHI", 1, 0, 0)))
            file.write(block(5, struct.pack("<III", 0, 0, 0) + struct.pack("<HHQI", 5, 8, 3, 0)))
        code, said = made.check()
        self.assertEqual(code, 2, said)
        self.assertIn("if_drop", said)


if __name__ == "__main__":
    unittest.main()

#!/usr/bin/env python3
"""Checks from the outside that the gateway kept its promises.

Reads the captures of the gateway's three links and its event log. From the log it takes only the
instants of role changes and detaches, and the masked spans. Packets are gone through in the order
of their time; of a packet that the gateway shows to a client it is asked:

  data     every byte was said before by every server that the flow depends on, and equals it;
           a masked span is one server's version throughout
  ack      the number is not above what each of these servers has acknowledged
  window   the right edge is not beyond what each of these servers has granted (nor what the client
           was shown already)
  tsval    the timestamp never goes backwards
  synack   each of these servers has answered the handshake
  fin      each of these servers has ended at this position
  rst      each of these servers has reset, or the log says that the flow had to be
  unasked  the client has begun this connection
and of a packet to a server:
  leg-ack  the number is not beyond what this server has sent

"These servers" are both, until the log says that one was fenced, detached or late; from then on
the live one alone. usage: check.py --help. exit: 0 kept, 1 violated, 2 refused or usage.
"""

import argparse
import heapq
import json
import sys

from capture import Packet, Refused, read, refuse_drops

FAR = 1 << 30


class Ranges:
    """Sorted, disjoint, half-open ranges."""

    def __init__(self):
        self.items = []

    def add(self, low, high):
        """Adds a range; returns the parts that were new."""
        if low >= high:
            return []
        new, at, kept = [], low, []
        for left, right in self.items:
            if right < low or left > high:
                kept.append((left, right))
                continue
            if left > at:
                new.append((at, left))
            at = max(at, right)
        if at < high:
            new.append((at, high))
        merged = [r for r in self.items if not (r[1] < low or r[0] > high)]
        kept.append((min([low] + [r[0] for r in merged]), max([high] + [r[1] for r in merged])))
        self.items = sorted(kept)
        return new

    def covers(self, low, high):
        return low >= high or any(a <= low and high <= b for a, b in self.items)


class Leg:
    """What one server has said on one connection, by offset (0 is the first byte of data)."""

    def __init__(self):
        self.iss = None          # its SYN-ACK's number; None before it
        self.wscale = None
        self.said = Ranges()
        self.data = bytearray()
        self.base = 0
        self.next = 0            # behind the highest byte or FIN sent
        self.ack = None          # highest client byte acknowledged
        self.edge = None         # right edge granted
        self.fin = None
        self.reset = False

    def put(self, at, payload):
        """Stores what is new; the first version of a byte counts."""
        for low, high in self.said.add(at, at + len(payload)):
            low = max(low, self.base)
            if low >= high:
                continue
            if high - self.base > len(self.data):
                self.data.extend(bytes(high - self.base - len(self.data)))
            self.data[low - self.base:high - self.base] = payload[low - at:high - at]

    def same(self, low, high, payload):
        return self.data[low - self.base:high - self.base] == payload

    def forget(self, below):
        if below - self.base > 8 << 20:
            del self.data[:below - self.base]
            self.base = below


class Connection:
    """One TCP connection of a client, from SYN to SYN of the same addresses."""

    def __init__(self, syn, required):
        self.client, self.server = syn.src, syn.dst
        self.opened = syn.t_ns
        self.iss = syn.seq
        self.syn_wscale = syn.wscale
        self.legs = {"a": Leg(), "b": Leg()}
        self.required = set(required)   # the servers it depends on
        self.late = set()               # servers that are late: fed, not waited for
        self.deaf = set()               # servers that this flow has left behind
        self.may_reset = False
        self.shown_iss = None
        self.wscale = None
        self.shown = Ranges()
        self.shown_edge = 0
        self.acked = 0                  # response bytes that the client has acknowledged
        self.ts = None
        self.masks = []                 # [low, high, servers whose version was shown]
        self.client_reset = False
        self.bytes = self.unverified = self.in_flight = 0

    def __str__(self):
        return f"{self.client} -> {self.server}"


def near(raw, iss, reference):
    """The offset of a 32-bit number, the one nearest to `reference`."""
    step = (raw - iss - 1 - reference) & 0xFFFFFFFF
    return reference + (step - (1 << 32) if step >= 1 << 31 else step)


class Checker:
    def __init__(self, primary):
        self.live = {"a", "b"}
        self.primary = primary
        self.failed = set()
        self.connections = {}
        self.early = {}
        self.closed = []
        self.violations = []
        self.packets = 0

    # -- the event log ----------------------------------------------------------------------------

    def event(self, event):
        kind, leg = event["event"], event.get("leg")
        if kind == "server_changed":
            if event["to"] in ("failed", "returning"):
                self.fence(leg)
            elif event["to"] in ("up", "unfit") and event["from"] == "returning":
                self.failed.discard(leg)
        elif kind == "detached":
            self.fence(leg)
        elif kind == "promoted":
            if event["finding"] != "operator":
                self.fence("b" if leg == "a" else "a")
            self.primary = leg
        elif event.get("flow"):
            key = (event["flow"]["client"], event["flow"]["server"])
            connection = self.connections.get(key)
            if connection is not None:
                self.flow_event(connection, kind, event)
            elif kind != "flow_opened":
                # Events apply a little early: this one even before its SYN.
                self.early.setdefault(key, []).append((kind, event))

    def fence(self, leg):
        if leg in self.failed:
            return
        self.failed.add(leg)
        for connection in self.connections.values():
            connection.required.discard(leg)
            connection.late.discard(leg)

    def flow_event(self, connection, kind, event):
        if kind == "flow_changed":
            if event["to"] == "solo":
                connection.required, connection.late = {event["leg"]}, set()
                connection.deaf = {"a", "b"} - connection.required
            elif event["to"] == "lagging":
                other = "b" if event["leg"] == "a" else "a"
                connection.required, connection.late = {event["leg"]}, {other}
            elif event["to"] == "paired" and event["from"] in ("opening", "lagging"):
                connection.required, connection.late = {"a", "b"} - self.failed, set()
        elif kind == "mask_hit":
            connection.masks.append([event["at"], event["at"] + event["len"], {"a", "b"}])
        elif kind == "flow_reset":
            connection.may_reset = True

    # -- packets ----------------------------------------------------------------------------------

    def packet(self, packet):
        self.packets += 1
        if packet.link == "client":
            known = self.connections.get((packet.src, packet.dst))
            if known is not None or packet.has(Packet.SYN) and not packet.has(Packet.ACK):
                self.from_client(packet, known)
            elif (packet.dst, packet.src) in self.connections:
                self.to_client(packet, self.connections[packet.dst, packet.src])
            else:
                self.stranger(packet)
        elif (packet.dst, packet.src) in self.connections:
            self.from_server(packet, self.connections[packet.dst, packet.src])
        elif (packet.src, packet.dst) in self.connections:
            self.to_server(packet, self.connections[packet.src, packet.dst])
        # Anything else on a server's link is a probe of the gateway's own, or another service.

    def stranger(self, packet):
        if self.ports and packet.src.rpartition(":")[2] in self.ports:
            self.violation("unasked", packet, None, "the client did not begin this connection")
        elif not packet.has(Packet.RST):
            raise Refused(f"client packet {packet.number}: {packet.src} -> {packet.dst}: "
                          "the handshake is not in the capture")

    def from_client(self, packet, connection):
        if packet.has(Packet.SYN) and not packet.has(Packet.ACK):
            if connection is None or connection.iss != packet.seq:
                if connection is not None:
                    self.closed.append(connection)
                live = self.live - self.failed or {self.primary}
                connection = Connection(packet, live)
                self.connections[packet.src, packet.dst] = connection
                for kind, event in self.early.pop((packet.src, packet.dst), []):
                    self.flow_event(connection, kind, event)
            return
        if packet.has(Packet.RST):
            connection.client_reset = True
        elif packet.has(Packet.ACK) and connection.shown_iss is not None:
            acked = near(packet.ack, connection.shown_iss, connection.acked)
            if connection.acked < acked < connection.acked + FAR:
                connection.acked = acked
                for leg in connection.legs.values():
                    leg.forget(acked - (4 << 20))

    def from_server(self, packet, connection):
        leg = connection.legs[packet.link]
        if packet.link in self.failed or packet.link in connection.deaf:
            return  # fenced or detached: what it says is not part of anything
        if packet.has(Packet.SYN):
            if near(packet.ack, connection.iss, 0) == 0 and leg.iss is None:
                leg.iss, leg.ack, leg.wscale = packet.seq, 0, packet.wscale
                leg.edge = packet.window
            return
        if packet.has(Packet.RST):
            leg.reset = True
            return
        if leg.iss is None:
            return
        at = near(packet.seq, leg.iss, leg.next)
        if abs(at - leg.next) > FAR:
            return  # of an older connection
        leg.put(at, packet.payload)
        end = at + len(packet.payload)
        if packet.has(Packet.FIN):
            leg.fin = end
            end += 1
        leg.next = max(leg.next, end)
        if packet.has(Packet.ACK):
            ack = near(packet.ack, connection.iss, leg.ack)
            leg.ack = max(leg.ack, ack)
            shift = leg.wscale if leg.wscale is not None and connection.syn_wscale is not None \
                else 0
            leg.edge = max(leg.edge, ack + (packet.window << shift))

    def to_server(self, packet, connection):
        leg = connection.legs[packet.link]
        if packet.has(Packet.SYN) or packet.has(Packet.RST) or leg.iss is None:
            return
        if packet.has(Packet.ACK) and packet.link not in self.failed:
            ack = near(packet.ack, leg.iss, leg.next)
            if ack > leg.next:
                self.violation("leg-ack", packet, connection,
                               f"acknowledges {ack}, the server has sent {leg.next}")

    def to_client(self, packet, connection):
        legs = {name: connection.legs[name] for name in connection.required}
        if packet.has(Packet.RST):
            refused = legs and all(leg.reset for leg in legs.values())
            if not (refused or connection.may_reset or connection.client_reset):
                self.violation("rst", packet, connection, "not every server has reset")
            return
        if packet.ts is not None:
            if connection.ts is not None and (packet.ts[0] - connection.ts) & 0x80000000:
                self.violation("tsval", packet, connection,
                               f"TSval {packet.ts[0]} after {connection.ts}")
            connection.ts = packet.ts[0]
        if packet.has(Packet.SYN):
            for name, leg in legs.items():
                if leg.iss is None:
                    self.violation("synack", packet, connection, f"{name} has not answered")
            if connection.shown_iss is None:
                connection.shown_iss, connection.wscale = packet.seq, packet.wscale
            elif connection.shown_iss != packet.seq:
                self.violation("synack", packet, connection, "a second, different SYN-ACK")
            connection.shown_edge = max(connection.shown_edge, packet.window)
            return
        if connection.shown_iss is None:
            self.violation("synack", packet, connection, "shown before the SYN-ACK")
            return
        self.shown_acks(packet, connection, legs)
        reference = connection.shown.items[-1][1] if connection.shown.items else 0
        at = near(packet.seq, connection.shown_iss, reference)
        end = at + len(packet.payload)
        if packet.payload:
            self.shown_data(packet, connection, legs, at, end)
        if packet.has(Packet.FIN):
            for name, leg in legs.items():
                if leg.fin != end:
                    self.violation("fin", packet, connection,
                                   f"FIN at {end}; {name} " + ("has sent none" if leg.fin is None
                                                               else f"ended at {leg.fin}"))

    def shown_acks(self, packet, connection, legs):
        if not packet.has(Packet.ACK):
            return
        ack = near(packet.ack, connection.iss, max([0] + [leg.ack or 0 for leg in legs.values()]))
        shift = connection.wscale \
            if connection.wscale is not None and connection.syn_wscale is not None else 0
        edge = ack + (packet.window << shift)
        for name, leg in legs.items():
            if ack > (leg.ack if leg.ack is not None else -1):
                self.violation("ack", packet, connection,
                               f"acknowledges {ack}, {name} has acknowledged {leg.ack}")
            elif edge > max(leg.edge, connection.shown_edge):
                self.violation("window", packet, connection,
                               f"edge {edge}, {name} has granted {leg.edge}")
        connection.shown_edge = max(connection.shown_edge, edge)

    def shown_data(self, packet, connection, legs, at, end):
        payload, low = packet.payload, at
        if end <= connection.acked - (4 << 20):
            return  # so old that it is no longer kept, and nobody reads it
        pieces = self.pieces(connection, low, end)
        for low, high, mask in pieces:
            part = payload[low - at:high - at]
            for name, leg in legs.items():
                if not leg.said.covers(low, high):
                    self.violation("data", packet, connection,
                                   f"bytes {low}..{high} shown before {name} said them")
                    return
            if mask is None:
                for name, leg in legs.items():
                    if not leg.same(low, high, part):
                        self.violation("data", packet, connection,
                                       f"bytes {low}..{high} are not those of {name}")
                        return
            else:
                mask[2] &= {n for n in mask[2] if connection.legs[n].said.covers(low, high)
                            and connection.legs[n].same(low, high, part)}
                whole = all(leg.said.covers(mask[0], mask[1]) for leg in legs.values())
                if not mask[2] or not whole:
                    self.violation("data", packet, connection,
                                   f"masked span {mask[0]}..{mask[1]} is "
                                   + ("a mixture" if whole else "shown before it was complete"))
                    return
        for low, high in connection.shown.add(at, end):
            connection.bytes += high - low
            if len(legs) == 1:
                connection.unverified += high - low
                connection.in_flight += self.in_flight(connection, legs, low, high, at, payload)

    @staticmethod
    def pieces(connection, low, high):
        """[low, high) cut at the masked spans."""
        cut, at = [], low
        for mask in sorted(connection.masks, key=lambda mask: mask[0]):
            left, right = max(mask[0], at), min(mask[1], high)
            if left < right:
                if at < left:
                    cut.append((at, left, None))
                cut.append((left, right, mask))
                at = right
        if at < high:
            cut.append((at, high, None))
        return cut

    @staticmethod
    def in_flight(connection, legs, low, high, at, payload):
        """How many of the bytes shown now for the first time the other server had said too, though
        the flow did not depend on it any more: the gateway may have had them already, or not yet,
        when it stopped waiting."""
        others = [leg for name, leg in connection.legs.items() if name not in legs]
        count = 0
        for leg in others:
            for left, right in leg.said.items:
                left, right = max(left, low), min(right, high)
                if left < right and leg.same(left, right, payload[left - at:right - at]):
                    count += right - left
        return count

    def violation(self, rule, packet, connection, message):
        self.violations.append({
            "rule": rule, "link": packet.link, "packet": packet.number, "t_ns": packet.t_ns,
            "flow": str(connection or f"{packet.dst} -> {packet.src}"), "message": message})

    def run(self, captures, events, slack_ns, ports):
        self.ports = ports
        rank = {"a": 1, "b": 1, "client": 2}
        streams = [((p.t_ns, rank[link], p.number, p) for p in read(path, link))
                   for link, path in captures.items()]
        pending = iter(sorted(events, key=lambda e: e["t_ns"]))
        event = next(pending, None)
        for t_ns, _, _, packet in heapq.merge(*streams, key=lambda item: item[:3]):
            while event is not None and event["t_ns"] - slack_ns <= t_ns:
                self.event(event)
                event = next(pending, None)
            self.packet(packet)
        if not self.packets:
            raise Refused("no TCP packet in any capture")

    def summary(self):
        everyone = self.closed + list(self.connections.values())
        return {"connections": len(everyone), "packets": self.packets,
                "shown_bytes": sum(c.bytes for c in everyone),
                "unverified_bytes": sum(c.unverified for c in everyone),
                "in_flight_bytes": sum(c.in_flight for c in everyone),
                "violations": self.violations}


def load_events(path):
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                event = json.loads(line)
                event["t_ns"], event["event"]
            except (ValueError, KeyError, TypeError) as error:
                raise Refused(f"{path}:{number}: not an event: {error}") from error
            yield event


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for link in ("client", "a", "b"):
        parser.add_argument(f"--{link}", required=True, help="capture of this link")
    parser.add_argument("--events", required=True, help="the gateway's event log")
    parser.add_argument("--drops", required=True, help="what the three tcpdumps said on ending")
    parser.add_argument("--primary", default="a", choices=("a", "b"))
    parser.add_argument("--ports", default="80,8080", help="service ports")
    parser.add_argument("--policy", default="strict", choices=("strict", "available"))
    parser.add_argument("--unverified", type=int,
                        help="the gateway's own count of bytes released unverified")
    parser.add_argument("--slack-us", type=int, default=100,
                        help="how exactly event times match capture times")
    options = parser.parse_args(arguments)
    checker = Checker(options.primary)
    try:
        refuse_drops(options.drops, 3)
        events = list(load_events(options.events))
        if options.policy == "strict":
            late = [e for e in events if e["event"] == "flow_changed" and e["to"] == "lagging"]
            if late:
                raise Refused(f"lag policy strict, but a flow went lagging: {late[0]}")
        captures = {"client": options.client, "a": options.a, "b": options.b}
        checker.run(captures, events, options.slack_us * 1000, options.ports.split(","))
    except (Refused, OSError) as error:
        print(f"REFUSED {error}")
        return 2
    summary = checker.summary()
    most = summary["unverified_bytes"]
    least = most - summary["in_flight_bytes"]
    if options.unverified is not None and not least <= options.unverified <= most:
        summary["violations"].append({
            "rule": "unverified", "link": "-", "packet": 0, "flow": "all",
            "message": f"the gateway counted {options.unverified} unverified bytes, "
                       f"the captures say {least} to {most}"})
    for v in summary["violations"][:50]:
        print(f"VIOLATION {v['rule']}: {v['link']} packet {v['packet']}, {v['flow']}: "
              f"{v['message']}")
    summary["violations"] = len(summary["violations"])
    print(json.dumps(summary))
    return 1 if summary["violations"] else 0


if __name__ == "__main__":
    sys.exit(main())

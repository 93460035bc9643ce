#!/usr/bin/env python3
"""Checks from the outside that the gateway kept its promises.

Reads the captures of the gateway's three links and its event log. From the log it takes only role
changes and detaches, each with the position of the client's stream at which it came, and the
masked spans; so it is judged by byte, not by time, what came before a change and what after it.
Packets are gone through in the order of their time; of a packet that the gateway shows to a client
it is asked:

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
of a packet to a server:
  leg-ack  the number is not beyond what this server has sent
of the log:
  fence    no flow depends on a server that is fenced
and of the gateway's counts of bytes released unverified, of each flow and of all of them:
  unverified  they are those of the captures

"These servers" are both, until the log says that one was fenced, detached or late; from that
position on the live one alone. A segment ahead of a hole is always judged by both. What a fenced
server says does not count. usage: check.py --help. exit: 0 kept, 1 violated, 2 refused or usage.
"""

import argparse
import bisect
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


def near(raw, iss, reference):
    """The offset of a 32-bit number, the one nearest to `reference`."""
    step = (raw - iss - 1 - reference) & 0xFFFFFFFF
    return reference + (step - (1 << 32) if step >= 1 << 31 else step)


BOTH = frozenset("ab")
# How late a frame that the gateway has taken can be compared with the event that it led to: the
# batch that fences a server has begun before its last frames came.
BATCH_NS = 100_000_000
# Two readings of one clock.
CLOCK_NS = 1_000_000


class Story:
    """What the event log says of one connection."""

    def __init__(self):
        self.states = []        # (numbers shown to the client when it began, servers, name)
        self.masks = []         # [low, high, servers whose version was shown]
        self.reset_at = None    # when the gateway gave it up
        self.closed = None      # its last event
        self.is_restored = False

    def required(self):
        return self.states[-1][1] if self.states else BOTH

    def change(self, event):
        kind, leg = event["to"], event["leg"]
        if kind in ("paired", "diverged"):
            required = BOTH
        elif kind in ("lagging", "solo"):
            required = frozenset(leg)
        else:
            required = self.required()
        self.states.append((event["shown"], required, kind))

    def depends_on(self, leg):
        """Whether what it shows from here on comes from this server."""
        is_running = self.states and self.closed is None and self.reset_at is None
        # Of a lagging flow whose primary died nothing is shown until the other has proved itself.
        return is_running and self.states[-1][2] in ("paired", "diverged", "solo") \
            and leg in self.required()


class Log:
    """The event log: connections by their addresses, one after the other; fences by time."""

    def __init__(self, events):
        self.stories = {}
        self.fences = []        # (time, server, whether it is fenced from here on)
        self.violations = []
        fenced, since = set(), 0
        for event in events:
            kind, leg = event["event"], event.get("leg")
            if fenced and event["t_ns"] > since:
                self.check_fence(fenced, event)
                since = event["t_ns"]
            if kind == "server_changed":
                if event["to"] in ("failed", "returning") and leg not in fenced:
                    fenced.add(leg)
                    since = event["t_ns"]
                    self.fences.append((since + BATCH_NS, leg, True))
                elif event["from"] == "returning" and event["to"] in ("up", "unfit"):
                    fenced.discard(leg)
                    self.fences.append((event["t_ns"] - CLOCK_NS, leg, False))
                elif event["from"] == "unknown":
                    # Another process of the gateway: it has heard this server itself.
                    fenced.discard(leg)
                    self.fences.append((event["t_ns"] - CLOCK_NS, leg, False))
            elif event.get("flow"):
                self.flow_event(kind, event)
        if fenced:
            self.check_fence(fenced, {"t_ns": since, "event": "the end"})

    def flow_event(self, kind, event):
        key = (event["flow"]["client"], event["flow"]["server"])
        stories = self.stories.setdefault(key, [])
        if kind == "flow_opened" and stories and stories[-1].closed is None:
            stories[-1].is_restored = True
        elif kind == "flow_opened" or not stories:
            stories.append(Story())
        story = stories[-1]
        if kind == "flow_changed":
            story.change(event)
        elif kind == "mask_hit":
            story.masks.append([event["at"], event["at"] + event["len"], {"a", "b"}])
        elif kind == "flow_reset":
            story.reset_at = event["t_ns"]
        elif kind == "flow_closed":
            story.closed = event

    def check_fence(self, fenced, event):
        for key, stories in self.stories.items():
            for leg in fenced:
                if stories[-1].depends_on(leg):
                    self.violations.append({
                        "rule": "fence", "link": leg, "packet": 0, "flow": " -> ".join(key),
                        "message": f"depends on {leg}, which was fenced before {event['event']}"})


class Connection:
    """One TCP connection of a client, from SYN to SYN of the same addresses."""

    def __init__(self, syn, story):
        self.client, self.server = syn.src, syn.dst
        self.iss = syn.seq
        self.syn_wscale = syn.wscale
        self.legs = {"a": Leg(), "b": Leg()}
        self.story = story
        self.states = []                # the story's, each with offsets for numbers
        self.masks = sorted(story.masks, key=lambda mask: mask[0])
        self.mask_lows = [mask[0] for mask in self.masks]
        self.shown_iss = None
        self.wscale = None
        self.shown = Ranges()
        self.shown_edge = 0
        self.acked = 0                  # response bytes that the client has acknowledged
        self.ts = None
        self.client_reset = False
        self.bytes = self.unverified = 0

    def __str__(self):
        return f"{self.client} -> {self.server}"

    def open(self, packet):
        """The client is shown its SYN-ACK: from here on numbers are offsets."""
        self.shown_iss, self.wscale = packet.seq, packet.wscale
        at = {"seq": 0, "ack": 0, "edge": 0}
        for shown, required, _ in self.story.states:
            at = {"seq": near(shown["seq"], self.shown_iss, at["seq"]),
                  "ack": near(shown["ack"], self.iss, at["ack"]),
                  "edge": near(shown["edge"], self.iss, at["edge"])}
            self.states.append((at, required))

    def required_at(self, axis, position):
        """The servers behind what was shown at this position."""
        for at, required in reversed(self.states):
            if at[axis] <= position:
                return required
        return self.states[0][1] if self.states else BOTH

    def contiguous(self):
        """How far the response was shown without a hole."""
        first = self.shown.items[0] if self.shown.items else (0, 0)
        return first[1] if first[0] <= 0 else 0

    def pieces(self, low, high):
        """[low, high) cut where servers or masked spans change: (low, high, mask)."""
        first = max(bisect.bisect_right(self.mask_lows, low) - 1, 0)
        last = bisect.bisect_left(self.mask_lows, high)
        masks = [mask for mask in self.masks[first:last] if mask[1] > low]
        cuts = {low, high}
        for at in [at["seq"] for at, _ in self.states] + [end for m in masks for end in m[:2]]:
            if low < at < high:
                cuts.add(at)
        cuts = sorted(cuts)
        for left, right in zip(cuts, cuts[1:]):
            yield left, right, next((m for m in masks if m[0] <= left < m[1]), None)


class Checker:
    def __init__(self, log):
        self.log = log
        self.fenced = set()
        self.connections = {}
        self.generation = {}
        self.closed = []
        self.violations = list(log.violations)
        self.packets = 0

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
                key = (packet.src, packet.dst)
                number = self.generation.get(key, 0)
                self.generation[key] = number + 1
                stories = self.log.stories.get(key, [])
                story = stories[number] if number < len(stories) else Story()
                self.connections[key] = Connection(packet, story)
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
        if packet.link in self.fenced:
            return  # what it says is not part of anything
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
        if packet.has(Packet.ACK) and packet.link not in self.fenced:
            ack = near(packet.ack, leg.iss, leg.next)
            if ack > leg.next:
                self.violation("leg-ack", packet, connection,
                               f"acknowledges {ack}, the server has sent {leg.next}")

    def to_client(self, packet, connection):
        if packet.has(Packet.RST):
            required = connection.required_at("seq", connection.contiguous())
            refused = all(connection.legs[name].reset for name in required)
            given_up = connection.story.reset_at
            may = given_up is not None and packet.t_ns >= given_up - CLOCK_NS
            if not (refused or may or connection.client_reset):
                self.violation("rst", packet, connection, "not every server has reset")
            return
        if packet.ts is not None:
            if connection.ts is not None and (packet.ts[0] - connection.ts) & 0x80000000:
                self.violation("tsval", packet, connection,
                               f"TSval {packet.ts[0]} after {connection.ts}")
            connection.ts = packet.ts[0]
        if packet.has(Packet.SYN):
            if connection.shown_iss is None:
                connection.open(packet)
            elif connection.shown_iss != packet.seq:
                self.violation("synack", packet, connection, "a second, different SYN-ACK")
            for name in connection.required_at("seq", -1):
                if connection.legs[name].iss is None:
                    self.violation("synack", packet, connection, f"{name} has not answered")
            connection.shown_edge = max(connection.shown_edge, packet.window)
            return
        if connection.shown_iss is None:
            self.violation("synack", packet, connection, "shown before the SYN-ACK")
            return
        self.shown_acks(packet, connection)
        reference = connection.shown.items[-1][1] if connection.shown.items else 0
        at = near(packet.seq, connection.shown_iss, reference)
        end = at + len(packet.payload)
        if packet.payload:
            self.shown_data(packet, connection, at, end)
        if packet.has(Packet.FIN):
            for name in connection.required_at("seq", end):
                fin = connection.legs[name].fin
                if fin != end:
                    self.violation("fin", packet, connection, f"FIN at {end}; {name} "
                                   + ("has sent none" if fin is None else f"ended at {fin}"))

    def shown_acks(self, packet, connection):
        if not packet.has(Packet.ACK):
            return
        known = max([0] + [leg.ack or 0 for leg in connection.legs.values()])
        ack = near(packet.ack, connection.iss, known)
        shift = connection.wscale \
            if connection.wscale is not None and connection.syn_wscale is not None else 0
        edge = ack + (packet.window << shift)
        for name in connection.required_at("ack", ack - 1):
            leg = connection.legs[name]
            if leg.ack is None or ack > leg.ack:
                self.violation("ack", packet, connection,
                               f"acknowledges {ack}, {name} has acknowledged {leg.ack}")
                return
        for name in connection.required_at("edge", edge - 1):
            leg = connection.legs[name]
            if edge > max(leg.edge or 0, connection.shown_edge):
                self.violation("window", packet, connection,
                               f"edge {edge}, {name} has granted {leg.edge}")
        connection.shown_edge = max(connection.shown_edge, edge)

    def shown_data(self, packet, connection, at, end):
        payload = packet.payload
        if end <= connection.acked - (4 << 20):
            return  # so old that it is no longer kept, and nobody reads it
        is_ahead = at > connection.contiguous()
        lone = Ranges()
        for low, high, mask in connection.pieces(at, end):
            required = BOTH if is_ahead else connection.required_at("seq", low)
            if len(required) == 1:
                lone.add(low, high)
            part = payload[low - at:high - at]
            legs = {name: connection.legs[name] for name in sorted(required)}
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
            for left, right in lone.items:
                connection.unverified += max(0, min(right, high) - max(left, low))

    def violation(self, rule, packet, connection, message):
        self.violations.append({
            "rule": rule, "link": packet.link, "packet": packet.number,
            "flow": str(connection or f"{packet.dst} -> {packet.src}"), "message": message})

    def run(self, captures, ports, late_ns):
        self.ports = ports

        def stream(link, rank, later, is_wanted):
            # Two processors feed one capture: its packets are not in the order of their stamps.
            return sorted(((p.t_ns + later, rank, p.number, p)
                           for p in read(captures[link], link) if is_wanted(p)),
                          key=lambda item: item[:3])

        def is_shown(packet):
            return packet.src.rpartition(":")[2] in ports

        streams = [stream("a", 1, 0, lambda _: True), stream("b", 1, 0, lambda _: True),
                   stream("client", 2, 0, lambda packet: not is_shown(packet)),
                   stream("client", 2, late_ns, is_shown)]
        fences = iter(sorted(self.log.fences, key=lambda fence: fence[0]))
        fence = next(fences, None)
        for t_ns, _, _, packet in heapq.merge(*streams, key=lambda item: item[:3]):
            while fence is not None and fence[0] <= t_ns:
                (self.fenced.add if fence[2] else self.fenced.discard)(fence[1])
                fence = next(fences, None)
            self.packet(packet)
        if not self.packets:
            raise Refused("no TCP packet in any capture")

    def everyone(self):
        return self.closed + list(self.connections.values())

    def check_counts(self, unverified):
        """The gateway's counts of bytes released unverified, of each flow and of all."""
        def differs(flow, theirs, ours):
            if theirs != ours:
                self.violations.append({
                    "rule": "unverified", "link": "-", "packet": 0, "flow": flow,
                    "message": f"the gateway counted {theirs} unverified bytes, the captures "
                               f"say {ours}"})

        for connection in self.everyone():
            closed = connection.story.closed
            if closed is not None and not connection.story.is_restored:
                theirs = closed["released_bytes"] - closed["verified_bytes"]
                differs(str(connection), theirs, connection.unverified)
        if unverified is not None:
            differs("all", unverified, sum(c.unverified for c in self.everyone()))

    def summary(self):
        return {"connections": len(self.everyone()), "packets": self.packets,
                "shown_bytes": sum(c.bytes for c in self.everyone()),
                "unverified_bytes": sum(c.unverified for c in self.everyone()),
                "violations": len(self.violations)}


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
    parser.add_argument("--ports", default="80,8080", help="service ports")
    parser.add_argument("--policy", default="strict", choices=("strict", "available"))
    parser.add_argument("--unverified", type=int,
                        help="the gateway's own count of bytes released unverified")
    parser.add_argument("--late-us", type=int, default=0,
                        help="how much later than the gateway the servers' captures may have "
                             "stamped a frame")
    options = parser.parse_args(arguments)
    try:
        refuse_drops(options.drops, 3)
        events = list(load_events(options.events))
        if options.policy == "strict":
            late = [e for e in events if e["event"] == "flow_changed" and e["to"] == "lagging"]
            if late:
                raise Refused(f"lag policy strict, but a flow went lagging: {late[0]}")
        checker = Checker(Log(events))
        captures = {"client": options.client, "a": options.a, "b": options.b}
        checker.run(captures, options.ports.split(","), options.late_us * 1000)
    except (Refused, OSError) as error:
        print(f"REFUSED {error}")
        return 2
    checker.check_counts(options.unverified)
    for v in checker.violations[:50]:
        print(f"VIOLATION {v['rule']}: {v['link']} packet {v['packet']}, {v['flow']}: "
              f"{v['message']}")
    print(json.dumps(checker.summary()))
    return 1 if checker.violations else 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/python3 -B
"""Six clients of a web server, each with one connection after the other, and requests of all kinds.

usage: everyday.py ADDRESS TREE REQUESTS SECONDS

TREE is a copy of what is served. At least REQUESTS requests in at least SECONDS seconds; what comes is
compared with TREE. Prints how many there were of each kind, as JSON. exit: 0 all right, 1 something wrong
"""

import gzip
import http.client
import json
import pathlib
import random
import sys
import threading
import time

CLIENTS = 6


class Client(threading.Thread):
    """One client, until there were enough requests and enough time has passed."""

    def __init__(self, number, address, files, requests, seconds):
        super().__init__(daemon=True)
        self.number, self.address, self.files = number, address, files
        self.random = random.Random(number)
        self.requests, self.until = requests, time.monotonic() + seconds
        self.pause = seconds / requests / 2
        self.counts, self.wrong, self.known = {}, None, {}
        self.stored = {}

    def run(self):
        try:
            while sum(self.counts.values()) < self.requests or time.monotonic() < self.until:
                self.connection = http.client.HTTPConnection(self.address, timeout=15)
                for _ in range(self.random.randint(1, 150)):
                    kind = self.random.choice(KINDS)
                    kind(self)
                    self.counts[kind.__name__] = self.counts.get(kind.__name__, 0) + 1
                    time.sleep(self.pause)
                self.connection.close()
        except Exception as error:
            self.wrong = f"client {self.number}: {type(error).__name__}: {error}"

    def ask(self, method, path, expected, headers={}, body=None):
        self.connection.request(method, path, body=body, headers=headers)
        answer = self.connection.getresponse()
        content = answer.read()
        if answer.status not in expected:
            raise ValueError(f"{method} {path}: {answer.status}, not one of {expected}")
        return answer, content

    def whole(self):
        name = self.random.choice(list(self.files))
        answer, content = self.ask("GET", f"/{name}", [200])
        same(name, content, self.files[name])
        self.known[name] = answer.getheader("ETag"), answer.getheader("Last-Modified")

    def head(self):
        name = self.random.choice(list(self.files))
        answer, content = self.ask("HEAD", f"/{name}", [200])
        same(name, content, b"")
        same(name, int(answer.getheader("Content-Length")), len(self.files[name]))

    def part(self):
        name = self.random.choice(list(self.files))
        data = self.files[name]
        begin = self.random.randrange(len(data))
        end = self.random.randrange(begin, len(data))
        headers = {"Range": f"bytes={begin}-{end}"}
        if name in self.known and self.random.random() < 0.5:
            headers["If-Range"] = self.random.choice(self.known[name])
        _, content = self.ask("GET", f"/{name}", [206], headers)
        same(name, content, data[begin : end + 1])

    def unchanged(self):
        if not self.known:
            return self.whole()
        name = self.random.choice(list(self.known))
        tag, changed = self.known[name]
        headers = self.random.choice(
            [{"If-None-Match": tag}, {"If-Modified-Since": changed}, {"If-None-Match": tag, "If-Modified-Since": changed}]
        )
        _, content = self.ask("GET", f"/{name}", [304], headers)
        same(name, content, b"")

    def compressed(self):
        name = self.random.choice(list(self.files))
        answer, content = self.ask("GET", f"/gz/{name}", [200], {"Accept-Encoding": "gzip"})
        same(name, answer.getheader("Transfer-Encoding"), "chunked")
        same(name, gzip.decompress(content), self.files[name])

    def missing(self):
        self.ask("GET", f"/no-{self.random.randrange(1000)}", [404])

    def refused(self):
        self.ask("POST", "/small-0.bin", [405], body=b"x" * self.random.randrange(3000))

    def store(self):
        name = f"/put/{self.number}-{self.random.randrange(20)}"
        content = self.random.randbytes(self.random.randrange(1, 30000))
        self.ask("PUT", name, [201, 204], body=content)
        self.stored[name] = content

    def stored_before(self):
        if not self.stored:
            return self.store()
        name = self.random.choice(list(self.stored))
        _, content = self.ask("GET", name, [200])
        same(name, content, self.stored[name])


KINDS = [Client.whole] * 4 + [Client.unchanged] * 2 + [Client.part] * 2 + [Client.compressed] * 2
KINDS += [Client.head, Client.missing, Client.refused, Client.store, Client.stored_before]


def same(name, got, expected):
    if got != expected:
        raise ValueError(f"{name}: {str(got)[:60]} instead of {str(expected)[:60]}")


def main():
    address, tree, requests, seconds = sys.argv[1], pathlib.Path(sys.argv[2]), *map(int, sys.argv[3:])
    files = {path.name: path.read_bytes() for path in tree.iterdir()}
    clients = [Client(n, address, files, -(-requests // CLIENTS), seconds) for n in range(CLIENTS)]
    begin = time.monotonic()
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    wrong = [client.wrong for client in clients if client.wrong]
    counts = {}
    for client in clients:
        for kind, count in client.counts.items():
            counts[kind] = counts.get(kind, 0) + count
    counts = {"requests": sum(counts.values()), "seconds": round(time.monotonic() - begin), **counts}
    print("\n".join(wrong) if wrong else json.dumps(counts))
    sys.exit(1 if wrong else 0)


main()

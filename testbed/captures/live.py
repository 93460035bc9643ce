#!/usr/bin/env python3
"""Captures of real clients at real servers, said again to others.

tcpdump captures curl, wget and lftp at an nginx and a vsftpd; then `replay` says it to two more of
each. Equal ones: exit 0. With a header, a byte of a body, a status, a file of FTP or its absence
changed: exactly that difference. Also to one, against what was recorded; and by clients that keep
their captured addresses, over a link to another network namespace.
usage: unshare --net live.py SHADOWVM DIR (as root). exit: 0 so it is, 1 it is not, 2 usage.
"""

import json
import os
import pathlib
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time

SECONDS_MAX = 60
WHEN = 1_700_000_000
OLD, SAME, OTHER = "10.1.0.1", "10.1.0.2", "10.1.0.3"
OLD6, SAME6 = "fd01::1", "fd01::2"
NGINX = """worker_processes 1;
daemon off;
pid DIR/nginx.pid;
error_log DIR/error.log;
events { worker_connections 8192; }
http {
  access_log off;
  types { text/html html; }
  client_body_temp_path DIR/t1; proxy_temp_path DIR/t2; fastcgi_temp_path DIR/t3;
  uwsgi_temp_path DIR/t4; scgi_temp_path DIR/t5;
  SERVERS
}
"""
SERVER = """server {
  listen ADDRESS; root ROOT; add_header X-Version VERSION;
  location = /echo { return 200 "$request_method $arg_a"; }
  location = /who { return 200 "$remote_addr $remote_port"; }
  EXTRA
}
"""
VSFTPD = """listen=YES
listen_address=ADDRESS
background=NO
anonymous_enable=YES
ftp_username=daemon
nopriv_user=nobody
anon_root=ROOT
write_enable=YES
anon_upload_enable=YES
anon_other_write_enable=YES
local_enable=NO
use_localtime=YES
xferlog_enable=NO
connect_from_port_20=NO
secure_chroot_dir=EMPTY
ftpd_banner=I am ADDRESS
"""


class Wrong(Exception):
    """What was to be shown is not so."""


def until(what, found):
    end = time.monotonic() + SECONDS_MAX
    while time.monotonic() < end:
        if found():
            return
        time.sleep(0.02)
    raise Wrong(f"waited in vain for {what}")


def listens(address, port):
    def found():
        with socket.socket() as probe:
            return probe.connect_ex((address, port)) == 0
    until(f"{address}:{port}", found)


def tree(root, change=None):
    """The same files everywhere, at the same times; `change` is made before the times are set."""
    (root / "put").mkdir(parents=True)
    (root / "docs").mkdir()
    (root / "docs" / "one").write_text("one\n")
    (root / "page.html").write_text("<h1>page</h1>\n" * 50)
    (root / "big").write_bytes(bytes(n * n % 251 for n in range(400_000)))
    (root / "empty").write_bytes(b"")
    if change:
        change(root)
    user = pwd.getpwnam("daemon")
    os.chown(root / "put", user.pw_uid, user.pw_gid)
    for path in [*root.rglob("*"), root]:
        os.utime(path, (WHEN, WHEN))
    return root


def flip(name, at):
    def change(root):
        data = bytearray((root / name).read_bytes())
        data[at] ^= 1
        (root / name).write_bytes(data)
    return change


class Bed:
    def __init__(self, shadowvm, folder):
        self.shadowvm, self.folder, self.running = shadowvm, folder, []

    def start(self, *command, **how):
        self.running.append(subprocess.Popen(command, **how))
        return self.running[-1]

    def end(self):
        for process in self.running:
            process.terminate()
        for process in self.running:
            process.wait(SECONDS_MAX)

    def nginx(self, name, servers):
        folder = self.folder / name
        folder.mkdir()
        blocks = ""
        for address, root, version, extra in servers:
            block = SERVER.replace("ADDRESS", address).replace("ROOT", str(root))
            blocks += block.replace("VERSION", version).replace("EXTRA", extra)
        conf = folder / "nginx.conf"
        conf.write_text(NGINX.replace("DIR", str(folder)).replace("SERVERS", blocks))
        self.start("nginx", "-c", str(conf), stderr=subprocess.DEVNULL)
        for address, *_ in servers:
            host, port = address.split(":")
            listens(host, int(port))

    def vsftpd(self, address, change=None):
        folder = self.folder / f"ftp-{address}"
        (folder / "empty").mkdir(parents=True)
        root = tree(folder / "root", change)
        conf = folder / "vsftpd.conf"
        text = VSFTPD.replace("ADDRESS", address).replace("ROOT", str(root))
        conf.write_text(text.replace("EMPTY", str(folder / "empty")))
        self.start("vsftpd", str(conf))
        listens(address, 21)
        return root

    def beyond(self, clients, *addresses):
        """Another network namespace behind a link, up0 here and up1 there, where these clients
        are. What is put before a command that runs there."""
        other = self.start("unshare", "--net", "sleep", "infinity")
        own = os.readlink("/proc/self/ns/net")
        until("a namespace", lambda: os.readlink(f"/proc/{other.pid}/ns/net") != own)
        inside = ["nsenter", "--net", "--target", str(other.pid)]
        for command in [
            ["ip", "link", "add", "up0", "type", "veth", "peer", "up1", "netns", str(other.pid)],
            ["ip", "link", "set", "up0", "up"],
            [*inside, "ip", "link", "set", "up1", "up"],
            *(["ip", "address", "add", address, "dev", "up0", "nodad"] for address in addresses),
            *(["ip", "route", "add", network, "dev", "up0"] for network in clients),
        ]:
            subprocess.run(command, check=True)
        shown = [*inside, "ip", "-br", "link", "show", "up1"]
        until("a carrier",
              lambda: b" UP " in subprocess.run(shown, capture_output=True, check=True).stdout)
        return inside

    def capture(self, name, ports, clients):
        """Runs the clients while tcpdump captures them; the file is whole when this returns."""
        path = self.folder / name
        mark = os.urandom(16)
        ports = " or ".join(ports)
        dump = self.start("tcpdump", "-i", "lo", "-s", "0", "-U", "-B", "65536", "--immediate-mode", "-Z", "root",
                          "-w", str(path), f"(tcp and (host {OLD} or host {OLD6}) and ({ports})) or udp port 9",
                          stderr=subprocess.PIPE)
        while b"listening on" not in dump.stderr.readline():
            if dump.poll() is not None:
                raise Wrong("tcpdump does not run")
        for client in clients:
            done = subprocess.run(client, capture_output=True, timeout=SECONDS_MAX, check=False,
                                  cwd=self.folder)
            if done.returncode != 0:
                raise Wrong(f"{client} ended with {done.returncode}: {done.stderr.decode()}")
        # What comes later in the file came later.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(mark, (OLD, 9))
        until("the end of the capture", lambda: mark in path.read_bytes())
        dump.send_signal(signal.SIGINT)
        dump.wait(SECONDS_MAX)
        return path

    def refused(self, path, *args):
        """Its exit status and its only line."""
        command = [self.shadowvm, "replay", str(path), *args]
        done = subprocess.run(command, capture_output=True, timeout=SECONDS_MAX, check=False)
        return done.returncode, done.stderr.decode().strip()

    def replay(self, path, *args, inside=()):
        command = [*inside, self.shadowvm, "replay", str(path), *args, "--pace", "max", "-o", "json"]
        done = subprocess.run(command, capture_output=True, timeout=SECONDS_MAX, check=False)
        try:
            return done.returncode, json.loads(done.stdout)
        except ValueError as error:
            raise Wrong(f"{command}: {done.returncode} {done.stderr.decode()}") from error

    def expect(self, path, servers, code, found, inside=(), more=()):
        """`found` are kind and request of each difference, in any order."""
        first, *second = servers
        args = ["--primary", first, "--backup", second[0]] if second else ["--one", first]
        ended, told = self.replay(path, *args, *more, inside=inside)
        differences = sorted((d["kind"], d["request"]) for d in told["differences"])
        if (ended, differences, told["failed"]) != (code, sorted(found), 0):
            raise Wrong(f"{path.name} to {servers}: {ended}, {json.dumps(told, indent=1)}")
        print(f"{path.name} to {' and '.join(servers)}: exit {ended}, {told['conversations']} "
              f"conversations, {told['answers']} answers, {told['compared_bytes']} bytes compared, "
              f"{len(differences)} differences")
        return told


def web(bed):
    root = tree(bed.folder / "web")
    other = tree(bed.folder / "web-byte", flip("big", 123_456))
    gone = "location = /page.html { return 404; }"
    bed.nginx("nginx-old", [(f"{OLD}:80", root, "one", f"listen [{OLD6}]:80;")])
    bed.nginx("nginx-same", [(f"{SAME}:80", root, "one", f"listen [{SAME6}]:80;")])
    header = "location = /page.html { add_header X-Version two; }"
    bed.nginx("nginx-other", [
        (f"{OTHER}:80", root, "one", ""),
        (f"{OTHER}:81", root, "one", header),
        (f"{OTHER}:82", other, "one", ""),
        (f"{OTHER}:83", root, "one", gone),
    ])
    url = f"http://{OLD}/"
    path = bed.capture("web.pcap", ["port 80"], [
        ["curl", "-sS", url + "page.html", url + "big", url + "empty", url + "echo?a=1"],
        ["curl", "-sSI", url + "big"],
        ["curl", "-sS", "-r", "1000-2000", url + "big"],
        ["curl", "-sS", "--http1.0", url + "page.html"],
        ["curl", "-sS", "-d", "x=" + "y" * 5000, url + "echo?a=2"],
        ["curl", "-sS", "--parallel", "-Z", url + "big", url + "page.html"],
        ["wget", "-q", "-O", "/dev/null", url + "page.html", url + "big"],
    ])
    bed.expect(path, [f"{SAME}:80", f"{OTHER}:80"], 0, [])
    bed.expect(path, [f"{SAME}:80"], 0, [])
    pages = [("header `X-Version`", f"GET /page.html HTTP/1.{n}") for n in (0, 1, 1, 1)]
    bed.expect(path, [f"{SAME}:80", f"{OTHER}:81"], 1, pages)
    big = [("body", "GET /big HTTP/1.1")] * 3
    told = bed.expect(path, [f"{SAME}:80", f"{OTHER}:82"], 1, big)
    if any("byte 123456" not in difference["field"] for difference in told["differences"]):
        raise Wrong(f"at another byte: {told['differences']}")
    statuses = [("status line", request) for _, request in pages]
    bed.expect(path, [f"{SAME}:80", f"{OTHER}:83"], 1, statuses)
    bed.expect(path, [f"{OTHER}:83"], 1, statuses)


def ftp(bed):
    def lost(root):
        (root / "page.html").unlink()
    for address, change in [(OLD, None), (SAME, None), (OTHER, None), ("10.1.0.4", flip("big", 99)),
                            ("10.1.0.5", lost)]:
        bed.vsftpd(address, change)
    (bed.folder / "up").write_bytes(bytes(n % 241 for n in range(500_000)))
    url = f"ftp://{OLD}/"
    commands = "set cmd:fail-exit yes; set xfer:clobber yes; ls docs; get big -o big1; " \
               "get page.html -o page1; put -O put up; get empty -o empty1; quit"
    path = bed.capture("ftp.pcap", ["portrange 1-65535"], [
        ["lftp", "-e", commands, url],
        ["lftp", "-e", "set ftp:prefer-epsv yes; " + commands, url],
        ["curl", "-sS", "-o", "curl1", url + "big", "-o", "curl2", url + "page.html"],
        ["curl", "-sS", "--disable-epsv", "-T", "up", url + "put/curl"],
        # The server connects to the client.
        ["lftp", "-e", "set ftp:passive-mode no; " + commands.replace("put up", "put up -o active"), url],
        ["curl", "-sS", "-P", "-", "-o", "curl3", url + "big"],
        ["curl", "-sS", "-P", "-", "--disable-eprt", "-T", "up", url + "put/port"],
        # Twice at the same port.
        ["curl", "-sS", "-P", f"{OLD}:7000-7000", "--disable-eprt", "-o", "curl4", url + "page.html",
         "-o", "curl5", url + "docs/one"],
        ["wget", "-q", "-O", "/dev/null", url + "big"],
    ])
    bed.expect(path, [f"{SAME}:21", f"{OTHER}:21"], 0, [])
    bed.expect(path, [f"{SAME}:21"], 0, [])
    sent = [p.read_bytes() for p in (bed.folder / f"ftp-{OTHER}" / "root" / "put").iterdir()]
    if sent != [(bed.folder / "up").read_bytes()] * 4:
        raise Wrong("what clients sent is not what the server has")
    told = bed.expect(path, [f"{SAME}:21", "10.1.0.4:21"], 1,
                      [("binary data of the answers", "RETR big")] * 6)
    if any(difference["offset"] != 99 for difference in told["differences"]):
        raise Wrong(f"at another byte: {told['differences']}")
    ended, told = bed.replay(path, "--primary", f"{SAME}:21", "--backup", "10.1.0.5:21")
    kinds = {(d["kind"], (d["request"] or "").split(" ")[0]) for d in told["differences"]}
    print(f"a file that one server lacks: exit {ended}, {sorted(kinds)}, {told['failed']} failed")
    if ended != 1 or ("reply code", "RETR") not in kinds:
        raise Wrong(json.dumps(told, indent=1))


def kept(bed):
    """Clients at addresses that are on no machine any more speak over a link to the servers."""
    clients = ["10.3.0.1", "10.3.0.2", "fd03::1"]
    for address in clients:
        subprocess.run(["ip", "address", "add", address, "dev", "lo"], check=True)
    url, ftp_url = f"http://{OLD}/", f"ftp://{OLD}/"
    curls = [["curl", "-sS", "--interface", client] for client in clients]
    path = bed.capture("kept.pcap", ["portrange 1-65535"], [
        *([*curl, url + "who", url + "big"] for curl in curls[:2]),
        [*curls[0], "--data-binary", "@up", url + "echo?a=2"],
        [*curls[0], "-o", "kept1", ftp_url + "big"],
        [*curls[0], "-P", "10.3.0.1", "-o", "kept2", ftp_url + "big"],
        [*curls[1], "-P", "10.3.0.2", "-T", "up", ftp_url + "put/kept"],
    ])
    path6 = bed.capture("kept6.pcap", ["port 80"], [
        [*curls[2], "-g", f"http://[{OLD6}]/who", f"http://[{OLD6}]/big"],
    ])
    refused, why = bed.refused(path, "--one", f"{SAME}:80", "--via", "lo")
    print(f"over an interface that does not fit: exit {refused}, {why}")
    if refused != 2:
        raise Wrong(why)
    for address in clients:
        bits = "/128" if ":" in address else "/32"
        subprocess.run(["ip", "address", "del", address + bits, "dev", "lo"], check=True)
    # A router: nobody answers on this link for an IPv6 address of another one.
    inside = bed.beyond(["10.3.0.0/24", "fd03::/64"], "fd04::1/64")
    via = ["--via", "up1"]
    bed.expect(path, [f"{SAME}:80"], 0, [], inside, [*via, "--port", "80"])
    bed.expect(path6, [f"[{SAME6}]:80"], 0, [], inside, [*via, "--next-hop", "fd04::1"])
    # What a server says of its clients is the same only if they come from where they came.
    bed.expect(path, [f"{SAME}:80"], 1, [("body", "GET /who HTTP/1.1")] * 2, [],
               ["--port", "80"])
    bed.expect(path, [f"{SAME}:80", f"{OTHER}:80"], 0, [], inside, [*via, "--port", "80"])
    big = [("body", "GET /big HTTP/1.1")] * 2
    bed.expect(path, [f"{SAME}:80", f"{OTHER}:82"], 1, big, inside, [*via, "--port", "80"])
    bed.expect(path, [f"{SAME}:21"], 0, [], inside, [*via, "--port", "21"])
    bed.expect(path, [f"{SAME}:21", f"{OTHER}:21"], 0, [], inside, [*via, "--port", "21"])


def main():
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    folder = pathlib.Path(sys.argv[2]).absolute()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    bed = Bed(os.path.abspath(sys.argv[1]), folder)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for last in range(1, 6):
        subprocess.run(["ip", "address", "add", f"10.1.0.{last}/32", "dev", "lo"], check=True)
        subprocess.run(["ip", "address", "add", f"fd01::{last}/128", "dev", "lo"], check=True)
    try:
        web(bed)
        ftp(bed)
        kept(bed)
    except Wrong as wrong:
        print(wrong)
        return 1
    finally:
        bed.end()
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())

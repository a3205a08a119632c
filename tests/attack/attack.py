"""Slow heads, slow bodies, slow readers, silent crowds and guesses against one Gateway, while a client that is inside
asks for `health` again and again. Fails if that client waits over 100 ms in an attack and in its repetition (on a machine
where it waits under 20 ms without an attack), if memory grows beyond its bound, or if a connection outlives its time.

Python's standard library only: what attacks here shares no line with what is attacked.
"""

import base64
import contextlib
import json
import os
import resource
import select
import socket
import struct
import subprocess
import sys
import tempfile
import time

PASSWORD = "correct horse battery staple"
PLACES, PLACES_PER_CLIENT = 512, 32
CROWD = 10_000
LATENCY_MS_MAX, YARDSTICK_MS_MAX = 100.0, 20.0
# 512 strangers and 512 callers with a whole head of 16 KiB and its parser each, and what the allocator keeps of it.
GROWTH_KIB_MAX = 96 * 1024


def free_port():
    with socket.socket() as it:
        it.bind(("127.0.0.1", 0))
        return it.getsockname()[1]


def dial(port, client=0, small_buffer=False):
    """A connection from 127.x.y.z: to a Gateway on loopback, each of them is another client."""
    it = socket.socket()
    if small_buffer:
        it.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    it.bind((f"127.{1 + client // 62500}.{client // 250 % 250}.{1 + client % 250}", 0))
    it.settimeout(5)
    it.connect(("127.0.0.1", port))
    it.setblocking(False)
    return it


class Socket:
    """The least of a WebSocket client."""

    def __init__(self, port):
        self.it = socket.create_connection(("127.0.0.1", port), timeout=20)
        self.it.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        key = base64.b64encode(os.urandom(16)).decode()
        self.it.sendall(
            f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
        )
        self.buffer = b""
        while b"\r\n\r\n" not in self.buffer:
            self.more()
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 101"):
            raise SystemExit(f"no upgrade: {head!r}")

    def more(self):
        piece = self.it.recv(65536)
        if not piece:
            raise SystemExit("the Gateway closed the connection of a client that was inside")
        self.buffer += piece

    def take(self, count):
        while len(self.buffer) < count:
            self.more()
        taken, self.buffer = self.buffer[:count], self.buffer[count:]
        return taken

    def send(self, text, opcode=1):
        data = text.encode() if isinstance(text, str) else text
        length = len(data)
        head = bytes([0x80 | opcode])
        head += bytes([0x80 | length]) if length < 126 else b"\xfe" + struct.pack(">H", length)
        self.it.sendall(head + b"\0\0\0\0" + data)

    def receive(self):
        while True:
            first, second = self.take(2)
            length = second & 0x7F
            if length == 126:
                (length,) = struct.unpack(">H", self.take(2))
            elif length == 127:
                (length,) = struct.unpack(">Q", self.take(8))
            data = self.take(length)
            if first & 15 == 9:
                self.send(data, 10)
            elif first & 15 == 1:
                return json.loads(data)
            elif first & 15 == 8:
                raise SystemExit(f"closed: {data!r}")

    def call(self, number, method, params):
        self.send(json.dumps({"type": "req", "id": str(number), "method": method, "params": params}))
        while True:
            frame = self.receive()
            if frame.get("type") == "res" and frame["id"] == str(number):
                if not frame["ok"]:
                    raise SystemExit(f"refused: {frame}")
                return frame


def probe(port):
    """In a process of its own, so that the attacker's work is not measured: asks until its input ends."""
    inside = Socket(port)
    inside.call(0, "connect", {
        "minProtocol": 4, "maxProtocol": 4, "role": "operator", "scopes": ["operator.read"], "auth": {"password": PASSWORD},
        "client": {"id": "cli", "version": "1", "platform": "linux", "mode": "cli"},
    })
    print("inside", flush=True)
    waits, number = [], 0
    while not select.select([sys.stdin], [], [], 0.005)[0]:
        number += 1
        began = time.perf_counter()
        inside.call(number, "health", {})
        waits.append((time.perf_counter() - began) * 1000)
    waits.sort()
    print(json.dumps({
        "count": len(waits), "p50": waits[len(waits) // 2], "p99": waits[len(waits) * 99 // 100], "max": waits[-1],
    }), flush=True)


@contextlib.contextmanager
def watched(port, result):
    process = subprocess.Popen(
        [sys.executable, __file__, "probe", str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        if process.stdout.readline().strip() != "inside":
            raise SystemExit("the client that is to watch did not get in")
        yield
        process.stdin.close()
        line = process.stdout.readline()
        if not line:
            raise SystemExit("the client that was inside got no more answers")
        result.update(json.loads(line))
    finally:
        process.kill()
        process.wait()


class Gateway:
    def __init__(self, program, home):
        self.port = free_port()
        env = {
            "HOME": home, "PATH": "/usr/bin:/bin", "OPENCLAW_STATE_DIR": f"{home}/state",
            "OPENCLAW_GATEWAY_PASSWORD": PASSWORD,
        }
        os.mkdir(f"{home}/state", 0o700)
        self.log = open(f"{home}/log", "wb")
        self.process = subprocess.Popen(
            [program, "gateway", "run", "--port", str(self.port)], env=env, stdout=self.log, stderr=self.log
        )
        deadline = time.monotonic() + 20
        while b'{"ready":true}' not in self.get("/readyz"):
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise SystemExit("the Gateway does not start")
            time.sleep(0.05)

    def get(self, path):
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as it:
                it.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n\r\n".encode())
                answer = b""
                while piece := it.recv(65536):
                    answer += piece
                return answer
        except OSError:
            return b""

    def memory_kib(self):
        with open(f"/proc/{self.process.pid}/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmRSS:"))

    def sockets(self):
        directory = f"/proc/{self.process.pid}/fd"
        return sum(os.readlink(f"{directory}/{fd}").startswith("socket:") for fd in os.listdir(directory))


def crowd(port, count, first, small_buffer=False):
    """As many connections as the Gateway takes, 32 from each address, with these first bytes."""
    held = []
    for number in range(count):
        with contextlib.suppress(OSError):
            it = dial(port, number // PLACES_PER_CLIENT, small_buffer)
            held.append(it)
            it.send(first)
    return held


def drip(held, seconds, piece):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for it in held:
            with contextlib.suppress(OSError):
                it.send(piece)
        time.sleep(0.2)


def attacks(port):
    host = f"Host: 127.0.0.1:{port}\r\n"
    bearer = f"Authorization: Bearer {PASSWORD}\r\n"
    body = "Content-Length: 1000000\r\n\r\n"
    upgrade = (
        f"GET / HTTP/1.1\r\n{host}Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    # name, connections, their first bytes, what follows slowly, whether they hardly read
    return [
        ("10,000 silent connections", CROWD, "", b"", False),
        ("10,000 silent upgrades", CROWD, upgrade, b"", False),
        ("slow heads", 2 * PLACES, "GET / HTTP/1.1\r\n", b"X: y\r\n", False),
        ("slow bodies without a bearer", 2 * PLACES, f"POST /tools/invoke HTTP/1.1\r\n{host}{body}", b"x", False),
        ("slow bodies of a caller", PLACES, f"POST /tools/invoke HTTP/1.1\r\n{host}{bearer}{body}", b"x", False),
        ("slow readers", 2 * PLACES, f"GET /app.js HTTP/1.1\r\n{host}\r\n", b"", True),
        ("wrong bearers", 2 * PLACES, f"GET /x HTTP/1.1\r\n{host}Authorization: Bearer wrong\r\n\r\n", b"", False),
    ]


def places_of_one_client(port):
    """32 upgrades from one address stay, the 33rd does not."""
    upgrade = next(first for name, _, first, _, _ in attacks(port) if name == "10,000 silent upgrades")
    answers = []
    held = []
    for _ in range(PLACES_PER_CLIENT + 1):
        it = dial(port, 9000)
        it.setblocking(True)
        it.settimeout(5)
        held.append(it)
        try:
            it.sendall(upgrade.encode())
            answers.append(it.recv(12))
        except OSError:
            answers.append(b"")
    upgraded = [answer.startswith(b"HTTP/1.1 101") for answer in answers]
    for it in held:
        it.close()
    return upgraded == [True] * PLACES_PER_CLIENT + [False]


def main():
    program, seconds = os.path.abspath(sys.argv[1]), float(sys.argv[2])
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard < CROWD + 200:
        raise SystemExit(f"only {hard} descriptors may be open here; {CROWD + 200} are needed (ulimit -Hn)")
    wrong = []
    with tempfile.TemporaryDirectory() as home:
        gateway = Gateway(program, home)
        try:
            yardstick = {}
            with watched(gateway.port, yardstick):
                time.sleep(seconds)
            before, sockets = gateway.memory_kib(), gateway.sockets()
            row = "{:32} {:>7} {:>8.2f} {:>8.2f} {:>8.2f} {:>9} {:>8}"
            print("{:32} {:>7} {:>8} {:>8} {:>8} {:>9} {:>8}".format(
                "", "answers", "p50 ms", "p99 ms", "max ms", "RSS KiB", "sockets"))

            def show(name, result, memory, open_sockets):
                figures = (result["count"], result["p50"], result["p99"], result["max"])
                print(row.format(name, *figures, memory, open_sockets), flush=True)

            show("no attack", yardstick, before, sockets)
            for name, count, first, piece, small_buffer in attacks(gateway.port):
                # What another program on this machine delayed is not delayed twice.
                for _ in range(2):
                    result = {}
                    with watched(gateway.port, result):
                        held = crowd(gateway.port, count, first.encode(), small_buffer)
                        drip(held, seconds, piece)
                        memory, open_sockets = gateway.memory_kib(), gateway.sockets()
                        for it in held:
                            it.close()
                    show(name, result, memory, open_sockets)
                    if result["max"] <= LATENCY_MS_MAX:
                        break
                if result["max"] > LATENCY_MS_MAX and yardstick["max"] < YARDSTICK_MS_MAX:
                    wrong.append(f"{name}: a client that was inside waited {result['max']:.0f} ms")
                if memory - before > GROWTH_KIB_MAX:
                    wrong.append(f"{name}: memory grew by {memory - before} KiB")
                # Beside the strangers' places: listeners, the admin socket, the watcher, callers whose place is free again.
                if open_sockets > PLACES + (PLACES if "caller" in name else 0) + 32:
                    wrong.append(f"{name}: {open_sockets} sockets are open")
            if not places_of_one_client(gateway.port):
                wrong.append("one client holds another number of places than 32")
            deadline = time.monotonic() + 30
            while gateway.sockets() > sockets + 4 and time.monotonic() < deadline:
                time.sleep(0.2)
            print(f"afterwards: RSS {gateway.memory_kib()} KiB, {gateway.sockets()} sockets (before: {before} KiB, {sockets})")
            if gateway.sockets() > sockets + 4:
                wrong.append("connections stay open though their peers are gone")
            if gateway.process.poll() is not None:
                wrong.append("the Gateway has ended")
        finally:
            gateway.process.terminate()
            gateway.process.wait()
        with open(f"{home}/log", "rb") as log:
            text = log.read()
            if PASSWORD.encode() in text or b"panicked" in text:
                wrong.append("the log holds the password or a panic")
    for line in wrong:
        print(f"FAILED: {line}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    if sys.argv[1] == "probe":
        probe(int(sys.argv[2]))
    else:
        main()

"""Real reverse proxies in front of the Gateway. Started by `run`, inside its network namespace."""

import http.client
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time

from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

BIN = os.environ["PORTCULLIS_BIN"]
PASSWORD = "a pass phrase for the suite"
NAME = "gw.example.test"
FRONT = "10.77.0.1"  # where the proxy listens
CLIENT = "203.0.113.9"  # where its clients come from
PATIENCE = 30.0
FORGED = {
    "X-Forwarded-For": {"X-Forwarded-For": "127.0.0.1"},
    "X-Forwarded-For, a stranger's": {"X-Forwarded-For": "198.51.100.7"},
    "X-Forwarded-For, no address": {"X-Forwarded-For": "unknown"},
    "Forwarded": {"Forwarded": "for=127.0.0.1"},
    "X-Real-IP": {"X-Real-IP": "127.0.0.1"},
}

failed = []
passed = 0


def check(what, good, seen=""):
    global passed
    if good:
        passed += 1
        print(f"ok   {what}")
    else:
        failed.append(what)
        print(f"FAIL {what}: {seen}")


def free_port(address):
    with socket.socket() as probe:
        probe.bind((address, 0))
        return probe.getsockname()[1]


def wait_for(address, port, program):
    process = program.process
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args[0]} ended with {process.returncode}: {program.said()}")
        try:
            socket.create_connection((address, port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f"nothing listens on {address}:{port}")


class Program:
    """A process with a log of its own, ended by its id."""

    def __init__(self, argv, log, env=None):
        self.log = log
        self.process = subprocess.Popen(argv, stdout=open(log, "ab"), stderr=subprocess.STDOUT, env=env)

    def said(self, since=0):
        return self.log.read_text(errors="replace")[since:]

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Gateway(Program):
    def __init__(self, home, settings):
        self.home = home
        self.port = free_port("127.0.0.1")
        state = home / "state"
        state.mkdir(parents=True)
        (state / "openclaw.json").write_text(json.dumps({"gateway": {"port": self.port, **settings}}))
        os.chmod(state / "openclaw.json", 0o600)
        env = {"HOME": str(home), "OPENCLAW_STATE_DIR": str(state), "PATH": os.environ["PATH"]}
        super().__init__([BIN, "gateway", "run"], home / "gateway.log", env)
        wait_for("127.0.0.1", self.port, self)

    def audited(self):
        records = []
        for log in sorted((self.home / "state/portcullis/audit").glob("*.jsonl")):
            records += [json.loads(line) for line in log.read_text().splitlines()]
        return records


def nginx(home, front, upstream, appends, extra=""):
    chain = "$proxy_add_x_forwarded_for" if appends else "$remote_addr"
    strip = "" if appends else 'proxy_set_header Forwarded ""; proxy_set_header X-Real-IP "";'
    (home / "nginx.conf").write_text(f"""
        daemon off; user root; worker_processes 1; pid {home}/nginx.pid; error_log stderr;
        events {{ worker_connections 64; }}
        http {{
            access_log off;
            client_body_temp_path {home}/b; proxy_temp_path {home}/p; fastcgi_temp_path {home}/f;
            uwsgi_temp_path {home}/u; scgi_temp_path {home}/s;
            map $http_upgrade $connection_upgrade {{ default upgrade; '' close; }}
            server {{
                listen {FRONT}:{front};
                location / {{
                    proxy_pass http://{upstream};
                    proxy_http_version 1.1;
                    proxy_set_header Host $host;
                    proxy_set_header Upgrade $http_upgrade;
                    proxy_set_header Connection $connection_upgrade;
                    proxy_set_header X-Forwarded-For {chain};
                    {strip}
                    {extra}
                }}
            }}
        }}""")
    return ["nginx", "-p", str(home), "-e", "stderr", "-c", str(home / "nginx.conf")]


def caddy(home, front, upstream, appends, extra=""):
    # Caddy overwrites unless it is told to trust whoever calls it.
    chain = "trusted_proxies 0.0.0.0/0" if appends else "header_up -Forwarded\n header_up -X-Real-IP"
    upstream = upstream.replace("unix:", "unix/")
    (home / "Caddyfile").write_text(f"""
        {{
            admin off
            auto_https off
        }}
        http://{NAME}:{front} {{
            bind {FRONT}
            reverse_proxy {upstream} {{
                {chain}
                {extra}
            }}
        }}""")
    return ["caddy", "run", "--config", str(home / "Caddyfile"), "--adapter", "caddyfile"]


def haproxy(home, front, upstream, appends, extra=""):
    chain = (
        "option forwardfor"
        if appends
        else "http-request set-header X-Forwarded-For %[src]\n"
        " http-request del-header Forwarded\n http-request del-header X-Real-IP"
    )
    upstream = upstream.replace("unix:", "unix@")
    (home / "haproxy.cfg").write_text(f"""
        global
            maxconn 64
        defaults
            mode http
            timeout connect 5s
            timeout client 60s
            timeout server 60s
        frontend front
            bind {FRONT}:{front}
            {chain}
            {extra}
            default_backend gateway
        backend gateway
            server gateway {upstream}
""")
    return ["haproxy", "-db", "-f", str(home / "haproxy.cfg")]


PROXIES = {"nginx": nginx, "Caddy": caddy, "HAProxy": haproxy}


class Front:
    """A running proxy, and what its clients can do."""

    def __init__(self, kind, home, upstream, appends, extra=""):
        home.mkdir()
        self.port = free_port(FRONT)
        env = {"HOME": str(home), "PATH": os.environ["PATH"]}
        self.program = Program(PROXIES[kind](home, self.port, upstream, appends, extra), home / "log", env)
        wait_for(FRONT, self.port, self.program)

    def get(self, path, headers=None, host=NAME, method="GET"):
        connection = http.client.HTTPConnection(FRONT, self.port, PATIENCE, source_address=(CLIENT, 0))
        connection.request(method, path, headers={"Host": f"{host}:{self.port}", **(headers or {})})
        answer = connection.getresponse()
        body = answer.read().decode(errors="replace")
        connection.close()
        return answer.status, body

    def open(self, headers=None):
        sock = socket.create_connection((FRONT, self.port), PATIENCE, source_address=(CLIENT, 0))
        return connect(
            f"ws://{NAME}:{self.port}/",
            sock=sock,
            additional_headers=headers,
            user_agent_header=None,
            compression=None,
            open_timeout=PATIENCE,
        )

    def upgrade_status(self, headers=None):
        try:
            self.open(headers).close()
            return 101
        except InvalidStatus as refused:
            return refused.response.status_code

    def call(self, auth, headers=None, then=()):
        """Connects as a program without a device. Returns the answers to `connect` and to the calls after it."""
        with self.open(headers) as ws:
            answers = []
            json.loads(ws.recv(PATIENCE))
            client = {"id": "cli", "version": "1", "platform": "linux", "mode": "cli"}
            params = {
                "minProtocol": 4,
                "maxProtocol": 4,
                "client": client,
                "role": "operator",
                "scopes": ["operator.admin"],
            }
            if auth:
                params["auth"] = auth
            calls = [("connect", params), *then]
            for number, (method, params) in enumerate(calls):
                ws.send(json.dumps({"type": "req", "id": str(number), "method": method, "params": params}))
                while True:
                    frame = json.loads(ws.recv(PATIENCE))
                    if frame.get("type") == "res" and frame["id"] == str(number):
                        break
                answers.append(frame)
                if not frame["ok"]:
                    break
            return answers

    def stop(self):
        self.program.stop()


def code(frame):
    details = (frame.get("error") or {}).get("details") or {}
    return details.get("code") or (frame.get("error") or {}).get("code")


def overwriting(label, front, gateway):
    check(f"{label}: health answers", front.get("/healthz")[0] == 200)
    status, body = front.get("/")
    check(f"{label}: the page is served under the public name", status == 200 and "<html" in body, status)
    status, _ = front.get("/", host="evil.example.test")
    check(f"{label}: a foreign host is not", status in (421, 200 if label.startswith("Caddy") else 421), status)

    before = len(gateway.audited())
    answer = front.call({"password": PASSWORD}, then=[("config.get", {})])
    hello = answer[0]
    check(f"{label}: the right password is admitted over WebSocket", hello["ok"], hello.get("error"))
    scopes = hello.get("payload", {}).get("auth", {}).get("scopes")
    check(f"{label}: without a device it has no scopes (S2)", scopes == [], scopes)
    refused = answer[-1]
    check(f"{label}: and no method is open to it", not refused["ok"], refused)
    admitted = [r for r in gateway.audited()[before:] if "admitted" in json.dumps(r)]
    check(f"{label}: the record names the client's own address", CLIENT in json.dumps(admitted), admitted)

    for what, headers in FORGED.items():
        before = len(gateway.audited())
        answer = front.call({"password": PASSWORD}, headers)[0]
        admitted = json.dumps(gateway.audited()[before:])
        good = answer["ok"] and CLIENT in admitted and "198.51.100.7" not in admitted
        check(f"{label}: a forged {what} changes nothing (P3)", good, (answer.get("error"), admitted))

    tailscale = {"Tailscale-User-Login": "alice@example.test", "X-Forwarded-Proto": "https"}
    check(f"{label}: forged Tailscale headers open nothing (T1, T7)", code(front.call(None, tailscale)[0]) is not None)
    answer = front.call({"password": "not it"})[0]
    check(f"{label}: a wrong password is refused", code(answer) == "AUTH_PASSWORD_MISMATCH", answer)
    origin = {"Origin": "http://evil.example.test"}
    status = front.upgrade_status(origin)
    check(f"{label}: a foreign origin gets no upgrade (O2)", status == 403, status)


def appending(label, front, gateway):
    # Of each reason ten lines a second are logged (R7), and the proxy before this one was refused for the same.
    time.sleep(1.1)
    answer = front.call({"password": PASSWORD})[0]
    check(f"{label}: an honest client is still admitted", answer["ok"], answer)
    for what in ("X-Forwarded-For", "X-Forwarded-For, a stranger's"):
        since = len(gateway.said())
        status, body = front.get("/", FORGED[what])
        check(f"{label}: a forged {what} is refused over HTTP (P3)", status == 403, (status, body))
        check(f"{label}: and the refusal names the fault", "append" in body, body)
        status = front.upgrade_status(FORGED[what])
        check(f"{label}: a forged {what} gets no upgrade (P3)", status == 403, status)
        said = gateway.said(since)
        named = "127.0.0.1 appends" in said and "nginx" in said and "HAProxy" in said and "Caddy" in said
        check(f"{label}: the log names the proxy and the directive", named, said)
    status, _ = front.get("/", FORGED["X-Forwarded-For, no address"])
    check(f"{label}: a chain that is no chain is refused (P4)", status == 403, status)


def settings(**more):
    return {
        "auth": {"mode": "password", "password": PASSWORD},
        "publicHosts": [NAME],
        "trustedProxies": ["127.0.0.1"],
        **more,
    }


def on_the_main_listener(work):
    gateway = Gateway(work / "main", settings())
    try:
        for kind in PROXIES:
            for appends in (False, True):
                manner = "appending" if appends else "overwriting"
                front = Front(kind, work / f"{kind}-{manner}", f"127.0.0.1:{gateway.port}", appends)
                try:
                    (appending if appends else overwriting)(f"{kind}, {manner}", front, gateway)
                finally:
                    front.stop()
    finally:
        gateway.stop()


def on_a_listener_of_its_own(work):
    """`gateway.proxy`: over TCP with trustedProxies, and over a Unix socket, where the peer is the proxy."""
    for kind in PROXIES:
        for over in ("TCP", "a Unix socket"):
            home = work / f"{kind}-own-{over.split()[-1]}"
            home.mkdir()
            if over == "TCP":
                port = free_port("127.0.0.1")
                own, upstream = {"port": port}, f"127.0.0.1:{port}"
            else:
                own, upstream = {"socket": str(home / "gw.sock")}, f"unix:{home}/gw.sock"
            gateway = Gateway(home / "gateway", settings(proxy=own))
            front = Front(kind, home / "proxy", upstream, False)
            try:
                overwriting(f"{kind}, own listener over {over}", front, gateway)
            finally:
                front.stop()
                gateway.stop()


def vouching(work):
    """Mode trusted-proxy: nginx names the user; what its client says of itself does not count."""
    user = 'proxy_set_header X-Forwarded-User {}; proxy_set_header X-Forwarded-Proto $scheme;'
    trusted = {"userHeader": "X-Forwarded-User", "requiredHeaders": ["X-Forwarded-Proto"], "allowUsers": ["alice"], "allowLoopback": True}
    gateway = Gateway(work / "vouching", settings(auth={"mode": "trusted-proxy", "trustedProxy": trusted}))
    parts = {
        "alice": ("alice", None),
        "bob": ("bob", "trusted_proxy_user_not_allowed"),
        "nobody": ('""', "trusted_proxy_user_missing"),
    }
    try:
        for who, (value, reason) in parts.items():
            front = Front("nginx", work / f"nginx-{who}", f"127.0.0.1:{gateway.port}", False, user.format(value))
            try:
                before, since = len(gateway.audited()), len(gateway.said())
                answer = front.call(None, {"X-Forwarded-User": "alice"})[0]
                if reason is None:
                    record = json.dumps(gateway.audited()[before:])
                    check(f"trusted-proxy: {who} is admitted by the proxy's word (P6)", answer["ok"], answer.get("error"))
                    check(f"trusted-proxy: {who} stands in the record", '"user": "alice"' in record, record)
                else:
                    check(f"trusted-proxy: {who} is refused, whatever the client says (P6)", not answer["ok"], answer)
                    told = reason in json.dumps(answer) or reason in gateway.said(since)
                    check(f"trusted-proxy: the reason is {reason}", told, answer)
            finally:
                front.stop()
    finally:
        gateway.stop()


def untrusted(work):
    gateway = Gateway(work / "untrusted", settings(trustedProxies=[]))
    front = Front("nginx", work / "nginx-untrusted", f"127.0.0.1:{gateway.port}", False)
    try:
        status, body = front.get("/")
        check("a proxy that is not listed: 403 over HTTP (P1)", status == 403 and "attribution" in body, (status, body))
        check("a proxy that is not listed: no upgrade (P1)", front.upgrade_status() == 403)
        check("a proxy that is not listed: health still answers", front.get("/healthz")[0] == 200)
    finally:
        front.stop()
        gateway.stop()


def main():
    work = pathlib.Path(tempfile.mkdtemp(prefix="portcullis-proxies-"))
    try:
        for part in (on_the_main_listener, on_a_listener_of_its_own, vouching, untrusted):
            part(work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"{passed} passed, {len(failed)} failed")
    sys.exit(1 if failed else 0)


main()

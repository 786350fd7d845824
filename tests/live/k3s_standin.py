#!/usr/bin/python3
"""A stand-in for K3s on a real machine: K3s' files, ports, token, unit and node registration, and no containers.

It is installed as /usr/local/bin/k3s and needs Python's standard library, PyYAML and openssl there. Like K3s it reads
/etc/rancher/k3s/config.yaml, makes its CA and a full node token, writes k3s.yaml, keeps its objects in
server/db/state.db, adds its own chains to the live firewall, and lets agents join that trust its CA, know the token
and the password their name was first registered with. Its API has nodes, node-password secrets, and no pods.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import http.server
import json
import os
import secrets
import socket
import sqlite3
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

VERSION = "v0.0.0+k3s0"  # replaced when a release is made
CONFIG = Path("/etc/rancher/k3s/config.yaml")
KUBECONFIG = Path("/etc/rancher/k3s/k3s.yaml")
PASSWORD = Path("/etc/rancher/node/password")
SERVER = Path("/var/lib/rancher/k3s/server")
LEASE_S = 6.0  # a node that was not heard of for so long is not Ready


def log(level: Any, text: Any) -> Any:
    print(f'time="{time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}" level={level} msg="{text}"', flush=True)


def fatal(text: Any) -> Any:
    log("fatal", text)
    sys.exit(1)


def settings() -> Any:
    import yaml  # type: ignore[import-untyped]

    try:
        found = yaml.safe_load(CONFIG.read_text()) if CONFIG.exists() else {}
    except yaml.YAMLError as error:
        fatal(f"{CONFIG}: {str(error).splitlines()[0]}")
    return found or {}


def write(path: Any, text: Any, mode: Any = 0o600) -> Any:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=mode)
    path.chmod(mode)
    path.write_text(text)


def own_password() -> Any:
    if not PASSWORD.exists():
        write(PASSWORD, secrets.token_hex(16))
    return PASSWORD.read_text()


def own_node(found: Any) -> Any:
    labels = dict(pair.split("=", 1) for pair in found.get("node-label", []))
    taints = []
    for word in found.get("node-taint", []):
        pair, _, effect = word.partition(":")
        key, _, value = pair.partition("=")
        taints.append({"key": key, "value": value, "effect": effect})
    machine = os.uname().machine
    arch = {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)
    name = str(found.get("node-name") or os.uname().nodename)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {**labels, "kubernetes.io/arch": arch, "kubernetes.io/hostname": name}},
        "spec": {"taints": taints} if taints else {},
        "status": {
            "addresses": [{"type": "InternalIP", "address": str(found.get("node-ip", ""))}],
            "allocatable": {"cpu": str(os.cpu_count()), "memory": str(memory)},
            "nodeInfo": {"architecture": arch, "kubeletVersion": VERSION, "osImage": "stand-in"},
        },
    }


def chains() -> Any:
    """K3s keeps its own chains in the live rules; whoever saves the rules now freezes them into the file."""
    run: Any = lambda *argv: subprocess.run(["iptables", "-w", *argv], capture_output=True).returncode  # noqa: E731
    for builtin in ("INPUT", "FORWARD"):
        chain = "KUBE-ROUTER-" + builtin
        run("-N", chain)
        if run("-C", builtin, "-j", chain):
            run("-I", builtin, "1", "-j", chain)


def kubelet_and_vxlan() -> Any:
    """Something listens on 10250/tcp, and 8472/udp takes packets without answering, as VXLAN does."""
    tcp = socket.create_server(("0.0.0.0", 10250))
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("0.0.0.0", 8472))

    def accept() -> Any:
        while True:
            tcp.accept()[0].close()

    def swallow() -> Any:
        while True:
            udp.recv(65535)

    for work in (accept, swallow):
        threading.Thread(target=work, daemon=True).start()


# -- server ------------------------------------------------------------------------------------------------------------
def openssl(*argv: Any) -> Any:
    subprocess.run(["openssl", *argv], check=True, capture_output=True)


def make_certificates(found: Any) -> Any:
    tls = SERVER / "tls"
    tls.mkdir(parents=True, exist_ok=True)
    ca, ca_key = tls / "server-ca.crt", tls / "server-ca.key"
    if not ca.exists():
        curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "3650")
        openssl("req", "-x509", *curve, "-subj", f"/CN=k3s-server-ca@{int(time.time())}", "-keyout", str(ca_key),
                "-out", str(ca), "-addext", "keyUsage=critical,digitalSignature,keyCertSign")  # fmt: skip
    sans = {str(found.get("node-ip", "127.0.0.1")), "127.0.0.1", "10.43.0.1", *map(str, found.get("tls-san", []))}
    is_ip: Any = lambda name: name.replace(".", "").isdigit()  # noqa: E731
    alt = ",".join(f"{'IP' if is_ip(s) else 'DNS'}:{s}" for s in sorted(sans))
    issue(tls, "serving-kube-apiserver", "/CN=kube-apiserver", f"subjectAltName={alt}\nextendedKeyUsage=serverAuth")
    if not (tls / "client-admin.crt").exists():
        issue(tls, "client-admin", "/O=system:masters/CN=system:admin", "extendedKeyUsage=clientAuth")
    return tls


def issue(tls: Any, name: Any, subject: Any, extensions: Any) -> Any:
    base = tls / name
    ext = tls / (name + ".ext")
    ext.write_text(extensions + "\nauthorityKeyIdentifier=keyid\nsubjectKeyIdentifier=hash\n")
    openssl("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", subject,
            "-keyout", f"{base}.key", "-out", f"{base}.csr")  # fmt: skip
    openssl("x509", "-req", "-in", f"{base}.csr", "-CA", str(tls / "server-ca.crt"), "-CAkey",
            str(tls / "server-ca.key"), "-CAcreateserial", "-days", "365", "-extfile", str(ext), "-out",
            f"{base}.crt")  # fmt: skip


class Store:
    """Objects by (kind, name), in memory and in state.db."""

    def __init__(self) -> None:
        path = SERVER / "db/state.db"
        path.parent.mkdir(parents=True, exist_ok=True)
        self.lock = threading.Lock()
        self.db = sqlite3.connect(path, check_same_thread=False)
        self.db.execute("CREATE TABLE IF NOT EXISTS kine (name TEXT PRIMARY KEY, value TEXT)")
        self.rows = {k: json.loads(v) for k, v in self.db.execute("SELECT name, value FROM kine")}
        self.heard: Any = {}

    def put(self, key: Any, value: Any) -> Any:
        self.rows[key] = value
        self.db.execute("INSERT OR REPLACE INTO kine VALUES (?, ?)", (key, json.dumps(value)))
        self.db.commit()

    def drop(self, key: Any) -> Any:
        self.db.execute("DELETE FROM kine WHERE name = ?", (key,))
        self.db.commit()
        return self.rows.pop(key, None)

    def heartbeat(self, node: Any, password: Any) -> Any:
        """Register or renew a node; what is wrong, or nothing."""
        name = node["metadata"]["name"]
        with self.lock:
            secret = f"secret/{name}.node-password.k3s"
            digest = hashlib.sha256(password.encode()).hexdigest()
            if self.rows.setdefault(secret, digest) != digest:
                return f"Node password rejected, duplicate hostname or contents of '{PASSWORD}' may not match"
            self.put(secret, digest)
            known = self.rows.get(f"node/{name}")
            if known is None:
                self.put(f"node/{name}", node)
            elif known["status"] != node["status"]:
                self.put(f"node/{name}", {**known, "status": node["status"]})
            self.heard[name] = time.monotonic()
            return ""

    def node(self, name: Any) -> Any:
        found = self.rows.get(f"node/{name}")
        if found is None:
            return None
        ready = time.monotonic() - self.heard.get(name, -LEASE_S) < LEASE_S
        condition = {"type": "Ready", "status": "True" if ready else "Unknown"}
        return {**found, "status": {**found["status"], "conditions": [condition]}}

    def nodes(self) -> Any:
        names = sorted(key.split("/", 1)[1] for key in self.rows if key.startswith("node/"))
        return [self.node(name) for name in names]


def merge(target: Any, patch: Any) -> Any:
    for key, value in patch.items():
        if value is None:
            target.pop(key, None)
        elif isinstance(value, dict):
            merge(target.setdefault(key, {}), value)
        else:
            target[key] = value


class Api(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: Any = None
    token = ""
    cacerts = b""

    def log_message(self, *args: Any) -> Any:
        pass

    def answer(self, status: Any, body: Any) -> Any:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def refuse(self, status: Any, reason: Any, message: Any) -> Any:
        self.answer(status, {"kind": "Status", "status": "Failure", "reason": reason, "message": message})

    def do(self) -> Any:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlsplit(self.path).path.strip("/")
        if path == "cacerts":
            return self.answer(200, self.cacerts)
        if path == "v1-k3s/node":
            wanted = "Basic " + base64.b64encode(f"node:{self.token}".encode()).decode()
            if self.headers.get("Authorization") != wanted:
                return self.refuse(401, "Unauthorized", "not authorized")
            asked = json.loads(body)
            wrong = self.store.heartbeat(asked["node"], asked["password"])
            return self.refuse(403, "Forbidden", wrong) if wrong else self.answer(200, {})
        if not self.connection.getpeercert():
            return self.refuse(401, "Unauthorized", "Unauthorized")
        return self.kube(self.command, path.split("/"), body)

    do_GET = do_POST = do_PATCH = do_DELETE = do

    def kube(self, verb: Any, parts: Any, body: Any) -> Any:
        if parts == ["version"]:
            return self.answer(200, {"gitVersion": VERSION})
        if parts == ["api", "v1"]:
            kinds = (("nodes", "Node", False), ("pods", "Pod", True), ("secrets", "Secret", True))
            rows = [{"name": n, "kind": k, "namespaced": ns} for n, k, ns in kinds]
            return self.answer(200, {"kind": "APIResourceList", "groupVersion": "v1", "resources": rows})
        if parts == ["api", "v1", "pods"]:
            return self.answer(200, {"kind": "PodList", "metadata": {}, "items": []})
        if parts == ["api", "v1", "nodes"]:
            return self.answer(200, {"kind": "NodeList", "metadata": {}, "items": self.store.nodes()})
        if parts[:3] == ["api", "v1", "nodes"] and len(parts) == 4:
            key, name = f"node/{parts[3]}", parts[3]
        elif parts[:5] == ["api", "v1", "namespaces", "kube-system", "secrets"] and len(parts) == 6:
            key, name = f"secret/{parts[5]}", parts[5]
        else:
            return self.refuse(404, "NotFound", f"the stand-in has no {'/'.join(parts)}")
        with self.store.lock:
            if key not in self.store.rows:
                return self.refuse(404, "NotFound", f'"{name}" not found')
            if verb == "DELETE":
                self.store.drop(key)
                return self.answer(200, {"kind": "Status", "status": "Success"})
            if verb == "PATCH":
                changed = json.loads(json.dumps(self.store.rows[key]))
                merge(changed, json.loads(body))
                self.store.put(key, changed)
            return self.answer(200, self.store.node(name) if key.startswith("node/") else {"metadata": {"name": name}})


def serve(found: Any) -> Any:
    tls = make_certificates(found)
    ca = (tls / "server-ca.crt").read_bytes()
    secret = SERVER / "token-value"
    token = str(found.get("token") or (secret.read_text() if secret.exists() else secrets.token_hex(16)))
    if secret.exists() and secret.read_text() != token:
        fatal("failed to normalize server token: bootstrap data already found and encrypted with different token")
    write(secret, token)
    write(SERVER / "node-token", f"K10{hashlib.sha256(ca).hexdigest()}::server:{token}\n")
    store = Store()
    Api.store, Api.token, Api.cacerts = store, token, ca
    server = http.server.ThreadingHTTPServer(("0.0.0.0", 6443), Api)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls / "serving-kube-apiserver.crt", tls / "serving-kube-apiserver.key")
    context.load_verify_locations(tls / "server-ca.crt")
    context.verify_mode = ssl.CERT_OPTIONAL
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    encode: Any = lambda path: base64.b64encode(path.read_bytes()).decode()  # noqa: E731
    write(KUBECONFIG, json.dumps({
        "apiVersion": "v1", "kind": "Config", "current-context": "default",
        "clusters": [{"name": "default", "cluster": {
            "server": "https://127.0.0.1:6443", "certificate-authority-data": encode(tls / "server-ca.crt")}}],
        "contexts": [{"name": "default", "context": {"cluster": "default", "user": "default"}}],
        "users": [{"name": "default", "user": {
            "client-certificate-data": encode(tls / "client-admin.crt"),
            "client-key-data": encode(tls / "client-admin.key")}}],
    }), int(str(found.get("write-kubeconfig-mode", "0600")), 8))  # fmt: skip
    node, password = own_node(found), own_password()
    store.heartbeat(node, password)
    ready()
    log("info", "k3s is up and running")
    while True:
        time.sleep(1)
        store.heartbeat(node, password)


def ready() -> Any:
    where = os.environ.get("NOTIFY_SOCKET")
    if where:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"READY=1", where.replace("@", "\0", 1) if where.startswith("@") else where)


# -- agent -------------------------------------------------------------------------------------------------------------
def join(found: Any) -> Any:
    for key in ("server", "token"):
        if not found.get(key):
            fatal(f"--{key} is required")
    url, token = urlsplit(found["server"]), str(found["token"])
    node, password, told = own_node(found), own_password(), ""
    while True:
        said = heartbeat(url, token, node, password)
        if said != told:
            log("error" if said else "info", said or "Remotedialer connected to proxy")
            told = said
        time.sleep(1)


def heartbeat(url: Any, token: Any, node: Any, password: Any) -> Any:
    """One round; what went wrong, or nothing."""
    try:
        anyone = ssl._create_unverified_context()
        conn = http.client.HTTPSConnection(url.hostname, url.port, timeout=3, context=anyone)
        conn.request("GET", "/cacerts")
        ca = conn.getresponse().read()
        conn.close()
    except OSError as error:
        return f"failed to get CA certs: Get https://{url.netloc}/cacerts: {error}"
    if token.startswith("K10"):
        digest, _, token = token[3:].partition("::server:")
        if digest != hashlib.sha256(ca).hexdigest():
            return "token CA hash does not match the Cluster CA certificate hash"
    try:
        context = ssl.create_default_context(cadata=ca.decode())
        conn = http.client.HTTPSConnection(url.hostname, url.port, timeout=3, context=context)
        auth = {"Authorization": "Basic " + base64.b64encode(f"node:{token}".encode()).decode()}
        conn.request("POST", "/v1-k3s/node", json.dumps({"node": node, "password": password}), auth)
        answer = conn.getresponse()
        text = answer.read()
        conn.close()
    except OSError as error:
        return f"failed to retrieve configuration from server: {error}"
    return "" if answer.status == 200 else json.loads(text).get("message", f"HTTP {answer.status}")


def main() -> Any:
    words = sys.argv[1:]
    if words in (["--version"], ["-v"]):
        print(f"k3s version {VERSION} (stand-in)\ngo version go0")
        return
    if not words or words[0] not in ("server", "agent"):
        sys.exit(f"the stand-in knows server, agent and --version, not {words}")
    log("info", f"Starting k3s {words[0]} {VERSION}")
    found = settings()
    kubelet_and_vxlan()
    chains()
    if words[0] == "server":
        serve(found)
    else:
        join(found)


if __name__ == "__main__":
    main()

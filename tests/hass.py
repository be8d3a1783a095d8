"""A real Home Assistant in a Debian root of its own, with a house of entities that keep what they are told.

debootstrap makes the root, in which uv installs the newest Home Assistant that Debian's Python runs: both need root and
a network the first time. The root is kept; the configuration is new each time. Everything listens on loopback.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from local_http import Quiet, served_by
from services import until
from websockets.sync.client import connect

HOUSE = Path(__file__).parent / "lab" / "house"
DEBIAN = "python3,python3-venv,ca-certificates"
INTEGRATIONS = ["frontend", "conversation", "ollama", "openai_conversation", "tts", "ffmpeg", "camera", "stream"]
"""What is set up, and what that imports: their manifests name further packages."""

INSTALL = r"""
set -e
python3 -m venv /venv
/venv/bin/pip install --quiet --only-binary :all: uv
export VIRTUAL_ENV=/venv SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
echo 'lru-dict>=1.4' > /tmp/overrides  # the version that some releases name has no wheel for their newest Python
get() { /venv/bin/uv pip install --quiet --only-binary :all: --no-binary pyric --no-binary psutil-home-assistant \
    --no-binary PyTurboJPEG --override /tmp/overrides "$@"; }
get homeassistant
cd "$(/venv/bin/python -c 'import homeassistant; print(homeassistant.__path__[0])')/components"
/venv/bin/python -c 'import json, sys
for name in sys.argv[1:]:
    print(*json.load(open(f"{name}/manifest.json")).get("requirements", []), sep="\n")' INTEGRATIONS > /tmp/more
get -r /tmp/more
""".replace("INTEGRATIONS", " ".join(INTEGRATIONS))
"""Three packages have no wheels, and nothing to compile."""

CONFIGURATION = """
homeassistant:
  name: House
  unit_system: metric
  country: DE
  language: en
http:
  server_host: 127.0.0.1
  server_port: {port}
conversation:
house:
logger:
  default: warning
"""
PATIENCE = 180  # seconds; a start takes ten
MINUTE = 60


def missing() -> str:
    """What a root needs and this machine does not have, in a sentence; "" for nothing."""
    if os.geteuid():
        return "a Debian root with Home Assistant needs root (debootstrap, chroot)"
    if not shutil.which("debootstrap", path=f"{os.environ['PATH']}:/usr/sbin"):
        return "debootstrap is missing (apt install debootstrap)"
    return ""


def make_root(root: Path, suite: str) -> None:
    """Raises CalledProcessError with what was printed, where the network has not what is needed."""
    if root.exists():
        return
    new = root.with_suffix(".new")
    shutil.rmtree(new, ignore_errors=True)
    new.parent.mkdir(parents=True, exist_ok=True)
    mirror = [os.environ["MIRROR"]] if "MIRROR" in os.environ else []
    _run(["debootstrap", "--variant=minbase", f"--include={DEBIAN}", suite, str(new), *mirror])
    _run(_inside(new, INSTALL))
    new.rename(root)


def _inside(root: Path, command: str) -> list[str]:
    """A shell's command in the root, with this machine's network; its processes end with it."""
    network = [f"touch {root}{file}; mount --bind {file} {root}{file}"
               for file in ("/etc/resolv.conf", "/etc/hosts", "/etc/ssl/certs/ca-certificates.crt")]
    outer = "; ".join(["set -e", f"mount -t proc proc {root}/proc", f"mount --rbind /dev {root}/dev", *network,
                       f'exec chroot {root} /bin/sh -c "$1"'])
    return ["unshare", "--mount", "--pid", "--fork", "--kill-child", "/bin/sh", "-c", outer, "sh", command]


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
    return {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8", **kept}


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                   env=_environment())


@dataclass
class HomeAssistant:
    """One that runs. token: a long-lived one of its owner."""

    url: str
    log: Path
    token: str = ""
    agent: str = ""
    http: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        self.http = httpx.Client(base_url=self.url, timeout=PATIENCE)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        answer = self.http.post(path, json=body)
        assert answer.status_code < 300, f"{path}: {answer.status_code} {answer.text[:1000]}"
        return answer.json()

    def begin(self) -> None:
        """Waits until it answers, and makes its owner and their long-lived token, as its first page does."""
        client = {"client_id": f"{self.url}/"}
        code = self.post("/api/onboarding/users", {
            **client, "name": "Owner", "username": "owner", "password": "house", "language": "en"})["auth_code"]
        given = self.http.post("/auth/token", data={**client, "grant_type": "authorization_code", "code": code}).json()
        with connect(self.url.replace("http", "ws", 1) + "/api/websocket") as socket:
            for message in ({"type": "auth", "access_token": given["access_token"]},
                            {"id": 1, "type": "auth/long_lived_access_token", "client_name": "proof", "lifespan": 1}):
                socket.recv(PATIENCE)  # that it waits for the first, and takes it
                socket.send(json.dumps(message))
            self.token = json.loads(socket.recv(PATIENCE))["result"]
        self.http.headers["authorization"] = f"Bearer {self.token}"
        until(lambda: self.config["state"] == "RUNNING", PATIENCE)  # before, its dialogs may lack a dependency

    @property
    def config(self) -> dict[str, Any]:
        return dict(self.http.get("/api/config").json())

    def add_agent(self, integration: str, daemon: str, model: str) -> None:
        """An integration with a conversation agent that may control the house, as its dialogs add them. Ollama's asks
        for the daemon's address; OpenAI's has it from the environment.
        """
        entry = self._fill("/api/config/config_entries/flow", integration, {"url": daemon, "api_key": "none"})
        given = {"name": "edgetune", "llm_hass_api": ["assist"], "model": model, "chat_model": model,
                 "recommended": False, "temperature": 0}
        self._fill("/api/config/config_entries/subentries/flow", [entry["result"]["entry_id"], "conversation"], given)
        self.agent = until(self._agent, PATIENCE)  # the integration is loaded again

    def _agent(self) -> str:
        ids = [state["entity_id"] for state in self.http.get("/api/states").json()]
        return next((name for name in ids if name.startswith("conversation.edgetune")), "")

    def _fill(self, flows: str, handler: object, given: dict[str, Any]) -> Any:
        """What a dialog has made. Each of its pages gets what it asks for."""
        form = self.post(flows, {"handler": handler})
        while form["type"] == "form" and not form["errors"]:
            asked = {each["name"] for each in form["data_schema"]}
            form = self.post(f"{flows}/{form['flow_id']}", {key: given[key] for key in given.keys() & asked})
        assert form["type"] == "create_entry", form
        return form

    def say(self, sentence: str) -> str:
        """The answer to a sentence in a new conversation; what went wrong where there is none, in brackets."""
        body = {"text": sentence, "language": "en", "agent_id": self.agent}
        try:
            answer = self.http.post("/api/conversation/process", json=body, timeout=PATIENCE)
        except httpx.TimeoutException:
            return f"[no answer within {PATIENCE} seconds]"
        if answer.status_code >= 300:
            return f"[{answer.status_code}: {answer.text[:200]}]"
        return str(answer.json()["response"]["speech"].get("plain", {}).get("speech", ""))

    def states(self) -> dict[str, dict[str, Any]]:
        """State and attributes of each entity of the house."""
        told = self.http.get("/api/states").json()
        return {each["entity_id"]: {"state": each["state"], **each["attributes"]} for each in told
                if each["attributes"].get("house")}

    def set_up(self, given: dict[str, dict[str, Any]]) -> None:
        """The house as its file has it, besides what is given: properties by entity."""
        self.post("/api/services/house/begin", {"given": given})


@contextmanager
def home_assistant(root: Path, entities: Path, log: Path, openai: str) -> Iterator[HomeAssistant]:
    """It has an owner and the house of a file; it has ended when this is left. openai: the address of OpenAI's API."""
    config = root / "config"
    shutil.rmtree(config, ignore_errors=True)
    shutil.copytree(HOUSE, config / "custom_components" / "house", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(entities, config / "house.yaml")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (config / "configuration.yaml").write_text(textwrap.dedent(CONFIGURATION).format(port=port))
    with log.open("w") as file:
        running = subprocess.Popen(_inside(root, "exec /venv/bin/hass --config /config --skip-pip"), stdout=file,
                                   stderr=subprocess.STDOUT, env={**_environment(), "OPENAI_BASE_URL": openai})
    home = HomeAssistant(f"http://127.0.0.1:{port}", log)
    try:
        _wait(home, running)
        home.begin()
        yield home
    finally:
        home.http.close()
        running.kill()  # unshare, and with it all that runs in the root
        running.wait(MINUTE)


def _wait(home: HomeAssistant, running: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        assert running.poll() is None, f"Home Assistant has ended:\n{home.log.read_text()[-3000:]}"
        try:
            if home.http.get("/api/onboarding").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise AssertionError(f"Home Assistant does not answer:\n{home.log.read_text()[-3000:]}")


# ---- what it asks ----------------------------------------------------------------------------------------------------


ANSWER = 600  # seconds


@contextmanager
def overheard(url: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The address of a proxy before a daemon, and the bodies of what clients asked of /api/chat so far."""
    heard: list[dict[str, Any]] = []

    class Handler(Quiet):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            if self.path == "/api/chat":
                heard.append(json.loads(body))
            with httpx.stream(self.command, url + self.path, content=body, timeout=ANSWER) as answer:
                self.send_response(answer.status_code)
                self.send_header("content-type", answer.headers["content-type"])
                self.end_headers()
                with suppress(BrokenPipeError):  # the client no longer waits, so the daemon need not either
                    for part in answer.iter_bytes():
                        self.wfile.write(part)

        do_GET = do_POST

    with served_by(Handler) as proxy:
        yield proxy, heard
